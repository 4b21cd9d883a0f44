"""Identifiers: of version 7, in the order they were made, even within one tick of the clock."""

import time
from concurrent.futures import ThreadPoolExecutor

from trunkline_server.ids import uuid7


def test_they_grow_strictly_and_say_what_they_are() -> None:
    made = [uuid7() for _ in range(20_000)]
    assert made == sorted(set(made))
    assert {(one.version, one.variant) for one in made} == {(7, "specified in RFC 4122")}


def test_they_tell_the_time() -> None:
    before = time.time_ns() // 1_000_000
    assert before - 1 <= uuid7().int >> 80 <= time.time_ns() // 1_000_000 + 50


def test_threads_never_make_the_same() -> None:
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda _: uuid7(), range(20_000)))
    assert len(set(made)) == len(made)
