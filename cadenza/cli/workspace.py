"""``cadenza workspace``: members, their tokens, service users, settings."""

from __future__ import annotations

from typing import Any

import click

from cadenza.cli import show
from cadenza.cli.connection import ask
from cadenza.cli.tokens import expires_in_option
from cadenza.protocol import accounts
from cadenza.protocol.method import Empty

yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask.")
missing_option = click.option("--allow-missing", is_flag=True, help="It is no error when there is none.")
json_option = click.option("--json", "json_output", is_flag=True, help="Print JSON.")


@click.group(help="See and change members, service users, tokens and settings of this server.")
def workspace() -> None:
    pass


# --- members ---


@workspace.group(help="See, add and remove members: names for people, each with tokens and a role.")
def members() -> None:
    pass


@members.command("list", help="List the members.")
@json_option
def list_members(json_output: bool) -> None:
    found = ask("user.list", accounts.UserList()).users
    show.table(
        "Members",
        ["Name", "User ID", "Role", "Tokens", "Joined at"],
        [
            (one.name, one.user_id, one.role, show.Cell(str(one.tokens), one.tokens), show.when(one.created_at))
            for one in found
        ],
        json_output,
    )


@members.command("add", help="Add the member NAME; prints its first token.")
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(accounts.WORKSPACE_ROLES),
    default=accounts.MEMBER,
    show_default=True,
    help="What it may do in the workspace.",
)
@expires_in_option
@json_option
def add_member(name: str, role: str, expires_in: float, json_output: bool) -> None:
    made = ask("user.create", accounts.UserCreate(name, role, expires_in_s=expires_in))
    _say_token(name, made, json_output)


@members.command("set-role", help="Change what the member NAME may do in the workspace.")
@click.argument("name")
@click.argument("role", type=click.Choice(accounts.WORKSPACE_ROLES))
def set_member_role(name: str, role: str) -> None:
    ask("user.set_role", accounts.UserSetRole(name, role))
    click.echo(f"{name} is {role} now.")


@members.command("remove", help="Remove the member NAME and its tokens.")
@click.argument("name")
@missing_option
@yes_option
def remove_member(name: str, allow_missing: bool, yes: bool) -> None:
    if not yes:
        click.confirm(f"Remove {name} and all its tokens?", abort=True)
    ask("user.delete", accounts.UserDelete(name, allow_missing=allow_missing))
    click.echo(f"{name} is no member any more.")


def _say_token(name: str, made: Any, json_output: bool) -> None:
    if json_output:
        expires = show.when(made.expires_at).raw
        show.as_json(
            {"name": name, "token_id": made.token_id, "token_secret": made.token_secret, "expires_at": expires}
        )
        return
    click.echo(f"Made {name}. Its token; the secret is not shown again:")
    click.echo(f"  token id      {made.token_id}")
    click.echo(f"  token secret  {made.token_secret}")


# --- tokens of members ---


@workspace.group("member-tokens", help="See, disable and delete the tokens of members.")
def member_tokens() -> None:
    pass


@member_tokens.command("list", help="List tokens: your own, and of owners and managers all.")
@json_option
def list_tokens(json_output: bool) -> None:
    found = [one for one in ask("token.list", accounts.TokenList()).tokens if not one.service_user]
    show.table(
        "Tokens",
        ["Token ID", "Name", "Member", "Scopes", "Environments", "Created at", "Last used", "Expires at", "Disabled"],
        [
            (
                one.token_id,
                one.name,
                one.user,
                show.Cell(", ".join(one.scopes) or "all", list(one.scopes)),
                show.Cell(", ".join(one.environments) or "all", list(one.environments)),
                show.when(one.created_at),
                show.when(one.used_at),
                show.when(one.expires_at),
                show.Cell("yes" if one.disabled else "", one.disabled),
            )
            for one in found
        ],
        json_output,
    )


