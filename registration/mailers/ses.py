"""Mail through Amazon SES, version 2 of its API. Its words and codes stop in this module.

SES has no idempotency token, so botocore's retries are off: with its default of five tries, one lost reply would
be five copies. A call that may have been accepted is UNKNOWN, and the ledger decides.
"""

from __future__ import annotations

import json
import logging
import math
import re
import secrets
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config as ClientConfig
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    HTTPClientError,
    MetadataRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ProxyConnectionError,
    SSLError,
)
from botocore.parsers import ResponseParserError

from ..messages import Message
from . import Account, Outcome, Recipient, Verdict
from .letters import FEEDBACK_ID, ONE_CLICK, Letter, Letterhead

if TYPE_CHECKING:
    from mypy_boto3_sesv2 import SESV2Client
    from mypy_boto3_sesv2.type_defs import (
        EmailTemplateContentTypeDef,
        SendBulkEmailResponseTypeDef,
        SendEmailResponseTypeDef,
    )

BULK_ENTRIES = 50
"""https://docs.aws.amazon.com/ses/latest/APIReference-V2/API_SendBulkEmail.html"""
CONNECT_SECONDS = 3.0
READ_SECONDS = 10.0
LATE_SECONDS = 15.0
"""A call that has waited for so long before it leaves does not leave: its lease might run out before the answer."""
ONE_BY_ONE_SECONDS = 0.5
"""How long a refused bulk call is tried again in calls of one recipient: a broadcast may be paused meanwhile."""
LARGEST_DATA = 262_144
"""Of the data of a template, as JSON: https://docs.aws.amazon.com/ses/latest/APIReference-V2/API_Template.html"""
SUSPICIOUS = 5
"""So many addresses refused at the beginning are perhaps not to blame: whoever called is to see that first."""
CALLS_AT_ONCE = 64

log = logging.getLogger(__name__)

_TEMPLATE: EmailTemplateContentTypeDef = {
    "Subject": "{{subject}}",
    "Text": "{{text_before}}{{link}}{{text_after}}",
    "Html": "{{html_before}}{{link}}{{html_after}}",
}
"""The template is fixed. What a person wrote travels as data only: inside a template, `{{ x }}` would vanish.

SES escapes nothing: what goes into the HTML part is HTML already.
"""
_USER_AGENT = f"OpenEMR-Product-Registration Boto3/{boto3.__version__}"
"""botocore would put its own together twice for each call, which is a tenth of the cost of a call."""
_FEEDBACK_ID = {"Name": "ses:feedback-id-a", "Value": FEEDBACK_ID}
"""SES writes the Feedback-ID header itself and begins it with the value of this tag."""

_call = threading.local()
"""When this thread's call began."""

_LINK = secrets.token_hex()
"""Stands for a recipient's link where a body is prepared; nobody's text holds it."""
_OF_ONE = ',"Headers":%s}},"Destination":{"ToAddresses":[%s]},"EmailTags":%s}'
"""How the JSON of a call with one recipient ends."""
_ENTRY = '{"Destination":{"ToAddresses":[%s]},"ReplacementTags":[' + json.dumps(_FEEDBACK_ID) + "%s]%s}"
_OWN = (
    ',"ReplacementEmailContent":{"ReplacementTemplate":{"ReplacementTemplateData":%s}}'
    ',"ReplacementHeaders":[{"Name":"List-Unsubscribe","Value":%s}]'
)
"""The JSON of one entry of a bulk call, and what it has when it is about a registration."""

