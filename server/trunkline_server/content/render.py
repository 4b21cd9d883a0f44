"""Markdown as HTML that is safe to show, as plain words to search in, and highlights as HTML."""

from __future__ import annotations

import asyncio
import html
import re

import nh3
from markdown_it import MarkdownIt

# Larger ones are rendered beside the event loop: 256 KiB take a good part of a second.
INLINE_BYTES_MAX = 8 << 10
PLAIN_CHARS_MAX = 200_000

# What a search marks its words with inside PostgreSQL; no text that is searched contains them.
MARK_START, MARK_END = "\ue000", "\ue001"
_MARKS = str.maketrans({MARK_START: " ", MARK_END: " "})
# Bounded, so that a text of nothing but brackets costs no more than another.
_LINK = re.compile(r"!?\[([^\[\]\n]{0,300})\]\([^()\n]{0,500}\)")
_MARKUP = str.maketrans(dict.fromkeys("*_`#>|~[]", " "))

# Raw HTML is shown as text by the renderer; nh3 then lets through what Markdown itself makes.
_markdown = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
_TAGS = {
    "a", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "img",
    "li", "ol", "p", "pre", "s", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul",
}  # fmt: skip
_ATTRIBUTES = {"a": {"href", "title"}, "img": {"src", "alt", "title"}, "ol": {"start"}}
_SCHEMES = {"http", "https", "mailto", "tel"}


def to_html(markdown: str) -> str:
    return nh3.clean(
        _markdown.render(markdown),
        tags=_TAGS,
        attributes=_ATTRIBUTES,
        url_schemes=_SCHEMES,
        link_rel="noopener noreferrer nofollow",
    )


async def rendered(markdown: str) -> str:
    """Without holding the event loop up."""
    if len(markdown) <= INLINE_BYTES_MAX:
        return to_html(markdown)
    return await asyncio.to_thread(to_html, markdown)


def searchable_title(title: str) -> str:
    return title.translate(_MARKS)


def plain(summary: str, markdown: str) -> str:
    """The words without the markup: for the index and for the passages a search shows."""
    text = _LINK.sub(r"\1", f"{summary}\n{markdown}"[:PLAIN_CHARS_MAX])
    return " ".join(text.translate(_MARKUP).translate(_MARKS).split())


def highlighted(marked: str) -> str:
    """What PostgreSQL marked, as HTML in which nothing but <mark> is a tag."""
    escaped = html.escape(marked)
    return escaped.replace(MARK_START, "<mark>").replace(MARK_END, "</mark>")
