"""Access tokens that the pool presents to an external service: a configured token, or OAuth 2.0 client credentials.

    token = await tokens.get()
    token = await tokens.get(rejected=token)        # after a 401

A token is fetched when it is first needed and kept for the process. From about four fifths of its lifetime on it is
renewed in the background, while calls still use it. Concurrent callers share one request to the token endpoint. A
circuit breaker limits the requests to an endpoint that fails. No message and no log event holds a token or a secret.

Source: RFC 6749 clauses 4.4, 5.1 and 5.2; RFC 6750.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlencode

import orjson
import structlog

from ccp.errors import Unavailable, UpstreamError, strip_tracebacks
from ccp.server.external.circuit_breaker import CircuitBreaker
from ccp.server.external.client_tls import ClientTLS
from ccp.server.external.outbound import HttpResponse, OutboundClient, OutboundError
from ccp.server.runtime import start_files
from ccp.server.runtime.blocking_calls import BlockingCalls
from ccp.server.settings.services import Dialect, ServiceSettings, is_secret

_log = structlog.get_logger("ccp.server.external.access_tokens")

_TIMEOUT: Final = 10.0  # Of the shared request. A caller waits as long as its own timeout permits.
_MAX_BYTES: Final = 65_536  # Tokens with many claims take some kB.
_DEFAULT_LIFETIME: Final = 300.0
"""Seconds, for a token response without a usable expires_in, which RFC 6749 clause 5.1 only recommends."""
_MIN_LIFETIME: Final = 10.0  # A shorter one would mean a token request for nearly every call.
_MAX_LIFETIME: Final = 86_400.0  # Tokens of this ecosystem last a day. A renewal a day is no load for any endpoint.
_RENEW_AFTER: Final = (0.7, 0.85)  # Random part of the lifetime, so that workers do not renew together.
_REJECTION_INTERVAL: Final = 10.0  # Seconds between two renewals because a service rejected a token.
_MAX_FILE_BYTES: Final = 16_384
_FILE_INTERVAL: Final = 1.0  # Seconds for which a token file is not examined again, unless its token was rejected.
_FORM: Final = "application/x-www-form-urlencoded"
_ERROR_CODE: Final = re.compile(r"[a-z_]{1,40}")
# Errors that do not depend on the form of the request, so that another form is not tried. Source: RFC 6749 clause 5.2.
_FINAL_ERRORS: Final = frozenset({"invalid_client", "unauthorized_client", "invalid_scope", "access_denied"})


class TokenError(UpstreamError):
    """There is no access token for the service now."""

    outcome = "token"


class AccessTokens(ABC):
    """The access token for one service."""

    @abstractmethod
    async def get(self, rejected: str | None = None) -> str | None:
        """The token to present; None for a service that takes none. Raises TokenError.

        rejected: a token that the service answered with 401. If there is no other one, the result is the same token.
        """

    @classmethod
    def of(
        cls,
        service: ServiceSettings,
        outbound: OutboundClient,
        name: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> AccessTokens:
        """The tokens that the settings describe. name: the service in messages. clock: monotonic seconds."""
        if service.token_url is not None:
            return ClientCredentials(service, outbound, name, clock)
        if service.token_file is not None:
            return FileToken(service.token_file, name, clock)
        return FixedToken(None if service.token is None else service.token.get_secret_value())


class FixedToken(AccessTokens):
    """A token in the settings, or none."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    async def get(self, rejected: str | None = None) -> str | None:
        """See `AccessTokens.get`."""
        return self._token


