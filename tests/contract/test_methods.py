"""Which methods there are, and what each says about itself."""

import re

from tools.reference import Contract, policy_of
from trunkline.api.options.v1 import policy_pb2

# Removing or renaming one breaks callers: this list changes only on purpose.
METHODS = {
    "identity.v1.IdentityService": """
        Login Refresh Logout WhoAmI CreateUser ListUsers UpdateUser ResetPassword CreateApiKey
        ListApiKeys RotateApiKey RevokeApiKey GetOrg UpdateOrg ListAuditEvents VerifyAudit
    """,
    "members.v1.MemberService": """
        ValidateMember BatchValidateMembers StreamValidateMembers CreateMember GetMember
        UpdateMember DeleteMember UndeleteMember ListMembers SearchMembers ListMemberHistory
        ExportMembers WatchMembers ListValidationGuards ReleaseValidationGuard
    """,
    "imports.v1.ImportService": """
        CreateImport UploadImport SubmitCsv GetUpload GetImport ListImports WatchImport
        CommitImport CancelImport RetryImport UndoImport ListUndoResults ListRejects
        DownloadRejects GetImportTemplate
    """,
    "content.v1.ContentService": """
        CreateArticle GetArticle UpdateArticle ListArticles SearchArticles SubmitArticle
        ApproveArticle RejectArticle PublishArticle UnpublishArticle ArchiveArticle DeleteArticle
        UndeleteArticle ListRevisions DiffRevisions RollbackArticle RateArticle ListTopArticles
        ListSearchMisses SuggestSearches ListUncoveredReasons CreateCategory UpdateCategory
        ListCategories DeleteCategory
    """,
    "stats.v1.StatsService": """
        RecordEvents StreamEvents QueryStats GetOverview WatchOverview ExportStats ListMetrics
    """,
    "ops.v1.OpsService": "GetServerInfo ListJobs RetryJob CancelJob GetQuota ListDeadJobs",
}
ANONYMOUS = {"Login", "Refresh"}
READS = re.compile(
    "Get|List|Search|Suggest|Query|Watch|Diff|WhoAmI|Download|Export|Verify"
    "|Validate|Batch|Stream|Record"
)
# Not repeatable, or harmless to repeat: tokens answer once, uploads carry offsets, votes replace.
WITHOUT_REQUEST_ID = {"Login", "Refresh", "Logout", "UploadImport", "SubmitCsv", "RateArticle"}


def test_the_methods_are_those_agreed_on(contract: Contract) -> None:
    found = {
        service.name.removeprefix("trunkline.api."): [m.name for m, _ in service.methods]
        for service in contract.services()
    }
    assert found == {name: methods.split() for name, methods in METHODS.items()}


def test_every_method_has_a_policy(contract: Contract) -> None:
    for service in contract.services():
        for method, _ in service.methods:
            policy = policy_of(method)
            assert method.options.HasExtension(policy_pb2.policy), method.name
            assert policy.anonymous == (method.name in ANONYMOUS), method.name
            assert bool(policy.roles) != policy.anonymous, method.name
            assert policy_pb2.ROLE_UNSPECIFIED not in policy.roles, method.name
            assert len(set(policy.roles)) == len(policy.roles), method.name
            assert policy.cost > 0, method.name
            assert policy.priority != policy_pb2.PRIORITY_UNSPECIFIED, method.name
            default, longest = policy.default_deadline.seconds, policy.max_deadline.seconds
            assert 0 < default <= longest, method.name


def test_writes_are_audited_and_repeatable(contract: Contract) -> None:
    fields = {m.name: {field.name for field, _ in m.fields} for m in contract.messages()}
    for service in contract.services():
        for method, _ in service.methods:
            if READS.match(method.name):
                continue
            assert policy_of(method).audit or method.name == "RateArticle", method.name
            if method.name not in WITHOUT_REQUEST_ID:
                assert "request_id" in fields[method.input_type.removeprefix(".")], method.name


def test_requests_and_responses_are_named_after_their_method(contract: Contract) -> None:
    for service in contract.services():
        for method, _ in service.methods:
            assert method.input_type.endswith(f".{method.name}Request")
            assert method.output_type.endswith(f".{method.name}Response")


def test_lists_are_paged(contract: Contract) -> None:
    """Every list has pages, but for those whose length the contract itself bounds."""
    bounded = {"ListUncoveredReasons", "ListMetrics"}
    fields = {m.name: {field.name for field, _ in m.fields} for m in contract.messages()}
    for service in contract.services():
        for method, _ in service.methods:
            if method.name.startswith(("List", "Search")) and method.name not in bounded:
                assert {"page_size", "page_token"} <= fields[method.input_type[1:]], method.name
                assert "next_page_token" in fields[method.output_type[1:]], method.name
