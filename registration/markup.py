"""HTML that somebody else wrote: where a footer goes in it, and what would hide it there.

A parser that reads as browsers do reads it with a mark in the footer's place, and the mark is looked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from selectolax.lexbor import LexborHTMLParser, LexborNode

_MARK = "\ue000"
_DOCUMENT = re.compile(r"<(?:!doctype|html|body)(?=[\s/>])", re.IGNORECASE)
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_END_TAG = re.compile(r"</(body|html)(?=[\s/>])", re.IGNORECASE)
_MOST_END_TAGS = 3
"""How many of each are tried as the place, from the last: one may be in a comment or a script."""
CARD = '<!doctype html><body style=""><table><tr><td><table><tr><td></td></tr><tr><td>', "</td></tr><tr><td>"
"""What is around a fragment in our own page, up to the footer, as far as it matters to a parser."""
_HIDING = {
    *("audio", "canvas", "datalist", "details", "dialog", "fencedframe", "marquee", "math", "meter", "noscript"),
    *("object", "option", "progress", "rp", "select", "svg", "video"),
}
"""Elements that show nothing of what is in them, or not always."""
_HIDING_ATTRIBUTES = ("hidden", "popover")
_HIDING_STYLE = re.compile(
    r"(?<![\w-])(?:display\s*:\s*none|(?:(?:max-)?(?:height|width)|opacity)\s*:\s*(?=[.0])[.0]*(?![.\d]))",
    re.IGNORECASE,
)
"""What mails hide their previews with, left open by accident; there is no end of what could be done on purpose."""


@dataclass(frozen=True)
class Place:
    """Where the footer goes: after `position` characters of a whole document, or below a fragment.

    `hidden_by` says in what nothing would be seen of it, such as `a comment` or `<details>`; empty if in nothing.
    """

    position: int
    hidden_by: str
    is_document: bool = False


def find_place(html: str) -> Place:
    """Find the place of the footer: the end of the body, or where else it is seen if it is not seen there."""
    if not _DOCUMENT.search(_COMMENT.sub("", html)):
        before, after = CARD
        return Place(len(html), _hidden_by(before + html + after, ""))
    ends: dict[str, list[int]] = {"body": [], "html": []}
    for end_tag in _END_TAG.finditer(html):
        ends[end_tag[1].lower()].append(end_tag.start())
    positions = [position for places in ends.values() for position in reversed(places[-_MOST_END_TAGS:])]
    for position in (*positions, len(html)):
        place = Place(position, _hidden_by(html[:position], html[position:]), is_document=True)
        if not place.hidden_by:
            break
    return place


def _hidden_by(before: str, after: str) -> str:
    tree = LexborHTMLParser(f"{before}<div>{_MARK}</div>{after}")
    marks = [text.parent for text in _texts(tree) if text.text_content == _MARK]
    around = marks[-1] if marks else None
    while around is not None and around.tag != "div":  # a <b> left open before it goes on within it
        around = around.parent
    if around is None or around.text() != _MARK:
        return _swallowed_by(tree)
    if tree.css_first("template[shadowrootmode]"):
        return "<template shadowrootmode>"
    while around is not None:
        if hiding := _hiding(around):
            return hiding
        around = around.parent
    return ""


def _texts(tree: LexborHTMLParser) -> Iterator[LexborNode]:
    nodes = tree.root.traverse(include_text=True) if tree.root else ()
    return (node for node in nodes if node.is_text_node)


def _hiding(node: LexborNode) -> str:
    """Return the start of an element as it was written if it hides what is in it."""
    if node.tag in _HIDING:
        return f"<{node.tag}>"
    if named := [name for name in _HIDING_ATTRIBUTES if name in node.attributes]:
        return f"<{node.tag} {named[0]}>"
    found = _HIDING_STYLE.search(node.attributes.get("style") or "")
    return f'<{node.tag} style="{found[0]}">' if found else ""


def _swallowed_by(tree: LexborHTMLParser) -> str:
    """Say as a part of what the mark was read."""
    for node in _texts(tree):
        if _MARK in (text := node.text_content or ""):
            return f"<{node.parent.tag}>" if node.parent and f"<div>{_MARK}" in text else "a tag"
    before, mark, _ = (tree.html or "").rpartition(_MARK)
    if mark:
        return "a comment" if before.rfind("<!--") > before.rfind("-->") else "<template>"
    return "<frameset>" if tree.css_first("frameset") else "a tag"
