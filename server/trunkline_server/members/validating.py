"""ValidateMember, BatchValidateMembers, StreamValidateMembers: questions in, prepared bytes out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence

from protovalidate import Validator as Constraints

from trunkline.api.errors.v1 import item_error_pb2
from trunkline.api.members.v1 import members_service_pb2 as pb
from trunkline_server.db import translated
from trunkline_server.errors import AppError, FieldViolation
from trunkline_server.members import rules, wire
from trunkline_server.members.decision import SecondFactors
from trunkline_server.members.errors import EnumerationSuspected, KeyRepeated
from trunkline_server.members.guard import GuardLimits, Level
from trunkline_server.members.guarding import SLOW_DELAY_S, Guards, guards
from trunkline_server.members.lookups import ValidationLog
from trunkline_server.members.rules import MESSAGES, FieldRefused
from trunkline_server.members.validation import PLAIN, Answer, Known, Question, Validator
from trunkline_server.rpc.caller import CURRENT, Caller, caller
from trunkline_server.rpc.drain import Drain
from trunkline_server.rpc.validation import FieldsInvalid, explained

KEY_CHARS_MAX = 64
# Questions of one stream that are being answered, or answered and not taken yet.
STREAM_QUESTIONS_MAX = 256
# After GoAway a client has this long to finish sending.
GOAWAY_GRACE_S = 5.0

_FRESH = pb.CONSISTENCY_FRESH
_LIMITS = GuardLimits()
_OK = Level.OK


class Validating:
    def __init__(
        self, validator: Validator, log: ValidationLog, guards: Guards, drain: Drain
    ) -> None:
        self._validator = validator
        self._log = log
        self._guards = guards
        self._drain = drain
        self._constraints = Constraints()

    async def one(self, request: pb.ValidateMemberRequest, context: object) -> wire.Prepared:
        who: Caller = CURRENT.get().caller  # type: ignore[assignment]
        now_s = time.time()
        number = request.member_number
        watched = guards(who)
        if watched:
            self._guards.check(who)
        answer = None
        if not (
            request.as_of or request.date_of_birth or request.family_name or request.consistency
        ):
            answer = self._validator.warm(who, number, now_s)
        if answer is None:
            question = _question(request, request.consistency)
            answer = await self._validator.answer(who, number, question, now_s)
        self._log.record(who, (answer,), now_s)
        if watched:
            level = self._count(who, number, answer, now_s)
            if level is not _OK:
                await _slow_down(level, 1)
                return wire.Prepared(answer.response + wire.guard_level(level))
        return answer.reply

    async def batch(
        self, request: pb.BatchValidateMembersRequest, context: object
    ) -> wire.Prepared:
        who = caller()
        watched = guards(who)
        if watched:
            self._guards.check(who)
        results, level = await _Batch(self, who, request, watched).run()
        if level >= Level.SLOW:
            await _slow_down(level, len(results))
        return wire.batch_response(results, level)

    async def stream(
        self, requests: AsyncIterator[pb.StreamValidateMembersRequest], context: object
    ) -> AsyncIterator[wire.Prepared]:
        stream = _Stream(self, caller(), requests)
        undo = self._drain.on_goaway(stream.go_away)
        try:
            async for reply in stream.replies():
                yield reply
        finally:
            undo()
            await stream.close()

    def checked(self, query: pb.MemberQuery) -> None:
        """Batches and streams are not checked at the edge: a bad question is its own affair."""
        violations = self._constraints.collect_violations(query)
        if violations:
            raise FieldsInvalid(violations=[explained(violation) for violation in violations])

    async def result(
        self,
        who: Caller,
        query: pb.MemberQuery,
        fresh: bool,
        counted: list[Answer],
        read: Mapping[str, Known] | None = None,
    ) -> bytes:
        """The framed validation or error of one question. `read`: what was read for it already."""
        try:
            self.checked(query)
            question = _question(query, _FRESH if fresh else pb.CONSISTENCY_UNSPECIFIED)
            answer = await self._validator.answer(
                who, query.member_number, question, time.time(), read
            )
        except Exception as error:
            return _framed(error)
        counted.append(answer)
        return answer.result

    def _count(self, who: Caller, number: str, answer: Answer, now_s: float) -> Level:
        settings = self._validator.known_settings(who.org_key)
        limits = settings.guard if settings is not None else _LIMITS
        return self._guards.record(
            who, number, missed=answer.member_id is None, limits=limits, now_s=now_s
        )


class _Batch:
    """One call of BatchValidateMembers."""

    def __init__(
        self,
        validating: Validating,
        who: Caller,
        request: pb.BatchValidateMembersRequest,
        watched: bool,
    ) -> None:
        self._validating = validating
        self._validator = validating._validator
        self._who = who
        self._queries = request.queries
        self._fresh = request.consistency == _FRESH
        self._watched = watched
        self._results: list[bytes] = []
        self._counted: list[Answer] = []
        self._level = Level.OK

    async def run(self) -> tuple[list[bytes], Level]:
        now_s = time.time()
        later = self._at_hand(now_s)
        try:
            if later:
                await self._answer_later(later)
        finally:
            if self._counted:
                self._validating._log.record(self._who, self._counted, now_s)
        return self._results, self._level

    def _at_hand(self, now_s: float) -> list[int]:
        """Answers what memory answers; the places of the others."""
        results, counted = self._results, self._counted
        warm, who, slow = self._validator.warm, self._who, self._watched or self._fresh
        later, keys = [], []
        for place, query in enumerate(self._queries):
            answer = None
            key = query.key
            if key:
                keys.append(key)
            if not (slow or query.as_of or query.date_of_birth or query.family_name):
                answer = warm(who, query.member_number, now_s)
            if answer is None:
                later.append(place)
                results.append(b"")
            elif not key:
                counted.append(answer)
                results.append(answer.item)
            elif len(key) <= KEY_CHARS_MAX and key.isprintable():
                counted.append(answer)
                results.append(wire.member_answer(key, answer.result))
            else:
                later.append(place)
                results.append(b"")
        if len(set(keys)) != len(keys):
            later = self._refuse_repeated(later)
        return later

    def _refuse_repeated(self, later: list[int]) -> list[int]:
        """The second and later questions under one key."""
        seen, kept = set(), set(later)
        refusal = _framed(KeyRepeated())
        for place, query in enumerate(self._queries):
            if query.key and query.key in seen:
                self._results[place] = wire.member_answer(query.key, refusal)
                kept.discard(place)
            seen.add(query.key)
        return sorted(kept)

    async def _answer_later(self, later: Sequence[int]) -> None:
        numbers = [self._queries[place].member_number for place in later]
        read = None
        if self._fresh:
            read = await self._validator.read_fresh(self._who, numbers)
        else:
            await self._validator.preload(self._who, numbers)
        for place in later:
            query = self._queries[place]
            counted: list[Answer] = []
            if self._level is Level.STOP:
                result = _framed(EnumerationSuspected())
            else:
                result = await self._validating.result(self._who, query, self._fresh, counted, read)
            for answer in counted:
                self._counted.append(answer)
                if self._watched:
                    self._level = self._validating._count(
                        self._who, query.member_number, answer, time.time()
                    )
            key = query.key if len(query.key) <= KEY_CHARS_MAX else ""
            self._results[place] = wire.member_answer(key, result)


class _Stream:
    """One call of StreamValidateMembers: bounded in flight, answered in any order."""

    def __init__(
        self,
        validating: Validating,
        who: Caller,
        requests: AsyncIterator[pb.StreamValidateMembersRequest],
    ) -> None:
        self._validating = validating
        self._who = who
        self._requests = requests
        self._room = asyncio.Semaphore(STREAM_QUESTIONS_MAX)
        self._ready: asyncio.Queue[wire.Prepared | BaseException | None] = asyncio.Queue()
        self._keys: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reader = asyncio.create_task(self._read(), name="validate-stream")
        self._goaway_timer: asyncio.TimerHandle | None = None

    def go_away(self) -> None:
        reply = pb.StreamValidateMembersResponse(go_away=True)
        self._ready.put_nowait(wire.Prepared(reply.SerializeToString()))
        loop = asyncio.get_running_loop()
        self._goaway_timer = loop.call_later(GOAWAY_GRACE_S, self._reader.cancel)

    async def replies(self) -> AsyncIterator[wire.Prepared]:
        while (reply := await self._ready.get()) is not None:
            if isinstance(reply, BaseException):
                raise reply
            yield reply

    async def close(self) -> None:
        if self._goaway_timer is not None:
            self._goaway_timer.cancel()
        pending = [self._reader, *self._tasks]
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)

    async def _read(self) -> None:
        try:
            async for request in self._requests:
                await self._room.acquire()
                self._take(request)
        except asyncio.CancelledError:
            pass  # told to go: what was asked is still answered
        except Exception as error:
            self._ready.put_nowait(error)
            return
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._ready.put_nowait(None)

    def _take(self, request: pb.StreamValidateMembersRequest) -> None:
        query, now_s = request.query, time.time()
        key = query.key
        if key and key in self._keys:
            self._answered(key, _framed(KeyRepeated()))
            return
        plain = not (query.as_of or query.date_of_birth or query.family_name)
        answer = None
        if plain and not request.consistency and len(key) <= KEY_CHARS_MAX and key.isprintable():
            answer = self._validating._validator.warm(self._who, query.member_number, now_s)
        if answer is not None:
            self._validating._log.record(self._who, (answer,), now_s)
            self._answered(key, answer.result)
            return
        self._keys.add(key)
        task = asyncio.create_task(self._look_up(query, request.consistency == _FRESH))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _look_up(self, query: pb.MemberQuery, fresh: bool) -> None:
        counted: list[Answer] = []
        try:
            result = await self._validating.result(self._who, query, fresh, counted)
        except Exception as error:
            self._ready.put_nowait(error)
            return
        if counted:
            self._validating._log.record(self._who, counted, time.time())
        self._keys.discard(query.key)
        self._answered(query.key if len(query.key) <= KEY_CHARS_MAX else "", result)

    def _answered(self, key: str, result: bytes) -> None:
        # Room is given back as the reply is handed over, so a reader that stalls stops the asking.
        self._ready.put_nowait(_Answered(wire.member_answer(key, result), self._room))


class _Answered(wire.Prepared):
    """A stream's reply that gives its place back when it is sent."""

    __slots__ = ("_room",)

    def __init__(self, content: bytes, room: asyncio.Semaphore) -> None:
        super().__init__(content)
        self._room = room

    def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf's name
        self._room.release()
        return super().SerializeToString()


