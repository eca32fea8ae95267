"""In which order a call sends, waits and asks for a token. Written once, as generators; whoever drives them does I/O.

A step is yielded; what it came to is sent back, or thrown in. Time and chance are arguments.
"""

from __future__ import annotations

import email.utils
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, TypeAlias, TypeVar
from urllib.parse import urlencode, urlsplit

import orjson

from ccp import __version__
from ccp.client import untrusted_text
from ccp.client.errors import BY_STATUS, AnsweredError, MalformedAnswerError, NoAnswerError, TokenRefusedError
from ccp.client.model import Credentials, Limits
from ccp.client.operations import Answer, Call
from ccp.errors import ConfigurationError

T = TypeVar("T")

_RETRIED: Final = frozenset({429, 502, 503})
_LONGEST_PAUSE: Final = 5.0
_TOKEN_MARGIN: Final = 60.0  # Seconds before its end that a token is not used any more: clocks differ, requests travel.
_TOKEN_LIFETIME: Final = 300.0  # Where the issuer does not say how long, which RFC 6749 clause 5.1 allows.
_TRACE_ID: Final = 100  # Characters; a UUID has 36.


@dataclass(frozen=True, slots=True)
class Exchange:
    """Send a request and bring its answer, whatever status it has. Raises NoAnswerError, MalformedAnswerError.

    deadline: by the monotonic clock.
    """

    method: str
    url: str
    headers: Mapping[str, str]
    content: bytes
    deadline: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Authorise:
    """Run `Conversation.token`, one call at a time, and bring the token. stale: the one that was refused."""

    stale: str | None
    deadline: float


Step: TypeAlias = Exchange | Pause | Authorise
Steps: TypeAlias = Generator[Step, Any, T]


class Conversation:
    """What a client keeps between calls: its token."""

    def __init__(
        self,
        base_url: str,
        access: Credentials | str,
        limits: Limits,
        *,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        """access: client credentials, or an access token that somebody else renews.

        clock: monotonic seconds. wall_clock: seconds since 1970. chance: from 0 to 1. Raises ConfigurationError.
        """
        self._base_url = _checked(base_url)
        self._access = access
        self._limits = limits
        self._clock = clock
        self._wall_clock = wall_clock
        self._chance = chance
        self._token = access if isinstance(access, str) else None
        self._token_ends = float("inf") if isinstance(access, str) else 0.0
        if isinstance(access, Credentials) and access.token_url is not None:
            _checked(access.token_url)

    def call(self, call: Call[T]) -> Steps[T]:
        """Send a call until there is an answer that ends it. Raises ClientError."""
        deadline = self._clock() + (self._limits.total if call.seconds is None else call.seconds)
        stale, lost = None, False
        while True:
            token = self._current()
            if token is None or token == stale:
                token = yield Authorise(stale, deadline)
            headers = {**call.headers, "Authorization": f"Bearer {token}"}
            answer, lost_here = yield from self._send(
                call.method, self._base_url + call.path, headers, call.content, deadline
            )
            lost = lost or lost_here
            # A token may end before its time: its key was withdrawn, the party was renamed. One fresh one tells.
            if answer.status != 401 or stale is not None or isinstance(self._access, str):
                break
            stale = token
        if answer.status in call.success:
            return call.read(answer)
        if answer.status == 404 and lost and call.gone is not None:
            return call.gone
        raise self._error(answer)

    def token(self, stale: str | None, deadline: float) -> Steps[str]:
        """A token other than the stale one: the one that was fetched meanwhile, or a new one. Raises ClientError."""
        held = self._current()
        if held is not None and held != stale:
            return held
        if isinstance(self._access, str):
            return self._access
        form = {
            "grant_type": "client_credentials",
            "client_id": self._access.client_id,
            "client_secret": self._access.secret,
            "audience": self._access.audience,
            "scope": self._access.scope,
        }
        content = urlencode({name: value for name, value in form.items() if value is not None}).encode()
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        url = self._access.token_url or f"{self._base_url}/oauth/token"
        answer, _ = yield from self._send("POST", url, headers, content, deadline)
        if answer.status in (400, 401, 403):
            raise _refused(answer)
        if answer.status != 200 and answer.status < 500:
            # What a pool would say with it of a contract or a vehicle is not what was asked here.
            raise MalformedAnswerError(
                f"The token endpoint answers with HTTP status {answer.status}; is its address right?",
                status=answer.status,
                trace_id=answer.trace_id,
            )
        if answer.status != 200:
            raise self._error(answer)
        self._token, lifetime = _granted(answer)
        self._token_ends = self._clock() + lifetime - min(_TOKEN_MARGIN, lifetime / 10)
        return self._token

    def _current(self) -> str | None:
        return self._token if self._clock() < self._token_ends else None

    def _send(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes, deadline: float
    ) -> Steps[tuple[Answer, bool]]:
        """Send a request until it is answered with something that another attempt would not change.

        Returns the answer, and whether an earlier attempt may have been carried out.
        """
        sent = {
            "User-Agent": f"opnc-ccp/{__version__}",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            **headers,
        }
        lost = False
        for attempt in count():
            until = min(deadline, self._clock() + self._limits.exchange)
            failure: NoAnswerError | AnsweredError
            try:
                answer: Answer = yield Exchange(method, url, sent, content, until)
            except NoAnswerError as exc:
                failure = exc
                lost = lost or exc.outcome_unknown
            else:
                if answer.status not in _RETRIED:
                    return answer, lost
                failure = self._error(answer)
                # Ours says with it that nothing was done. A proxy's says that it does not know.
                lost = lost or answer.status != 429
            pause = self._pause(attempt, failure)
            if attempt >= self._limits.retries or self._clock() + pause >= deadline:
                raise failure
            yield Pause(pause)
        raise AssertionError("count() does not end")

    def _pause(self, attempt: int, failure: NoAnswerError | AnsweredError) -> float:
        """Before the next attempt: twice as long each time, with chance in it, so that callers do not come together."""
        pause = min(self._limits.pause * 2**attempt, _LONGEST_PAUSE) * (0.5 + self._chance() / 2)
        asked = failure.retry_after if isinstance(failure, AnsweredError) else None
        return pause if asked is None else max(asked, 0.0) + self._chance() * self._limits.pause

    def _error(self, answer: Answer) -> AnsweredError:
        messages, trace_id = _said(answer)
        kind = BY_STATUS.get(answer.status, AnsweredError)
        return kind(
            *(messages or (f"The pool answered with HTTP status {answer.status}.",)),
            status=answer.status,
            trace_id=trace_id or answer.trace_id,
            retry_after=self._retry_after(answer.headers.get("retry-after")),
        )

    def _retry_after(self, value: str | None) -> float | None:
        """Seconds, from a number or a date. Source: RFC 9110 clause 10.2.3."""
        if value is None:
            return None
        if value.strip().isascii() and value.strip().isdigit():
            return float(value.strip()[:9])
        try:
            return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - self._wall_clock())
        except (ValueError, TypeError, OverflowError):
            return None


