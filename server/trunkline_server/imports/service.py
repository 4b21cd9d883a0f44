"""ImportService: everything of imports that happens in the serving process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar
from uuid import UUID

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from trunkline.api.imports.v1 import imports_service_pb2 as pb
from trunkline.api.imports.v1.reject_code_pb2 import RejectCode
from trunkline_server import audit, idempotency
from trunkline_server.db import Connection, Database, Executor, Record
from trunkline_server.ids import uuid7
from trunkline_server.imports import decisions, present, queries, quotas, rules
from trunkline_server.imports.errors import (
    ContentExpired,
    ImportNotFound,
    ParentInvalid,
    SameFile,
)
from trunkline_server.imports.flow import Backlog, Flow, FlowLimits, Stream
from trunkline_server.imports.live import Live
from trunkline_server.imports.quotas import ImportQuotas
from trunkline_server.imports.rejects import RejectedRow, RejectsFile
from trunkline_server.imports.spec import check
from trunkline_server.imports.storage import Digests, Place
from trunkline_server.imports.submit import SubmitStream
from trunkline_server.imports.template import template
from trunkline_server.imports.upload import STREAM_AGE_S, UploadStream
from trunkline_server.imports.watch import Watch
from trunkline_server.link import Link
from trunkline_server.orgs import Orgs, OrgSettings
from trunkline_server.paging import PageTokens, page_size
from trunkline_server.rpc.caller import Caller, caller
from trunkline_server.rpc.drain import Drain
from trunkline_server.rpc.limits import RareLimit

# Rejects read, written as CSV in a thread, and sent at a time.
DOWNLOAD_ROWS = 1_000
_PARENTS = ("SUCCEEDED", "FAILED", "CANCELLED", "DEAD")

Reply = TypeVar("Reply", bound=Message)


class _Write(idempotency.Write, Protocol):
    @property
    def import_id(self) -> str: ...


_Decide = Callable[[Connection, OrgSettings, Record], Awaitable[None]]


class ImportService:
    def __init__(
        self,
        *,
        db: Database,
        orgs: Orgs,
        link: Link | None,
        pages: PageTokens,
        drain: Drain,
        rare: RareLimit,
        flow_limits: FlowLimits | None = None,
        stream_age_s: float = STREAM_AGE_S,
    ) -> None:
        self._db = db
        self._pages = pages
        self._quotas = ImportQuotas(orgs, rare)
        self._digests = Digests()
        self._stream_age_s = stream_age_s
        self.flow = Flow(self._backlog, limits=flow_limits)
        self.live = Live(link, drain)

    async def close(self) -> None:
        await self.live.close()

    async def _backlog(self, org_id: UUID) -> Backlog:
        async with self._db.tenant_tx(org_id) as tx:
            return await queries.backlog(tx, org_id)

    # ---- opening ----

    async def CreateImport(
        self, request: pb.CreateImportRequest, context: object
    ) -> pb.CreateImportResponse:
        who = caller()
        settings = await self._quotas.of(who.org_id)

        async def produce() -> pb.CreateImportResponse:
            import_id = await self._create(tx, who, settings, request.spec)
            row = await queries.upload(tx, who.org_id, import_id)
            return pb.CreateImportResponse(
                upload=present.upload(row, await self._first_limit(who)),
                **{"import": await self._import(tx, settings, import_id)},
            )

        async with self._db.tenant_tx(who.org_id) as tx:
            return await idempotency.once(tx, request, pb.CreateImportResponse, produce)

    async def _first_limit(self, who: Caller) -> int:
        """What Open will probably grant; only Opened binds."""
        stream = self.flow.enter(who.org_id)
        try:
            return (await self.flow.grant(stream, 0, rules.LINE_BYTES_MAX)).send_limit
        finally:
            self.flow.leave(stream)

    async def _create(
        self, tx: Connection, who: Caller, settings: OrgSettings, spec: pb.ImportSpec
    ) -> UUID:
        """Refuses whatever can be refused before a byte is sent."""
        check(spec, settings.quotas.import_columns)
        quotas.check_size(spec.total_bytes, settings.quotas)
        parent_import_id = await _parent(tx, who.org_id, spec)
        if spec.sha256 and spec.total_bytes and not (spec.validate_only or spec.allow_same_file):
            first = await queries.same_file(
                tx, who.org_id, spec.sha256, spec.total_bytes, UUID(int=0)
            )
            if first is not None:
                raise SameFile.as_import(first)
        await quotas.earliest_start(tx, who.org_id, settings.quotas)
        await self._quotas.take_upload(who, settings.quotas)
        new = queries.NewImport(
            import_id=uuid7(),
            spec_json=present.stored(spec),
            validate_only=spec.validate_only,
            parent_import_id=parent_import_id,
            file_name=spec.file_name,
            actor_kind=who.actor_kind.upper(),
            actor_id=who.actor_id,
            actor_name=who.actor_name,
            expire_after=quotas.expire_after(settings.quotas),
        )
        await queries.create(tx, who.org_id, new)
        await _audit(tx, who, "CreateImport", new.import_id)
        return new.import_id

    # ---- bytes ----

    async def UploadImport(
        self, requests: AsyncIterator[pb.UploadImportRequest], context: Any
    ) -> AsyncIterator[pb.UploadImportResponse]:
        who = caller()
        settings = await self._quotas.of(who.org_id)
        with self._stream(who) as stream:
            upload = UploadStream(
                self._place(settings), stream, requests, context,
                stall_s=quotas.stall_s(settings.quotas), age_s=self._stream_age_s,
            )  # fmt: skip
            self.live.enter(upload)
            try:
                async with aclosing(upload.run()) as responses:
                    async for response in responses:
                        yield response
            finally:
                self.live.leave(upload)

    async def SubmitCsv(
        self, requests: AsyncIterator[pb.SubmitCsvRequest], context: Any
    ) -> pb.SubmitCsvResponse:
        who = caller()
        settings = await self._quotas.of(who.org_id)

        async def create(request: pb.SubmitCsvOpen) -> UUID:
            async def produce() -> pb.GetImportRequest:
                import_id = await self._create(tx, who, settings, request.spec)
                return pb.GetImportRequest(import_id=str(import_id))

            async with self._db.tenant_tx(who.org_id) as tx:
                created = await idempotency.once(tx, request, pb.GetImportRequest, produce)
            return UUID(created.import_id)

        with self._stream(who) as stream:
            submit = SubmitStream(
                self._place(settings), stream, requests, context,
                stall_s=quotas.stall_s(settings.quotas), create=create,
            )  # fmt: skip
            self.live.enter(submit)
            try:
                return await submit.run()
            finally:
                self.live.leave(submit)

    @contextmanager
    def _stream(self, who: Caller) -> Iterator[Stream]:
        stream = self.flow.enter(who.org_id)
        try:
            yield stream
        finally:
            self.flow.leave(stream)

    def _place(self, settings: OrgSettings) -> Place:
        return Place(
            db=self._db,
            org_id=settings.org_id,
            quotas=settings.quotas,
            keep=decisions.keep_files(settings),
            flow=self.flow,
            digests=self._digests,
            hooks=self.live,
        )

    async def GetUpload(
        self, request: pb.GetUploadRequest, context: object
    ) -> pb.GetUploadResponse:
        who = caller()
        async with self._db.tenant_tx(who.org_id) as tx:
            row = await queries.upload(tx, who.org_id, UUID(request.import_id))
        limit = row["persisted_bytes"]
        if row["state"] in ("CREATED", "UPLOADING"):
            limit += await self._first_limit(who)
        return pb.GetUploadResponse(upload=present.upload(row, limit))

    # ---- reading ----

    async def GetImport(
        self, request: pb.GetImportRequest, context: object
    ) -> pb.GetImportResponse:
        found = await self._look(caller(), UUID(request.import_id))
        return pb.GetImportResponse(**{"import": found})

    async def _look(self, who: Caller, import_id: UUID) -> pb.Import:
        settings = await self._quotas.of(who.org_id)
        async with self._db.tenant_tx(who.org_id) as tx:
            return await self._import(tx, settings, import_id)

    async def _import(self, tx: Executor, settings: OrgSettings, import_id: UUID) -> pb.Import:
        row = await queries.get(tx, settings.org_id, import_id)
        return present.import_(row, settings.quotas.imports_running)

    async def ListImports(
        self, request: pb.ListImportsRequest, context: object
    ) -> pb.ListImportsResponse:
        who = caller()
        settings = await self._quotas.of(who.org_id)
        size = page_size(request.page_size)
        after = self._pages.open(request.page_token, request)
        names = [pb.ImportState.Name(s).removeprefix("IMPORT_STATE_") for s in request.states]
        async with self._db.tenant_tx(who.org_id) as tx:
            rows = await queries.page(
                tx,
                who.org_id,
                states=names or None,
                times=(
                    _time(request.from_time, is_set=request.HasField("from_time")),
                    _time(request.to_time, is_set=request.HasField("to_time")),
                ),
                actor_id=_id(request.actor_id),
                parent_import_id=_id(request.parent_import_id),
                after=(datetime.fromisoformat(after[0]), UUID(after[1])) if after else (None, None),
                limit=size + 1,
            )
        running = settings.quotas.imports_running
        reply = pb.ListImportsResponse(imports=[present.import_(r, running) for r in rows[:size]])
        if len(rows) > size:
            last = rows[size - 1]
            position = [last["created_at"].isoformat(), str(last["import_id"])]
            reply.next_page_token = self._pages.seal(position, request)
        return reply

    async def WatchImport(
        self, request: pb.WatchImportRequest, context: object
    ) -> AsyncIterator[pb.WatchImportResponse]:
        who, import_id = caller(), UUID(request.import_id)

        async def version() -> int | None:
            async with self._db.tenant_tx(who.org_id) as tx:
                return await queries.version(tx, who.org_id, import_id)

        watch = Watch(self.live, who.org_id, import_id, version, lambda: self._look(who, import_id))
        async with aclosing(watch.run()) as changes:
            async for change in changes:
                yield change

    # ---- decisions ----

    async def CancelImport(
        self, request: pb.CancelImportRequest, context: object
    ) -> pb.CancelImportResponse:
        return await self._decide(request, pb.CancelImportResponse, decisions.cancel)

    async def RetryImport(
        self, request: pb.RetryImportRequest, context: object
    ) -> pb.RetryImportResponse:
        return await self._decide(request, pb.RetryImportResponse, decisions.retry)

    async def CommitImport(
        self, request: pb.CommitImportRequest, context: object
    ) -> pb.CommitImportResponse:
        async def commit(tx: Connection, settings: OrgSettings, row: Record) -> None:
            await decisions.commit(tx, settings, row, request)

        return await self._decide(request, pb.CommitImportResponse, commit)

    async def UndoImport(
        self, request: pb.UndoImportRequest, context: object
    ) -> pb.UndoImportResponse:
        actor = queries.Actor(caller().actor_id, caller().actor_name)

        async def undo(tx: Connection, settings: OrgSettings, row: Record) -> None:
            await decisions.undo(tx, settings, row, actor)

        return await self._decide(request, pb.UndoImportResponse, undo)

    async def _decide(self, request: _Write, reply_type: type[Reply], decide: _Decide) -> Reply:
        who, import_id = caller(), UUID(request.import_id)
        settings = await self._quotas.of(who.org_id)

        async def produce() -> Reply:
            row = await queries.lock(tx, who.org_id, import_id)
            await decide(tx, settings, row)
            action = reply_type.DESCRIPTOR.name.removesuffix("Response")
            await _audit(tx, who, action, import_id)
            return reply_type(**{"import": await self._import(tx, settings, import_id)})

        async with self._db.tenant_tx(who.org_id) as tx:
            reply = await idempotency.once(tx, request, reply_type, produce)
        self.live.changed(who.org_id, import_id)
        return reply

    # ---- rejects, undo results, template ----

    async def ListRejects(
        self, request: pb.ListRejectsRequest, context: object
    ) -> pb.ListRejectsResponse:
        who, import_id = caller(), UUID(request.import_id)
        size = page_size(request.page_size)
        after = self._pages.open(request.page_token, request) or [0]
        async with self._db.tenant_tx(who.org_id) as tx:
            await _exists(tx, who.org_id, import_id)
            rows = await queries.rejects(
                tx, who.org_id, import_id, after[0], _codes(request), size + 1
            )
        reply = pb.ListRejectsResponse(rejects=[present.reject(row) for row in rows[:size]])
        if len(rows) > size:
            reply.next_page_token = self._pages.seal([rows[size - 1]["row_no"]], request)
        return reply

    async def DownloadRejects(
        self, request: pb.DownloadRejectsRequest, context: object
    ) -> AsyncIterator[pb.DownloadRejectsResponse]:
        who, import_id = caller(), UUID(request.import_id)
        async with self._db.tenant_tx(who.org_id) as tx:
            row = await queries.upload(tx, who.org_id, import_id)
        if row["layout"] is None:
            raise ContentExpired("No header line was ever read, so there is nothing rejected.")
        layout = rules.Layout.from_json(json.loads(row["layout"]))
        file = RejectsFile(layout, neutralise=request.neutralise_formulas)
        yield pb.DownloadRejectsResponse(data=file.header())
        after = sent = 0
        while True:
            async with self._db.tenant_tx(who.org_id) as tx:
                rows = await queries.rejects(
                    tx, who.org_id, import_id, after, _codes(request), DOWNLOAD_ROWS
                )
            if not rows:
                break
            after, sent = rows[-1]["row_no"], sent + len(rows)
            wanted = [RejectedRow(r["raw"], r["code"], r["message"]) for r in rows]
            for data in await asyncio.to_thread(file.parts, wanted):
                yield pb.DownloadRejectsResponse(data=data, rows_sent=sent)
        async with self._db.tenant_tx(who.org_id) as tx:
            await _audit(tx, who, "DownloadRejects", import_id, rows=str(sent))

    async def ListUndoResults(
        self, request: pb.ListUndoResultsRequest, context: object
    ) -> pb.ListUndoResultsResponse:
        who, import_id = caller(), UUID(request.import_id)
        size = page_size(request.page_size)
        after = self._pages.open(request.page_token, request) or [-1, str(UUID(int=0))]
        names = [pb.UndoOutcome.Name(o).removeprefix("UNDO_OUTCOME_") for o in request.outcomes]
        async with self._db.tenant_tx(who.org_id) as tx:
            await _exists(tx, who.org_id, import_id)
            rows = await queries.undo_results(
                tx, who.org_id, import_id, (after[0], UUID(after[1])), names or None, size + 1
            )
        reply = pb.ListUndoResultsResponse(results=[present.undo_result(r) for r in rows[:size]])
        if len(rows) > size:
            last = rows[size - 1]
            position = [last["row_no"], str(last["member_id"])]
            reply.next_page_token = self._pages.seal(position, request)
        return reply

    async def GetImportTemplate(
        self, request: pb.GetImportTemplateRequest, context: object
    ) -> pb.GetImportTemplateResponse:
        return template()


async def _parent(tx: Executor, org_id: UUID, spec: pb.ImportSpec) -> UUID | None:
    if not spec.parent_import_id:
        return None
    try:
        row = await queries.upload(tx, org_id, UUID(spec.parent_import_id))
    except ImportNotFound:
        raise ParentInvalid from None
    if row["state"] not in _PARENTS:
        raise ParentInvalid
    parent_import_id: UUID = row["import_id"]
    return parent_import_id


async def _exists(tx: Executor, org_id: UUID, import_id: UUID) -> None:
    if await queries.version(tx, org_id, import_id) is None:
        raise ImportNotFound


async def _audit(tx: Executor, who: Caller, method: str, import_id: UUID, **details: str) -> None:
    await audit.append(
        tx, who.org_id, f"imports.{method}", resource_type="import", resource_id=import_id,
        details=details,
    )  # fmt: skip


def _codes(request: pb.ListRejectsRequest | pb.DownloadRejectsRequest) -> list[str] | None:
    names = [RejectCode.Name(code).removeprefix("REJECT_CODE_") for code in request.codes]
    return names or None


def _time(moment: Timestamp, *, is_set: bool) -> datetime | None:
    return moment.ToDatetime(UTC) if is_set else None


def _id(text: str) -> UUID | None:
    return UUID(text) if text else None
