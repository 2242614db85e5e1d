"""HTML that somebody else wrote, read as a browser reads it: what is a tag there, and what only looks like one.

Python's own parser takes other things than browsers for the end of a comment, of a style sheet or of a declaration,
and in each version different ones.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

_WHOLE = {"body", "html"}
"""Elements that only a whole document has."""
_RAW_TEXT = {"script", "style", "title", "textarea", "xmp", "iframe", "noembed", "noframes"}
"""Elements in which nothing is a tag but their own end."""
_ENDLESS = {"plaintext", "frameset"}
"""Elements after which a browser shows nothing that follows, whatever ends them."""
_FOLDING = {
    *("audio", "canvas", "datalist", "details", "dialog", "meter", "noscript"),
    *("object", "progress", "select", "svg", "template", "video"),
}
"""Elements that hide what is in them, and that a browser does not end by itself; of these only an SVG can be empty."""
_OPENING = re.compile(r"<(?=[a-z/!?])", re.IGNORECASE)
_MARKUP = re.compile(
    r"""
      <!-- (?: -?> | .*? --!?> )                       # a comment; `<!-->` is one too
    | < (?: (?P<doctype> !doctype ) | (?! !-- ) [!?] | / (?! [a-z] ) ) [^>]* >
    | < (?P<slash> /? ) (?P<name> [a-z] [^\t\n\f\r\ />]*+ )
      (?: = [\t\n\f\r\ ]*+ (?: "[^"]*+" | '[^']*+' | (?! ["'] ) ) | [^=>] )*+ >
    """,
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
"""Comments, declarations and tags: https://html.spec.whatwg.org/multipage/parsing.html#tokenization"""


@dataclass
class Reading:
    """What is known of HTML after reading it.

    `end` is where something can be put in as the last of its body. `unfinished` says what it ends in the middle of,
    such as `a comment`, in which nothing that is put in there is shown; empty if in nothing.
    """

    end: int
    is_document: bool = False
    unfinished: str = ""


def read(html: str) -> Reading:
    """Find out whether HTML is a whole document or a fragment, and where and how it ends."""
    reading, position = Reading(end=len(html)), 0
    ends: dict[str, tuple[int, str]] = {}
    folding: Counter[str] = Counter()
    while opening := _OPENING.search(html, position):
        if (found := _MARKUP.match(html, opening.start())) is None:
            reading.unfinished = "a comment" if html.startswith("<!--", opening.start()) else "a tag"
            break
        position, name = found.end(), (found["name"] or "").lower()
        reading.is_document |= name in _WHOLE or found["doctype"] is not None
        if found["slash"] and name in _WHOLE:
            ends[name] = found.start(), _first(folding)
        elif found["slash"]:
            folding -= Counter([name])  # which never counts below nothing
        elif name in _FOLDING:
            folding[name] += not (name == "svg" and found[0].endswith("/>"))
        elif name in _ENDLESS:
            reading.unfinished = f"<{name}>"
            break
        elif name in _RAW_TEXT:
            if (closing := re.compile(rf"</{name}(?=[\t\n\f\r />])", re.IGNORECASE).search(html, position)) is None:
                reading.unfinished = f"<{name}>"
                break
            position = closing.start()
    reading.end, hiding = ends.get("body") or ends.get("html") or (len(html), _first(folding))
    reading.unfinished = reading.unfinished or hiding
    return reading


def _first(folding: Counter[str]) -> str:
    return next((f"<{name}>" for name in folding.elements()), "")
