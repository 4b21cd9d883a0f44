"""articles list | get | search | create | submit | approve | reject | publish | ..."""

from collections.abc import Callable
from typing import TextIO

import click

from trunkline._shared.enums import names_of
from trunkline.api.content.v1 import content_service_pb2 as pb
from trunkline.cli.app import Setup, pass_setup
from trunkline.cli.output import emit, emit_one, output_option

_LIST = (
    ("article", "article_id"),
    ("kind", "kind"),
    ("state", "state"),
    ("locale", "locale"),
    ("title", "title"),
    ("live", "published_revision"),
    ("draft", "draft_revision"),
    ("updated", "update_time"),
)
_ONE = (*_LIST, ("tags", "tags"), ("summary", "summary"), ("body", "body"))
_MATCHES = (
    ("score", "score"),
    ("article", "article.article_id"),
    ("kind", "article.kind"),
    ("title", "article.title"),
    ("found", "highlights"),
)
_REVISIONS = (
    ("revision", "revision"),
    ("title", "title"),
    ("author", "author_name"),
    ("written", "create_time"),
    ("published", "publish_time"),
    ("note", "note"),
)
_TOP = (("views", "views"), ("article", "article.article_id"), ("title", "article.title"))
_MISSES = (("count", "count"), ("query", "query"), ("locale", "locale"), ("last", "last_time"))
_KINDS = click.Choice([name.lower() for name in names_of(pb.ArticleKind)], case_sensitive=False)
_STATES = click.Choice([name.lower() for name in names_of(pb.ArticleState)], case_sensitive=False)


@click.group()
def articles() -> None:
    """Articles, FAQs and training material."""


@articles.command("list")
@click.option("--kind", type=_KINDS, multiple=True)
@click.option("--state", type=_STATES, multiple=True)
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1))
@output_option
@pass_setup
def list_(
    setup: Setup, kind: tuple[str, ...], state: tuple[str, ...], limit: int, output: str
) -> None:
    """List articles."""
    with setup.client() as client:
        found = client.content.list(kinds=kind, states=state, page_size=min(limit, 1000))
        emit(found.first(limit), _LIST, output)


@articles.command()
@click.argument("article_id")
@click.option("--draft", is_flag=True, help="The newest revision instead of the live text.")
@output_option
@pass_setup
def get(setup: Setup, article_id: str, draft: bool, output: str) -> None:
    """Show an article."""
    with setup.client() as client:
        view = "DRAFT" if draft else "UNSPECIFIED"
        emit_one(client.content.get(article_id, view=view).article, _ONE, output)


@articles.command()
@click.argument("query")
@click.option("--kind", type=_KINDS, multiple=True)
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 1000))
@output_option
@pass_setup
def search(setup: Setup, query: str, kind: tuple[str, ...], limit: int, output: str) -> None:
    """Find articles by words, best first."""
    with setup.client() as client:
        found = client.content.search(query, kinds=kind, page_size=limit)
        emit(found.first(limit), _MATCHES, output)


@articles.command()
@click.argument("title")
@click.argument("body", type=click.File("r", encoding="utf-8"))
@click.option("--kind", type=_KINDS, default="article", show_default=True)
@click.option("--locale", default="")
@click.option("--tag", multiple=True)
@output_option
@pass_setup
def create(
    setup: Setup,
    title: str,
    body: TextIO,
    kind: str,
    locale: str,
    tag: tuple[str, ...],
    output: str,
) -> None:
    """Create a draft; BODY is a Markdown file, or - for standard input."""
    with setup.client() as client:
        made = client.content.create(kind, title, body.read(), locale=locale, tags=tag)
        emit_one(made, _ONE, output)


@articles.command()
@click.argument("article_id")
@output_option
@pass_setup
def revisions(setup: Setup, article_id: str, output: str) -> None:
    """List the revisions of an article."""
    with setup.client() as client:
        emit(client.content.revisions(article_id), _REVISIONS, output)


@articles.command()
@click.argument("article_id")
@click.argument("revision", type=int)
@click.option("--reason", required=True, help="Why it goes back.")
@output_option
@pass_setup
def reject(setup: Setup, article_id: str, revision: int, reason: str, output: str) -> None:
    """Send a draft back with a reason."""
    with setup.client() as client:
        emit_one(client.content.reject(article_id, revision, reason), _LIST, output)


def _pinned(name: str, doing: str) -> click.Command:
    @click.argument("article_id")
    @click.argument("revision", type=int)
    @output_option
    @pass_setup
    def step(setup: Setup, article_id: str, revision: int, output: str) -> None:
        with setup.client() as client:
            content = client.content
            steps: dict[str, Callable[[str, int], pb.Article]] = {
                "submit": content.submit,
                "approve": content.approve,
                "publish": content.publish,
                "rollback": content.rollback,
            }
            take = steps[name]
            emit_one(take(article_id, revision), _LIST, output)

    return click.command(name, help=doing)(step)


def _whole(name: str, doing: str) -> click.Command:
    @click.argument("article_id")
    @output_option
    @pass_setup
    def step(setup: Setup, article_id: str, output: str) -> None:
        with setup.client() as client:
            content = client.content
            take = {
                "unpublish": content.unpublish,
                "archive": content.archive,
                "delete": content.delete,
                "undelete": content.undelete,
            }[name]
            emit_one(take(article_id), _LIST, output)

    return click.command(name, help=doing)(step)


articles.add_command(_pinned("submit", "Offer a draft's revision for review."))
articles.add_command(_pinned("approve", "Approve the revision under review."))
articles.add_command(_pinned("publish", "Make the approved revision live."))
articles.add_command(_pinned("rollback", "Make an old revision the draft again."))
articles.add_command(_whole("unpublish", "Take the live text away."))
articles.add_command(_whole("archive", "Take an article out of use."))
articles.add_command(_whole("delete", "Delete an article."))
articles.add_command(_whole("undelete", "Restore a deleted article."))


@articles.command()
@click.option("--days", default=0, type=click.IntRange(0), help="Of the last days only.")
@output_option
@pass_setup
def top(setup: Setup, days: int, output: str) -> None:
    """List the articles that are read most."""
    with setup.client() as client:
        emit(client.content.top(days=days).first(50), _TOP, output)


@articles.command()
@click.option("--days", default=0, type=click.IntRange(0), help="Of the last days only.")
@output_option
@pass_setup
def misses(setup: Setup, days: int, output: str) -> None:
    """List the searches that found nothing."""
    with setup.client() as client:
        emit(client.content.search_misses(days=days).first(100), _MISSES, output)


COMMANDS = (articles,)
