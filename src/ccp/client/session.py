"""The protocol of a call as generators (sans-IO): sending, backoff, retries and access tokens.

A generator yields an action. The driver in `clients` carries it out, sends the result in, or throws the error in. Time
and randomness are parameters, so tests need neither sockets nor a clock.
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
from ccp.client.calls import Call
from ccp.client.errors import BY_STATUS, MalformedResponseError, NoResponseError, StatusError, TokenRefusedError
from ccp.client.model import Credentials, RetryPolicy, Timeouts
from ccp.client.responses import HttpResponse
from ccp.client.untrusted_text import MAX_SENTENCE, plain, sentences
from ccp.errors import ConfigurationError

T = TypeVar("T")

_RETRIED: Final = frozenset({429, 502, 503})
_MAX_BACKOFF: Final = 5.0  # Seconds.
_TOKEN_MARGIN: Final = 60.0
"""Seconds before its expiry from which a token is not used: clocks differ, and requests take time to arrive."""
_TOKEN_LIFETIME: Final = 300.0
"""Seconds, if the token response has no expires_in, which RFC 6749 clause 5.1 allows."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """Action: send a request and return its `HttpResponse` with any status.

    The driver raises NoResponseError or MalformedResponseError. deadline: on the monotonic clock.
    """

    method: str
    url: str
    headers: Mapping[str, str]
    content: bytes
    deadline: float


@dataclass(frozen=True, slots=True)
class Sleep:
    """Action: wait. delay: in seconds."""

    delay: float


@dataclass(frozen=True, slots=True)
class Authorize:
    """Action: run `Session.access_token`, for one call at a time, and return the token.

    rejected: the token that the pool did not accept.
    """

    rejected: str | None
    deadline: float


Action: TypeAlias = Exchange | Sleep | Authorize
ProtocolFlow: TypeAlias = Generator[Action, Any, T]


class Session:
    """The state that a client keeps between calls: its access token."""

    def __init__(
        self,
        base_url: str,
        access: Credentials | str,
        timeouts: Timeouts,
        retry: RetryPolicy,
        *,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        random: Callable[[], float],
    ) -> None:
        """Raises ConfigurationError.

        access: client credentials, or an access token that the application renews. clock: monotonic seconds.
        wall_clock: seconds since 1970. random: a number from 0 to 1.
        """
        self._base_url = validated_url(base_url)
        self._access = access
        self._timeouts = timeouts
        self._retry = retry
        self._clock = clock
        self._wall_clock = wall_clock
        self._random = random
        self._token = access if isinstance(access, str) else None
        self._token_expires = float("inf") if isinstance(access, str) else 0.0
        if isinstance(access, Credentials) and access.token_url is not None:
            validated_url(access.token_url)

    def call(self, call: Call[T]) -> ProtocolFlow[T]:
        """Send a call, with retries, and return its result. Raises ClientError."""
        deadline = self._clock() + (self._timeouts.total if call.timeout is None else call.timeout)
        rejected, outcome_unknown = None, False
        while True:
            token = self._current_token()
            if token is None or token == rejected:
                token = yield Authorize(rejected, deadline)
            headers = {**call.headers, "Authorization": f"Bearer {token}"}
            response, unknown = yield from self._send(
                call.method, self._base_url + call.path, headers, call.content, deadline, repeatable=call.repeatable
            )
            outcome_unknown = outcome_unknown or unknown
            # A token may become invalid before its expiry: its key was revoked, or the party was renamed. Try one fresh
            # token.
            if response.status != 401 or rejected is not None or isinstance(self._access, str):
                break
            rejected = token
        if response.status in call.success:
            return call.parse(response)
        if response.status == 404 and outcome_unknown and call.not_found_after_retry is not None:
            return call.not_found_after_retry
        raise self._status_error(response)

    def access_token(self, rejected: str | None, deadline: float) -> ProtocolFlow[str]:
        """Return a token other than the rejected one: one fetched by another call, or a new one. Raises ClientError."""
        current = self._current_token()
        if current is not None and current != rejected:
            return current
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
        response, _ = yield from self._send("POST", url, headers, content, deadline)
        if response.status in (400, 401, 403):
            raise _token_refused(response)
        if response.status != 200 and response.status < 500:
            # Any other class of error would be read as a statement about a contract or a vehicle.
            raise MalformedResponseError(
                f"The token endpoint responds with HTTP status {response.status}; is its address right?",
                status=response.status,
                trace_id=response.trace_id,
            )
        if response.status != 200:
            raise self._status_error(response)
        self._token, lifetime = _parse_token(response)
        self._token_expires = self._clock() + lifetime - min(_TOKEN_MARGIN, lifetime / 10)
        return self._token

    def _current_token(self) -> str | None:
        return self._token if self._clock() < self._token_expires else None

    def _send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        content: bytes,
        deadline: float,
        *,
        repeatable: bool = True,
    ) -> ProtocolFlow[tuple[HttpResponse, bool]]:
        """Send a request until it gets a response that a retry would not change.

        Returns the response, and whether an earlier attempt may have taken effect.
        """
        sent = {
            "User-Agent": f"opnc-ccp/{__version__}",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            **headers,
        }
        outcome_unknown = False
        for attempt in count():
            request_deadline = min(deadline, self._clock() + self._timeouts.request)
            failure: NoResponseError | StatusError
            try:
                response: HttpResponse = yield Exchange(method, url, sent, content, request_deadline)
            except NoResponseError as exc:
                # An earlier attempt may have reached the server even if this one did not.
                outcome_unknown = exc.outcome_unknown = outcome_unknown or exc.outcome_unknown
                if exc.permanent:
                    raise
                failure = exc
            else:
                if response.status not in _RETRIED:
                    return response, outcome_unknown
                failure = self._status_error(response)
                # With 429 the pool did nothing. 502 and 503 may come from a proxy, which does not know.
                outcome_unknown = outcome_unknown or response.status != 429
            delay = self._backoff(attempt, failure)
            final = attempt >= self._retry.max_retries or (outcome_unknown and not repeatable)
            if final or self._clock() + delay >= deadline:
                raise failure
            yield Sleep(delay)
        raise AssertionError("count() does not end")

    def _backoff(self, attempt: int, failure: NoResponseError | StatusError) -> float:
        """Return the seconds before the next attempt: exponential, with jitter that spreads callers apart."""
        delay = min(self._retry.backoff * 2**attempt, _MAX_BACKOFF) * (0.5 + self._random() / 2)
        retry_after = failure.retry_after if isinstance(failure, StatusError) else None
        return delay if retry_after is None else max(retry_after, 0.0) + self._random() * self._retry.backoff

    def _status_error(self, response: HttpResponse) -> StatusError:
        body = _json_object(response)
        kind = BY_STATUS.get(response.status, StatusError)
        return kind(
            *(sentences(body.get("errorMessages")) or (f"The pool responded with HTTP status {response.status}.",)),
            status=response.status,
            trace_id=response.limited_trace_id(body.get("traceId")) or response.trace_id,
            retry_after=self._retry_after(response.headers.get("retry-after")),
        )

    def _retry_after(self, value: str | None) -> float | None:
        """Return seconds, from a number or a date. Source: RFC 9110 clause 10.2.3."""
        if value is None:
            return None
        if value.strip().isascii() and value.strip().isdigit():
            return float(value.strip()[:9])
        try:
            return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - self._wall_clock())
        except (ValueError, TypeError, OverflowError):
            return None


def validated_url(url: str) -> str:
    """Return the URL without a slash at its end. Raises ConfigurationError."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid or not url.isascii() or not url.isprintable() or " " in url or parts.query or parts.fragment:
        raise ConfigurationError(
            "The URL of a pool consists of http or https, a host, and optionally a port and a path."
        )
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError("The URL of a pool must not contain credentials.")
    return url.rstrip("/")