@member_tokens.command("disable", help="Let nobody in with these tokens.")
@click.argument("token_ids", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All that you may change, the one in use too.")
@yes_option
def disable(token_ids: tuple[str, ...], every: bool, yes: bool) -> None:
    if every == bool(token_ids):
        raise click.UsageError("give token ids, or --all")
    if not yes:
        click.confirm(f"Disable {'all tokens' if every else ', '.join(token_ids)}?", abort=True)
    ask("token.disable", accounts.TokenDisable(token_ids, every))
    click.echo("Disabled.")


@member_tokens.command("enable", help="Let these tokens in again.")
@click.argument("token_ids", nargs=-1)
@yes_option
def enable(token_ids: tuple[str, ...], yes: bool) -> None:
    if not token_ids:
        raise click.UsageError("give token ids")
    ask("token.disable", accounts.TokenDisable(token_ids, disabled=False))
    click.echo("Enabled.")


@member_tokens.command("delete", help="Delete a token for good.")
@click.argument("token_id")
@missing_option
@yes_option
def delete_token(token_id: str, allow_missing: bool, yes: bool) -> None:
    if not yes:
        click.confirm(f"Delete the token {token_id}?", abort=True)
    ask("token.delete", accounts.TokenRef(token_id, allow_missing))
    click.echo(f"The token {token_id} is gone.")


# --- service users ---


@workspace.group(
    "service-users",
    help="See, make and remove service users: names for programs, each with a token. For owners and managers.",
)
def service_users() -> None:
    pass


@service_users.command("create", help="Make the service user NAME; prints its token.")
@click.argument("name")
@expires_in_option
@json_option
def create_service_user(name: str, expires_in: float, json_output: bool) -> None:
    made = ask("user.create", accounts.UserCreate(name, service_user=True, expires_in_s=expires_in))
    _say_token(name, made, json_output)


@service_users.command("list", help="List the service users.")
@json_option
def list_service_users(json_output: bool) -> None:
    rows = [_service_user(one, tokens) for one, tokens in _service_users()]
    show.table("Service users", list(rows[0]) if rows else ["Name"], [list(one.values()) for one in rows], json_output)


@service_users.command("info", help="Show one service user.")
@click.argument("name")
@json_option
def info(name: str, json_output: bool) -> None:
    for one, tokens in _service_users():
        if one.name == name:
            found = _service_user(one, tokens)
            if json_output:
                show.as_json({key.lower().replace(" ", "_"): show._raw(value) for key, value in found.items()})
                return
            for key, value in found.items():
                click.echo(f"{key:<18}{value.shown if isinstance(value, show.Cell) else value}")
            return
    raise click.ClickException(f"there is no service user {name!r}")


def _service_users() -> list[tuple[accounts.UserInfo, list[accounts.TokenInfo]]]:
    tokens = [one for one in ask("token.list", accounts.TokenList()).tokens if one.service_user]
    users = ask("user.list", accounts.UserList(service_users=True)).users
    return [(user, [one for one in tokens if one.user == user.name]) for user in users]


def _service_user(user: accounts.UserInfo, tokens: list[accounts.TokenInfo]) -> dict[str, Any]:
    newest = tokens[-1] if tokens else None
    roles = dict(user.roles)
    return {
        "Name": user.name,
        "Service user ID": user.user_id,
        "Token ID": newest.token_id if newest else "",
        "Created by": user.created_by,
        "Created at": show.when(user.created_at),
        "Last used": show.when(newest.used_at if newest else 0),
        "Expires at": show.when(newest.expires_at if newest else 0),
        "Environment roles": show.Cell(", ".join(f"{name}: {role}" for name, role in roles.items()), roles),
    }


@service_users.command("set-role", help="Set the role of a service user in a restricted environment.")
@click.argument("service_user_name")
@click.argument("environment_name")
@click.argument("role")
def set_service_user_role(service_user_name: str, environment_name: str, role: str) -> None:
    ask("role.set", accounts.RoleSet(environment_name, service_user_name, role, True))
    click.echo(f"{service_user_name} has the role {role} in {environment_name}.")


@service_users.command("delete", help="Remove the service user NAME and its tokens.")
@click.argument("name")
@missing_option
@yes_option
def delete_service_user(name: str, allow_missing: bool, yes: bool) -> None:
    if not yes:
        click.confirm(f"Remove the service user {name} and its tokens?", abort=True)
    ask("user.delete", accounts.UserDelete(name, True, allow_missing))
    click.echo(f"The service user {name} is gone.")


# --- settings ---


@workspace.group(help="See and change the workspace's settings. For owners and managers.")
def settings() -> None:
    pass


@settings.command("list", help="Show the settings.")
@json_option
def list_settings(json_output: bool) -> None:
    _show_settings(ask("workspace.get", Empty()), json_output)


def _show_settings(found: accounts.WorkspaceSettings, json_output: bool) -> None:
    values = {
        "default_environment": found.default_environment,
        "image_builder_version": found.image_builder_version,
    }
    if json_output:
        show.as_json(values)
    else:
        show.table("Settings", ["Setting", "Value"], list(values.items()), False)


@settings.command("set", help="Change a setting: default_environment or image_builder_version.")
@click.argument("setting")
@click.argument("value")
def set_setting(setting: str, value: str) -> None:
    ask("workspace.set", accounts.WorkspaceSet(setting, value))
    click.echo(f"Set {setting}.")
