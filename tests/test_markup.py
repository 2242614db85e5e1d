"""HTML of others, read as a browser reads it. What a browser then shows is in test_mail_pictures.py."""

from __future__ import annotations

import time

import pytest

from registration.markup import find_place


@pytest.mark.parametrize(
    ("html", "is_document"),
    [
        ("<p>Text</p>", False),
        ("<!doctype html><p>Text", True),
        ('<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0//EN"><p>Text', True),
        ("<HTML lang=en>Text", True),
        ("<style>p {}</style><body\nclass='x'>Text", True),
        ("<body/>Text", True),
        ("<!-- <html> --><p>Text</p>", False),
        ("<p>Text</p><!-- <html>", False),
        ("<bodyguard><htmlx>", False),
        ("Text</body>", False),
    ],
)
def test_what_begins_a_page_is_a_document(html: str, is_document: bool) -> None:
    assert find_place(html).is_document is is_document


@pytest.mark.parametrize(
    ("body", "rest"),
    [
        ("<body>Text", "</body></html>"),
        ("<body>Text", "</body\n></html> <!-- </body> --> "),
        ("<body>Text", "</body></html><!--[if mso]></body><![endif]-->"),
        ("<body>Text", "</BODY></html><script>'</body>'</script>"),
        ("<body></body>Text", "</body></html><style></body></style><title></body></titles></title>"),
        ("<body><textarea></body></textarea><a title='</body>'>", "</body>"),
        ("<body><!--> <!---> <!-- x --!> <!-- y -- > --><![if !mso]>", "</body><![endif]>"),
        ("<html>Text", "</html>"),
        ("<html>Text<!-- </body> -->", "</html>"),
        ("<body>Text", ""),
        ("<body><details><summary>More</summary>Text</body></details>", "</html>"),
        ("<body><details>Text</body></details>", ""),
        ("<body><details>Text</details>", "</body><!-- <details> --></html><object>"),
    ],
)
def test_a_footer_goes_where_the_body_ends_or_else_where_it_can_be_seen(body: str, rest: str) -> None:
    place = find_place(body + rest)

    assert (place.position, place.hidden_by) == (len(body), "")


SWALLOWING = [
    ("Text <!-- not done", "a comment"),
    ("Text <!-- not done -- >", "a comment"),
    ("Text <a href='x>y", "a tag"),
    ("<style>p{}", "<style>"),
    ("<STYLE/>p{}</styles>", "<style>"),
    ("<textarea><p>", "<textarea>"),
    ("<xmp></body>", "<xmp>"),
    ("<title>Text</html>", "<title>"),
    ("<script><!--<script></script>", "<script>"),
    ("<plaintext>Text</plaintext>", "<plaintext>"),
    ("<details><table></details>", "<details>"),
    ("<template><body>Text</body>", "<template>"),
    ("</table></table><div hidden>Text", "<div hidden>"),
    ("Text<template shadowrootmode=open>", "<template>"),
    ("</table></table><template shadowrootmode=open>Text</template>", "<template shadowrootmode>"),
]
HIDING = [
    ("Text <a href=", "a tag"),
    ("Text <a", "a tag"),
    ("Text </", "a tag"),
    ("Text <!doctype", "a tag"),
    ("<style>p{}</style ", "a tag"),
    ("<details><summary>More</summary><p>Text", "<details>"),
    ("</details><details>", "<details>"),
    ("<details/>Text", "<details>"),
    ("<details><template></details></template>", "<details>"),
    ("<dialog><dialog>Text</dialog>", "<dialog>"),
    ("<svg><foreignObject>Text", "<svg>"),
    ("<select><option>Text", "<option>"),
    ("<ruby>Text<rp>(", "<rp>"),
    *((f"Text<{name}>", f"<{name}>") for name in ("audio", "datalist", "meter", "noscript", "progress", "video")),
    ("<div hidden>Text", "<div hidden>"),
    ("<section popover=auto><p>Text", "<section popover>"),
    ("<div style='color: red; display :none'>Text", '<div style="display :none">'),
    ("<div style='max-height:0;overflow:hidden'>Text", '<div style="max-height:0">'),
    ("<div style='opacity: 0.00'>Text", '<div style="opacity: 0.00">'),
    ("<div style='max-width:.0px'>Text", '<div style="max-width:.0">'),
    ("<math><semantics><mi>x</mi><mtext>", "<math>"),
]


@pytest.mark.parametrize(("html", "hidden_by"), [*SWALLOWING, ("</table><tbody hidden>Text", "<tbody hidden>")])
def test_a_fragment_may_swallow_what_follows(html: str, hidden_by: str) -> None:
    assert find_place(html).hidden_by == hidden_by


@pytest.mark.parametrize("html", [html for html, _ in HIDING])
def test_what_is_open_in_a_fragment_ends_with_its_cell_of_our_page(html: str) -> None:
    assert find_place(html).hidden_by == ""


@pytest.mark.parametrize(("html", "hidden_by"), [*SWALLOWING, *HIDING])
def test_a_document_may_swallow_or_hide_what_follows(html: str, hidden_by: str) -> None:
    assert find_place(f"<html>{html}").hidden_by == hidden_by


@pytest.mark.parametrize(
    ("html", "hidden_by"),
    [
        ("<body hidden>Text</body>", "<body hidden>"),
        ("<html style='display:none'>Text", '<html style="display:none">'),
        ("<html><frameset></frameset></html>", "<frameset>"),
        ("<body><details>Text</body>", "<details>"),
    ],
)
def test_the_page_itself_may_be_hidden(html: str, hidden_by: str) -> None:
    assert find_place(html).hidden_by == hidden_by


@pytest.mark.parametrize(
    "html",
    [
        "<p>Text</p>",
        "a < b, 2 <3, x<",
        "<!-- done -->",
        "<style>p{}</style ><title>x</title>",
        "<p title=it's>Text",
        "</p></plaintext></div></td></tr></table>Text",
        "<details><p>One</details><DETAILS>Two</Details>",
        "<template><details></template>",
        "<svg viewBox='0 0 1 1'/>Text",
        "<svg><path d=''/>Text",
        "<svg><style/>",
        "<video src='https://example.org/v'>Text</video>",
        "<div hidden>Text</div>",
        "<div style='display:none;max-height:0'>Preview</div>Text",
        "<div style='opacity: 0.5; max-height: 0.8em; line-height: 0'>Text",
        "<td style='display: none'>Text",
        "<p><b>Text</p>",
        "<p><a href='https://example.org'><font color=red>Text</p><p>More</p>",
        "<h1><strong>Text</h1>",
    ],
)
def test_what_is_closed_or_shown_hides_nothing(html: str) -> None:
    assert find_place(html).hidden_by == find_place(f"<html>{html}").hidden_by == ""


@pytest.mark.parametrize(
    "piece",
    [
        "<",
        "<a ",
        "<!--",
        "<a ='",
        "<style>",
        "</style",
        "</body",
        "</body>",
        "<!",
        "<b><p>",
        "<svg>",
        "<td><b>",
    ],
)
def test_reading_takes_no_longer_than_it_should(piece: str) -> None:
    begun = time.process_time()

    find_place(piece * (200_000 // len(piece)))
    find_place("<body>" + piece * (200_000 // len(piece)))

    assert time.process_time() - begun < 5.0
