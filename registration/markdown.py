"""Markdown that people write as if it were plain text, made HTML of which no word is lost.

What it means to them is in docs/board.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from linkify_it import LinkifyIt
from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock, blockquote, list_block, table
from markdown_it.rules_block.table import escapedSplit, getLine
from markdown_it.rules_inline import StateInline, emphasis, image, link
from markdown_it.token import Token
from markupsafe import escape

LINK_COLOUR = "#0f5c94"
_MONOSPACE = "Consolas, Menlo, 'DejaVu Sans Mono', monospace"
_STYLES = {
    "h1": "margin: 0 0 16px; font-size: 25px; line-height: 1.3; color: #10212f;",
    "h2": "margin: 28px 0 12px; font-size: 20px; line-height: 1.35; color: #10212f;",
    "h3": "margin: 24px 0 10px; font-size: 17px; line-height: 1.4; color: #10212f;",
    "p": "margin: 0 0 16px;",
    "ul": "margin: 0 0 16px; padding-inline-start: 24px;",
    "ol": "margin: 0 0 16px; padding-inline-start: 24px;",
    "li": "margin: 0 0 6px;",
    "a": f"color: {LINK_COLOUR}; text-decoration: underline;",
    "blockquote": "margin: 0 0 16px; padding: 12px 16px 1px; border-inline-start: 4px solid #0f5c94; color: #46535f;",
    "code": f"padding: 1px 5px; border-radius: 4px; background: #eef1f4; font: 14px/1.5 {_MONOSPACE};",
    "hr": "margin: 24px 0; border: 0; border-top: 1px solid #dce1e6;",
    "table": "margin: 0 0 16px; border-collapse: collapse;",
    "th": "padding: 6px 12px; border: 1px solid #dce1e6; background: #eef1f4; text-align: start;",
    "td": "padding: 6px 12px; border: 1px solid #dce1e6;",
    "img": "max-width: 100%; height: auto;",
}
_DIRECTED = {"p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "table", "th", "td"}
_PRE = f"""margin: 0 0 16px; padding: 12px 14px; border-radius: 6px; background: #eef1f4;
 font: 14px/1.5 {_MONOSPACE}; white-space: pre-wrap; overflow-wrap: anywhere;""".replace("\n", "")
_ABSOLUTE = re.compile(r"https?://[^/]|mailto:[^?]", re.IGNORECASE)
_LANGUAGE = re.compile(r"[\w+#.-]*\s*")
"""What follows a fence at once and says in which language the code is."""
_WORD_BEFORE = re.compile(r"[\w\\.@=~$]|(?<!\*\*)/", re.ASCII)
_WORD_AFTER = re.compile(r"[\w\\@=~$]|/(?!\*\*\w)|\.\w", re.ASCII)
"""What is before, or after, an asterisk inside a word, a path or a calculation, unlike in `**this**/**that**`."""
_PATTERN_BEFORE, _PATTERN_AFTER = re.compile(r"[/\\_]"), re.compile(r"[./\\_]")
"""What is before, or after, a single one that stands for any name, as in `documents/*` and `*.php`."""
_DEEPEST_QUOTE, _DEEPEST_LIST = 5, 10
"""Levels at which no quote and no list begins any more; a quote is one level, and a list two."""
_RANGE, _RANGE_IN_QUOTE = re.compile(r">[ \t]*(?:=|[vV]?\d)"), re.compile(r">(?:=|[vV]?\d)")
"""What begins a line that tells versions, such as `>= 7.0.0`, and no quotation, or inside one."""
_NO_ITEM = re.compile(r"\+|0\d|\d{4}|\d+\)")
"""What begins a telephone number, a date or the number of a bug. A list would show it without the sign, the nought or
the bracket, and has no room beside it for more than three digits."""
_OPENING, _CLOSING = "\"'([{<", "\"')]}>"
"""What is around asterisks that are spoken of, as in `(*)`."""
_LONGEST_BARE_LINK = 2_000
"""Characters; thousands of links without a space between them would else take half a minute."""
_BEFORE_SPACE = re.compile(rf"\S{{0,{_LONGEST_BARE_LINK + 1}}}")
_AFTER_LINK = re.compile(
    r"[\u00ab\u00bb\u2018\u201a-\u201f\u2014\u2026\u2039\u203a\u3008-\u3011\u3014\u3015\uff08\uff09\uff3b\uff3d]"
    r"|[\u060c\u061b\u061f\u06d4\u0964\u0965\u3001\u3002\uff01\uff0c\uff0e\uff1a\uff1b\uff1f\uff61]"
    r"|[\u200b\u200e\u200f\ufeff]|\u2019(?!\w)"
)
"""Quotation marks, brackets and dashes that are not ASCII, what ends a sentence in Arabic, Hindi or Chinese, and what
is not seen; an apostrophe ends no word."""
_NO_ADDRESS = re.compile(r"\(\s*\)")
BlockRule = Callable[[StateBlock, int, int, bool], bool]


def render(text: str) -> str:
    """Return Markdown as HTML with its styles in each tag; HTML inside it is shown, not run.

    Links are absolute http, https or mailto ones; others stay text. An indented line is text, not code, and a line
    break is one, because people write plain text too: paths and numbers stay as they were written. Each paragraph, item
    or cell runs in its own direction.
    """
    tokens = _markdown.parse(text)
    for token in (each for block in tokens for each in (block, *(block.children or []))):
        if token.type == "list_item_open" and token.info:
            token.attrSet("value", token.info)
        if token.type == "image" and not str(token.attrs["src"]).lower().startswith(
            "http"
        ):  # nobody would see its words
            token.type, token.content = "text", f"![{token.content}]({token.attrs['src']})"
        if style := _STYLES.get(token.tag) if token.nesting >= 0 else None:
            token.attrJoin("style", style)
    _direct(tokens)
    return str(_markdown.renderer.render(tokens, _markdown.options, {}))


def _direct(tokens: Sequence[Token]) -> None:
    """Give blocks `dir="auto"`, so that each runs in the direction of its first letter.

    The first block inside another gets none: to find the outer one's first letter, HTML skips what has its own `dir`.
    """
    is_first = False
    for token in tokens:
        if token.nesting == 1 and token.tag in _DIRECTED:
            if not is_first:
                token.attrSet("dir", "auto")
            is_first = True
        elif token.nesting != 1:
            is_first = False


def _fence(_: Any, tokens: Sequence[Token], index: int, *__: Any) -> str:
    """Return what is between fences, below what follows the first of them if that is more than a language's name."""
    info, content = tokens[index].info, tokens[index].content
    code = f'<pre style="{_PRE}">{escape(content)}</pre>\n'
    is_language = _LANGUAGE.fullmatch(info) and (content or not info)
    return code if is_language else f'<p style="{_STYLES["p"]}">{escape(info.strip())}</p>\n{code}'