def _checked(url: str) -> str:
    """An address that may be called, without a slash at its end. Raises ConfigurationError."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good or not url.isascii() or not url.isprintable() or " " in url or parts.query or parts.fragment:
        raise ConfigurationError("The address of a pool is http or https, a host, perhaps a port and a path.")
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError("The address of a pool has no credentials in it.")
    return url.rstrip("/")


def _members(answer: Answer) -> dict[str, Any]:
    try:
        said = orjson.loads(answer.body)
    except orjson.JSONDecodeError:
        return {}
    return said if isinstance(said, dict) else {}


def _said(answer: Answer) -> tuple[tuple[str, ...], str | None]:
    """The sentences and the trace id of an error answer, as far as it has the API's shape."""
    said = _members(answer)
    trace_id = said.get("traceId")
    return (
        untrusted_text.sentences(said.get("errorMessages")),
        untrusted_text.plain(trace_id, _TRACE_ID) if isinstance(trace_id, str) else None,
    )


def _refused(answer: Answer) -> TokenRefusedError:
    said = _members(answer)
    error = (
        untrusted_text.plain(said["error"], untrusted_text.MAX_SENTENCE) if isinstance(said.get("error"), str) else ""
    )
    told = said.get("error_description")
    described = untrusted_text.plain(told, untrusted_text.MAX_SENTENCE) if isinstance(told, str) else ""
    message = described or error or f"HTTP status {answer.status}"
    return TokenRefusedError(
        f"No access token: {message}", status=answer.status, trace_id=answer.trace_id, error=error
    )  # fmt: skip


def _granted(answer: Answer) -> tuple[str, float]:
    """An access token and its lifetime in seconds. Source: RFC 6749 clause 5.1."""
    said = _members(answer)
    token, kind, lifetime = said.get("access_token"), said.get("token_type", "Bearer"), said.get("expires_in")
    if isinstance(lifetime, str) and lifetime.isascii() and lifetime.isdigit():
        lifetime = int(lifetime)
    if lifetime is None:
        lifetime = _TOKEN_LIFETIME
    usable = isinstance(token, str) and token.isascii() and token.isprintable() and " " not in token and token != ""
    if not usable or not isinstance(kind, str) or kind.lower() != "bearer" or not isinstance(lifetime, int | float):
        raise MalformedAnswerError(
            "The token endpoint's answer has no bearer token in it.", status=200, trace_id=answer.trace_id
        )
    return str(token), max(0.0, float(lifetime))
