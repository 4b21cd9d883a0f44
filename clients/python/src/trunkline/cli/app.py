"""The root of the command line: options for every command, errors, exit codes."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import click

from trunkline import Client, TrunklineError, __version__
from trunkline._shared.profiles import Profiles, folder_of, resolve
from trunkline.cli.exits import MEANINGS, Exit, exit_of, line_of

USER_AGENT = f"trunkline-cli/{__version__}"
_EPILOG = "\b\nExit codes:\n" + "\n".join(
    f"  {int(code):>3}  {meaning}" for code, meaning in MEANINGS.items()
)


@dataclass(frozen=True, slots=True)
class Setup:
    """What the options before the command say."""

    profile: str | None
    environment: dict[str, str]

    @property
    def profiles(self) -> Profiles:
        return Profiles(folder_of(self.environment))

    def client(self) -> Client:
        found = resolve(self.profile, self.environment)
        return Client(
            found.address,
            api_key=found.api_key,
            tokens=found.tokens,
            tls=found.tls,
            ca_file=found.ca_file,
            user_agent=USER_AGENT,
        )


pass_setup = click.make_pass_decorator(Setup)


@click.group(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="trunkline")
@click.option("--profile", help="Profile to use instead of the current one.")
@click.option("--address", help="Server to use: host:port, or https://host:port.")
@click.pass_context
def root(context: click.Context, profile: str | None, address: str | None) -> None:
    """Members, rosters, articles and numbers of a Trunkline service.

    Credentials come from `trunkline login`, or from TRUNKLINE_ADDRESS and TRUNKLINE_API_KEY.
    """
    environment = dict(os.environ)
    if address:
        environment["TRUNKLINE_ADDRESS"] = address
    context.obj = Setup(profile, environment)


def run(arguments: Sequence[str]) -> int:
    """Run a command line; returns its exit code."""
    from trunkline.cli import access, articles, imports, members, stats

    for module in (access, members, imports, articles, stats):
        for command in module.COMMANDS:
            root.add_command(command)
    try:
        code = root.main(list(arguments), prog_name="trunkline", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else Exit.DONE
    except TrunklineError as error:
        click.echo(f"trunkline: {line_of(error)}", err=True)
        return exit_of(error)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.Abort:
        click.echo("trunkline: stopped.", err=True)
        return Exit.CTRL_C
    except click.ClickException as error:
        error.show()
        return Exit.USAGE
    except KeyboardInterrupt:
        click.echo("trunkline: stopped.", err=True)
        return Exit.CTRL_C
    except (BrokenPipeError, SystemExit):
        # The reader of a pipe has seen enough (click leaves by SystemExit then, and only then);
        # what is buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.DONE