def _down_to(level: int, rule: BlockRule) -> BlockRule:
    """Return a rule that leaves what is nested deeper for text."""
    return lambda state, start, end, silent: state.level < level and rule(state, start, end, silent)


def _read_quote(state: StateBlock, start: int, end: int, silent: bool) -> bool:  # noqa: FBT001  markdown-it's
    """Read a quotation, up to a line such as `>= 7.0.0`; none begins with a line that tells versions."""
    first = _beginning(state, start)
    if not state.src.startswith(">", first) or _RANGE.match(state.src, first):
        return False
    for line in range(start + 1, end):
        if state.isEmpty(line) or state.sCount[line] < state.blkIndent:
            break
        if _RANGE_IN_QUOTE.match(state.src, _beginning(state, line)):
            return blockquote(state, start, line, silent)
    return blockquote(state, start, end, silent)


def _read_list(state: StateBlock, start: int, end: int, silent: bool) -> bool:  # noqa: FBT001  markdown-it's
    """Read a list, but none of telephone numbers, dates or numbers of bugs."""
    return not _NO_ITEM.match(state.src, _beginning(state, start)) and list_block(state, start, end, silent)


def _beginning(state: StateBlock, line: int) -> int:
    return state.bMarks[line] + state.tShift[line]


def _read_table(state: StateBlock, start: int, end: int, silent: bool) -> bool:  # noqa: FBT001  markdown-it's
    """Read a table; what is beyond the last column of its head, which Markdown drops, goes into the last cell."""
    before = len(state.tokens)
    found = table(state, start, end, silent)
    cells = [(token.map[0], token) for token in state.tokens[before:] if token.type == "inline" and token.map]
    width = sum(line == start for line, _ in cells)
    for line, last_cell in dict(cells).items():
        row = escapedSplit(getLine(state, line).strip().removeprefix("|"))
        if len(row) > width and (rest := " | ".join(filter(None, map(str.strip, row[width:])))):
            last_cell.content += f" | {rest}"
    return found