class FileToken(AccessTokens):
    """A token in a file that another program replaces. Read again when it was modified."""

    def __init__(self, path: Path, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._name = name
        self._clock = clock
        self._examined_at = -math.inf
        self._reading = BlockingCalls("reading of a token", max_threads=1, timeout=5.0)
        self._token = ""
        with contextlib.suppress(OSError, ValueError):  # A worker that starts may have it from its parent's memory.
            self._token = read_secret(path)
        self._modified: tuple[int, int] | None = None

    async def get(self, rejected: str | None = None) -> str | None:
        """See `AccessTokens.get`."""
        if rejected is None and self._clock() - self._examined_at < _FILE_INTERVAL:
            return self._token
        try:
            await self._reading.run(self._read)
        except (OSError, ValueError, Unavailable) as exc:
            _log.warning("access token not obtained", service=self._name, reason=str(exc))
            if self._token:  # A program that replaces the file may be in the middle of it.
                return self._token
            raise TokenError(f"There is no access token for the {self._name} now; nothing was changed.") from exc
        self._examined_at = self._clock()
        return self._token

    def _read(self) -> None:
        state = self._path.stat()
        modified = (state.st_mtime_ns, state.st_ino)
        if modified != self._modified:
            self._token, self._modified = read_secret(self._path), modified


class ClientCredentials(AccessTokens):
    """Tokens of an OAuth 2.0 token endpoint, by the client credentials grant. Belongs to one event loop."""

    def __init__(
        self,
        service: ServiceSettings,
        outbound: OutboundClient,
        name: str,
        clock: Callable[[], float] = time.monotonic,
        random_part: Callable[[], float] = random.random,
    ) -> None:
        """See `AccessTokens.of`. random_part: uniform in [0, 1)."""
        assert service.token_url is not None
        self._service = service
        self._url = service.token_url
        self._outbound = outbound
        self._name = name
        self._clock = clock
        self._random = random_part
        self._tls = ClientTLS(service.ca, service.tls_cert, service.tls_key, with_system=service.ca is not None)
        self._breaker = CircuitBreaker(clock)
        self._reading = BlockingCalls("reading of a secret", max_threads=1, timeout=5.0)
        # The published description of OPCP has JSON, RFC 6749 a form. Endpoints exist that take only one of them.
        self._as_json = service.dialect is Dialect.OPCP
        self._form_proven = False
        self._fetching: asyncio.Task[None] | None = None
        self._failure: Exception | None = None
        self._token: str | None = None
        self._renew_at = -math.inf
        self._expires_at = -math.inf
        self._rejected_at = -math.inf

    async def get(self, rejected: str | None = None) -> str | None:
        """See `AccessTokens.get`."""
        if rejected is not None and rejected == self._token:
            await self._replace_rejected()
        if self._token is not None and self._clock() < self._expires_at:
            if self._clock() >= self._renew_at and self._breaker_allows():
                self._start()
            return self._token
        await self._fetch()
        return self._token

    async def _replace_rejected(self) -> None:
        """Wait for another token than the one that a service rejected; keep that one if there is none.

        A service may reject one request only, so a token endpoint that fails must not cost the others their token.
        """
        if self._may_replace_rejected() and self._breaker_allows():
            self._rejected_at = self._clock()
            self._start()
        if self._fetching is not None:
            await asyncio.shield(self._fetching)
        if self._failure is not None:
            self._rejected_at = -math.inf  # The circuit breaker limits the attempts.

    @property
    def lifetime(self) -> float:
        """Seconds until the current token expires; zero if there is none."""
        return max(0.0, self._expires_at - self._clock())

    def _may_replace_rejected(self) -> bool:
        # Otherwise a service that answers everything with 401 would cause a token request for every call.
        return self._clock() - self._rejected_at >= _REJECTION_INTERVAL

    def _breaker_allows(self) -> bool:
        return self._fetching is None and self._breaker.allow()

    async def _fetch(self) -> None:
        """Wait for a new token, whichever caller's request gets it. Raises TokenError."""
        if self._fetching is None:
            if not self._breaker.allow():
                raise self._error() from self._failure
            self._start()
        assert self._fetching is not None
        # Shielded: a caller may be cancelled while others wait for the same request.
        await asyncio.shield(self._fetching)
        if self._token is None or self._clock() >= self._expires_at:
            raise self._error() from self._failure

    def _error(self) -> TokenError:
        return TokenError(f"There is no access token for the {self._name} now; nothing was changed.")

    def _start(self) -> None:
        """Start the request; the breaker has allowed it."""
        self._fetching = asyncio.create_task(self._renew())

    async def _renew(self) -> None:
        """Request a token and keep it. Raises nothing: a failure is logged and counted."""
        try:
            token, lifetime = await self._request()
        except (TokenError, Unavailable, OSError, ValueError) as exc:
            self._breaker.record_failure()
            self._failure = strip_tracebacks(exc)
            _log.warning("access token not obtained", service=self._name, reason=_reason(exc))
        else:
            self._breaker.record_success()
            self._failure = None
            self._token, now = token, self._clock()
            low, high = _RENEW_AFTER
            self._renew_at = now + lifetime * (low + (high - low) * self._random())
            self._expires_at = now + lifetime
        finally:
            self._breaker.release()
            self._fetching = None

    async def _request(self) -> tuple[str, float]:
        """A token and its lifetime in seconds. Raises TokenError, Unavailable; OSError and ValueError for the file."""
        members = {
            "grant_type": "client_credentials",
            "client_id": self._service.client_id,
            "client_secret": await self._secret(),
            "audience": self._service.audience,
            "scope": self._service.scope,
        }
        given = {name: value for name, value in members.items() if value is not None}
        response = await self._post(given)
        if _depends_on_form(response) or (self._as_json and not self._form_proven and response.status in (401, 403)):
            # Some servers look for the credentials in a form only, and answer JSON as if there were none.
            self._as_json = not self._as_json
            other = await self._post(given)
            if other.status != 200:
                self._as_json = not self._as_json
            else:
                response = other
        found = parse_token_response(response)
        self._form_proven = True
        return found

    async def _secret(self) -> str:
        if self._service.client_secret_file is not None:
            return await self._reading.run(read_secret, self._service.client_secret_file)
        assert self._service.client_secret is not None
        return self._service.client_secret.get_secret_value()

    async def _post(self, members: dict[str, str]) -> HttpResponse:
        content = orjson.dumps(members) if self._as_json else urlencode(members).encode()
        kind = "application/json" if self._as_json else _FORM
        return await self._outbound.request(
            "POST",
            self._url,
            block_private=False,
            headers={"Accept": "application/json", "Content-Type": kind},
            content=content,
            timeout=_TIMEOUT,
            max_bytes=_MAX_BYTES,
            tls=self._tls,
            service="token",
        )


def read_secret(path: Path) -> str:
    """Read a token or secret from a file; white space around it does not count. Raises OSError, ValueError."""
    text = start_files.read(path, _MAX_FILE_BYTES).decode("ascii", "replace").strip()
    if not is_secret(text):
        raise ValueError(f"{path} holds no token or secret of printable ASCII characters")
    return text


def parse_token_response(response: HttpResponse) -> tuple[str, float]:
    """Return the token and its lifetime in seconds. The response is JSON or, at some endpoints, a form.

    Raises TokenError.
    """
    members = _members(response)
    if response.status != 200:
        raise TokenError(f"The token endpoint answered {response.status}{_error_name(members)}.")
    token, kind = members.get("access_token"), members.get("token_type", "Bearer")
    if not isinstance(token, str) or not is_secret(token) or " " in token:
        raise TokenError("The token endpoint's answer holds no access token.")
    if not isinstance(kind, str) or kind.lower() != "bearer":
        raise TokenError("The token endpoint's answer holds no bearer token.")
    return token, _lifetime(members.get("expires_in"))


def _members(response: HttpResponse) -> dict[str, Any]:
    if response.media_type == _FORM:
        try:
            parsed = parse_qs(response.body.decode("ascii", "replace"), max_num_fields=50)
        except ValueError:
            return {}
        return {name: values[0] for name, values in parsed.items()}
    try:
        value = orjson.loads(response.body)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _lifetime(value: object) -> float:
    """Seconds. A value that is no positive number counts as absent, because the token itself may be valid."""
    try:
        seconds = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        seconds = math.nan
    if not seconds > 0:
        seconds = _DEFAULT_LIFETIME
    return min(max(seconds, _MIN_LIFETIME), _MAX_LIFETIME)


def _error_name(members: dict[str, Any]) -> str:
    """The error code of RFC 6749 clause 5.2, if there is one. Other texts may repeat the request."""
    error = members.get("error")
    return f" ({error})" if isinstance(error, str) and _ERROR_CODE.fullmatch(error) else ""


def _depends_on_form(response: HttpResponse) -> bool:
    """Whether the endpoint may accept the request in another form."""
    if response.status in (415, 422):
        return True
    return response.status == 400 and _members(response).get("error") not in _FINAL_ERRORS


def _reason(exc: Exception) -> str:
    cause = f" ({exc.__cause__})" if isinstance(exc, OutboundError) and exc.__cause__ is not None else ""
    return f"{exc}{cause}"