_TOO_FAST = Outcome(Verdict.THROTTLED, reason="Amazon SES asked to slow down.")
_QUOTA_USED_UP = Outcome(
    Verdict.HELD,
    reason="The daily sending quota of the Amazon SES account is used up. Sending goes on when SES frees some of it.",
)
_SUSPENDED = Outcome(
    Verdict.HELD,
    reason="Amazon SES has suspended this account. Open the SES console, account dashboard, and answer AWS's review.",
)
_PAUSED = Outcome(
    Verdict.HELD,
    reason="Sending is paused in Amazon SES. Resume it in the SES console, for the account and the configuration set.",
)
_NOT_VERIFIED = Outcome(
    Verdict.HELD,
    reason="Amazon SES does not accept the sender. Verify SES_SENDER or its domain in the SES console.",
)
_SANDBOX = Outcome(
    Verdict.HELD,
    reason="The SES account is in the sandbox and mails only to verified addresses until AWS grants production access.",
)
_NO_CONFIGURATION_SET = Outcome(
    Verdict.HELD,
    reason="Amazon SES does not know the configuration set. Correct SES_CONFIGURATION_SET or create it in the console.",
)
_NO_CREDENTIALS = Outcome(
    Verdict.UNREACHED,
    reason="There are no AWS credentials to send with. Set AWS_ACCESS_ID and AWS_SECRET_KEY, or give the instance a "
    "role.",
)
_CREDENTIALS = Outcome(
    Verdict.HELD,
    reason="AWS does not accept the credentials. Check AWS_ACCESS_ID and AWS_SECRET_KEY, or the instance's role.",
)
_NOT_ALLOWED = Outcome(
    Verdict.HELD,
    reason="AWS does not let the service send. Add what is missing to the policy of its role; the service's log names "
    "it.",
)
_NOT_UNDERSTOOD = Outcome(
    Verdict.HELD,
    reason="Amazon SES does not accept the request as a whole. The service's log has its code.",
)
_REFUSED = Outcome(Verdict.REFUSED, reason="Amazon SES refused the message for this address.")
_TRANSIENT = Outcome(Verdict.UNKNOWN, reason="Amazon SES had a passing problem with the message for this address.")
_NO_ANSWER = Outcome(
    Verdict.UNKNOWN, reason="Amazon SES did not answer, so the message may or may not have been accepted."
)
_NOT_REACHED = Outcome(
    Verdict.UNREACHED,
    reason="Amazon SES cannot be reached. If that lasts, check SES_REGION and the network's way out.",
)

_CALL_ERRORS = {
    "TooManyRequestsException": _TOO_FAST,
    "Throttling": _TOO_FAST,
    "ThrottlingException": _TOO_FAST,
    "LimitExceededException": _QUOTA_USED_UP,
    "AccountSuspendedException": _SUSPENDED,
    "SendingPausedException": _PAUSED,
    "MailFromDomainNotVerifiedException": _NOT_VERIFIED,
    "NotFoundException": _NO_CONFIGURATION_SET,
    "AccessDeniedException": _NOT_ALLOWED,
    "AccessDenied": _NOT_ALLOWED,
    "ExpiredToken": _CREDENTIALS,
    "ExpiredTokenException": _CREDENTIALS,
    "IncompleteSignature": _CREDENTIALS,
    "InvalidClientTokenId": _CREDENTIALS,
    "InvalidSignatureException": _CREDENTIALS,
    "MissingAuthenticationTokenException": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "UnrecognizedClientException": _CREDENTIALS,
}
"""What the code of a call that failed means
(https://docs.aws.amazon.com/ses/latest/APIReference-V2/API_SendBulkEmail.html, and CommonErrors.html beside it)."""
_ENTRY_ERRORS = {
    "ACCOUNT_THROTTLED": _TOO_FAST,
    "TRANSIENT_FAILURE": _TRANSIENT,
    "ACCOUNT_DAILY_QUOTA_EXCEEDED": _QUOTA_USED_UP,
    "ACCOUNT_SUSPENDED": _SUSPENDED,
    "ACCOUNT_SENDING_PAUSED": _PAUSED,
    "CONFIGURATION_SET_SENDING_PAUSED": _PAUSED,
    "MAIL_FROM_DOMAIN_NOT_VERIFIED": _NOT_VERIFIED,
    "CONFIGURATION_SET_NOT_FOUND": _NO_CONFIGURATION_SET,
    "TEMPLATE_NOT_FOUND": _NOT_UNDERSTOOD,
    "INVALID_SENDING_POOL_NAME": _NOT_UNDERSTOOD,
    "INVALID_PARAMETER": _REFUSED,
    "FAILED": _REFUSED,
}
"""What the status of one entry of a bulk call means
(https://docs.aws.amazon.com/ses/latest/APIReference-V2/API_BulkEmailEntryResult.html)."""
_NOTHING_LEFT_US = (ConnectTimeoutError, EndpointConnectionError, ProxyConnectionError)
_WITHOUT_CREDENTIALS = (
    CredentialRetrievalError,
    MetadataRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
)
_ADDRESS = re.compile(r"[^\s<>,;:]+@[^\s<>,;:]*[^\s<>,;:.]")
_ACTION = re.compile(r"\bses:[A-Z][A-Za-z]+")
_ABOUT_THE_MESSAGE = {"MessageRejected", "BadRequestException"}
_ERRORS = (BotoCoreError, ClientError, ResponseParserError)