def _emphasize(state: StateInline, silent: bool) -> bool:  # noqa: FBT001  markdown-it's
    """Read asterisks as emphasis only around words, and underscores never: `sites/*/a.php`, `5*3*2`, `__init__.py`."""
    start, before = state.pos, len(state.delimiters)
    if state.src[start] == "_" or not emphasis.tokenize(state, silent):
        return False
    is_single = len(state.delimiters) == before + 1
    is_spoken_of = start > 0 and state.src[start - 1] in _OPENING and state.src[state.pos : state.pos + 1] in _CLOSING
    opens = not (start and _WORD_BEFORE.match(state.src, start - 1)) and not (
        is_single and _PATTERN_AFTER.match(state.src, state.pos)
    )
    closes = not _WORD_AFTER.match(state.src, state.pos) and not (
        is_single and start and _PATTERN_BEFORE.match(state.src, start - 1)
    )
    for delimiter in state.delimiters[before:]:
        delimiter.open &= opens and not is_spoken_of
        delimiter.close &= closes and not is_spoken_of
    return True


def _read_link(state: StateInline, silent: bool) -> bool:  # noqa: FBT001  markdown-it's
    """Read a link that has words and an address."""
    end = state.md.helpers.parseLinkLabel(state, state.pos)
    has_words = bool(state.src[state.pos + 1 : end].strip())
    return has_words and not _NO_ADDRESS.match(state.src, end + 1) and link(state, silent)


def _read_image(state: StateInline, silent: bool) -> bool:  # noqa: FBT001  markdown-it's
    """Read an image; an exclamation mark that ends a word begins none, but a link may follow it."""
    ends_a_word = state.pos > 0 and state.src[state.pos - 1].isalnum()
    return not ends_a_word and image(state, silent)


class _BareLinks(LinkifyIt):  # type: ignore[misc]
    """Finds links without marks around them; what ends a sentence or a quotation, such as `.”`, is no part of one."""

    def _validate_http(self, text: str, pos: int) -> int:
        found = _BEFORE_SPACE.match(text, pos)
        if found is None or len(found[0]) > _LONGEST_BARE_LINK:
            return 0
        link = found[0][: super()._validate_http(found[0], 0)]
        return len(_AFTER_LINK.split(link, maxsplit=1)[0].rstrip(".,:;!?"))


def _create_markdown() -> MarkdownIt:
    """Build a Markdown of which no text is lost.

    The preset drops what is nested more than twenty deep, what looks like the definition of a link, and backslashes, of
    which paths are full; and on a phone, what is nested half as deep has no room left. It shows `&lt;` as what that
    stands for, and takes a line above dashes, such as a signature, for a heading.
    """
    markdown = MarkdownIt("commonmark", {"html": False, "breaks": True, "linkify": True})
    markdown.enable(["table", "linkify"]).disable(["code", "reference", "lheading", "escape", "entity"])
    markdown.inline.ruler.at("emphasis", _emphasize)
    markdown.inline.ruler.at("link", _read_link)
    markdown.inline.ruler.at("image", _read_image)
    # It finds links in the middle of a word too, and needs a minute and a half for 100 KB of them; the core rule finds
    # those that follow white space or punctuation.
    markdown.inline.ruler.disable("linkify")
    markdown.validateLink = lambda url: bool(_ABSOLUTE.match(url))  # type: ignore[method-assign]
    markdown.normalizeLinkText = lambda link: link  # type: ignore[method-assign]
    markdown.add_render_rule("fence", _fence)
    blocks = markdown.block.ruler
    quote = _down_to(_DEEPEST_QUOTE, _read_quote)
    blocks.at("blockquote", quote, {"alt": ["paragraph", "reference", "blockquote", "list"]})
    items = _down_to(_DEEPEST_LIST, _read_list)
    blocks.at("list", items, {"alt": ["paragraph", "reference", "blockquote"]})
    blocks.at("table", _read_table, {"alt": ["paragraph", "reference"]})
    markdown.linkify = _BareLinks(options={"fuzzy_link": False, "fuzzy_email": False, "fuzzy_ip": False})
    return markdown


_markdown = _create_markdown()
