"""``cadenza environment``: namespaces of apps and secrets, and who may do what in them."""

from __future__ import annotations

import click

from cadenza.cli import show
from cadenza.cli.connection import ask
from cadenza.protocol import accounts

role_option = click.option(
    "--role", required=True, type=click.Choice(accounts.ENVIRONMENT_ROLES), help="The role in the environment."
)
service_user_option = click.option("--service-user", is_flag=True, help="PRINCIPAL is the name of a service user.")


@click.group(
    help="Make environments, and say who may do what in them. An environment is a namespace of apps and secrets."
)
def environment() -> None:
    pass


@environment.command("list", help="List the environments that you may see.")
@click.option("--json", "json_output", is_flag=True, help="Print JSON.")
def list_environments(json_output: bool) -> None:
    found = ask("environment.list", accounts.EnvironmentList()).environments
    show.table(
        "Environments",
        ["Name", "Web suffix", "Default", "Restricted", "Default role", "Apps", "Created at"],
        [
            (
                one.name,
                one.web_suffix,
                _yes(one.is_default),
                _yes(one.restricted),
                one.default_role,
                show.Cell(str(one.apps), one.apps),
                show.when(one.created_at),
            )
            for one in found
        ],
        json_output,
    )


def _yes(value: bool) -> show.Cell:
    return show.Cell("yes" if value else "", value)


@environment.command("create", help="Make an environment.")
@click.argument("name")
@click.option("--restricted", is_flag=True, help="Members may do in it only what their role there allows.")
@click.option(
    "--default-role",
    default="",
    help="Of a restricted environment: the role of members without one of their own. Else no-access.",
)
@click.option("--public", is_flag=True, hidden=True)
def create(name: str, restricted: bool, default_role: str, public: bool) -> None:
    if public and restricted:
        raise click.UsageError("--public and --restricted exclude each other")
    made = ask("environment.create", accounts.EnvironmentCreate(name, restricted, default_role))
    click.echo(f"Made the environment {made.name}.")


@environment.command("update", help="Change an environment.")
@click.argument("current_name")
@click.option("--set-name", help="A new name.")
@click.option("--set-web-suffix", help="A new web suffix; the empty string is none.")
@click.option("--set-image-builder-version", help="The image builder's version; empty: the workspace's.")
def update(
    current_name: str, set_name: str | None, set_web_suffix: str | None, set_image_builder_version: str | None
) -> None:
    if set_name is None and set_web_suffix is None and set_image_builder_version is None:
        raise click.UsageError("say what to change: --set-name, --set-web-suffix or --set-image-builder-version")
    request = accounts.EnvironmentUpdate(current_name, set_name, set_web_suffix, set_image_builder_version)
    click.echo(f"Changed the environment {ask('environment.update', request).name}.")


@environment.command("delete", help="Delete an environment and its secrets.")
@click.argument("name")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def delete(name: str, yes: bool) -> None:
    if not yes:
        click.confirm(f"Delete the environment {name} with all its secrets?", abort=True)
    ask("environment.delete", accounts.EnvironmentRef(name))
    click.echo(f"Deleted the environment {name}.")


def _list_roles(environment_name: str, exclude_default: bool, json_output: bool) -> None:
    found = ask("role.list", accounts.RoleList(environment_name)).roles
    show.table(
        "Roles",
        ["Principal", "Kind", "Role", "Direct"],
        [
            (one.principal, "service user" if one.service_user else "member", one.role, _yes(one.direct))
            for one in found
            if one.direct or not exclude_default
        ],
        json_output,
    )


def _set_role(environment_name: str, principal: str, role: str, service_user: bool) -> None:
    ask("role.set", accounts.RoleSet(environment_name, principal, role, service_user))
    click.echo(f"{principal} has the {'role ' + role if role else 'default role'} in {environment_name}.")


@environment.group("roles", help="See and set who may do what in an environment.")
def roles() -> None:
    pass


@roles.command("list", help="List the role of each member and service user in ENVIRONMENT.")
@click.argument("environment_name", metavar="ENVIRONMENT")
@click.option("--exclude-default", is_flag=True, help="Only roles that were set directly.")
@click.option("--json", "json_output", is_flag=True, help="Print JSON.")
def list_roles(environment_name: str, exclude_default: bool, json_output: bool) -> None:
    _list_roles(environment_name, exclude_default, json_output)


@roles.command("update", help="Set the role of PRINCIPAL in ENVIRONMENT.")
@click.argument("environment_name", metavar="ENVIRONMENT")
@click.argument("principal")
@role_option
@service_user_option
def update_role(environment_name: str, principal: str, role: str, service_user: bool) -> None:
    _set_role(environment_name, principal, role, service_user)


@environment.group("members", hidden=True, help="The former name of `environment roles`.")
def members() -> None:
    pass


@members.command("list", help="Use `environment roles list`.")
@click.argument("environment_name", metavar="ENVIRONMENT")
@click.option("--json", "json_output", is_flag=True, help="Print JSON.")
def list_members(environment_name: str, json_output: bool) -> None:
    _list_roles(environment_name, False, json_output)


@members.command("update", help="Use `environment roles update`.")
@click.argument("environment_name", metavar="ENVIRONMENT")
@click.argument("principal")
@role_option
@service_user_option
def update_member(environment_name: str, principal: str, role: str, service_user: bool) -> None:
    _set_role(environment_name, principal, role, service_user)


@members.command("remove", help="Give PRINCIPAL the environment's default role again.")
@click.argument("environment_name", metavar="ENVIRONMENT")
@click.argument("principal")
@service_user_option
def remove_member(environment_name: str, principal: str, service_user: bool) -> None:
    _set_role(environment_name, principal, "", service_user)