@dataclass(frozen=True)
class _Prepared:
    """How the bodies of calls with a letter begin, as JSON.

    `single_body` is in pieces, with the link to be put between them; `bulk_body` is empty when the letter is too large
    for a template's data.
    """

    single_body: Sequence[str]
    bulk_body: str


class SesMailer:
    """Sends through SES: one recipient with SendEmail, up to fifty with SendBulkEmail. `connect` is `make_client`."""

    def __init__(self, connect: Callable[[], SESV2Client], letterhead: Letterhead, configuration_set: str = "") -> None:
        self.letterhead = letterhead
        self.common: dict[str, Any] = {"FromEmailAddress": letterhead.from_address}
        if letterhead.reply_to:
            self.common["ReplyToAddresses"] = [letterhead.reply_to]
        if configuration_set:
            self.common["ConfigurationSetName"] = configuration_set
        self._prepare = lru_cache(maxsize=8)(self._write)
        self._connect = connect
        self._connecting = threading.Lock()
        self._client: SESV2Client | None = None
        self._failure: tuple[float, Exception] = (-math.inf, NoCredentialsError())

    def largest_batch(self, message: Message) -> int:
        """Return how many recipients a call takes: one when the letter is too large for a template's data."""
        return BULK_ENTRIES if self._prepare(message).bulk_body else 1

    def send(self, message: Message, recipients: Sequence[Recipient]) -> list[Outcome]:
        """Send to all recipients in one call.

        When SES refuses a whole call for its message or one of its addresses, nothing of it was sent: each
        recipient then gets a call of its own, so that one bad address costs nobody else the notice.
        """
        try:
            if len(recipients) == 1:
                return [self._send_one(message, recipients[0])]
            return self._send_bulk(message, recipients)
        except _ERRORS as error:
            outcome = judge(error, sender=self.letterhead.sender)
            if outcome.verdict is Verdict.REFUSED and len(recipients) > 1:
                return self._send_one_by_one(message, recipients)
            log.warning("a call to SES failed", extra={**_named_by(error), "verdict": outcome.verdict.name})
            return [outcome] * len(recipients)

    def client(self) -> SESV2Client:
        """Return the client. Made at its first use: boto3 looks for credentials then. `judge` knows what it raises.

        That can take seconds, so whoever waited for another thread's attempt shares its failure.
        """
        asked_at = time.monotonic()
        with self._connecting:
            failed_at, failure = self._failure
            if self._client is None and failed_at > asked_at:
                raise failure
            try:
                self._client = self._client or self._connect()
            except _ERRORS as error:
                self._failure = time.monotonic(), error
                raise
            return self._client

    def account(self) -> Account | None:
        """Return the account's quotas, which count recipients, not calls; None when SES does not tell them.

        https://docs.aws.amazon.com/ses/latest/APIReference-V2/API_SendQuota.html: a Max24HourSend of -1 is unlimited.
        """
        try:
            quota = self.client().get_account()["SendQuota"]
            if quota["MaxSendRate"] <= 0:
                return None
            return Account(
                sending_rate=quota["MaxSendRate"],
                daily_quota=quota["Max24HourSend"] if quota["Max24HourSend"] >= 0 else math.inf,
                sent_last_day=quota["SentLast24Hours"],
            )
        except (*_ERRORS, KeyError) as error:
            log.warning("SES does not tell the account's quotas", extra=_named_by(error))
            return None

    def _write(self, message: Message) -> _Prepared:
        letter = self.letterhead.write(message)
        return _Prepared(self._begin_single(letter), self._begin_bulk(letter))

    def _begin_single(self, letter: Letter) -> Sequence[str]:
        texts = {"Text": letter.text.with_link(_LINK), "Html": letter.html.with_link(_LINK)}
        body = {name: {"Data": text, "Charset": "UTF-8"} for name, text in texts.items()}
        simple = {"Subject": {"Data": letter.subject, "Charset": "UTF-8"}, "Body": body}
        beginning = json.dumps(self.common | {"Content": {"Simple": simple}}, ensure_ascii=False)
        return beginning.removesuffix("}}}").split(_LINK)

    def _begin_bulk(self, letter: Letter) -> str:
        parts = {"text": letter.text, "html": letter.html}
        data = {"subject": letter.subject, "link": self.letterhead.link(None)}
        for name, part in parts.items():
            data |= {f"{name}_before": part.before, f"{name}_after": part.after}
        template_data = json.dumps(data, ensure_ascii=False)
        if len(template_data.encode()) > LARGEST_DATA:
            return ""
        headers = _headers(self.letterhead.headers | ONE_CLICK)
        template = {"TemplateContent": _TEMPLATE, "TemplateData": template_data, "Headers": headers}
        beginning = json.dumps(self.common | {"DefaultContent": {"Template": template}}, ensure_ascii=False)
        return beginning.removesuffix("}")

    def _send_one_by_one(self, message: Message, recipients: Sequence[Recipient]) -> list[Outcome]:
        end = time.monotonic() + ONE_BY_ONE_SECONDS
        outcomes: list[Outcome] = []
        while len(outcomes) < len(recipients) and time.monotonic() < end:
            outcomes += self.send(message, [recipients[len(outcomes)]])
            if len(outcomes) == SUSPICIOUS and {outcome.verdict for outcome in outcomes} == {Verdict.REFUSED}:
                break
        return outcomes + [Outcome(Verdict.APART)] * (len(recipients) - len(outcomes))

    def _send_one(self, message: Message, recipient: Recipient) -> Outcome:
        link = json.dumps(self.letterhead.link(recipient.product_id))[1:-1]
        headers = _headers(self.letterhead.opt_out_headers(recipient.product_id) | self.letterhead.headers)
        own = json.dumps(headers), json.dumps(recipient.address), json.dumps(_tags(recipient))
        body = link.join(self._prepare(message).single_body) + _OF_ONE % own
        send: Callable[..., SendEmailResponseTypeDef] = self.client().send_email
        message_id = send(Body=body.encode()).get("MessageId")
        return Outcome(Verdict.ACCEPTED, message_id=message_id) if message_id else _NO_ANSWER

    def _send_bulk(self, message: Message, recipients: Sequence[Recipient]) -> list[Outcome]:
        entries = ",".join(map(self._entry, recipients))
        body = f'{self._prepare(message).bulk_body},"BulkEmailEntries":[{entries}]}}'.encode()
        send: Callable[..., SendBulkEmailResponseTypeDef] = self.client().send_bulk_email
        answer = send(Body=body)
        told = answer.get("BulkEmailEntryResults", [])[: len(recipients)]
        outcomes = [_outcome_of_entry(entry, self.letterhead.sender) for entry in told]
        return outcomes + [_NO_ANSWER] * (len(recipients) - len(outcomes))

    def _entry(self, recipient: Recipient) -> str:
        """Return what one recipient gets that nobody else does, as JSON: address, tags, link, and the header with it.

        Each item costs processor time for every message; the header that is the same for all is the template's.
        """
        own = ""
        if recipient.product_id is not None:
            link = json.dumps(self.letterhead.link(recipient.product_id))
            own = _OWN % (json.dumps(f'{{"link":{link}}}'), f'"<{link[1:-1]}>"')
        tags = "".join(f',{{"Name":"{name}","Value":"{value}"}}' for name, value in recipient.tags.items())
        return _ENTRY % (json.dumps(recipient.address), tags, own)


