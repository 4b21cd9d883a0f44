"""The help of every command, kept: a change shows in the diff. `python -m tests.cli.test_help`"""

from pathlib import Path

import click

from trunkline.cli import access, articles, imports, members, stats
from trunkline.cli.app import root

GOLDEN = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"
WIDTH = 90


def whole() -> click.Group:
    for module in (access, members, imports, articles, stats):
        for command in module.COMMANDS:
            root.add_command(command)
    return root


def pages(command: click.Command, path: str) -> list[str]:
    context = click.Context(command, info_name=path, max_content_width=WIDTH, terminal_width=WIDTH)
    found = [f"## {path}\n\n```\n{command.get_help(context)}\n```\n"]
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found += pages(command.commands[name], f"{path} {name}")
    return found


def render() -> str:
    head = "<!-- Made by tests/cli/test_help.py. -->\n\n# The command `trunkline`\n"
    return "\n".join([head, *pages(whole(), "trunkline")])


def test_the_reference_shows_the_help_of_every_command() -> None:
    assert GOLDEN.read_text("utf-8") == render()


def test_every_command_and_option_says_what_it_does() -> None:
    def check(command: click.Command, path: str) -> None:
        assert command.help, path
        if isinstance(command, click.Group):
            for name, child in command.commands.items():
                check(child, f"{path} {name}")

    check(whole(), "trunkline")


if __name__ == "__main__":
    GOLDEN.write_text(render(), "utf-8")
