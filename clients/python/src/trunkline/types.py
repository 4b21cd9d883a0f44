"""The messages and enums callers meet most, under one roof.

They are the generated ones: every field is described in the API reference, and typed.
"""

from trunkline._shared.enums import name_of
from trunkline._shared.progress import Progress
from trunkline.api.content.v1.content_service_pb2 import (
    Article,
    ArticleFilter,
    ArticleKind,
    ArticleMatch,
    ArticleState,
    ArticleView,
    Category,
    Vote,
)
from trunkline.api.identity.v1.identity_service_pb2 import ApiKey, AuditEvent, Org, User
from trunkline.api.imports.v1.imports_service_pb2 import (
    ColumnMapping,
    CommitMode,
    Dialect,
    Import,
    ImportField,
    ImportMode,
    ImportPlan,
    ImportSpec,
    ImportState,
    Reject,
)
from trunkline.api.imports.v1.reject_code_pb2 import RejectCode
from trunkline.api.members.v1.members_service_pb2 import (
    ChangeCause,
    Consistency,
    Decision,
    Member,
    MemberAnswer,
    MemberChange,
    MemberFilter,
    MemberQuery,
    MemberStatus,
    Provenance,
    Validation,
)
from trunkline.api.members.v1.validation_reason_pb2 import ValidationReason
from trunkline.api.ops.v1.ops_service_pb2 import Job, QuotaUsage
from trunkline.api.options.v1.policy_pb2 import Role
from trunkline.api.stats.v1.stats_service_pb2 import Event, EventKind, Finality, Interval, Overview

__all__ = [
    "ApiKey",
    "Article",
    "ArticleFilter",
    "ArticleKind",
    "ArticleMatch",
    "ArticleState",
    "ArticleView",
    "AuditEvent",
    "Category",
    "ChangeCause",
    "ColumnMapping",
    "CommitMode",
    "Consistency",
    "Decision",
    "Dialect",
    "Event",
    "EventKind",
    "Finality",
    "Import",
    "ImportField",
    "ImportMode",
    "ImportPlan",
    "ImportSpec",
    "ImportState",
    "Interval",
    "Job",
    "Member",
    "MemberAnswer",
    "MemberChange",
    "MemberFilter",
    "MemberQuery",
    "MemberStatus",
    "Org",
    "Overview",
    "Progress",
    "Provenance",
    "QuotaUsage",
    "Reject",
    "RejectCode",
    "Role",
    "User",
    "Validation",
    "ValidationReason",
    "Vote",
    "name_of",
]
