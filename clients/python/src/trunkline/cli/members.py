"""members validate | get | search | list | history | export | watch | create."""

import sys
from typing import BinaryIO

import click

from trunkline._shared.enums import name_of, names_of
from trunkline.api.members.v1 import members_service_pb2 as pb
from trunkline.cli.app import Setup, pass_setup
from trunkline.cli.exits import Exit
from trunkline.cli.output import emit, emit_line, emit_one, output_option, printable

_MEMBER = (
    ("number", "member_number"),
    ("given name", "given_name"),
    ("family name", "family_name"),
    ("plan", "plan"),
    ("status", "status"),
    ("from", "effective_from"),
    ("to", "effective_to"),
)
_DETAILS = (
    ("id", "member_id"),
    *_MEMBER,
    ("email", "email"),
    ("phone", "phone"),
    ("born", "date_of_birth"),
    ("version", "version"),
    ("updated", "update_time"),
    ("source", "provenance.summary"),
)
_MATCHES = (("score", "score"), *((heading, f"member.{path}") for heading, path in _MEMBER))
_VERSIONS = (
    ("version", "version"),
    ("cause", "cause"),
    ("changed", "changed_fields"),
    ("since", "start_time"),
    ("status", "member.status"),
    ("source", "provenance.summary"),
)
_CHANGES = (
    ("time", "change_time"),
    ("cause", "cause"),
    ("number", "member.member_number"),
    ("status", "member.status"),
)
_VALIDATION = (
    ("decision", "decision"),
    ("plan", "plan"),
    ("from", "effective_from"),
    ("to", "effective_to"),
    ("as of", "as_of"),
    ("source", "provenance.summary"),
)
_STATUSES = click.Choice([name.lower() for name in names_of(pb.MemberStatus)], case_sensitive=False)


@click.group()
def members() -> None:
    """Validate, find and follow members."""


@members.command()
@click.argument("number")
@click.option("--date-of-birth", help="What the caller says, YYYY-MM-DD.")
@click.option("--family-name", default="", help="What the caller says.")
@click.option("--as-of", help="The day to decide about, YYYY-MM-DD.")
@click.option("--fresh", is_flag=True, help="Past every cache.")
@output_option
@pass_setup
def validate(
    setup: Setup,
    number: str,
    date_of_birth: str | None,
    family_name: str,
    as_of: str | None,
    fresh: bool,
    output: str,
) -> int:
    """Decide whether NUMBER is good, and say what to do next. Exits 0 only if it is."""
    with setup.client() as client:
        found = client.members.validate(
            number,
            date_of_birth=date_of_birth,
            family_name=family_name,
            as_of=as_of,
            consistency="FRESH" if fresh else "CACHED",
        )
    emit_one(found, _VALIDATION, output)
    if output == "table":
        for reason in found.reasons:
            click.echo(printable(f"{reason.text} {reason.next_step}"))
    eligible = name_of(pb.Decision, found.decision) == "ELIGIBLE"
    return Exit.DONE if eligible else Exit.NOT_ELIGIBLE


@members.command()
@click.argument("number")
@output_option
@pass_setup
def get(setup: Setup, number: str, output: str) -> None:
    """Show a member."""
    with setup.client() as client:
        emit_one(client.members.get(number), _DETAILS, output)


@members.command()
@click.argument("number")
@click.option("--given-name", default="")
@click.option("--family-name", default="")
@click.option("--email", default="")
@click.option("--phone", default="")
@click.option("--date-of-birth", help="YYYY-MM-DD.")
@click.option("--plan", default="")
@click.option("--effective-from", help="YYYY-MM-DD.")
@click.option("--effective-to", help="YYYY-MM-DD.")
@output_option
@pass_setup
def create(
    setup: Setup,
    number: str,
    given_name: str,
    family_name: str,
    email: str,
    phone: str,
    date_of_birth: str | None,
    plan: str,
    effective_from: str | None,
    effective_to: str | None,
    output: str,
) -> None:
    """Register a member."""
    with setup.client() as client:
        made = client.members.create(
            number,
            given_name=given_name,
            family_name=family_name,
            email=email,
            phone=phone,
            date_of_birth=date_of_birth,
            plan=plan,
            effective_from=effective_from,
            effective_to=effective_to,
        )
        emit_one(made, _DETAILS, output)


@members.command()
@click.argument("query")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 1000))
@output_option
@pass_setup
def search(setup: Setup, query: str, limit: int, output: str) -> None:
    """Find members by number, name, telephone or e-mail."""
    with setup.client() as client:
        emit(client.members.search(query, page_size=limit).first(limit), _MATCHES, output)


@members.command("list")
@click.option("--status", type=_STATUSES, multiple=True)
@click.option("--plan", multiple=True)
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1))
@output_option
@pass_setup
def list_(
    setup: Setup, status: tuple[str, ...], plan: tuple[str, ...], limit: int, output: str
) -> None:
    """List members."""
    with setup.client() as client:
        found = client.members.list(statuses=status, plans=plan, page_size=min(limit, 1000))
        emit(found.first(limit), _MEMBER, output)


@members.command()
@click.argument("number")
@output_option
@pass_setup
def history(setup: Setup, number: str, output: str) -> None:
    """List the versions of a member, newest first."""
    with setup.client() as client:
        member = client.members.get(number, show_deleted=True)
        emit(client.members.history(member.member_id), _VERSIONS, output)


@members.command()
@click.option("--to", "target", type=click.File("wb", lazy=True, atomic=True), help="A file.")
@click.option("--status", type=_STATUSES, multiple=True)
@pass_setup
def export(setup: Setup, target: BinaryIO | None, status: tuple[str, ...]) -> None:
    """Write members as CSV to standard output, or whole to a file."""
    statuses = [pb.MemberStatus.Value(f"MEMBER_STATUS_{name.upper()}") for name in status]
    file = target or sys.stdout.buffer
    with setup.client() as client:
        for part in client.members.export(pb.MemberFilter(statuses=statuses)):
            file.write(part)


@members.command()
@click.option("--from", "checkpoint", default="", help="A checkpoint a watch ended with.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table")
@pass_setup
def watch(setup: Setup, checkpoint: str, output: str) -> None:
    """Follow the changes of members. The checkpoint to go on from is printed at the end."""
    with setup.client() as client:
        changes = client.members.watch(checkpoint)
        try:
            for change in changes:
                emit_line(change, _CHANGES, output)
        finally:
            click.echo(f"checkpoint: {changes.checkpoint}", err=True)


COMMANDS = (members,)