def _question(
    asked: pb.ValidateMemberRequest | pb.MemberQuery, consistency: pb.Consistency.ValueType
) -> Question:
    fresh = consistency == _FRESH
    if not (asked.as_of or asked.date_of_birth or asked.family_name):
        return Question(fresh=True) if fresh else PLAIN
    given = None
    try:
        field = "date_of_birth"
        if asked.date_of_birth or asked.family_name:
            born = rules.date_of_birth(asked.date_of_birth)
            given = SecondFactors(born, asked.family_name or None)
        field = "as_of"
        as_of = rules.effective_date(asked.as_of)
    except FieldRefused as refused:
        violation = FieldViolation(field, MESSAGES[refused.code], refused.code)
        raise FieldsInvalid(violations=[violation]) from None
    return Question(given, as_of, fresh)


async def _slow_down(level: Level, questions: int) -> None:
    """An agent that makes a call every few seconds hardly notices; a script does."""
    if level is Level.SLOW:
        await asyncio.sleep(SLOW_DELAY_S * min(questions, 4))


def _framed(error: Exception) -> bytes:
    """The error as a MemberAnswer's result; one that nobody foresaw ends the call."""
    known = error if isinstance(error, AppError) else translated(error)
    if not isinstance(known, AppError):
        raise error
    item = item_error_pb2.ItemError(
        code=known.code.value[0],
        reason=known.reason,
        message=known.message,
        fields=[
            item_error_pb2.FieldError(field=each.field, description=each.description)
            for each in known.violations
        ],
    )
    return wire.framed_error(item.SerializeToString())
