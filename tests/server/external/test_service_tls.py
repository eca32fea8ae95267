"""TLS with external services and their token endpoints: private CAs and client certificates."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest

from ccp.server.external.access_tokens import TokenError
from ccp.server.external.client_tls import ClientTLS
from ccp.server.external.outbound import OutboundError
from tests.scripted_server import Scripted, granted, json_reply, scripted
from tests.server.external.calls import connection, with_outbound
from tests.tls_files import PrivateCA

TOKEN, ROOTS = "/oauth/token", "/roots"


def ask(service: Scripted, **members: Any) -> int:
    """The status of a request to a service. members: of its settings."""

    async def use(out: Any) -> int:
        called = connection(out, service.url, **members)
        return (await called.request("GET", ROOTS, timeout=5.0, max_bytes=10_000)).status

    return with_outbound(use)


def test_service_and_token_endpoint_use_the_private_ca_and_the_client_certificate(tmp_path: Path) -> None:
    ca = PrivateCA(tmp_path)
    client = ca.issue("pool", client=True)
    with scripted(ca.server("service", mutual=True)) as service, scripted(ca.server("tokens", mutual=True)) as tokens:
        service.on(ROOTS, json_reply({}))
        tokens.on(TOKEN, granted("over-tls"))
        members: dict[str, Any] = {
            "token_url": tokens.url + TOKEN, "client_id": "pool", "client_secret": "secret",
            "ca": ca.ca, "tls_cert": client.cert, "tls_key": client.key,
        }  # fmt: skip
        assert ask(service, **members) == 200
        assert service.received[0].headers["authorization"] == "Bearer over-tls"
        heard = len(service.received)
        # Without a certificate of this CA there is no connection, so neither token nor request is sent.
        for less in ({"tls_cert": None, "tls_key": None}, {"ca": None}):
            with pytest.raises((OutboundError, TokenError)):
                ask(service, **{**members, **less})
        assert len(service.received) == heard
        assert len(tokens.received) == 1


def test_service_tls_with_a_private_ca_does_without_the_cas_of_the_system(tmp_path: Path) -> None:
    ours, other = PrivateCA(tmp_path, "Ours"), PrivateCA(tmp_path, "Other")

    def reached(context: ssl.SSLContext) -> bool:
        with scripted(context) as service:
            service.on(ROOTS, json_reply({}))
            try:
                return ask(service, token="t", ca=ours.ca) == 200
            except OutboundError:
                assert service.received == []
                return False

    assert reached(ours.server("right"))
    assert not reached(other.server("wrong"))
    assert [entry["subject"] for entry in ClientTLS(ca=ours.ca).context().get_ca_certs()] == [
        ((("commonName", "Ours"),),)
    ]
    assert len(ClientTLS(ca=ours.ca, with_system=True).context().get_ca_certs()) >= 1


def test_service_certificate_for_another_name_is_refused(tmp_path: Path) -> None:
    ca = PrivateCA(tmp_path)
    with scripted(ca.server(host="service.example")) as service:
        with pytest.raises(OutboundError):
            ask(service, token="t", ca=ca.ca)
        assert service.received == []
