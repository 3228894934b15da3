"""``cadenza token``: what this user's programs show to the server, kept in a profile of the configuration file.

New tokens are made as the server's own user, whom the kernel names by the socket: no token is needed for the first one.
"""

from __future__ import annotations

import os
from typing import Any

import click

from cadenza.base.config import load
from cadenza.base.errors import Error
from cadenza.cli import configfile, show
from cadenza.protocol.accounts import Identity, TokenCreate, TokenCreated, TokenList, TokenRef
from cadenza.protocol.method import SCOPES, Empty
from cadenza.sdk import _dual
from cadenza.sdk.client import Client
from cadenza.sdk.workspace import lifetime_s


def ask_as(credentials: tuple[str, str] | None, method: str, request: Any) -> Any:
    """One request on a connection of its own. ``credentials`` None: the server's own user, without a token."""

    async def asking() -> Any:
        client = Client("", None, credentials or ("", ""))
        try:
            return await client._request(method, request)
        finally:
            await client.close.aio()

    return _dual.run(asking())


def destination() -> str:
    """The profile that gets a token. One that is named and not there yet is made, so it counts no more from here on."""
    text = configfile.read()
    profile = configfile.check_profile(configfile.in_use(text))
    if profile not in configfile.names(text):
        for name in configfile.PROFILE_VARIABLES:
            os.environ.pop(name, None)
    return profile


def held(profile: str) -> tuple[str, str]:
    """The token of a profile, from the file alone; empty strings for none."""
    if profile not in configfile.names(configfile.read()):
        return "", ""
    kept = {name: one for name, one in os.environ.items() if "_TOKEN_" not in name}
    found = load({**kept, "CADENZA_PROFILE": profile})
    return found.token_id, found.token_secret


def put(profile: str, token_id: str, secret: str, activate: bool) -> None:
    """Write a token into a profile."""
    text = configfile.read()
    text = configfile.with_setting(text, profile, "token_secret", configfile.quoted(secret))
    text = configfile.with_setting(text, profile, "token_id", configfile.quoted(token_id))
    if activate:
        text = configfile.activated(text, profile)
    path = configfile.save(text)
    click.echo(f"The token {token_id} is in the profile {profile} of {path}.")
    if os.environ.get("CADENZA_TOKEN_ID"):
        click.echo("CADENZA_TOKEN_ID is set, and goes before the profile.", err=True)


def verified(token_id: str, secret: str) -> Identity:
    """What the server makes of a token. click.ClickException when it does not take it."""
    try:
        found: Identity = ask_as((token_id, secret), "account.whoami", Empty())
    except Error as error:
        raise click.ClickException(f"the server does not take the token: {error}") from None
    return found


def parse_lifetime(ctx: click.Context, parameter: click.Parameter, value: str | None) -> float:
    """``--expires-in`` as seconds; 0: never."""
    try:
        return lifetime_s(value, "--expires-in")
    except Error as error:
        raise click.BadParameter(str(error)) from None


expires_in_option = click.option(
    "--expires-in", callback=parse_lifetime, metavar="TIME", help="Lifetime: seconds, or 12h, 7d, 90d. Else for ever."
)
activate_option = click.option(
    "--activate/--no-activate", default=True, show_default=True, help="Make the token's profile the active one."
)
verify_option = click.option("--verify/--no-verify", default=True, show_default=True, help="Try the token.")
delete_option = click.option("--delete-existing", is_flag=True, help="Delete the token that the profile has now.")


@click.group(help="Make tokens, and say which is in use. Without one you are the server's own user.")
def token() -> None:
    pass


