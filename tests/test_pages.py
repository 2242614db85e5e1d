"""The pages in a real browser: everybody can use them, on a phone and a desk, by day and by night."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from flask import Flask
from playwright.sync_api import Browser, Locator, Page, sync_playwright
from sqlalchemy import select
from werkzeug.serving import make_server

from registration import services
from registration.db import db
from registration.models import Registration, RegistrationStatus

from . import conftest, factories

MISSING = "install Chromium to try the pages in a browser (Debian: apt-get install chromium)"
WIDTHS = {"phone": 360, "desktop": 1280}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium. Missing, it fails in CI and is skipped elsewhere."""
    if (program := shutil.which("chromium")) is None:
        if os.environ.get("CI") == "true":
            pytest.fail(MISSING)
        pytest.skip(MISSING)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def served(make_application: Callable[[str], Flask], sqlite_url: str) -> Iterator[tuple[Flask, str]]:
    """An application with one registration, and where it is served."""
    application = make_application(sqlite_url)
    with application.app_context():
        conftest.empty()
        factories.register()
        server = make_server("127.0.0.1", 0, application, threaded=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield application, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
        server.server_close()


def registered() -> Registration:
    db.session.rollback()
    return db.session.execute(select(Registration)).scalar_one()


def opt_out_url(application: Flask, url: str) -> str:
    link = services.of(application).tokens.opt_out_url(registered().product_id)
    return link.replace("http://127.0.0.1:5000", url)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("locale", ["en-US", "he"])
def test_every_page_is_for_everybody(
    browser: Browser, served: tuple[Flask, str], width: str, scheme: str, locale: str
) -> None:
    link = opt_out_url(*served)
    # The page forbids scripts; the tool that examines it is one.
    context = browser.new_context(
        viewport={"width": WIDTHS[width], "height": 700}, color_scheme=scheme, locale=locale, bypass_csp=True
    )
    page = context.new_page()

    page.goto(link)
    examine(page, f"{width}-{scheme}-{locale}-ask")
    press(page.locator("button.first"))
    examine(page, f"{width}-{scheme}-{locale}-out")
    press(page.locator("button.other"))
    examine(page, f"{width}-{scheme}-{locale}-erase")
    page.goto(f"{served[1]}/opt-out/forged")
    examine(page, f"{width}-{scheme}-{locale}-forged")
    context.close()


def press(button: Locator) -> None:
    """Press a button and wait for the page that follows: what is asked of a page does not wait by itself."""
    with button.page.expect_navigation():
        button.click()


def examine(page: Page, name: str) -> None:
    page.evaluate("document.getAnimations().forEach(animation => animation.finish())")  # buttons come a second later
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.evaluate("getComputedStyle(document.querySelector('main')).maxWidth") == "544px"


def test_everything_works_without_javascript_and_leaves_no_cookie(browser: Browser, served: tuple[Flask, str]) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()

    page.goto(opt_out_url(*served))
    press(page.get_by_role("button", name="Opt out"))
    assert registered().status is RegistrationStatus.OPTED_OUT
    press(page.get_by_role("button", name="Undo"))
    assert registered().status is RegistrationStatus.ACTIVE
    assert page.get_by_role("heading", name="Thank you, you are registered").is_visible()
    page.goto(opt_out_url(*served))
    press(page.get_by_role("button", name="Opt out"))
    press(page.get_by_role("button", name="Delete my address too"))
    page.go_back()
    assert page.get_by_role("heading", name="This address gets no more mail from us").is_visible()
    press(page.get_by_role("button", name="Delete my address too"))
    press(page.get_by_role("button", name="Go back"))
    press(page.get_by_role("button", name="Delete my address too"))
    press(page.get_by_role("button", name="Delete my address", exact=True))
    assert registered().status is RegistrationStatus.ERASED
    assert page.get_by_role("heading", name="Your address is deleted").is_visible()
    assert context.cookies() == []
    context.close()


@pytest.mark.parametrize("width", WIDTHS.values())
@pytest.mark.parametrize("locale", ["en-US", "fr"])
def test_two_taps_in_one_place_do_no_more_than_one(
    browser: Browser, served: tuple[Flask, str], width: int, locale: str
) -> None:
    """What undoes an opt-out, or deletes the address for good, may come to be where the finger is."""
    context = browser.new_context(viewport={"width": width, "height": 700}, locale=locale)
    page = context.new_page()
    page.goto(opt_out_url(*served))

    tap_twice(page, "button.first")
    assert registered().status is RegistrationStatus.OPTED_OUT

    tap_twice(page, "button.other")
    assert registered().status is RegistrationStatus.OPTED_OUT
    assert "/erase" in page.url
    context.close()


def tap_twice(page: Page, selector: str) -> None:
    """Tap on the upper part of a button, and again on what is there within a second, however slow the machine is."""
    page.locator(selector).hover()
    box = page.locator(selector).bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + 8
    with page.expect_navigation():
        page.mouse.click(x, y)
    page.evaluate("document.getAnimations().forEach(animation => animation.pause())")
    page.mouse.click(x, y)
    page.wait_for_timeout(300)
    page.evaluate("document.getAnimations().forEach(animation => animation.play())")
