"""The HTML part as a mail program shows it, wide and narrow, light and dark; docs/ keeps the pictures.

`UPDATE_PICTURES=true` writes them anew.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from playwright.sync_api import Browser, Page, sync_playwright

from registration import ROOT, messages
from registration.errors import InvalidEmailMessageException
from registration.mailers.letters import STOP

from . import chromium, factories

NOTICE = """\
# OpenEMR 7.0.3 (2) closes a hole

Dear colleagues,

**Anybody who can log in to the patient portal can read the documents of other patients.** Please update *today*.

## What to do

1. Back up the database and the folder `sites`.
2. Install the patch from <https://www.open-emr.org/wiki/index.php/OpenEMR_Patches>.
3. Run the upgrade and check the version:

```
$ php sql_patch.php --site=default
OpenEMR 7.0.3 (2)
```

| you run | what to do |
|---|---|
| 7.0.3, 7.0.3 (1) | install the patch |
| before 7.0.3 | upgrade to 7.0.3 first |
| Docker | pull the image `openemr/openemr:7.0.3` |

> If you cannot update today, switch the patient portal off: Administration, Config, Portal.

Questions? [Ask in the forum](https://community.open-emr.org), or answer this mail.

The board of the OEMR Foundation
"""
SIZES = {"desktop": (900, 600), "phone": (375, 600)}
Scheme = Literal["light", "dark"]
CONTRAST = """
() => {
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const numbers = colour => colour.match(/[0-9.]+/g).map(Number);
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = numbers(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour.slice(0, 3);
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll("body *")]
    .filter(e => [...e.childNodes].some(n => n.nodeType === Node.TEXT_NODE && n.textContent.trim()))
    .map(e => {
      const [a, b] = [numbers(getComputedStyle(e).color).slice(0, 3), behind(e)].map(light);
      return [e.tagName, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
    });
}
"""
"""The contrast of each text to what is behind it (WCAG 2.2, success criterion 1.4.3)."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium. Missing, it fails in CI and is skipped elsewhere."""
    path = chromium.path()
    if path is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(chromium.MISSING)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=["light", "dark"])
def scheme(request: pytest.FixtureRequest) -> Scheme:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(params=SIZES)
def page(request: pytest.FixtureRequest, browser: Browser, scheme: Scheme) -> Iterator[Page]:
    """A mail on a screen."""
    width, height = SIZES[request.param]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    head = factories.letterhead()
    letter = head.write(messages.compose("OpenEMR 7.0.3 (2) closes a hole", NOTICE))
    page.set_content(letter.html.with_link(head.link(uuid.UUID(int=1))))
    yield page
    page.close()


def test_a_mail_looks_as_the_pictures_in_the_guide_show(
    page: Page, scheme: Scheme, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    device = next(name for name, size in SIZES.items() if page.viewport_size == {"width": size[0], "height": size[1]})
    kept = ROOT / "docs" / f"mail-{device}-{scheme}.png"
    update = os.environ.get("UPDATE_PICTURES") == "true"

    picture = page.screenshot(path=kept if update else tmp_path / kept.name, full_page=True)

    assert picture.startswith(b"\x89PNG")
    assert kept.exists()


def test_every_word_of_a_mail_can_be_read(page: Page) -> None:
    contrasts = page.evaluate(CONTRAST)

    assert len(contrasts) > 20
    assert [pair for pair in contrasts if pair[1] < 4.5] == []


def test_a_mail_never_scrolls_sideways(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


HEBREW = "\u05e2\u05d3\u05db\u05e0\u05d5"
BOTH_DIRECTIONS = f"""\
# Update {HEBREW}

{HEBREW} 7.0.3

# {HEBREW} 7.0.3

Update {HEBREW}

> {HEBREW} quoted
>
> Quoted {HEBREW}

- {HEBREW} item
- Item {HEBREW}

1. Item {HEBREW}

   {HEBREW} of item

| {HEBREW} head | Head |
|---|---|
| Cell | {HEBREW} cell |
"""


def test_each_paragraph_runs_in_the_direction_of_its_first_letter(browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 600, "height": 600})
    page.set_content(
        factories.letterhead().write(messages.compose("Title", BOTH_DIRECTIONS)).html.with_link("https://e")
    )

    texts = page.locator(".oemr-words").locator("h1, p, li:not(:has(p)), th, td")
    directions = texts.evaluate_all("all => all.map(e => [e.textContent.trim(), getComputedStyle(e).direction])")
    assert len(directions) == 14
    assert [text for text, direction in directions if (direction == "rtl") is not text.startswith(HEBREW)] == []
    assert texts.evaluate_all("all => all.map(e => getComputedStyle(e).textAlign)") == ["start"] * 14
    holders = page.locator(".oemr-words").locator("blockquote, ul, ol, table")
    assert holders.evaluate_all("all => all.map(e => getComputedStyle(e).direction)") == ["rtl", "rtl", "ltr", "rtl"]
    page.close()


@pytest.mark.parametrize(
    "html",
    [
        "<style>p, div, a, span { display: none }</style><h1>Own</h1>",
        "<style>* { visibility: hidden } div { opacity: 0; font-size: 0 }</style><h1>Own</h1>",
        "<html><style>p { display: none } div { display: none } a { display: none }</style><body>Own</body></html>",
        "<html><body>Own</body></html><!-- </body> --><!--[if mso]></body><![endif]-->",
        "<html><body>Own<script>'</body>'</script></body><style></body></style></html>",
        "<html><title></body></title><body>Own<!-- -- > </body> --></html>",
        "<html><body>Own<a title='</body>'>link</a><textarea></body></textarea></html>",
        "<html><body style='background: #000; color: #fff'>Own</body></html>",
        "<html><style>body { background: #101418; color: #dde } a { color: #8cf }</style><body>Own</body></html>",
        "<html><body style='background: #222'><center bgcolor='#222'><p style='color: #fff'>Own</center></html>",
        "<html><body bgcolor='#000033'><table bgcolor='#ffffff'><tr><td>Own</table></body></html>",
        "<html><body style='color: #fff; -webkit-text-fill-color: transparent'>Own</body></html>",
        "<html><style>a { color: #fff !important } div { background: #000 }</style><body>Own</body></html>",
        "<html><meta name='color-scheme' content='light dark'><body bgcolor='#fff'><p style='color: #222'>Own</html>",
        "<p style='color: #222'>Own</p><font color='#333'>Own</font> <a href='https://example.org'>Own</a>",
        "<div style='background: #fff'>Own</div><table bgcolor='#ffffff'><tr><td>Own</td></tr></table>",
    ],
)
def test_the_opt_out_link_and_the_text_can_be_read_in_html_of_ones_own(
    browser: Browser, scheme: Scheme, html: str
) -> None:
    page = browser.new_page(viewport={"width": 600, "height": 600}, color_scheme=scheme)
    page.set_content(factories.letterhead().write(messages.compose("Title", "x", html)).html.with_link("https://e"))

    link = page.get_by_role("link", name=STOP)
    box = link.bounding_box()

    assert link.is_visible()
    assert link.evaluate("link => getComputedStyle(link).opacity") == "1"
    assert box is not None
    assert box["height"] > 10
    assert link.evaluate("link => getComputedStyle(link).webkitTextFillColor === getComputedStyle(link).color")
    assert [pair for pair in page.evaluate(CONTRAST) if pair[1] < 4.5] == []
    page.close()


PIECES = """\
<html>|<body>|<body hidden>|<div>|<p>|<div hidden>|<div style='display: none'>|<a title='|<a b=|<b>|<button>|<frameset>
<details>|<details open>|<summary>|<dialog>|<svg>|<svg/>|<foreignObject>|<math><mtext>|<a href=https://example.org>
<table>|<tr>|<td>|<td hidden>|<caption>|<select>|<option>|<template>|<video>|<object>|<ruby>|<rp>|<meter>|<datalist>
<style>|<title>|<textarea>|<script>|<!--|<![CDATA[|<noscript>|<iframe>|<plaintext>|<br>|<hr>|Text|<|>|"|</
</html>|</body>|</div>|</p>|'>|</details>|</summary>|</dialog>|</svg>|</td>|</tr>|</table>|</select>|</template>
</video>|</style>|</title>|</textarea>|</script>|-->|]]>|</noscript>|</ruby>|</b>|</a>|</button>
""".replace("\n", "|").split("|")
SEEN = """
link => {
  link.scrollIntoView({ block: "center" });
  const box = link.getClientRects()[0];
  const there = box && document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
  return Boolean(there && (link === there || link.contains(there)));
}
"""


def test_no_html_that_is_accepted_hides_the_opt_out_link(browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 600, "height": 600}, java_script_enabled=False)
    seen = 0

    @settings(deadline=None, max_examples=300, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
    def look(html: str) -> None:
        nonlocal seen
        try:
            message = messages.compose("Title", "x", html)
        except InvalidEmailMessageException:
            return
        page.set_content(factories.letterhead().write(message).html.with_link("https://example.com/stop"))
        link = page.locator("a[href='https://example.com/stop']")
        assert link.count() == 1
        assert link.evaluate(SEEN)
        seen += 1

    look()
    assert seen > 100
    page.close()


def test_a_line_without_a_break_wraps_on_a_phone(browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 320, "height": 600})
    page.set_content(factories.letterhead().write(messages.compose("Title", "x" * 2000)).html.with_link("https://e"))

    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.close()
