"""Rosters in CSV: `client.imports`."""

import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Self

from trunkline._async.pages import AsyncPager
from trunkline._async.session import AsyncSession
from trunkline._async.uploads import (
    GIVE_UP_AFTER_S,
    PASSING,
    AsyncUpload,
    import_of,
)
from trunkline._async.watches import AsyncWatch
from trunkline._shared import reading_async as reading
from trunkline._shared import tasks_async as tasks
from trunkline._shared.enums import name_of, value_of
from trunkline._shared.journal import Entry, Journal
from trunkline._shared.progress import ENDED, TAKES_BYTES, Progress, progress_of
from trunkline._shared.requests import Time, new_request_id, timestamp
from trunkline._shared.sources import (
    SAME_FILE_CHECK_BYTES_MAX,
    FileSource,
    Row,
    RowWriter,
)
from trunkline._shared.specs import Columns, spec_of
from trunkline._shared.window import Window
from trunkline.api.imports.v1 import imports_service_pb2 as pb
from trunkline.api.imports.v1 import imports_service_pb2_grpc as stubs
from trunkline.api.imports.v1.reject_code_pb2 import RejectCode
from trunkline.errors import (
    FileChanged,
    ImportFailed,
    NotFound,
    from_item,
)

_SERVICE = pb.DESCRIPTOR.services_by_name["ImportService"]

OnProgress = Callable[[Progress], None]


