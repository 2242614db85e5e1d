"""The pages behind the links in mails: opt out, undo it, be erased, confirm. Reading one changes nothing.

No cookie and no form token: whoever has the signed link may act, and mail programs post it themselves (RFC 8058).
A button leads on to a page of its own (303), so that going back or reloading sends nothing again.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus

from flask import Blueprint, Flask, Response, current_app, make_response, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from flask_babel import Babel, get_locale, gettext

from .. import confirmations, consent, services
from ..db import commit_step, db
from ..errors import ExpiredLinkException, ForgedLinkException
from ..models import RegistrationStatus
from ..outage import expect_few_rows
from ..tokens import LONGEST_TOKEN, ConfirmationLink
from . import access
from .errors import STATUS, UNAVAILABLE, answer_unavailable

bp = Blueprint("optout", __name__)

LANGUAGES = ("en", "es", "fr", "de", "pt", "he")
OLD_CODES = {"iw": "he"}
"""Of languages that browsers still call by their code from before 1989."""
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""What a page needs; all other headers are as in every answer."""
_TOKEN = f"<string(maxlength={LONGEST_TOKEN}):token>"


@dataclass(frozen=True)
class Button:
    """A form of one button."""

    label: str
    address: str
    method: str = "post"


@dataclass(frozen=True)
class Page:
    """What a page says, and what one can do there."""

    title: str
    text: str
    buttons: tuple[Button, ...] = ()


def init_app(application: Flask) -> None:
    """Speak the reader's language where there is a catalogue for it, English otherwise."""
    Babel(
        application,
        default_translation_directories="translations",
        locale_selector=_language,
    )


@bp.before_request
def _expect_few_rows() -> None:
    expect_few_rows(db.session())


@bp.get(f"/opt-out/{_TOKEN}")
@access.public
def show(token: str) -> ResponseReturnValue:
    """Show where a registration stands, with the buttons to change it."""
    return _answer(_standing(token, _opting_out(token)))


@bp.post(f"/opt-out/{_TOKEN}")
@access.public
def opt_out(token: str) -> ResponseReturnValue:
    """Opt out; the body does not matter. RFC 8058 forbids to lead a mail program on to another address."""
    product_id = _opting_out(token)
    commit_step(lambda session: consent.opt_out(session, product_id))
    return _lead_to(".show", token) if "button" in request.args else _answer(_standing(token, product_id))


@bp.get(f"/opt-out/{_TOKEN}/undo")
@access.public
def show_undone(token: str) -> ResponseReturnValue:
    """Show that an opt-out was taken back, or where the registration stands otherwise."""
    product_id = _opting_out(token)
    is_active = consent.status_of(db.session(), product_id) is RegistrationStatus.ACTIVE
    return _answer(_welcome() if is_active else _standing(token, product_id))


@bp.post(f"/opt-out/{_TOKEN}/undo")
@access.public
def undo(token: str) -> ResponseReturnValue:
    """Take an opt-out back."""
    product_id = _opting_out(token)
    commit_step(lambda session: consent.undo_opt_out(session, product_id))
    return _lead_to(".show_undone", token)


@bp.get(f"/opt-out/{_TOKEN}/erase")
@access.public
def ask_to_erase(token: str) -> ResponseReturnValue:
    """Ask once more before an address is deleted."""
    product_id = _opting_out(token)
    if consent.status_of(db.session(), product_id) is RegistrationStatus.ERASED:
        return _answer(_standing(token, product_id))
    erase_me = Button(gettext("Delete my address"), url_for(".erase", token=token))
    back = Button(gettext("Go back"), url_for(".show", token=token), "get")
    text = gettext("We delete your e-mail address and what your installations reported. This cannot be undone.")
    return _answer(Page(gettext("Delete your address?"), text, (erase_me, back)))


@bp.post(f"/opt-out/{_TOKEN}/erase")
@access.public
def erase(token: str) -> ResponseReturnValue:
    """Delete the address."""
    product_id = _opting_out(token)
    commit_step(lambda session: consent.erase(session, product_id, tokens=services.current().tokens, now=_now()))
    return _lead_to(".show", token)


@bp.get(f"/confirm/{_TOKEN}")
@access.public
def ask_to_confirm(token: str) -> ResponseReturnValue:
    """Show the button that confirms a registration."""
    link = _confirming(token)
    if not consent.is_confirmable(db.session(), link):
        return _answer(_confirmed(link.product_id))
    button = Button(gettext("Yes, send me notices"), url_for(".confirm", token=token))
    text = gettext("Do you want security and update notices of OpenEMR at your e-mail address?")
    return _answer(Page(gettext("Confirm your registration"), text, (button,)))


@bp.post(f"/confirm/{_TOKEN}")
@access.public
def confirm(token: str) -> ResponseReturnValue:
    """Confirm a registration."""
    link = _confirming(token)
    commit_step(lambda session: consent.confirm(session, link))
    return _lead_to(".ask_to_confirm", token)


@bp.route("/opt-out", methods=["GET", "POST"])
@bp.route("/opt-out/", methods=["GET", "POST"])
@bp.route("/opt-out/<path:_>", methods=["GET", "POST"])
@bp.route("/confirm", methods=["GET", "POST"])
@bp.route("/confirm/", methods=["GET", "POST"])
@bp.route("/confirm/<path:_>", methods=["GET", "POST"])
@access.public
def refuse_mutilated(_: str = "") -> ResponseReturnValue:
    """Answer a link that a mail program cut off, or made longer, like any other that is not one of ours."""
    raise ForgedLinkException


