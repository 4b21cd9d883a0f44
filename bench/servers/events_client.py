"""A caller that streams events: `ADDRESS TOKEN`, then a line for each thing to do.

`make N` prepares N new events as serialised requests, `send` streams them and answers with the
seconds it took and how many were recorded. What is measured is the server, so nothing is built or
encoded while the clock runs.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence

import grpc

from bench.load import TIMEOUT_S
from trunkline.api.stats.v1 import stats_service_pb2 as pb
from trunkline_server.ids import uuid7

PATH = "/trunkline.api.stats.v1.StatsService/StreamEvents"
EVENTS_PER_MESSAGE = 1_000
AGENTS = [str(uuid7()) for _ in range(200)]
OUTCOMES = ("resolved", "transferred", "dropped", "callback")
# The last day, in order, as a call centre's events come.
SPAN_S = 86_400


def made(count: int) -> list[bytes]:
    first_us = int((time.time() - SPAN_S) * 1e6)
    step_us = SPAN_S * 1_000_000 // count
    messages = []
    for start in range(0, count, EVENTS_PER_MESSAGE):
        request = pb.StreamEventsRequest()
        for n in range(start, min(start + EVENTS_PER_MESSAGE, count)):
            event = request.events.add(
                event_id=str(uuid7()),
                kind=pb.EVENT_KIND_CALL,
                agent_id=AGENTS[n * 7919 % len(AGENTS)],
                outcome=OUTCOMES[n % len(OUTCOMES)],
            )
            event.occurred_at.FromMicroseconds(first_us + n * step_us)
            event.duration.FromMilliseconds(1_000 + n * 7_919 % 600_000)
        messages.append(request.SerializeToString())
    return messages


class Caller:
    def __init__(self, address: str, token: str) -> None:
        channel = grpc.insecure_channel(address)
        grpc.channel_ready_future(channel).result(TIMEOUT_S)
        self._stream: grpc.StreamUnaryMultiCallable[bytes, pb.StreamEventsResponse] = (
            channel.stream_unary(PATH, response_deserializer=pb.StreamEventsResponse.FromString)
        )
        self._metadata = (("authorization", token),)
        self._messages: Sequence[bytes] = ()

    def answer(self, line: str) -> str:
        what, _, count = line.partition(" ")
        if what == "make":
            self._messages = made(int(count))
            return "made"
        started = time.perf_counter()
        reply = self._stream(iter(self._messages), timeout=TIMEOUT_S, metadata=self._metadata)
        seconds = time.perf_counter() - started
        counts = reply.counts
        refused = counts.conflicts + counts.refused
        return json.dumps([seconds, counts.recorded, counts.duplicates, refused])


def main() -> None:
    caller = Caller(sys.argv[1], sys.argv[2])
    print("ready", flush=True)
    for line in sys.stdin:
        print(caller.answer(line.strip()), flush=True)


if __name__ == "__main__":
    main()