def _json_object(response: HttpResponse) -> dict[str, Any]:
    """Return the JSON object of a body; an empty one if the body is anything else."""
    try:
        value = orjson.loads(response.body)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _token_refused(response: HttpResponse) -> TokenRefusedError:
    body = _json_object(response)

    def text(name: str) -> str:
        return plain(body[name], MAX_SENTENCE) if isinstance(body.get(name), str) else ""

    reason = text("error_description") or text("error") or f"HTTP status {response.status}"
    return TokenRefusedError(
        f"No access token: {reason}", status=response.status, trace_id=response.trace_id, error=text("error")
    )


def _parse_token(response: HttpResponse) -> tuple[str, float]:
    """Return an access token and its lifetime in seconds. Source: RFC 6749 clause 5.1."""
    body = _json_object(response)
    token, kind, lifetime = body.get("access_token"), body.get("token_type", "Bearer"), body.get("expires_in")
    if isinstance(lifetime, str) and lifetime.isascii() and lifetime.isdigit():
        lifetime = int(lifetime)
    if lifetime is None:
        lifetime = _TOKEN_LIFETIME
    usable = isinstance(token, str) and token.isascii() and token.isprintable() and " " not in token and token != ""
    if not usable or not isinstance(kind, str) or kind.lower() != "bearer" or not isinstance(lifetime, int | float):
        raise MalformedResponseError(
            "The response of the token endpoint contains no bearer token.", status=200, trace_id=response.trace_id
        )
    return str(token), max(0.0, float(lifetime))
