"""import FILE, and imports list | get | watch | rejects | commit | cancel | retry | undo."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import click

from trunkline._shared.enums import names_of
from trunkline._shared.progress import Progress
from trunkline._sync.imports import ImportJob
from trunkline.api.imports.v1 import imports_service_pb2 as pb
from trunkline.cli.app import Setup, pass_setup
from trunkline.cli.exits import Exit
from trunkline.cli.output import emit, emit_line, emit_one, output_option
from trunkline.errors import ImportFailed

_LIST = (
    ("import", "import_id"),
    ("state", "state"),
    ("file", "spec.file_name"),
    ("rows", "counters.rows_read"),
    ("created", "counters.created"),
    ("updated", "counters.updated"),
    ("rejected", "counters.rejected"),
    ("by", "actor_name"),
    ("opened", "create_time"),
)
_ONE = (
    *_LIST,
    ("unchanged", "counters.unchanged"),
    ("superseded", "counters.superseded"),
    ("terminated", "counters.terminated"),
    ("waits for", "queue.cause"),
    ("position", "queue.position"),
    ("plan", "plan.etag"),
    ("would create", "plan.created"),
    ("would update", "plan.updated"),
    ("would terminate", "plan.terminated"),
    ("problem", "problem.message"),
    ("ended", "end_time"),
)
_REJECTS = (
    ("row", "row_no"),
    ("line", "line_no"),
    ("column", "column"),
    ("code", "code"),
    ("message", "message"),
)
_STATES = click.Choice([name.lower() for name in names_of(pb.ImportState)], case_sensitive=False)
_FILE = click.Path(path_type=Path, allow_dash=True)
STDIN = Path("-")


@click.command("import")
@click.argument("file", type=_FILE)
@click.option("--dry-run", is_flag=True, help="Only check the file and make a plan.")
@click.option("--create", is_flag=True, help="Reject rows of members that exist.")
@click.option("--sync", is_flag=True, help="The whole roster: end members it does not name.")
@click.option("--atomic", is_flag=True, help="All rows at once at the end, or none.")
@click.option("--max-rejects", type=click.IntRange(0), help="Fail as soon as more are rejected.")
@click.option("--allow-rejects", is_flag=True, help="Rejected rows are no failure.")
@click.option("--parent", default="", help="The import whose rejects this file corrects.")
@click.option("--force", is_flag=True, help="Import the file although it was imported before.")
@click.option("--detach", is_flag=True, help="Do not wait for the workers.")
@click.option(
    "--resume/--restart", default=True, help="Go on with an unfinished upload, or begin anew."
)
@click.option("--journal/--no-journal", default=True, help="Keep a journal beside the file.")
@output_option
@pass_setup
def import_(
    setup: Setup,
    file: Path,
    dry_run: bool,
    create: bool,
    sync: bool,
    atomic: bool,
    max_rejects: int | None,
    allow_rejects: bool,
    parent: str,
    force: bool,
    detach: bool,
    resume: bool,
    journal: bool,
    output: str,
) -> int:
    """Upload a roster in CSV (`-` reads standard input) and wait until its rows are members."""
    if create and sync:
        raise click.UsageError("--create and --sync exclude each other.")
    with setup.client() as client, _progress_bar() as on_progress:
        try:
            job = client.imports.upload(
                sys.stdin.buffer if file == STDIN else file,
                mode="CREATE" if create else "SYNC" if sync else "UPSERT",
                commit="ATOMIC" if atomic else "PER_BATCH",
                dry_run=dry_run,
                max_rejects=max_rejects,
                parent_import_id=parent,
                allow_same_file=force,
                resume=resume,
                journal=journal,
                on_progress=on_progress,
            )
        except KeyboardInterrupt:
            _say_how_to_resume(file, journal)
            return Exit.CTRL_C
        if not detach:
            _wait(job, allow_rejects, on_progress)
    emit_one(job.state, _ONE, output)
    return Exit.DONE


def _wait(
    job: ImportJob, allow_rejects: bool, on_progress: Callable[[Progress], None] | None
) -> None:
    try:
        job.wait(allow_rejects=allow_rejects, on_progress=on_progress)
    except KeyboardInterrupt:
        click.echo(
            f"The import goes on without you: trunkline imports watch {job.import_id}", err=True
        )
        raise
    except ImportFailed as error:
        error.remedy += f" See: trunkline imports rejects {job.import_id}"
        raise


def _say_how_to_resume(file: Path, journal: bool) -> None:
    if file == STDIN or not journal:
        click.echo("trunkline: stopped; nothing was imported.", err=True)
        return
    click.echo(
        "trunkline: stopped. What was sent is kept for a day; the same command again"
        f" goes on from there: trunkline import {file}",
        err=True,
    )


@contextmanager
def _progress_bar() -> Iterator[Callable[[Progress], None] | None]:
    """Bytes on their way up, then rows as workers read them. Only for people."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[rows]}"),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None, rows="")

        def show(progress: Progress) -> None:
            uploading = progress.state in ("CREATED", "UPLOADING")
            done = progress.bytes_stored if uploading else progress.bytes_processed
            speed = bar.tasks[0].elapsed or 0
            per_second = f"{progress.rows_read / speed:,.0f} rows/s" if speed else ""
            waits = f" ({progress.waits_for.lower()})" if progress.waits_for else ""
            bar.update(
                task,
                completed=done,
                total=progress.bytes_total,
                description=progress.state.lower() + waits,
                rows=f"{progress.rows_read:,} rows, {progress.rows_rejected:,} rejected "
                f"{per_second}",
            )

        yield show


