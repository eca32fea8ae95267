"""CRLs of other implementations, over HTTP: distribution point names, user CRLs, PEM, numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ccp.testing.pki import PKI, StatusURLs
from ccp.x509.certificates import Certificate
from tests.cli.run import ccp
from tests.scripted_server import Scripted, scripted
from tests.server.trust.revocation.made import crl, serve_crl
from tests.world import AT, Pool, start

LIST = "/cps-sub2.crl"


@pytest.fixture(scope="module")
def server() -> Iterator[Scripted]:
    with scripted() as running:
        yield running


@pytest.fixture(scope="module")
def pki(server: Scripted) -> PKI:
    """The provisioning service's certificate names a list; no other certificate names anything."""
    named = {"CPS Sub2 CA SIM": StatusURLs(crl=server.url + LIST)}
    return PKI.generate(AT, status_urls=lambda name: named.get(name, StatusURLs()))


@pytest.fixture(scope="module")
def pool(pki: PKI) -> Iterator[Pool]:
    with start({"iso2": pki}, egress_allow_networks=("127.0.0.0/8",)) as running:
        yield running


def put(pool: Pool) -> httpx.Response:
    return pool.cps.put("/signedcontractdata", json=pool.contract(pool.car()).body)


def served(pool: Pool, server: Scripted, data: bytes) -> None:
    """A list in place of those before, of which nothing is known any more."""
    serve_crl(server, LIST, data, f'"{hash(data)}"')
    for table in ("crl", "evidence"):
        pool.sql(f"delete from {table}")


def extension(**values: object) -> tuple[x509.ExtensionType, bool]:
    flags = ("only_contains_user_certs", "only_contains_ca_certs", "indirect_crl", "only_contains_attribute_certs")
    given = {"full_name": None, "relative_name": None, "only_some_reasons": None, **dict.fromkeys(flags, False)}
    return x509.IssuingDistributionPoint(**{**given, **values}), True


def test_crl_distribution_point_ignores_letter_case(pool: Pool, pki: PKI, server: Scripted) -> None:
    upper = server.url.replace("http://", "HTTP://") + LIST
    other = x509.UniformResourceIdentifier("ldap://crl.example/cn=cps")
    idp = extension(full_name=[other, x509.UniformResourceIdentifier(upper)])
    served(pool, server, crl(pki.cps_sub2, extra=(idp,)))
    assert put(pool).status_code == 201
    served(pool, server, crl(pki.cps_sub2, extra=(extension(full_name=[other]),)))
    answer = put(pool)
    assert answer.status_code == 503
    assert "only a part of the issuer's" in answer.text


def test_crl_of_user_certificates_covers_leaves(pool: Pool, pki: PKI, server: Scripted) -> None:
    only_users = extension(only_contains_user_certs=True)
    served(pool, server, crl(pki.cps_sub2, extra=(only_users,)))
    assert put(pool).status_code == 201
    served(pool, server, crl(pki.cps_sub2, pki.cps.certificate, extra=(only_users,)))
    answer = put(pool)
    assert answer.status_code == 400
    assert "was revoked at" in answer.text


@pytest.mark.parametrize("before", [b"\xef\xbb\xbf", b"\r\n\n", b"issuer=CPS\n"], ids=["bom", "blank lines", "text"])
def test_crl_in_pem_after_other_bytes_is_read(pool: Pool, pki: PKI, server: Scripted, before: bytes) -> None:
    served(pool, server, before + _pem(crl(pki.cps_sub2)))
    assert put(pool).status_code == 201
    served(pool, server, before + _pem(crl(pki.cps_sub2, pki.cps.certificate)))
    assert put(pool).status_code == 400


def test_crl_signature_with_unused_bits_is_refused(pool: Pool, pki: PKI, server: Scripted) -> None:
    data, signature = b"", b"\1"
    while signature[-1] & 1:
        data = crl(pki.cps_sub2)
        signature = x509.load_der_x509_crl(data).signature
    at = data.index(signature) - 1
    served(pool, server, data[:at] + b"\1" + data[at + 1 :])
    answer = put(pool)
    assert answer.status_code == 503
    assert "The signature of the CRL claims unused bits." in answer.text
    served(pool, server, data)
    assert put(pool).status_code == 201


# --- Numbers ---


def renumbered(pool: Pool, pki: PKI, server: Scripted, number: int | None, *revoked: Certificate) -> None:
    """The server's next list, and the one that is held has run out."""
    serve_crl(server, LIST, crl(pki.cps_sub2, *revoked, number=number), f'"{number}"')
    past, future = (int((AT + timedelta(days=days)).timestamp()) * 1_000_000 for days in (-1, 1))
    pool.sql("update crl set next_update = ?, refresh_at = ?", past, future)


def test_crl_with_a_lower_number_is_accepted_by_command(pool: Pool, pki: PKI, server: Scripted) -> None:
    served(pool, server, crl(pki.cps_sub2, number=7))
    assert put(pool).status_code == 201
    url, env = server.url + LIST, {"CCP_DATABASE": pool.settings.database}

    renumbered(pool, pki, server, None)
    assert "The CRL has no number, the one before it had 7." in put(pool).text
    renumbered(pool, pki, server, 3)
    answer = put(pool)
    assert answer.status_code == 503
    assert "The CRL has the number 3, the one before it had 7." in answer.text

    assert ccp("crl", "accept", url, env=env, stdin=b"n\n").status == 1
    assert ccp("crl", "accept", "http://other.example/", "--yes", env=env).err == (
        "ccp: There is no CRL from http://other.example/.\n"
    )
    assert put(pool).status_code == 503
    assert json.loads(ccp("crl", "list", "--json", env=env).out)[0]["number"] == 7

    done = ccp("crl", "accept", url, "--yes", "--json", env=env)
    assert done.status == 0
    (accepted,) = json.loads(done.out)["accepted"]
    assert (accepted["issuer"], accepted["url"], accepted["number"]) == ("CPS Sub2 CA SIM", url, 7)
    assert put(pool).status_code == 201
    assert "CPS Sub2 CA SIM" in ccp("crl", "list", env=env).out
    assert pool.sql("select number from crl") == [("3",)]
    ((action, subject),) = pool.sql("select action, subject from audit where action = 'crl.number.accepted'")
    assert json.loads(subject)["number"] == 7
    assert action == "crl.number.accepted"

    # The next fall is refused again.
    renumbered(pool, pki, server, 2)
    assert put(pool).status_code == 503


def _pem(data: bytes) -> bytes:
    return x509.load_der_x509_crl(data).public_bytes(Encoding.PEM)