@token.command("new", help="Make a token on the server and put it into the profile.")
@activate_option
@verify_option
@expires_in_option
@delete_option
@click.option("--user", default="", metavar="NAME", help="For this member or service user.")
@click.option("--name", default="", help="A name that says what it is for.")
@click.option("--scope", "scopes", multiple=True, type=click.Choice(SCOPES), help="Allow no more than this.")
@click.option("--only", "environments", multiple=True, metavar="ENVIRONMENT", help="Allow this environment alone.")
@click.option("--json", "json_output", is_flag=True, help="Print the token as JSON, and write it nowhere.")
def new(
    activate: bool,
    verify: bool,
    expires_in: float,
    delete_existing: bool,
    user: str,
    name: str,
    scopes: tuple[str, ...],
    environments: tuple[str, ...],
    json_output: bool,
) -> None:
    request = TokenCreate(user, name, scopes, environments, expires_in)
    if json_output:
        if delete_existing:
            raise click.UsageError("--delete-existing is about the profile; with --json no profile is touched")
        made = ask_as(None, "token.create", request)
        show.as_json(
            {
                "token_id": made.token_id,
                "token_secret": made.token_secret,
                "expires_at": show.when(made.expires_at).raw,
            }
        )
        return
    profile = destination()
    old = held(profile)[0]
    made = ask_as(None, "token.create", request)
    if verify:
        verified(made.token_id, made.token_secret)
    put(profile, made.token_id, made.token_secret, activate)
    if delete_existing and old:
        _delete(old)


@token.command("set", help="Put a token that you have into the profile.")
@click.option("--token-id", help="Its id.")
@click.option(
    "--token-secret", help="Its secret; asked for when it is not given. Others on this machine see arguments."
)
@activate_option
@verify_option
@delete_option
def set_token(
    token_id: str | None, token_secret: str | None, activate: bool, verify: bool, delete_existing: bool
) -> None:
    token_id = token_id or click.prompt("Token ID")
    token_secret = token_secret or click.prompt("Token secret", hide_input=True)
    if not (token_id.startswith("ak-") and token_secret.startswith("as-")):
        raise click.UsageError("a token's id begins with ak-, its secret with as-")
    profile = destination()
    old = held(profile)[0]
    if verify:
        verified(token_id, token_secret)
    put(profile, token_id, token_secret, activate)
    if delete_existing and old and old != token_id:
        _delete(old)


@token.command("info", help="Show whose token is in use, and what it may do.")
@click.option("--json", "json_output", is_flag=True, help="Print JSON.")
def info(json_output: bool) -> None:
    from cadenza.cli.connection import ask

    found = ask("account.whoami", Empty())
    expires = show.when(found.expires_at)
    if json_output:
        show.as_json(
            {
                "token_id": found.token_id or None,
                "user": found.user,
                "role": found.role,
                "scopes": list(found.scopes or SCOPES),
                "environments": list(found.environments) or None,
                "expires_at": expires.raw,
            }
        )
        return
    rows = [
        ("Token", found.token_id or "none: the server's own user, by its socket"),
        ("User", found.user),
        ("Role", found.role),
        ("Scopes", ", ".join(found.scopes or SCOPES)),
        ("Environments", ", ".join(found.environments) or "all"),
        ("Expires", expires.shown or "never"),
    ]
    for name, value in rows:
        click.echo(f"{name:<14}{value}")


@token.command("rotate", help="Make a new token like the one in the profile, and delete that.")
@expires_in_option
def rotate(expires_in: float) -> None:
    profile = destination()
    old = held(profile)[0]
    if not old:
        raise click.ClickException(f"the profile {profile} has no token: `cadenza token new` makes one")
    found = ask_as(None, "token.list", TokenList())
    owner = next((one.user for one in found.tokens if one.token_id == old), None)
    if owner is None:
        raise click.ClickException(f"the server has no token {old} any more: `cadenza token new` makes one")
    made: TokenCreated = ask_as(None, "token.create", TokenCreate(owner, expires_in_s=expires_in, replaces=old))
    put(profile, made.token_id, made.token_secret, False)
    click.echo(f"The token {old} is gone.")


def _delete(token_id: str) -> None:
    ask_as(None, "token.delete", TokenRef(token_id, allow_missing=True))
    click.echo(f"The token {token_id} is gone.")
