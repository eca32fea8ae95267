"""A small OpenID provider on loopback, with TLS: metadata, keys, authorization endpoint, token endpoint.

It checks what a real one checks: client, redirect URI, PKCE, and that each code is used once. A test changes `claims`,
`key` or a script to make it misbehave.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlencode

from joserfc import jwt
from joserfc.jwk import RSAKey

from tests.scripted_server import Received, Reply, Scripted, json_reply, scripted

CLIENT_ID = "pool-console"
SECRET = "a secret/with: signs"


class OpenIDProvider:
    """The provider. user: claims of the person who logs in. claims: those of the ID token to replace; None removes."""

    def __init__(self, server: Scripted) -> None:
        self.server = server
        self.issuer = f"{server.url}/realm"
        self.key = RSAKey.generate_key(2048, {"kid": "first"})
        self.published = [self.key]
        self.codes: dict[str, dict[str, str]] = {}
        self.reset()
        server.on("/realm/.well-known/openid-configuration", lambda request: json_reply(self.metadata()))
        server.on(
            "/realm/keys", lambda request: json_reply({"keys": [key.as_dict(private=False) for key in self.published]})
        )
        server.on("/realm/authorize", self.authorize)
        server.on("/realm/token", self.token)

    def reset(self) -> None:
        self.user: dict[str, Any] = {"sub": "4711", "preferred_username": "jo", "roles": ["pool-admin", "other"]}
        self.claims: dict[str, Any] = {}
        self.header: dict[str, Any] = {}

    def keys(self) -> dict[str, Any]:
        return {"keys": [key.as_dict(private=False) for key in self.published]}

    def metadata(self) -> dict[str, Any]:
        return {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/keys",
            "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
        }

    def authorize(self, request: Received) -> Reply:
        """The person is logged in at the provider, and agrees at once."""
        given = {name: values[0] for name, values in request.query.items()}
        if given.get("client_id") != CLIENT_ID or given.get("response_type") != "code":
            return Reply(400, b"unknown client")
        if given.get("code_challenge_method") != "S256" or "openid" not in given["scope"].split():
            return Reply(400, b"PKCE and openid are needed")
        code = secrets.token_urlsafe(16)
        self.codes[code] = given
        answer = {"code": code, "state": given["state"], "iss": self.issuer}
        return Reply(302, headers={"Location": f"{given['redirect_uri']}?{urlencode(answer)}"})

    def token(self, request: Received) -> Reply:
        form = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
        expected = "Basic " + base64.b64encode(f"{CLIENT_ID}:a+secret%2Fwith%3A+signs".encode()).decode()
        if request.headers.get("authorization") != expected or "client_secret" in form:
            return json_reply({"error": "invalid_client"}, 401)
        begun = self.codes.pop(form.get("code", ""), None)
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        if begun is None or begun["redirect_uri"] != form["redirect_uri"] or begun["code_challenge"] != challenge:
            return json_reply({"error": "invalid_grant"}, 400)
        return json_reply({"access_token": "x", "token_type": "Bearer", "id_token": self.id_token(begun["nonce"])})

    def id_token(self, nonce: str) -> str:
        now = int(time.time())
        standard = {"iss": self.issuer, "aud": CLIENT_ID, "iat": now, "exp": now + 300, "nonce": nonce}
        claims = {**standard, **self.user, **self.claims}
        header = {"alg": "RS256", "kid": self.key.kid, **self.header}
        wanted = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(header, wanted, self.key, algorithms=["RS256", "HS256", "PS512"])


@contextmanager
def openid_provider(tls: ssl.SSLContext) -> Iterator[OpenIDProvider]:
    """A running provider."""
    with scripted(tls) as server:
        yield OpenIDProvider(server)
