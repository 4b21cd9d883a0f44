"""The policy that the contract declares for each method, read from its descriptor."""

from dataclasses import dataclass

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from trunkline.api.options.v1 import policy_pb2
from trunkline.api.options.v1.policy_pb2 import Priority
from trunkline_server.rpc.caller import Role

DEFAULT_DEADLINE_S = 10.0
MAX_DEADLINE_S = 60.0


class PolicyMissing(Exception):
    """A method without a policy does not start: nobody decided who may call it."""


@dataclass(frozen=True, slots=True)
class MethodPolicy:
    roles: frozenset[Role]
    role_mask: int  # the same as bits: an enum member hashes in Python code
    anonymous: bool
    cost: int
    priority: Priority.ValueType
    audit: bool
    default_deadline_s: float
    max_deadline_s: float
    queued: bool
    exempt: bool  # health and operations answer when nothing else does


def policy_of(method: MethodDescriptor) -> MethodPolicy:
    options = method.GetOptions()
    if not options.HasExtension(policy_pb2.policy):
        raise PolicyMissing(f"{method.full_name} declares no policy")
    declared = options.Extensions[policy_pb2.policy]
    roles = frozenset(Role(role) for role in declared.roles if role)
    if not roles and not declared.anonymous:
        raise PolicyMissing(f"{method.full_name} admits nobody")
    if declared.priority == policy_pb2.PRIORITY_UNSPECIFIED:
        raise PolicyMissing(f"{method.full_name} has no priority")
    return MethodPolicy(
        roles=roles,
        role_mask=sum(1 << role for role in roles),
        anonymous=declared.anonymous,
        cost=declared.cost,
        priority=declared.priority,
        audit=declared.audit,
        queued=declared.queued,
        default_deadline_s=declared.default_deadline.ToTimedelta().total_seconds()
        or DEFAULT_DEADLINE_S,
        max_deadline_s=declared.max_deadline.ToTimedelta().total_seconds() or MAX_DEADLINE_S,
        exempt=_service(method).full_name.startswith("trunkline.api.ops."),
    )


def _service(method: MethodDescriptor) -> ServiceDescriptor:
    return method.containing_service
