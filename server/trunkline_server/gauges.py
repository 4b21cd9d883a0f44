"""What each part tells about itself, as gauges and counters read when somebody collects."""

from typing import Any

from trunkline_server.breaker import Breaker
from trunkline_server.cache import Cache
from trunkline_server.content.service import ContentService
from trunkline_server.db import Database
from trunkline_server.identity.passwords import Passwords
from trunkline_server.imports.service import ImportService
from trunkline_server.jobs import Runner
from trunkline_server.link import Link
from trunkline_server.members.service import MemberService
from trunkline_server.orgs import Orgs
from trunkline_server.rpc.limits import Limits
from trunkline_server.rpc.shedding import Shedder
from trunkline_server.rpc.wrapper import Wrapper
from trunkline_server.stats.worker import RollUps
from trunkline_server.telemetry import Telemetry
from trunkline_server.valkey import Valkey


def of_server(
    meters: Telemetry,
    *,
    db: Database,
    valkey: Valkey,
    link: Link,
    orgs: Orgs,
    limits: Limits,
    shedder: Shedder,
    wrapper: Wrapper,
    passwords: Passwords,
    members: MemberService,
    imports: ImportService,
    content: ContentService,
) -> None:
    _database(meters, db)
    _breaker(meters, valkey.breaker)
    _link(meters, link)
    _cache(meters, orgs.cache)
    _cache(meters, members.cache)
    _cache(meters, content.cache)
    meters.gauge("trunkline.rpc.in_flight", lambda: wrapper.inflight.count, "{call}")
    meters.gauge("trunkline.shedding.limit", lambda: shedder.limit, "{call}")
    meters.counter("trunkline.shedding.refused", lambda: sum(shedder.refused), "{call}")
    meters.counter("trunkline.limits.refused", lambda: limits.refused, "{call}")
    meters.gauge("trunkline.limits.buckets", lambda: limits.buckets, "{bucket}")
    meters.gauge("trunkline.passwords.waiting", lambda: passwords.waiting, "{call}")
    meters.gauge("trunkline.validations.unwritten", lambda: members.unwritten, "{validation}")
    meters.counter("trunkline.validations.dropped", lambda: members.dropped, "{validation}")
    shelf = content.shelf
    meters.counter("trunkline.content.lists_made", lambda: shelf.made, "{list}")
    meters.counter("trunkline.content.lists_kept", lambda: shelf.hits, "{list}")
    meters.counter("trunkline.content.uncounted", lambda: content.tallies.dropped, "{count}")
    flow = imports.flow
    meters.counter("trunkline.uploads.granted", lambda: flow.granted_bytes, "By")
    meters.counter("trunkline.uploads.stored", lambda: flow.stored_bytes, "By")
    meters.counter("trunkline.uploads.refused", lambda: flow.refused_bytes, "By")
    meters.counter("trunkline.uploads.pauses", lambda: flow.pauses, "{pause}")
    meters.gauge("trunkline.uploads.unprocessed", lambda: flow.unprocessed_bytes, "By")
    meters.gauge("trunkline.uploads.streams", lambda: flow.streams, "{stream}")
    meters.gauge("trunkline.uploads.commit", lambda: flow.commit_s, "s")


def of_worker(
    meters: Telemetry, *, db: Database, link: Link, runner: Runner, roll_ups: RollUps
) -> None:
    _database(meters, db)
    _link(meters, link)
    meters.gauge("trunkline.jobs.running", lambda: runner.running, "{job}")
    meters.counter(
        "trunkline.jobs.ended",
        lambda: [
            (count, {"kind": kind, "outcome": outcome})
            for (kind, outcome), count in runner.ended.items()
        ],
        "{job}",
    )
    meters.gauge(
        "trunkline.stats.astray",
        lambda: roll_ups.astray,
        "{event}",
        "Events outside of every month's partition; anything but 0 is an alarm.",
    )
    meters.counter("trunkline.stats.hours_counted", lambda: roll_ups.hours, "{hour}")
    meters.counter("trunkline.stats.days_counted", lambda: roll_ups.days, "{day}")


def _database(meters: Telemetry, db: Database) -> None:
    _breaker(meters, db.breaker)
    meters.gauge("trunkline.pool.size", db.pool.get_size, "{connection}")
    meters.gauge("trunkline.pool.idle", db.pool.get_idle_size, "{connection}")
    meters.gauge("trunkline.readers.idle", lambda: db.readers.idle, "{connection}")
    meters.gauge("trunkline.readers.waiting", lambda: db.readers.waiting, "{call}")


def _breaker(meters: Telemetry, breaker: Breaker) -> None:
    name = breaker.name
    meters.gauge(
        f"trunkline.{name}.breaker", lambda: int(breaker.state), "1", "0 closed, 1 trial, 2 open."
    )
    meters.counter(f"trunkline.{name}.breaker.opened", lambda: breaker.opened, "{time}")


def _link(meters: Telemetry, link: Link) -> None:
    meters.gauge("trunkline.link.trusted", lambda: int(link.trusted))
    meters.counter("trunkline.link.losses", lambda: link.losses, "{loss}")
    meters.gauge("trunkline.link.owed", lambda: link.owed, "{message}")


def _cache(meters: Telemetry, cache: Cache[Any, Any]) -> None:
    name = f"trunkline.cache.{cache.name}"
    meters.gauge(f"{name}.entries", lambda: len(cache), "{entry}")
    meters.counter(f"{name}.hits", lambda: cache.hits, "{look-up}")
    meters.counter(f"{name}.misses", lambda: cache.misses, "{look-up}")
    meters.counter(f"{name}.loads", lambda: cache.loads, "{load}")
