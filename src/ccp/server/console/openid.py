"""Log-in with an OpenID provider: authorization code flow with PKCE.

`oauthlib` makes the requests and reads the answers of OAuth 2.0 without I/O, the pool's outbound client sends them, and
`ccp.server.access.jose` (joserfc) verifies the ID token.

The state between the redirect to the provider and the return is one random value in a cookie of the browser, with the
time at which it was made. State, nonce and code verifier are keyed hashes of it, so that a log-in that was begun and
never finished leaves nothing on the server, and only the browser that began it can finish it.

Source: OpenID Connect Core 1.0 clauses 3.1 and 3.1.3.7; OpenID Connect Discovery 1.0 clause 4; RFC 6749; RFC 7636;
RFC 9207; RFC 9700.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import math
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from urllib.parse import parse_qsl, quote_plus

import orjson
from oauthlib.oauth2 import OAuth2Error, WebApplicationClient

from ccp.errors import CCPError, NotAuthenticated, UpstreamError
from ccp.server.access.jose import PublicKey, TokenError, UnknownKey, parse_compact, parse_jwk_set, verify
from ccp.server.access.trusted_issuers import find_claim
from ccp.server.console.sessions import ConsoleRole, Person, credential_of_subject
from ccp.server.external.access_tokens import read_secret
from ccp.server.external.client_tls import ClientTLS
from ccp.server.external.outbound import HttpResponse, OutboundClient
from ccp.server.runtime.blocking_calls import BlockingCalls
from ccp.server.settings.console import ConsoleOIDCSettings

LOGIN_TIME: Final = 600.0
"""Seconds for a person to log in at the provider."""

_LEEWAY: Final = 60.0  # Seconds by which the provider's clock may differ.
_TIMEOUT: Final = 5.0
_MAX_BYTES: Final = 262_144
_METADATA_LIFETIME: Final = 300.0
_METADATA_COOLDOWN: Final = 5.0  # Seconds after a failure without a request.
_KEYS_COOLDOWN: Final = 10.0  # Seconds between two requests for keys because of an unknown key.
_MAX_NAME: Final = 100
_FAILED: Final = "The log-in with the OpenID provider failed. Try again."


@dataclass(frozen=True, slots=True)
class LoginState:
    """A log-in that was begun. cookie: what the browser keeps. The others are derived from it."""

    cookie: str
    state: str
    nonce: str
    code_verifier: str


@dataclass(frozen=True, slots=True)
class _Provider:
    """Metadata of the provider, checked. with_basic: whether the token endpoint takes HTTP Basic."""

    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    with_basic: bool


class OpenIDLogin:
    """Log-in with the configured provider. One object for each worker."""

    def __init__(self, config: ConsoleOIDCSettings, outbound: OutboundClient, redirect_uri: str) -> None:
        self._config = config
        self._outbound = outbound
        self._redirect_uri = redirect_uri
        self._tls = ClientTLS(config.ca)
        self._reading = BlockingCalls("reading of a secret", max_threads=1, timeout=5.0)
        self._provider: _Provider | None = None
        self._provider_until = -math.inf
        self._retry_at = -math.inf
        self._fetching = asyncio.Lock()
        self._keys: tuple[PublicKey, ...] = ()
        self._keys_at = -math.inf

    @property
    def name(self) -> str:
        """The provider's name on the page of the log-in."""
        return self._config.name

    async def begin(self, key: bytes, now: datetime) -> tuple[str, str]:
        """Begin a log-in. key: of the pool. Returns the URL to send the browser to, and its cookie.

        Raises Unavailable, UpstreamError.
        """
        provider = await self._metadata()
        login = _derived(key, f"{secrets.token_urlsafe(32)}.{int(now.timestamp())}")
        client = WebApplicationClient(self._config.client_id)
        url: str = client.prepare_request_uri(
            provider.authorization_endpoint,
            redirect_uri=self._redirect_uri,
            scope=list(self._config.scopes),
            state=login.state,
            nonce=login.nonce,
            code_challenge=client.create_code_challenge(login.code_verifier, "S256"),
            code_challenge_method="S256",
        )
        return url, login.cookie

    async def finish(self, key: bytes, cookie: str, query: str, now: datetime) -> Person:
        """Finish a log-in at the return of the browser. query: of its request. Raises NotAuthenticated, Unavailable.

        The message is the same for each failure; its cause names the reason for the log.
        """
        try:
            login = _resumed(key, cookie, now)
            given = _parameters(query)
            if given.get("iss", self._config.issuer) != self._config.issuer:
                raise ValueError("the response is of another issuer")
            client = WebApplicationClient(self._config.client_id)
            # The library compares the state. It wants an https URL, and uses its query only.
            found = client.parse_request_uri_response(f"https://console/?{query}", state=login.state)
            token = await self._id_token(found["code"], login.code_verifier)
            return self._person(await self._claims(token, now), login.nonce, now)
        except (OAuth2Error, TokenError, UpstreamError, ValueError, KeyError, OSError) as exc:
            raise NotAuthenticated(_FAILED) from exc

    async def _metadata(self) -> _Provider:
        """The provider's metadata. Anyone can begin a log-in, so requests for it are made one at a time, and a failure
        counts for some seconds.
        """
        async with self._fetching:
            if self._provider is None or time.monotonic() >= self._provider_until:
                if time.monotonic() < self._retry_at:
                    raise UpstreamError("The OpenID provider did not give its metadata. Try again in some seconds.")
                try:
                    self._provider = await self._fetch_metadata()
                except CCPError:
                    self._retry_at = time.monotonic() + _METADATA_COOLDOWN
                    raise
                self._provider_until = time.monotonic() + _METADATA_LIFETIME
            return self._provider

    async def _fetch_metadata(self) -> _Provider:
        url = f"{self._config.issuer.rstrip('/')}/.well-known/openid-configuration"
        found = _object(await self._request("GET", url))
        if found.get("issuer") != self._config.issuer:
            raise UpstreamError("The OpenID provider names another issuer than the settings.")
        endpoints = [found.get(name) for name in ("authorization_endpoint", "token_endpoint", "jwks_uri")]
        urls = [value for value in endpoints if isinstance(value, str) and value.startswith("https://")]
        if len(urls) != 3:
            raise UpstreamError("The OpenID provider's metadata lacks an endpoint with an https URL.")
        methods = found.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        basic = not isinstance(methods, list) or "client_secret_basic" in methods
        return _Provider(urls[0], urls[1], urls[2], basic)

    async def _id_token(self, code: str, code_verifier: str) -> str:
        provider, client_id = await self._metadata(), self._config.client_id
        secret = await self._secret()
        client = WebApplicationClient(client_id)
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
        in_body: dict[str, str] = {}
        if secret is not None and provider.with_basic:
            pair = f"{quote_plus(client_id)}:{quote_plus(secret)}"
            headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        elif secret is not None:
            in_body["client_secret"] = secret
        body = client.prepare_request_body(
            code,
            redirect_uri=self._redirect_uri,
            code_verifier=code_verifier,
            include_client_id="Authorization" not in headers,
            **in_body,
        )
        response = await self._request("POST", provider.token_endpoint, headers, body.encode(), ok=(200, 400, 401))
        token = client.parse_request_body_response(response.body.decode("utf-8")).get("id_token")
        if not isinstance(token, str):
            raise ValueError("the token response has no ID token")
        return token

    async def _secret(self) -> str | None:
        if self._config.client_secret_file is not None:
            return await self._reading.run(read_secret, self._config.client_secret_file)
        secret = self._config.client_secret
        return None if secret is None else secret.get_secret_value()

    async def _claims(self, token: str, now: datetime) -> Mapping[str, Any]:
        """The claims of an ID token whose signature, issuer, audience and times are valid. Raises TokenError."""
        parsed = parse_compact(token)
        try:
            verified = verify(parsed, self._keys, self._config.algorithms)
        except UnknownKey:
            if time.monotonic() - self._keys_at < _KEYS_COOLDOWN:
                raise
            await self._fetch_keys()
            verified = verify(parsed, self._keys, self._config.algorithms)
        claims, client_id, moment = verified.claims, self._config.client_id, now.timestamp()
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        if claims.get("iss") != self._config.issuer:
            raise ValueError("the ID token is of another issuer")
        if client_id not in audiences or claims.get("azp", client_id) != client_id:
            raise ValueError("the ID token is for another client")
        if len(audiences) > 1 and "azp" not in claims:
            raise ValueError("the ID token is for several clients and names none as its own")
        if not moment < _seconds(claims.get("exp")) + _LEEWAY:
            raise ValueError("the ID token has expired")
        if abs(_seconds(claims.get("iat")) - moment) > LOGIN_TIME + _LEEWAY:
            raise ValueError("the ID token was not issued for this log-in")
        return claims

    async def _fetch_keys(self) -> None:
        self._keys_at = time.monotonic()
        response = await self._request("GET", (await self._metadata()).jwks_uri)
        self._keys, _ = parse_jwk_set(response.body)

    async def _request(
        self, method: str, url: str, headers: Mapping[str, str] | None = None, content: bytes = b"", ok: Any = (200,)
    ) -> HttpResponse:
        response = await self._outbound.request(
            method,
            url,
            block_private=False,  # Configured by the operator.
            headers=headers or {"Accept": "application/json"},
            content=content,
            timeout=_TIMEOUT,
            max_bytes=_MAX_BYTES,
            tls=self._tls,
        )
        if response.status not in ok:
            raise UpstreamError(f"The OpenID provider answered {response.status}.")
        return response

    def _person(self, claims: Mapping[str, Any], nonce: str, now: datetime) -> Person:
        if not hmac.compare_digest(str(claims.get("nonce", "")).encode("utf-8", "replace"), nonce.encode()):
            raise ValueError("the ID token has another nonce")
        subject, name = claims.get("sub"), find_claim(claims, self._config.name_claim)
        for text in (subject, name):
            if not isinstance(text, str) or not text.strip() or not text.isprintable() or len(text) > _MAX_NAME:
                raise ValueError(f"the ID token lacks sub or {self._config.name_claim}")
        values = find_claim(claims, self._config.role_claim)
        given = set(values.split()) if isinstance(values, str) else set()
        if isinstance(values, list):
            given = {value for value in values if isinstance(value, str)}
        if given & set(self._config.admin_roles):
            role = ConsoleRole.ADMIN
        elif given & set(self._config.viewer_roles):
            role = ConsoleRole.VIEWER
        else:
            raise ValueError("the person has no role of the console")
        # A client id has no colon, so a person cannot be taken for a party.
        credential = credential_of_subject(self._config.issuer, str(subject))
        return Person(f"console:{name}", role, None, credential, str(subject))