def make_client(region: str, access_id: str, secret_key: str) -> SESV2Client:
    """Return a client with time limits and without retries. Empty keys leave the search for them to boto3.

    In a session of its own: threads that make clients at the same time must not share one.
    """
    client = boto3.Session().client(
        "sesv2",
        region_name=region,
        aws_access_key_id=access_id or None,
        aws_secret_access_key=secret_key or None,
        config=ClientConfig(
            retries={"total_max_attempts": 1},
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            max_pool_connections=CALLS_AT_ONCE,
            parameter_validation=False,
            user_agent=_USER_AGENT,
        ),
    )
    events: Any = client.meta.events
    for call in ("SendEmail", "SendBulkEmail"):
        events.register(f"provide-client-params.sesv2.{call}", _take_body)
        events.register(f"before-call.sesv2.{call}", _put_body)
        events.register(f"before-send.sesv2.{call}", _leave_in_time)
    return client


def _take_body(params: dict[str, Any], context: dict[str, Any], **_: Any) -> dict[str, Any]:
    """Keep a body out of botocore's serializer, which would be a third of the cost of a message in a bulk call.

    What is common to all messages is serialized once for each broadcast, and botocore signs and sends the rest as it
    is: https://docs.aws.amazon.com/boto3/latest/guide/events.html
    """
    context["ready_body"] = params["Body"]
    return {}


