"""A scripted authorisation server with real keys, real tokens, and its key set on loopback."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from joserfc import jws
from joserfc.jwk import ECKey, KeySet, OKPKey, RSAKey

from ccp.server.http.routes.opnc import BASE
from ccp.server.settings.issuers import IssuerSettings
from tests.scripted_server import Reply, Scripted, scripted
from tests.world import Pool, new_emaid

NAME = "https://idp.example.com/realms/pnc"
AUDIENCE = "urn:example:pool"
KEYS = "/keys"
Key = ECKey | OKPKey | RSAKey


def key(algorithm: str = "ES256", kid: str | None = None) -> Key:
    made: Key
    match algorithm:
        case "ES256" | "ES384" | "ES512":
            curve = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}[algorithm]
            made = ECKey.generate_key(curve, {"kid": kid} if kid else None)  # type: ignore[arg-type]
        case "EdDSA" | "Ed25519":
            made = OKPKey.generate_key("Ed25519", {"kid": kid} if kid else None)
        case _:
            made = RSAKey.generate_key(2048, {"kid": kid} if kid else None)
    made.ensure_kid()
    return made


def key_set(*keys: Key) -> bytes:
    return json.dumps(KeySet(list(keys)).as_dict(private=False)).encode()


class _Anything(jws.JWSRegistry):
    """Signs whatever header a test wants."""

    def check_header(self, header: dict[str, Any]) -> None:
        pass


def signed(members: Mapping[str, Any], by: Key, algorithm: str = "ES256", **header: Any) -> str:
    """A token; a member of the header that is None is left out."""
    head = {"alg": algorithm, "typ": "at+jwt", "kid": by.kid, **header}
    head = {name: value for name, value in head.items() if value is not None}
    return jws.serialize_compact(head, json.dumps(members), by, registry=_Anything(algorithms=[algorithm]))


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@dataclass
class FakeIssuer:
    """keys: what it publishes; the first one signs."""

    server: Scripted
    keys: list[Key] = field(default_factory=lambda: [key()])
    name: str = NAME

    def __post_init__(self) -> None:
        self.server.on(KEYS, lambda request: Reply(body=key_set(*self.keys)))

    @property
    def asked(self) -> int:
        """How often its keys were fetched."""
        return self.server.count(KEYS)

    def says(self, reply: Reply) -> None:
        """Answer with this in place of the keys."""
        self.server.on(KEYS, reply)

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Valid claims with changes; None omits a claim, a function computes it from the time."""
        now = int(time.time())
        own = {"iss": self.name, "aud": AUDIENCE, "sub": "station-7", "iat": now, "exp": now + 300, "roles": ["cpo"]}
        claims = {name: value(now) if callable(value) else value for name, value in {**own, **changes}.items()}
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, by: Key | None = None, algorithm: str = "ES256", **changes: Any) -> str:
        return signed(self.claims(**changes), by or self.keys[0], algorithm)

    def entry(self, **options: Any) -> IssuerSettings:
        """How an operator trusts it."""
        own: dict[str, Any] = {
            "issuer": self.name,
            "jwks_url": self.server.url + KEYS,
            "allow_http": True,
            "audience": AUDIENCE,
            "algorithms": ("ES256",),
            "role_claim": "roles",
            "provider_claim": "providers",
            "wmi_claim": "wmis",
            "operator_claim": "operators",
        }
        return IssuerSettings(**{**own, **options})


@contextmanager
def fake_issuer(*keys: Key, name: str = NAME) -> Iterator[FakeIssuer]:
    with scripted() as server:
        yield FakeIssuer(server, list(keys) or [key()], name)


# --- Asking a pool ---------------------------------------------------------------------------------------------------


def bearer(token: str, **more: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}", **more}


def look(pool: Pool, token: str, provider: str = "DEEXA", **headers: str) -> httpx.Response:
    """What only an eMSP may ask, of a contract that is not there: 404 for one of that provider, 403 for others."""
    path = f"{BASE}/contractData/emaid/{new_emaid(provider)}"
    return pool.http.get(path, headers=bearer(token, **headers))


def post(pool: Pool, token: str, **headers: str) -> httpx.Response:
    """What only a CPO (or a peer pool) may ask, with a body that is none: 400 for them, 403 for others."""
    return pool.http.post(f"{BASE}/signedcontractdata", content=b"{}", headers=bearer(token, **headers))
