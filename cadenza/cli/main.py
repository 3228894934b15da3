"""The ``cadenza`` command. Subcommands are imported when they are used: ``--help`` costs next to nothing."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from cadenza import __version__
from cadenza.cli.lazy import Guessing, load

COMMANDS: dict[str, tuple[str, str]] = {
    # name: (module:object, one line of help)
    "run": ("cadenza.cli.run:run", "Run a function or a local entrypoint in containers on this machine."),
    "deploy": ("cadenza.cli.deployments:deploy", "Put an app in force that stays, or a new version of it."),
    "serve": ("cadenza.cli.serve:serve", "Run an app and publish it again whenever its files change."),
    "shell": ("cadenza.cli.shell:shell", "Run a command or a shell in a container."),
    "app": ("cadenza.cli.apps:app", "Look at apps, read their logs, change which version runs, stop them."),
    "function": ("cadenza.cli.functions:function", "Look at functions, read their logs, change how they scale."),
    "container": ("cadenza.cli.containers:container", "Look at containers, enter them, stop them."),
    "image": ("cadenza.cli.images:image", "Build images, bring them here, name them, look at them, remove them."),
    "schedule": ("cadenza.cli.schedules:schedule", "Look at what runs by itself; run it now, pause it."),
    "secret": ("cadenza.cli.secrets:secret", "Store sets of variables that functions see and nobody is shown."),
    "environment": ("cadenza.cli.environments:environment", "Make environments, and say who may do what in them."),
    "token": ("cadenza.cli.tokens:token", "Make tokens, and say which is in use."),
    "workspace": ("cadenza.cli.workspace:workspace", "See and change members, service users, tokens and settings."),
    "profile": ("cadenza.cli.profiles:profile", "Switch between profiles of the configuration file."),
    "config": ("cadenza.cli.config:config", "Show and set the configuration."),
    "setup": ("cadenza.cli.setup:setup", "Write a configuration file, and see whether the server runs."),
    "completion": ("cadenza.cli.completion:completion", "Print the script that makes a shell complete what you type."),
    "up": ("cadenza.cli.up:up", "Start this user's server and keep it running."),
    "down": ("cadenza.cli.up:down", "Stop this user's server."),
    "status": ("cadenza.cli.up:status", "Show what the server is doing."),
    "doctor": ("cadenza.cli.doctor:doctor", "Say what this machine can do, what it cannot, and what mends it."),
}


class Lazy(Guessing):
    """The commands of `COMMANDS`: listing them imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        row = COMMANDS.get(cmd_name)
        return None if row is None else load(row[0])

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=Lazy,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Serverless compute on machines that you own.",
)
@click.version_option(__version__, prog_name="cadenza")
@click.option("--profile", metavar="NAME", help="Use this profile of the configuration file.")
def cli(profile: str | None) -> None:
    if profile:
        os.environ["CADENZA_PROFILE"] = profile


def main(argv: list[str] | None = None) -> Any:
    """The program. Exit status: 0 done, 1 it failed, 2 wrong usage, 130 interrupted, 143 terminated."""
    try:
        code = cli.main(args=argv, prog_name="cadenza", standalone_mode=False)
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt) as error:
        if error.__cause__ is None and isinstance(error.__context__, EOFError):  # as `click.confirm` raises it
            print(
                "\nError: standard input ended before the answer; -y/--yes answers where it is taken", file=sys.stderr
            )
            code = 1
        elif isinstance(error, click.Abort) and error.__context__ is None:  # the answer was no
            print("Nothing was done.", file=sys.stderr)
            code = 1
        else:
            print("Interrupted.", file=sys.stderr)
            code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 1
    except Exception as error:
        from cadenza.base.errors import Error

        if not isinstance(error, Error):
            raise
        from cadenza.cli.show import failure

        failure(error)
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
