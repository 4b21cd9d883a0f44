"""Events in, numbers out: `client.stats`."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

from trunkline._async.session import AsyncSession
from trunkline._async.watches import AsyncWatch
from trunkline._shared.enums import value_of
from trunkline._shared.requests import Time, timestamp
from trunkline.api.stats.v1 import stats_service_pb2 as pb
from trunkline.api.stats.v1 import stats_service_pb2_grpc as stubs

EVENTS_PER_CALL = 1000

_SERVICE = pb.DESCRIPTOR.services_by_name["StatsService"]


class AsyncStats:
    """Calls, validations, imports, content and sign-ins as numbers that say how final they are."""

    def __init__(self, session: AsyncSession) -> None:
        stub: stubs.StatsServiceAsyncStub = stubs.StatsServiceStub(session.channel)
        methods = session.methods(_SERVICE)
        self._record = methods.unary(stub.RecordEvents, "RecordEvents")
        self._query = methods.unary(stub.QueryStats, "QueryStats")
        self._overview = methods.unary(stub.GetOverview, "GetOverview")
        self._watch_overview = methods.stream(stub.WatchOverview, "WatchOverview")
        self._export = methods.stream(stub.ExportStats, "ExportStats")
        self._metrics = methods.unary(stub.ListMetrics, "ListMetrics")

    async def record(
        self, events: Iterable[pb.Event], *, timeout_s: float | None = None
    ) -> pb.RecordEventsResponse:
        """Record any number of events, 1,000 a call. Recording one again changes nothing, so
        after an error all of them can be sent once more."""
        waiting = list(events)
        total = pb.RecordEventsResponse()
        for start in range(0, len(waiting), EVENTS_PER_CALL):
            request = pb.RecordEventsRequest(events=waiting[start : start + EVENTS_PER_CALL])
            _add(total, await self._record(request, timeout_s), start)
        return total

    async def query(
        self,
        metric: str,
        from_time: Time,
        to_time: Time,
        *,
        interval: pb.Interval.ValueType | str = pb.INTERVAL_UNSPECIFIED,
        time_zone: str = "",
        group_by: Sequence[str] = (),
        filters: Mapping[str, Sequence[str]] | None = None,
        values: Sequence[str] = (),
        max_groups: int = 0,
        timeout_s: float | None = None,
    ) -> pb.QueryStatsResponse:
        """A metric over time: one series, or one for each group."""
        wanted = _stats_query(
            metric, from_time, to_time, interval, time_zone, group_by, filters, values, max_groups
        )
        return await self._query(pb.QueryStatsRequest(query=wanted), timeout_s)

    async def export(
        self,
        metric: str,
        from_time: Time,
        to_time: Time,
        *,
        interval: pb.Interval.ValueType | str = pb.INTERVAL_UNSPECIFIED,
        time_zone: str = "",
        group_by: Sequence[str] = (),
        filters: Mapping[str, Sequence[str]] | None = None,
        values: Sequence[str] = (),
        max_groups: int = 0,
        timeout_s: float | None = None,
    ) -> AsyncIterator[bytes]:
        """The same as CSV, in parts that end between two rows."""
        wanted = _stats_query(
            metric, from_time, to_time, interval, time_zone, group_by, filters, values, max_groups
        )
        async for part in self._export(pb.ExportStatsRequest(query=wanted), timeout_s):
            if part.data:
                yield part.data

    async def overview(
        self,
        *,
        from_time: Time | None = None,
        to_time: Time | None = None,
        time_zone: str = "",
        timeout_s: float | None = None,
    ) -> pb.Overview:
        """The main numbers of a period; of today if none is given."""
        request = pb.GetOverviewRequest(
            from_time=timestamp(from_time), to_time=timestamp(to_time), time_zone=time_zone
        )
        return (await self._overview(request, timeout_s)).overview

    def watch_overview(
        self, *, time_zone: str = ""
    ) -> AsyncWatch[pb.WatchOverviewRequest, pb.WatchOverviewResponse, pb.Overview]:
        """The main numbers of today, each time they change, for as long as you read."""

        def request(_: str) -> pb.WatchOverviewRequest:
            return pb.WatchOverviewRequest(time_zone=time_zone)

        def overviews(reply: pb.WatchOverviewResponse) -> Sequence[pb.Overview]:
            return [reply.overview] if reply.HasField("overview") else []

        return AsyncWatch(self._watch_overview, request, overviews)

    async def metrics(self, *, timeout_s: float | None = None) -> Sequence[pb.Metric]:
        """The metrics with their values, dimensions and intervals."""
        return (await self._metrics(pb.ListMetricsRequest(), timeout_s)).metrics


def _stats_query(
    metric: str,
    from_time: Time,
    to_time: Time,
    interval: pb.Interval.ValueType | str,
    time_zone: str,
    group_by: Sequence[str],
    filters: Mapping[str, Sequence[str]] | None,
    values: Sequence[str],
    max_groups: int,
) -> pb.StatsQuery:
    return pb.StatsQuery(
        metric=metric,
        from_time=timestamp(from_time),
        to_time=timestamp(to_time),
        interval=value_of(pb.Interval, interval),
        time_zone=time_zone,
        group_by=group_by,
        filters=[
            pb.DimensionFilter(dimension=dimension, values=chosen)
            for dimension, chosen in (filters or {}).items()
        ],
        values=values,
        max_groups=max_groups,
    )


def _add(total: pb.RecordEventsResponse, part: pb.RecordEventsResponse, start: int) -> None:
    """Problems count from the first event of all."""
    for problem in part.problems:
        problem.index += start
    total.statuses.extend(part.statuses)
    total.problems.extend(part.problems)
    total.counts.recorded += part.counts.recorded
    total.counts.duplicates += part.counts.duplicates
    total.counts.conflicts += part.counts.conflicts
    total.counts.refused += part.counts.refused