@bp.get("/opt-out/test")
@access.public
def explain_test() -> ResponseReturnValue:
    """Say what is behind the link of everybody else's mail; a test is nobody's in particular."""
    return _answer(Page(gettext("This was a test"), gettext("Here everybody else finds the button to opt out.")))


@bp.get("/opt-out.css")
@access.public
def style() -> ResponseReturnValue:
    """Serve what the pages look like."""
    with current_app.open_resource("static/optout/page.css") as sheet:
        return Response(sheet.read(), mimetype="text/css")


@bp.errorhandler(ForgedLinkException)
def refuse_forged(_: ForgedLinkException) -> ResponseReturnValue:
    """Say in a friendly way that a link is not one of ours."""
    text = gettext("It may have been cut off. Copy the whole link from the mail, and try again.")
    return _answer(Page(gettext("This link does not work"), text), STATUS[ForgedLinkException])


@bp.errorhandler(ExpiredLinkException)
def refuse_expired(_: ExpiredLinkException) -> ResponseReturnValue:
    """Say in a friendly way that a link has expired."""
    text = gettext(
        "A link to confirm works once, within seven days, and not after you opted out or got a newer one. "
        "Register again in OpenEMR to get another one."
    )
    return _answer(Page(gettext("This link has expired"), text), STATUS[ExpiredLinkException])


def refuse_unavailable(error: Exception) -> ResponseReturnValue:
    """Say in a friendly way that the database is away; a step may have been taken all the same."""
    problem = answer_unavailable(error)
    if problem.status_code != HTTPStatus.SERVICE_UNAVAILABLE:
        return problem
    text = gettext(
        "Our database does not answer. If you have just made a choice here, make it again: that does no harm."
    )
    answer = _answer(Page(gettext("Please try again in a few minutes"), text), problem.status_code)
    answer.headers["Retry-After"] = problem.headers["Retry-After"]
    return answer


for unavailable in UNAVAILABLE:
    bp.register_error_handler(unavailable, refuse_unavailable)


def _language() -> str:
    """Return the first of the reader's languages that we speak, whichever country's: `pt-BR` is `pt`.

    With a quality of 0 a reader refuses a language (RFC 9110 section 12.4.2).
    """
    wanted = (tag.lower().partition("-")[0] for tag, quality in request.accept_languages if quality > 0)
    codes = (OLD_CODES.get(code, code) for code in wanted)
    return next((code for code in codes if code in LANGUAGES), "en")


@bp.after_request
def _protect(response: Response) -> Response:
    response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    return response


def _standing(token: str, product_id: uuid.UUID) -> Page:
    status = consent.status_of(db.session(), product_id)
    if status is RegistrationStatus.ERASED:
        return _erased()
    erase_me = Button(gettext("Delete my address too"), url_for(".ask_to_erase", token=token), "get")
    if status is RegistrationStatus.OPTED_OUT:
        undo_it = Button(gettext("Undo: send me notices again"), url_for(".undo", token=token))
        text = gettext("You have opted out of OpenEMR's notices.")
        return Page(gettext("This address gets no more mail from us"), text, (undo_it, erase_me))
    if status is RegistrationStatus.COMPLAINED:
        text = gettext(
            "A message of ours was reported as spam from your address, so we send no more. "
            "Register again in OpenEMR to get notices."
        )
        return Page(gettext("You get no mail from us"), text, (erase_me,))
    leave = Button(gettext("Opt out"), url_for(".opt_out", token=token, button=1))
    if status is RegistrationStatus.BOUNCED:
        return _bounced(leave, erase_me)
    if status is RegistrationStatus.UNCONFIRMED:
        text = gettext("Confirm it with the link in the mail that we sent you. Until then you get no notices.")
        return Page(gettext("Your registration is not confirmed"), text, (leave, erase_me))
    text = gettext("You are registered for security and update notices of OpenEMR. One click, and no more come.")
    return Page(gettext("OpenEMR's notices"), text, (leave, erase_me))


def _confirmed(product_id: uuid.UUID) -> Page:
    status = consent.status_of(db.session(), product_id)
    if status is RegistrationStatus.ERASED:
        return _erased()
    if status is RegistrationStatus.BOUNCED:
        return _bounced()
    if status in confirmations.CONFIRMABLE:
        raise ExpiredLinkException
    return _welcome()


def _welcome() -> Page:
    text = gettext("You will get security and update notices of OpenEMR. Each of them has a link to opt out.")
    return Page(gettext("Thank you, you are registered"), text)


def _bounced(*buttons: Button) -> Page:
    text = gettext("Mail to your address came back, so we send no more. Register again in OpenEMR to get notices.")
    return Page(gettext("You get no mail from us"), text, buttons)


def _erased() -> Page:
    text = gettext(
        "We no longer have your e-mail address. If you registered it again since, use the link in a newer mail."
    )
    return Page(gettext("Your address is deleted"), text)


def _opting_out(token: str) -> uuid.UUID:
    return _known(services.current().tokens.read_opt_out(token))


def _confirming(token: str) -> ConfirmationLink:
    link = services.current().tokens.read_confirmation(token, _now())
    _known(link.product_id)
    return link


def _known(product_id: uuid.UUID) -> uuid.UUID:
    if consent.status_of(db.session(), product_id) is None:
        raise ForgedLinkException
    return product_id


def _answer(page: Page, status: int = 200) -> Response:
    locale = get_locale()
    response = make_response(render_template("optout/page.html", page=page, locale=locale), status)
    response.headers["Content-Language"] = str(locale)
    response.vary.add("Accept-Language")
    return response


def _lead_to(endpoint: str, token: str) -> ResponseReturnValue:
    return redirect(url_for(endpoint, token=token), HTTPStatus.SEE_OTHER)


def _now() -> datetime:
    return datetime.now(UTC)