@click.group()
def imports() -> None:
    """Follow and steer imports."""


@imports.command("list")
@click.option("--state", type=_STATES, multiple=True)
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1))
@output_option
@pass_setup
def list_(setup: Setup, state: tuple[str, ...], limit: int, output: str) -> None:
    """List imports, newest first."""
    with setup.client() as client:
        found = client.imports.list(states=state, page_size=min(limit, 1000))
        emit(found.first(limit), _LIST, output)


@imports.command()
@click.argument("import_id")
@output_option
@pass_setup
def get(setup: Setup, import_id: str, output: str) -> None:
    """Show an import."""
    with setup.client() as client:
        emit_one(client.imports.get(import_id), _ONE, output)


@imports.command()
@click.argument("import_id")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table")
@pass_setup
def watch(setup: Setup, import_id: str, output: str) -> None:
    """Follow an import to its end."""
    with setup.client() as client:
        for found in client.imports.watch(import_id):
            emit_line(found, _LIST[1:7], output)


@imports.command()
@click.argument("import_id")
@click.option("--csv", "target", type=click.File("wb", lazy=True), help="All columns, to a file.")
@output_option
@pass_setup
def rejects(setup: Setup, import_id: str, target: BinaryIO | None, output: str) -> None:
    """List the rows that were not imported, or write them to a file to be corrected."""
    with setup.client() as client:
        if target is None:
            emit(client.imports.rejects(import_id), _REJECTS, output)
            return
        for part in client.imports.download_rejects(import_id):
            target.write(part)


@imports.command()
@click.argument("import_id")
@click.option("--plan", required=True, help="The plan's name, as `imports get` shows it.")
@click.option("--confirm-terminations", type=click.IntRange(0), help="How many it will end.")
@output_option
@pass_setup
def commit(
    setup: Setup, import_id: str, plan: str, confirm_terminations: int | None, output: str
) -> None:
    """Apply a plan exactly as it was made."""
    with setup.client() as client:
        found = client.imports.commit(import_id, plan, confirm_terminations=confirm_terminations)
        emit_one(found, _ONE, output)


def _step(name: str, doing: str) -> click.Command:
    @click.argument("import_id")
    @output_option
    @pass_setup
    def step(setup: Setup, import_id: str, output: str) -> None:
        with setup.client() as client:
            take = {
                "cancel": client.imports.cancel,
                "retry": client.imports.retry,
                "undo": client.imports.undo,
            }[name]
            emit_one(take(import_id), _ONE, output)

    return click.command(name, help=doing)(step)


imports.add_command(_step("cancel", "Stop an import. What it has committed stays."))
imports.add_command(_step("retry", "Queue an import that failed or was given up once more."))
imports.add_command(_step("undo", "Take an import back where nobody changed its members since."))


@imports.command()
@pass_setup
def template(setup: Setup) -> None:
    """Print a header line and an example."""
    with setup.client() as client:
        click.echo(client.imports.template().csv.decode(), nl=False)


COMMANDS = (import_, imports)
