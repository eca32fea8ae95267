"""RootCertificatePool: parsing of root lists."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest

from ccp.errors import UpstreamError
from ccp.server.external.root_pool import RootCertificatePool, RootList
from ccp.testing.pki import PKI
from ccp.x509.certificates import Certificate
from ccp.x509.profiles import AnchorRole
from tests.scripted_server import (
    CLOSE,
    JSON,
    NOT_HTTP,
    Received,
    Reply,
    Script,
    Scripted,
    error,
    json_reply,
    nowhere,
    text_reply,
)
from tests.server.external.calls import connection, with_outbound
from tests.world import b64

PATH = "/opnc/v1/rcp/rootcertificates"


def roots(fake: Scripted, answers: Script) -> RootList:
    fake.on(PATH, answers)
    return with_outbound(
        lambda out: RootCertificatePool(connection(out, fake.url + "/opnc/v1/rcp/", token="token")).list_roots()
    )


def by_type(**entries: list[Any]) -> Callable[[Received], Reply]:
    """A pool that knows the filter; entries: by pkiType."""

    def answer(call: Received) -> Reply:
        return json_reply({"rootCertificateCollection": entries.get(call.query["pkiType"][0], [])})

    return answer


def roles_by_fingerprint(found: RootList) -> dict[str, set[str]]:
    return {one.certificate.fingerprint: {role.value for role in one.roles} for one in found.roots}


def test_root_pool_queries_each_role_with_the_token(fake: Scripted, pkis: dict[str, PKI]) -> None:
    roots(fake, by_type(v2g=[{"caCertificate": b64(pkis["iso2"].v2g_root.certificate.der)}]))
    assert [call.query for call in fake.received] == [{"pkiType": [role.value]} for role in AnchorRole]
    assert {call.headers["authorization"] for call in fake.received} == {"Bearer token"}


def test_root_pool_entry_without_types_gets_the_queried_role(fake: Scripted, pkis: dict[str, PKI]) -> None:
    v2g, oem = pkis["iso2"].v2g_root.certificate, pkis["iso2"].oem_root.certificate
    both = [{"caCertificate": b64(v2g.der)}, {"caCertificate": b64(oem.der)}]
    found = roots(fake, by_type(v2g=both[:1], oem=both))
    assert roles_by_fingerprint(found) == {v2g.fingerprint: {"v2g", "oem"}, oem.fingerprint: {"oem"}}
    assert found.complete
    assert not found.unusable


@pytest.mark.parametrize(
    ("words", "roles"),
    [
        ({"rootTypeList": ["V2G"]}, {"v2g"}),
        ({"rootTypeList": ["eMSP", "OEM", "PE"]}, {"emsp", "oem"}),
        ({"rootType": "MO"}, {"emsp"}),
        ({"rootType": "oem"}, {"oem"}),
        ({"rootTypeList": "V2G", "rootType": ["OEM"]}, {"v2g", "oem"}),
        ({"rootTypeList": ["PE"]}, set()),
    ],
)
def test_root_pool_entry_types_override_the_queried_role(
    fake: Scripted, pkis: dict[str, PKI], words: dict[str, Any], roles: set[str]
) -> None:
    certificate = pkis["iso2"].v2g_root.certificate
    entry = {"caCertificate": b64(certificate.der), **words}
    found = roots(fake, by_type(v2g=[entry], emsp=[entry], oem=[entry]))
    assert roles_by_fingerprint(found) == {certificate.fingerprint: roles}
    assert not found.unusable


def test_root_pool_without_filter_gives_no_role_to_entries_without_types(fake: Scripted, pkis: dict[str, PKI]) -> None:
    plain, typed = pkis["iso2"].v2g_root.certificate, pkis["iso2"].oem_root.certificate
    entries = [{"caCertificate": b64(plain.der)}, {"caCertificate": b64(typed.der), "rootTypeList": ["OEM"]}]
    found = roots(fake, json_reply({"rootCertificateCollection": entries}))
    assert roles_by_fingerprint(found) == {plain.fingerprint: set(), typed.fingerprint: {"oem"}}
    assert found.unusable == (f"The pool does not say what certificate {plain.display_name} is for.",)


def test_root_pool_reports_unknown_types_and_gives_no_role(fake: Scripted, pkis: dict[str, PKI]) -> None:
    certificate = pkis["iso2"].v2g_root.certificate
    found = roots(fake, by_type(v2g=[{"caCertificate": b64(certificate.der), "rootType": "everything"}]))
    assert roles_by_fingerprint(found) == {certificate.fingerprint: set()}
    assert "'EVERYTHING'" in found.unusable[0]


def _shapes(certificate: Certificate) -> list[Any]:
    member = {"caCertificate": b64(certificate.der), "rootTypeList": ["V2G"]}
    return [
        {"rootCertificateCollection": [member]},
        {"RootCertificateCollection": {"rootCertificates": [member]}},
        {"rootCertificateCollection": [{"rootCertificate": member}]},
        {"rootCertificateCollection": [{"roootCertificate": member}]},
        [member],
        {"rootCertificateCollection": [{**member, "caCertificate": certificate.pem().decode()}]},
        {"rootCertificateCollection": [{**member, "caCertificate": b64(certificate.pem())}]},
        {"rootCertificateCollection": [{**member, "caCertificate": b64(certificate.der).rstrip("=")}]},
        {"rootCertificateCollection": [{**member, "caCertificate": base64.encodebytes(certificate.der).decode()}]},
    ]


@pytest.mark.parametrize("shape", range(9))
def test_root_pool_reads_every_known_response_shape(fake: Scripted, pkis: dict[str, PKI], shape: int) -> None:
    certificate = pkis["iso2"].v2g_root.certificate
    found = roots(fake, json_reply(_shapes(certificate)[shape]))
    assert roles_by_fingerprint(found) == {certificate.fingerprint: {"v2g"}}
    assert not found.unusable


@pytest.mark.parametrize(
    "entry",
    [5, None, "text", [], {}, {"caCertificate": None}, {"caCertificate": "?"}, {"caCertificate": "AAAA"},
     {"caCertificate": "A" * 100_000}, {"caCertificate": "-----BEGIN CERTIFICATE-----"}, {"rootCertificate": 5}],
)  # fmt: skip
def test_root_pool_reports_unreadable_entries_and_keeps_the_others(
    fake: Scripted, pkis: dict[str, PKI], entry: Any
) -> None:
    certificate = pkis["iso2"].v2g_root.certificate
    found = roots(fake, by_type(v2g=[entry, {"caCertificate": b64(certificate.der)}]))
    assert roles_by_fingerprint(found) == {certificate.fingerprint: {"v2g"}}
    assert len(found.unusable) == 1
    assert not found.complete


@pytest.mark.parametrize(
    "answer",
    [Reply(404), json_reply({"rootCertificateCollection": []}), Reply(500), error(401, "no"), Reply(302),
     text_reply(b"<html>"), json_reply({}), json_reply(5), json_reply({"rootCertificateCollection": 5}),
     CLOSE, NOT_HTTP, Reply(200, b'{"a":"' + b"A" * 5_000_000 + b'"}', JSON)],
    ids=lambda answer: f"{answer.status}-{answer.body[:12]!r}",
)  # fmt: skip
def test_root_pool_raises_for_useless_responses(fake: Scripted, answer: Reply) -> None:
    with pytest.raises(UpstreamError):
        roots(fake, answer)


def test_root_pool_raises_if_one_role_fails(fake: Scripted, pkis: dict[str, PKI]) -> None:
    fine = by_type(v2g=[{"caCertificate": b64(pkis["iso2"].v2g_root.certificate.der)}])
    with pytest.raises(UpstreamError):
        roots(fake, lambda call: Reply(503) if call.query["pkiType"] == ["oem"] else fine(call))


def test_root_pool_raises_if_unreachable() -> None:
    with pytest.raises(UpstreamError, match="does not answer"):
        with_outbound(lambda out: RootCertificatePool(connection(out, nowhere())).list_roots())
