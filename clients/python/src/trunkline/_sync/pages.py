# Made from clients/python/src/trunkline/_async/pages.py by tools/unasync.py: change that one.
"""Lists, page by page behind one iterator."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from trunkline._sync.session import Unary

Item = TypeVar("Item")
Response = TypeVar("Response")


@dataclass(frozen=True, slots=True)
class Page(Generic[Item, Response]):
    """One page, and the whole reply it came in."""

    items: Sequence[Item]
    next_page_token: str
    response: Response


class Pager(Generic[Item, Response]):
    """Iterate it for the items; `.pages()` for the pages. Pages are fetched as they are needed."""

    def __init__(
        self,
        call: Unary[Any, Any],
        request: Any,
        items: Callable[[Response], Sequence[Item]],
        timeout_s: float | None = None,
    ) -> None:
        self._call = call
        self._request = request
        self._items = items
        self._timeout_s = timeout_s

    def page(self, page_token: str = "") -> Page[Item, Response]:
        """One page: the first, or the one a `next_page_token` leads to."""
        request = type(self._request)()
        request.CopyFrom(self._request)
        if page_token:
            request.page_token = page_token
        response = self._call(request, self._timeout_s)
        return Page(self._items(response), response.next_page_token, response)

    def pages(self) -> Iterator[Page[Item, Response]]:
        """All pages, one after the other."""
        token = ""
        while True:
            page = self.page(token)
            yield page
            token = page.next_page_token
            if not token:
                return

    def __iter__(self) -> Iterator[Item]:
        for page in self.pages():
            yield from page.items

    def first(self, count: int) -> list[Item]:
        """At most that many items."""
        found: list[Item] = []
        for page in self.pages():
            found.extend(page.items[: count - len(found)])
            if len(found) >= count:
                break
        return found