class AsyncImports:
    """Upload a roster, follow it, correct it, take it back."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session
        stub: stubs.ImportServiceAsyncStub = stubs.ImportServiceStub(session.channel)
        methods = session.methods(_SERVICE)
        self._create = methods.unary(stub.CreateImport, "CreateImport")
        self._get_upload = methods.unary(stub.GetUpload, "GetUpload")
        self._get = methods.unary(stub.GetImport, "GetImport")
        self._list = methods.unary(stub.ListImports, "ListImports")
        self._watch = methods.stream(stub.WatchImport, "WatchImport")
        self._commit = methods.unary(stub.CommitImport, "CommitImport")
        self._cancel = methods.unary(stub.CancelImport, "CancelImport")
        self._retry = methods.unary(stub.RetryImport, "RetryImport")
        self._undo = methods.unary(stub.UndoImport, "UndoImport")
        self._list_undo_results = methods.unary(stub.ListUndoResults, "ListUndoResults")
        self._list_rejects = methods.unary(stub.ListRejects, "ListRejects")
        self._download_rejects = methods.stream(stub.DownloadRejects, "DownloadRejects")
        self._get_template = methods.unary(stub.GetImportTemplate, "GetImportTemplate")

    # -- uploads

    async def upload(
        self,
        source: reading.Uploadable,
        *,
        mode: pb.ImportMode.ValueType | str = "UPSERT",
        commit: pb.CommitMode.ValueType | str = "PER_BATCH",
        dry_run: bool = False,
        columns: Columns = (),
        dialect: pb.Dialect | None = None,
        max_rejects: int | None = None,
        max_reject_ratio: float | None = None,
        sync_max_terminations_ratio: float | None = None,
        parent_import_id: str = "",
        allow_same_file: bool = False,
        header: Sequence[str] | None = None,
        file_name: str = "",
        resume: bool = True,
        journal: bool | PathLike[str] | str = True,
        on_progress: OnProgress | None = None,
        give_up_after_s: float = GIVE_UP_AFTER_S,
    ) -> "AsyncImportJob":
        """Upload a roster; returns when the file is stored and waits for a worker.

        `source` is a path, a file object, bytes, or rows: mappings, or sequences with `header`.
        An upload that was interrupted in whatever way goes on where it stopped; of a path in
        another process too, by a journal beside the file (`journal` names another folder for it,
        or turns it off) unless `resume` is off.

        `dry_run` makes a plan that `commit` can apply. `columns` maps column names to fields,
        to `attributes.name`, or to None for those to ignore.
        """
        spec = spec_of(
            mode=mode,
            commit=commit,
            dry_run=dry_run,
            columns=columns,
            dialect=dialect,
            max_rejects=max_rejects,
            max_reject_ratio=max_reject_ratio,
            sync_max_terminations_ratio=sync_max_terminations_ratio,
            parent_import_id=parent_import_id,
            allow_same_file=allow_same_file,
        )
        opened = reading.opened(source, header)
        try:
            spec.file_name = file_name or opened.name
            if isinstance(opened, FileSource) and journal is not False:
                folder = None if journal is True else Path(journal)
                log = Journal(
                    opened.path,
                    self._session.target.address,
                    spec.SerializeToString(deterministic=True),
                    folder,
                )
                found = await self._with_journal(
                    opened, spec, log, resume, on_progress, give_up_after_s
                )
            else:
                found = await self._without_journal(opened, spec, on_progress, give_up_after_s)
        finally:
            opened.close()
        return AsyncImportJob(self, found)

    def rows(
        self,
        *,
        header: Sequence[str] | None = None,
        file_name: str = "",
        mode: pb.ImportMode.ValueType | str = "UPSERT",
        commit: pb.CommitMode.ValueType | str = "PER_BATCH",
        allow_rejects: bool = False,
        on_progress: OnProgress | None = None,
    ) -> "AsyncRowBatch":
        """Collect rows, and import them at the end of a `with` block:

            async with client.imports.rows() as batch:
                batch.add({"member_number": "A-1", "family_name": "Ada"})

        The rows wait in a temporary file; nothing is sent if the block raises. At its end the
        import is waited for, and is in `batch.job`.
        """
        return AsyncRowBatch(self, header, file_name, mode, commit, allow_rejects, on_progress)

    async def _without_journal(
        self,
        source: reading.Source,
        spec: pb.ImportSpec,
        on_progress: OnProgress | None,
        give_up_after_s: float,
    ) -> pb.Import:
        await self._describe(source, spec)
        created = await self._create(pb.CreateImportRequest(request_id=new_request_id(), spec=spec))
        upload = AsyncUpload(
            self._session, source, created.upload, Window(), on_progress, give_up_after_s
        )
        return await upload.run()

    async def _with_journal(
        self,
        source: FileSource,
        spec: pb.ImportSpec,
        log: Journal,
        resume: bool,
        on_progress: OnProgress | None,
        give_up_after_s: float,
    ) -> pb.Import:
        entry = log.read() if resume else None
        if entry is not None and not entry.import_id and entry.identity != source.identity:
            entry = None  # nothing of the other content was sent
        begun: pb.Upload | pb.Import | None = None
        if entry is not None:
            log.check(entry, source.identity)
            begun = await self._begun(entry)
        if isinstance(begun, pb.Import):  # complete, and only its journal was left
            log.remove()
            return begun
        if begun is None:
            begun = await self._begin(source, spec, log, entry)
        digest = await tasks.unblocked(source.skip, begun.persisted_bytes)
        if digest != begun.prefix_crc32:
            raise FileChanged(
                f"{source.path} is not the file whose upload was begun.",
                remedy="Upload it anew with resume=False (--restart).",
            )
        window = Window(begun.persisted_bytes, digest)
        upload = AsyncUpload(self._session, source, begun, window, on_progress, give_up_after_s)
        found = await upload.run()
        log.remove()
        return found

    async def _begun(self, entry: Entry) -> pb.Upload | pb.Import | None:
        """The unfinished upload of a journal; the import if it is complete; None if it is gone."""
        if not entry.import_id:
            return None
        try:
            found = await self.get(entry.import_id)
            if found.state in TAKES_BYTES:
                reply = await self._get_upload(pb.GetUploadRequest(import_id=entry.import_id))
                return None if reply.upload.finished else reply.upload
        except NotFound:
            return None
        gone = (pb.IMPORT_STATE_CANCELLED, pb.IMPORT_STATE_FAILED)
        return None if found.state in gone else found

    async def _begin(
        self, source: FileSource, spec: pb.ImportSpec, log: Journal, entry: Entry | None
    ) -> pb.Upload:
        """A new import. The journal is written first: should this process end between, the next
        one repeats the request under the same id and gets the same import."""
        await self._describe(source, spec)
        again = entry is not None and not entry.import_id
        request_id = entry.request_id if entry is not None and again else new_request_id()
        if not again:
            log.write(Entry(request_id, "", source.identity))
        try:
            created = await self._create(pb.CreateImportRequest(request_id=request_id, spec=spec))
        except PASSING:
            raise  # the import may be there: the journal's request id finds it again
        except Exception:
            log.remove()
            raise
        log.write(Entry(request_id, created.upload.import_id, source.identity))
        return created.upload

    async def _describe(self, source: reading.Source, spec: pb.ImportSpec) -> None:
        """Size and digest, where they are known before the first byte goes."""
        if isinstance(source, FileSource):
            size = source.identity.size_bytes
            spec.total_bytes = size
            if size <= SAME_FILE_CHECK_BYTES_MAX:
                spec.sha256 = await tasks.unblocked(source.sha256)

    # -- imports

    async def get(self, import_id: str, *, timeout_s: float | None = None) -> pb.Import:
        """An import with its progress."""
        reply = await self._get(pb.GetImportRequest(import_id=import_id), timeout_s)
        return import_of(reply)

    async def job(self, import_id: str) -> "AsyncImportJob":
        """An import to wait for, whoever began it."""
        return AsyncImportJob(self, await self.get(import_id))

    def list(
        self,
        *,
        states: Sequence[pb.ImportState.ValueType | str] = (),
        from_time: Time | None = None,
        to_time: Time | None = None,
        actor_id: str = "",
        parent_import_id: str = "",
        page_size: int = 0,
        timeout_s: float | None = None,
    ) -> AsyncPager[pb.Import, pb.ListImportsResponse]:
        """Imports, newest first."""
        request = pb.ListImportsRequest(
            page_size=page_size,
            states=[value_of(pb.ImportState, state) for state in states],
            from_time=timestamp(from_time),
            to_time=timestamp(to_time),
            actor_id=actor_id,
            parent_import_id=parent_import_id,
        )
        return AsyncPager(self._list, request, lambda reply: reply.imports, timeout_s)

    def watch(
        self, import_id: str
    ) -> AsyncWatch[pb.WatchImportRequest, pb.WatchImportResponse, pb.Import]:
        """An import each time it changes, until it ends or awaits a decision."""

        def request(_: str) -> pb.WatchImportRequest:
            return pb.WatchImportRequest(import_id=import_id)

        def states(reply: pb.WatchImportResponse) -> Sequence[pb.Import]:
            return [import_of(reply)] if reply.HasField("import") else []

        return AsyncWatch(self._watch, request, states, is_last=lambda found: found.state in ENDED)

    async def commit(
        self,
        import_id: str,
        plan_etag: str,
        *,
        confirm_terminations: int | None = None,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> pb.Import:
        """Apply a plan exactly as it was made; refused if members changed since.

        After a synchronisation's fuse has blown, `confirm_terminations` repeats the number of
        members that will be terminated.
        """
        request = pb.CommitImportRequest(
            request_id=request_id or new_request_id(),
            import_id=import_id,
            plan_etag=plan_etag,
            confirm_terminations=confirm_terminations,
        )
        return import_of(await self._commit(request, timeout_s))

    async def cancel(
        self, import_id: str, *, request_id: str | None = None, timeout_s: float | None = None
    ) -> pb.Import:
        """Stop an import. What it has committed stays, and can be undone."""
        request = pb.CancelImportRequest(
            request_id=request_id or new_request_id(), import_id=import_id
        )
        return import_of(await self._cancel(request, timeout_s))

    async def retry(
        self, import_id: str, *, request_id: str | None = None, timeout_s: float | None = None
    ) -> pb.Import:
        """Queue an import that failed or was given up once more, from where it stopped."""
        request = pb.RetryImportRequest(
            request_id=request_id or new_request_id(), import_id=import_id
        )
        return import_of(await self._retry(request, timeout_s))

    async def undo(
        self, import_id: str, *, request_id: str | None = None, timeout_s: float | None = None
    ) -> pb.Import:
        """Take an import back as far as nobody changed its members since."""
        request = pb.UndoImportRequest(
            request_id=request_id or new_request_id(), import_id=import_id
        )
        return import_of(await self._undo(request, timeout_s))

    def undo_results(
        self,
        import_id: str,
        *,
        outcomes: Sequence[pb.UndoOutcome.ValueType | str] = (),
        page_size: int = 0,
        timeout_s: float | None = None,
    ) -> AsyncPager[pb.UndoResult, pb.ListUndoResultsResponse]:
        """What undoing did to each member."""
        request = pb.ListUndoResultsRequest(
            page_size=page_size,
            import_id=import_id,
            outcomes=[value_of(pb.UndoOutcome, outcome) for outcome in outcomes],
        )
        return AsyncPager(self._list_undo_results, request, lambda reply: reply.results, timeout_s)

    def rejects(
        self,
        import_id: str,
        *,
        codes: Sequence[RejectCode.ValueType | str] = (),
        page_size: int = 0,
        timeout_s: float | None = None,
    ) -> AsyncPager[pb.Reject, pb.ListRejectsResponse]:
        """The rows that were not imported, each with its row number and the reason."""
        request = pb.ListRejectsRequest(
            page_size=page_size, import_id=import_id, codes=_codes(codes)
        )
        return AsyncPager(self._list_rejects, request, lambda reply: reply.rejects, timeout_s)

    async def download_rejects(
        self,
        import_id: str,
        *,
        codes: Sequence[RejectCode.ValueType | str] = (),
        neutralise_formulas: bool = False,
        timeout_s: float | None = None,
    ) -> AsyncIterator[bytes]:
        """Those rows as CSV with their original columns, to be corrected and uploaded again with
        `parent_import_id`."""
        request = pb.DownloadRejectsRequest(
            import_id=import_id, codes=_codes(codes), neutralise_formulas=neutralise_formulas
        )
        async for part in self._download_rejects(request, timeout_s):
            if part.data:
                yield part.data

    async def template(self, *, timeout_s: float | None = None) -> pb.GetImportTemplateResponse:
        """A header line, an example, and what each column means."""
        return await self._get_template(pb.GetImportTemplateRequest(), timeout_s)


class AsyncImportJob:
    """An import that goes on without the caller: wait for it, or look at it now and then."""

    def __init__(self, imports: AsyncImports, found: pb.Import) -> None:
        self._imports = imports
        self.state = found

    @property
    def import_id(self) -> str:
        return self.state.import_id

    async def refresh(self) -> pb.Import:
        """Its state now."""
        self.state = await self._imports.get(self.import_id)
        return self.state

    async def wait(
        self, *, allow_rejects: bool = False, on_progress: OnProgress | None = None
    ) -> pb.Import:
        """Wait for its end. Raises ImportFailed unless it succeeded with every row, or with
        some rows if `allow_rejects`. A plan that awaits `commit` is an end, too."""
        async for found in self._imports.watch(self.import_id):
            self.state = found
            if on_progress is not None:
                on_progress(progress_of(found))
        _check(self.state, allow_rejects)
        return self.state

    def rejects(self) -> AsyncPager[pb.Reject, pb.ListRejectsResponse]:
        """The rows that were not imported."""
        return self._imports.rejects(self.import_id)

    async def commit(self, *, confirm_terminations: int | None = None) -> pb.Import:
        """Apply its plan as it was made."""
        self.state = await self._imports.commit(
            self.import_id, self.state.plan.etag, confirm_terminations=confirm_terminations
        )
        return self.state

    async def cancel(self) -> pb.Import:
        """Stop it."""
        self.state = await self._imports.cancel(self.import_id)
        return self.state


class AsyncRowBatch:
    """Rows on their way to becoming an import; see `imports.rows`."""

    def __init__(
        self,
        imports: AsyncImports,
        header: Sequence[str] | None,
        file_name: str,
        mode: pb.ImportMode.ValueType | str,
        commit: pb.CommitMode.ValueType | str,
        allow_rejects: bool,
        on_progress: OnProgress | None,
    ) -> None:
        self._imports = imports
        self._writer = RowWriter(header)
        self._file_name = file_name
        self._mode = mode
        self._commit = commit
        self._allow_rejects = allow_rejects
        self._on_progress = on_progress
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __aexit__
        self.count = 0
        self.job: AsyncImportJob | None = None

    def add(self, row: Row) -> None:
        """One more row."""
        self._writer.add(row)
        self.count += 1
        if self._writer.is_full:
            self._file.write(self._writer.drain())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._file:
            if kind is None and self.count:
                self._file.write(self._writer.drain())
                self._file.seek(0)
                self.job = await self._imports.upload(
                    self._file,
                    file_name=self._file_name,
                    mode=self._mode,
                    commit=self._commit,
                    on_progress=self._on_progress,
                )
                await self.job.wait(
                    allow_rejects=self._allow_rejects, on_progress=self._on_progress
                )


def _codes(
    codes: Sequence[RejectCode.ValueType | str],
) -> list[RejectCode.ValueType]:
    return [value_of(RejectCode, code) for code in codes]


def _check(found: pb.Import, allow_rejects: bool) -> None:
    state = name_of(pb.ImportState, found.state)
    if found.HasField("problem"):
        problem = from_item(found.problem)
        raise ImportFailed(
            f"The import {found.import_id} is {state}: {problem}",
            found,
            reason=problem.reason,
            remedy=problem.remedy,
        )
    if found.state not in (pb.IMPORT_STATE_SUCCEEDED, pb.IMPORT_STATE_AWAITING_COMMIT):
        raise ImportFailed(f"The import {found.import_id} is {state}.", found)
    if found.counters.rejected and not allow_rejects:
        raise ImportFailed(
            f"The import {found.import_id} rejected {found.counters.rejected} rows.", found
        )
