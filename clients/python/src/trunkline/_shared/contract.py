"""What the contract says about a method."""

from functools import cache

from google.protobuf.descriptor import MethodDescriptor

from trunkline.api.options.v1 import policy_pb2


@cache
def default_deadline_s(method: MethodDescriptor) -> float:
    """How long a call may take that says nothing else."""
    policy = method.GetOptions().Extensions[policy_pb2.policy]
    return policy.default_deadline.ToTimedelta().total_seconds()


@cache
def max_deadline_s(method: MethodDescriptor) -> float:
    policy = method.GetOptions().Extensions[policy_pb2.policy]
    return policy.max_deadline.ToTimedelta().total_seconds()