def _put_body(params: dict[str, Any], context: dict[str, Any], **_: Any) -> None:
    params["body"] = context["ready_body"]
    _call.begun_at = time.monotonic()


class LateCredentialsError(ConnectTimeoutError):
    """Credentials came so late that the call was not made: nothing has left, as when no connection comes about."""

    fmt = "Credentials came too late."


def _leave_in_time(**_: Any) -> None:
    """Keep a call back that was signed too late: an instance's credentials are fetched by one thread after another.

    When that gets no answer in the last minutes of the old ones, each thread goes on with those, the last one minutes
    after it began.
    """
    if time.monotonic() - _call.begun_at > LATE_SECONDS:
        raise LateCredentialsError


def judge(error: Exception, *, sender: str) -> Outcome:
    """Return what an error says of all messages of a call; `sender` is who they were from."""
    if isinstance(error, ClientError):
        return _judge_answer(error, sender)
    if isinstance(error, _WITHOUT_CREDENTIALS):
        return _NO_CREDENTIALS
    if isinstance(error, _NOTHING_LEFT_US) or (isinstance(error, SSLError) and _is_of_the_handshake(error)):
        return _NOT_REACHED
    return _NO_ANSWER if isinstance(error, HTTPClientError | ResponseParserError | SSLError) else _NOT_UNDERSTOOD


def _is_of_the_handshake(error: BaseException | None) -> bool:
    """Return whether TLS failed before the request was sent, the check of the certificate included.

    It fails in the same words when an answer is read, so that only the place in the code tells: ssl's `do_handshake`.
    """
    while error is not None:
        if any(frame.f_code.co_name == "do_handshake" for frame, _ in traceback.walk_tb(error.__traceback__)):
            return True
        error = error.__context__
    return False


def _judge_answer(error: ClientError, sender: str) -> Outcome:
    code = _code(error)
    text = error.response["Error"].get("Message", "").lower()
    status = error.response["ResponseMetadata"]["HTTPStatusCode"]
    if "daily message quota" in text:
        return _QUOTA_USED_UP
    if "maximum sending rate" in text or status == 429:
        return _TOO_FAST
    if code in _ABOUT_THE_MESSAGE:
        return _judge_rejection(text, sender)
    if code in _CALL_ERRORS:
        return _CALL_ERRORS[code]
    return _NO_ANSWER if status >= 500 else _NOT_UNDERSTOOD


def _judge_rejection(text: str, sender: str) -> Outcome:
    """Return the verdict on a message that was rejected with a text, which may name addresses that are not verified.

    SES checks the recipient too while the account is in the sandbox. It rejects what an account sends that may not
    send, too: "Sending suspended for this account", "Sending paused for this account".
    """
    text = text.lower()
    if "sending suspended" in text:
        return _SUSPENDED
    if "sending paused" in text:
        return _PAUSED
    if "not verified" not in text:
        return _REFUSED
    named = _ADDRESS.findall(text)
    return _SANDBOX if named and sender.lower() not in named else _NOT_VERIFIED


def _code(error: Exception) -> str:
    """Return SES's code for an answer, or the name of the error where there was no answer."""
    if isinstance(error, ClientError):
        return error.response["Error"].get("Code", "")
    return type(error).__name__


def _named_by(error: Exception) -> dict[str, str]:
    """Return what an error names that may be logged: its code, and the action that a policy does not allow."""
    text = error.response["Error"].get("Message", "") if isinstance(error, ClientError) else ""
    action = _ACTION.search(text)
    return {"code": _code(error)} | ({"action": action[0]} if action else {})


def _outcome_of_entry(entry: Any, sender: str) -> Outcome:
    status = entry.get("Status")
    if status == "SUCCESS":
        return Outcome(Verdict.ACCEPTED, message_id=entry.get("MessageId"))
    if status == "MESSAGE_REJECTED":
        return _judge_rejection(entry.get("Error") or "", sender)
    return _ENTRY_ERRORS.get(status, _NO_ANSWER)


def _tags(recipient: Recipient) -> Any:
    """Return the tags that SES events carry back in `mail.tags`, and the one that becomes a header."""
    return [_FEEDBACK_ID, *({"Name": name, "Value": value} for name, value in recipient.tags.items())]


def _headers(headers: Mapping[str, str]) -> Any:
    return [{"Name": name, "Value": value} for name, value in headers.items()]
