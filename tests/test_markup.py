"""HTML of others, read as a browser reads it."""

from __future__ import annotations

import time

import pytest

from registration.markup import read


@pytest.mark.parametrize(
    ("html", "is_document"),
    [
        ("<p>Text</p>", False),
        ("<!doctype html><p>Text", True),
        ('<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0//EN"><p>Text', True),
        ("<HTML lang=en>Text", True),
        ("<body\nclass='x'>Text", True),
        ("Text</body >", True),
        ("<!-- <html> --><p>Text</p>", False),
        ("<bodyguard><htmlx>", False),
        ("<p title='<html>'>Text</p>", False),
        ("<style><html></style>Text", False),
    ],
)
def test_what_has_a_page_around_it_is_a_document(html: str, is_document: bool) -> None:
    assert read(html).is_document is is_document


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
        ("<body>Text", ""),
        ("<p>Text </p>", ""),
    ],
)
def test_the_body_ends_before_its_last_real_end_tag(body: str, rest: str) -> None:
    assert read(body + rest).end == len(body)


@pytest.mark.parametrize(
    ("html", "unfinished"),
    [
        ("<p>Text</p>", ""),
        ("a < b, 2 <3, x<", ""),
        ("<!-- done -->", ""),
        ("<style>p{}</style ><title>x</title>", ""),
        ("<p title=it's>Text", ""),
        ("Text <!-- not done", "a comment"),
        ("Text <!-- not done -- >", "a comment"),
        ("Text <a href='x>y", "a tag"),
        ("Text <a", "a tag"),
        ("Text </", "a tag"),
        ("Text <!doctype", "a tag"),
        ("<style>p{}", "<style>"),
        ("<STYLE/>p{}</styles>", "<style>"),
        ("<textarea><p>", "<textarea>"),
        ("<xmp></body>", "<xmp>"),
        ("<title>Text</html>", "<title>"),
        ("<style>p{}</style ", "a tag"),
        ("<plaintext>Text</plaintext>", "<plaintext>"),
        ("<frameset></frameset>", "<frameset>"),
        ("<details><summary>More</summary><p>Text", "<details>"),
        ("</details><details>", "<details>"),
        ("<details/>Text", "<details>"),
        ("</p></plaintext></div>Text", ""),
        ("<details><p>One</details><DETAILS>Two</Details>", ""),
        ("<dialog><dialog>Text</dialog>", "<dialog>"),
        ("<svg viewBox='0 0 1 1'/>Text", ""),
        ("<svg><path d=''/>Text", "<svg>"),
        ("<template><body>Text</body>", "<template>"),
        *((f"<{name}>Text", f"<{name}>") for name in ("audio", "datalist", "meter", "noscript", "progress", "video")),
        ("<video src='https://example.org/v'>Text</video>", ""),
        ("<body><details><summary>More</summary>Text</body></details></html>", "<details>"),
        ("<html><dialog>Text</html></dialog>", "<dialog>"),
        ("<body><details>Text</details></body><!-- <details> --></html><object>", ""),
    ],
)
def test_html_may_end_in_the_middle_of_something(html: str, unfinished: str) -> None:
    assert read(html).unfinished == unfinished


@pytest.mark.parametrize(
    "piece", ["<", "<a ", "<!--", "<a ='", "<style>", "</style", "<a====", "<a= ", "<!", "<title></title", "<a b=c "]
)
def test_reading_takes_no_longer_than_it_should(piece: str) -> None:
    begun = time.monotonic()

    read(piece * (200_000 // len(piece)))
    read("<a" + piece[2:] * 50_000)

    assert time.monotonic() - begun < 2.0
