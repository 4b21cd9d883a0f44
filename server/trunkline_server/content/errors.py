"""What ContentService refuses, and why."""

from collections.abc import Sequence

from trunkline.api.errors.v1 import reason_pb2
from trunkline_server import errors
from trunkline_server.content.rules import Action


class ArticleNotFound(errors.NotFound):
    reason = reason_pb2.REASON_ARTICLE_NOT_FOUND
    text = "There is no such article."


class ArticleStepNotAllowed(errors.FailedPrecondition):
    reason = reason_pb2.REASON_ARTICLE_TRANSITION_NOT_ALLOWED
    text = "The article's state does not allow this step."

    @classmethod
    def naming(cls, article_id: str, allowed: Sequence[Action]) -> "ArticleStepNotAllowed":
        names = ", ".join(allowed) or "none"
        return cls(
            metadata={"allowed_actions": ",".join(allowed)},
            preconditions=[
                errors.Precondition("ARTICLE_STATE", article_id, f"Allowed for you now: {names}.")
            ],
        )


class SelfApproval(errors.PermissionDenied):
    reason = reason_pb2.REASON_ARTICLE_SELF_APPROVAL
    text = "Authors do not approve their own revision here."


class RevisionChanged(errors.FailedPrecondition):
    reason = reason_pb2.REASON_ARTICLE_REVISION_CHANGED
    text = "The revision is not the one at hand."


class RevisionNotFound(errors.NotFound):
    reason = reason_pb2.REASON_REVISION_NOT_FOUND
    text = "The article has no such revision."


class PublishTimeInvalid(errors.Invalid):
    reason = reason_pb2.REASON_PUBLISH_TIME_INVALID
    text = "The time lies in the past, or more than a year ahead."


class ArticleSlugTaken(errors.AlreadyExists):
    reason = reason_pb2.REASON_ARTICLE_SLUG_TAKEN
    text = "Another article of this locale has, or had, this slug."


class LocaleUnknown(errors.Invalid):
    reason = reason_pb2.REASON_LOCALE_UNKNOWN
    text = "The organisation does not write in this locale."


class CategoryNotFound(errors.NotFound):
    reason = reason_pb2.REASON_CATEGORY_NOT_FOUND
    text = "There is no such category."


class CategoryNameTaken(errors.AlreadyExists):
    reason = reason_pb2.REASON_CATEGORY_NAME_TAKEN
    text = "A category under the same parent has this name."


class CategoryCycle(errors.FailedPrecondition):
    reason = reason_pb2.REASON_CATEGORY_CYCLE
    text = "The category would become its own ancestor."


class CategoryNotEmpty(errors.FailedPrecondition):
    reason = reason_pb2.REASON_CATEGORY_NOT_EMPTY
    text = "The category has articles or categories below it; deleted articles count."


class CategoryTooDeep(errors.FailedPrecondition):
    reason = reason_pb2.REASON_CATEGORY_TOO_DEEP
    text = "The tree of categories would become too deep."


class CategoriesFull(errors.RateLimited):
    text = "The organisation has as many categories as it can have."


class ArticleDeleted(errors.FailedPrecondition):
    reason = reason_pb2.REASON_ARTICLE_DELETED
    text = "The article is deleted. Undelete it first."


class ArticleNotDeleted(errors.FailedPrecondition):
    reason = reason_pb2.REASON_NOT_UNDELETABLE
    text = "The article is not deleted, so there is nothing to restore."


class ArticleNotPublished(errors.FailedPrecondition):
    reason = reason_pb2.REASON_ARTICLE_NOT_PUBLISHED
    text = "Only published articles can be rated."


class ArticleQuotaReached(errors.RateLimited):
    reason = reason_pb2.REASON_ARTICLE_QUOTA_REACHED
    text = "The organisation has as many articles as its quota allows."


class EtagMismatch(errors.Aborted):
    """Its metadata holds what is there now: `etag`, and an article's newest `revision`."""

    reason = reason_pb2.REASON_ETAG_MISMATCH
    text = "It was changed since it was read; read it again and bring the changes together."


class FieldInvalid(errors.Invalid):
    reason = reason_pb2.REASON_INVALID_FIELD
