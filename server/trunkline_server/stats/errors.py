"""What can be wrong with an event or a question."""

from trunkline.api.errors.v1 import reason_pb2
from trunkline_server.errors import AlreadyExists, Invalid, OutOfRange, PermissionDenied


class EventInvalid(Invalid):
    reason = reason_pb2.REASON_EVENT_INVALID
    text = "The event is not valid."


class EventTooOld(Invalid):
    reason = reason_pb2.REASON_EVENT_TOO_OLD
    text = "The event happened more than 35 days ago."


class EventTooNew(Invalid):
    reason = reason_pb2.REASON_EVENT_TOO_NEW
    text = "The event lies more than 5 minutes in the future."


class EventConflict(AlreadyExists):
    reason = reason_pb2.REASON_EVENT_CONFLICT
    text = "An event with this id was recorded with other content, which stays."


class EventKindNotAllowed(Invalid):
    reason = reason_pb2.REASON_EVENT_KIND_NOT_ALLOWED
    text = "Only calls are recorded by callers; the service records the other kinds itself."


class EventOfAnotherAgent(PermissionDenied):
    text = "Agents may record events of their own only."


class MetricUnknown(Invalid):
    reason = reason_pb2.REASON_METRIC_UNKNOWN
    text = "There is no such metric; ListMetrics names them."


class DimensionUnknown(Invalid):
    reason = reason_pb2.REASON_DIMENSION_UNKNOWN
    text = "The metric has no such dimension; ListMetrics names them."


class TimeZoneUnknown(Invalid):
    reason = reason_pb2.REASON_TIME_ZONE_UNKNOWN
    text = "The time zone is not in the IANA database."


class ValueUnknown(Invalid):
    text = "The metric has no such value; ListMetrics names them."


class RangeInvalid(Invalid):
    text = "from_time must be before to_time, and both between the years 1970 and 2200."


class FilterInvalid(Invalid):
    text = "Agents are named by their ids."


class TooManyBuckets(Invalid):
    reason = reason_pb2.REASON_TOO_MANY_BUCKETS
    text = "The range has more buckets than a reply may hold."


class RangeNotKept(OutOfRange):
    reason = reason_pb2.REASON_STATS_RANGE_NOT_KEPT
    text = (
        "The range cuts an hour whose raw events are no longer kept; begin and end at whole hours "
        "of UTC, or later."
    )