def _derived(key: bytes, cookie: str) -> LoginState:
    def derive(purpose: str) -> str:
        mac = hmac.new(key, f"{purpose} {cookie}".encode("utf-8", "replace"), hashlib.sha256)
        return base64.urlsafe_b64encode(mac.digest()).decode().rstrip("=")

    return LoginState(cookie, derive("state"), derive("nonce"), derive("verifier"))


def _resumed(key: bytes, cookie: str, now: datetime) -> LoginState:
    """Raises ValueError for a log-in that began too long ago."""
    _, _, began = cookie.partition(".")
    if not began.isascii() or not began.isdigit() or len(began) > 12:
        raise ValueError("there is no log-in to finish")
    if not -_LEEWAY <= now.timestamp() - int(began) <= LOGIN_TIME:
        raise ValueError("the log-in began too long ago")
    return _derived(key, cookie)


def _parameters(query: str) -> dict[str, str]:
    """Raises ValueError for a repeated parameter."""
    pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=20)
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a parameter is given twice")
    return dict(pairs)


def _object(response: HttpResponse) -> dict[str, Any]:
    try:
        found = orjson.loads(response.body)
    except orjson.JSONDecodeError as exc:
        raise UpstreamError("The OpenID provider's metadata is not JSON.") from exc
    if not isinstance(found, dict):
        raise UpstreamError("The OpenID provider's metadata is not a JSON object.")
    return found


def _seconds(value: Any) -> float:
    """A NumericDate (RFC 7519 clause 2). Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**53:
        raise ValueError("the ID token lacks a time")
    return float(value)
