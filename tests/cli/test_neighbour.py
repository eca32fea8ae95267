"""ccp neighbour: what it says about services that work, and about each way in which one does not."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from ccp.server.settings.services import SERVICES
from ccp.testing.pki import PKI
from tests.cli.run import ccp, ccp_error, ccp_ok
from tests.scripted_server import HANG, Reply, Scripted, error, granted, json_reply, nowhere, scripted
from tests.tls_files import PrivateCA
from tests.world import b64, start

SECRET = "hunter2-of-the-pool"
PCP_LOOKUP = "/lookupvehicle/ZZZ00000000000000"
NOT_FOUND = error(404, "The OEM provisioning certificate with given PCID is not found.")


def environment(prefix: str, url: str, **members: Any) -> dict[str, str]:
    values = {"url": url, **members}
    return {f"CCP_{prefix.upper()}_{name.upper()}": str(value) for name, value in values.items()}


def report_of(prefix: str, url: str, *, status: int, **members: Any) -> dict[str, Any]:
    """The report of one service, as JSON."""
    done = ccp("neighbour", "test", prefix, "--json", env=environment(prefix, url, **members))
    assert done.status == status, done
    (report,) = json.loads(done.out)
    assert report["ok"] == (status == 0)
    assert (report["advice"] is None) == report["ok"]
    assert SECRET not in done.out + done.err
    result: dict[str, Any] = report
    return result


def failed(prefix: str, url: str, **members: Any) -> tuple[str, str, str]:
    """The failed step, its detail, and the advice."""
    report = report_of(prefix, url, status=1, **members)
    step = report["steps"][-1]
    assert [each["ok"] for each in report["steps"]] == [True] * (len(report["steps"]) - 1) + [False]
    assert report["advice"].count(". ") == 0, "one sentence"
    return step["name"], step["detail"], report["advice"]


def root_entries(pki: PKI) -> list[dict[str, Any]]:
    return [
        {"caCertificate": b64(certificate.der), "rootTypeList": [role.value.upper()]}
        for role, certificate in pki.trust_list()
    ]


def ca_certificates(pki: PKI) -> Reply:
    root = x509.load_der_x509_certificate(pki.v2g_root.certificate.der)
    certificates = b64(pkcs7.serialize_certificates([root], Encoding.DER)).encode()
    return Reply(200, certificates, {"Content-Type": "application/pkcs7-mime"})


def serve_everything(server: Scripted, pki: PKI) -> None:
    """Let a server be all five services and their token endpoint."""
    server.on("/oauth/token", granted("token"))
    server.on("/rootcertificates", json_reply({"rootCertificateCollection": root_entries(pki)}))
    server.on(PCP_LOOKUP, NOT_FOUND)
    server.on("/pki/revokeCertificate", error(405, "Use POST."))
    server.on("/.well-known/est/cpo/cacerts", ca_certificates(pki))
    chain = {"certificate": b64(pki.cps.certificate.der), "subCa2Certificate": b64(pki.cps.sub_cas[0].der),
             "subCa1Certificate": b64(pki.cps.sub_cas[1].der)}  # fmt: skip
    server.on("/cpsCertificates", json_reply({"cpsCertificateDataCollection": [{"cpsCertificateChain": chain}]}))


def test_neighbour_test_reports_every_step_of_every_service(pkis: dict[str, PKI], tmp_path: Path) -> None:
    ca = PrivateCA(tmp_path)
    client = ca.issue("pool", client=True)
    with scripted(ca.server(mutual=True)) as server, start({"iso2": pkis["iso2"]}) as pool:
        serve_everything(server, pkis["iso2"])
        env = {"CCP_DATABASE": pool.settings.database}
        for prefix in SERVICES:
            env |= environment(
                prefix, server.url, token_url=server.url + "/oauth/token", client_id="pool", client_secret=SECRET,
                ca=ca.ca, tls_cert=client.cert, tls_key=client.key,
            )  # fmt: skip
        reports = json.loads(ccp_ok("neighbour", "test", "--json", env=env).out)
        assert [report["service"] for report in reports] == list(SERVICES)
        for report in reports:
            assert [step["name"] for step in report["steps"]] == ["dns", "connect", "tls", "token", "call"]
            assert report["authentication"] == "client credentials of pool and client certificate"
            assert report["ms"] > 0
            details = {step["name"]: step["detail"] for step in report["steps"]}
            assert details["dns"] == "127.0.0.1: 127.0.0.1"
            assert "issued by CN=Private CA, expires " in details["tls"]
            assert "valid for 3600 s" in details["token"]
        calls = {report["service"]: report["steps"][-1]["detail"] for report in reports}
        assert "(v2g 1, emsp 1, oem 3)" in calls["rcp"]
        assert "404, as for a vehicle that is not known" in calls["pcp"]
        assert "405" in calls["pki"]
        assert calls["est"].startswith("cacerts: cpo: 1 certificates of ")
        assert "1 certificates, 1 of them verify" in calls["cps"]
        text = ccp_ok("neighbour", "test", env=env).lines
        assert [line.split()[:2] for line in text if not line.startswith(" ")] == [
            ["ok", prefix] for prefix in SERVICES
        ]
        assert {one.method for one in server.received} == {"GET", "POST"}
        assert {one.target for one in server.received if one.method == "POST"} == {"/oauth/token"}


def test_neighbour_test_of_another_pool(pkis: dict[str, PKI]) -> None:
    with start({"iso2": pkis["iso2"]}) as pool:
        members = {"dialect": "opcp", "token_url": pool.base_url + "/oauth/token", "client_id": "cpo"}
        secret = pool.world.member("cpo").secret
        report = report_of("rcp", pool.base_url, status=0, **members, client_secret=secret)
        assert report["steps"][-1]["detail"].startswith("GET /v1/root/rootCerts: ")
        step, detail, advice = failed("rcp", pool.base_url, **members, client_secret=SECRET)
        assert step == "token"
        assert "401 (invalid_client)" in detail
        assert "rcp_client_id" in advice


@contextmanager
def plain_listener() -> Iterator[str]:
    """An https URL at which a server answers in plain HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            try:
                while True:
                    connection, _ = listening.accept()
                    with connection:
                        connection.recv(100)
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            except OSError:
                return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"https://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def test_neighbour_test_names_failures_of_name_and_connection() -> None:
    step, detail, advice = failed("rcp", "https://service.invalid")
    assert (step, "rcp_url" in advice or "name server" in advice) == ("dns", True)
    assert "service.invalid" in detail
    step, detail, advice = failed("rcp", nowhere())
    assert step == "connect"
    assert "refuses the connection" in detail
    assert "rcp_url" in advice


def test_neighbour_test_names_failures_of_tls(tmp_path: Path) -> None:
    ca, other = PrivateCA(tmp_path, "Private CA"), PrivateCA(tmp_path, "Other CA")
    cases: list[tuple[ssl.SSLContext, dict[str, Any], str, str]] = [
        (ca.server("a"), {}, "unable to get local issuer certificate", "rcp_ca"),
        (ca.server("b"), {"ca": other.ca}, "unable to get local issuer certificate", "rcp_ca"),
        (ca.server("c", host="service.example"), {"ca": ca.ca}, "IP address mismatch", "rcp_url"),
        (ca.server("d", days=-1), {"ca": ca.ca}, "certificate has expired", "renew"),
    ]
    for context, members, problem, advice in cases:
        with scripted(context) as server:
            found = failed("rcp", server.url, **members)
            assert found[0] == "tls"
            assert problem in found[1]
            assert advice in found[2]
            assert server.received == []
    with plain_listener() as url:
        step, detail, advice = failed("rcp", url)
    assert step == "tls"
    assert "does not speak TLS" in detail
    assert "plain HTTP needs an http URL" in advice


def test_neighbour_test_names_a_missing_or_refused_client_certificate(tmp_path: Path) -> None:
    ca, other = PrivateCA(tmp_path, "Private CA"), PrivateCA(tmp_path, "Other CA")
    stranger = other.issue("stranger", client=True)
    with scripted(ca.server(mutual=True)) as server:
        _, _, advice = failed("rcp", server.url, ca=ca.ca)
        assert advice.startswith("Set rcp_tls_cert and rcp_tls_key")
        _, _, advice = failed("rcp", server.url, ca=ca.ca, tls_cert=stranger.cert, tls_key=stranger.key)
        assert "rcp_tls_cert" in advice
        assert "refuses the certificate" in advice


def test_neighbour_test_names_failures_of_the_token(tmp_path: Path) -> None:
    with scripted() as server:
        grant = {"client_id": "pool", "client_secret": SECRET}
        server.on("/oauth/token", json_reply({"error": "invalid_client", "error_description": SECRET}, 401))
        step, detail, advice = failed("pcp", server.url, token_url=server.url + "/oauth/token", **grant)
        assert (step, detail) == ("token", "The token endpoint answered 401 (invalid_client).")
        assert "pcp_client_id" in advice
        step, detail, advice = failed("pcp", server.url, token_url=nowhere(), **grant)
        assert step == "token"
        assert "pcp_token_url" in advice
        assert "refuses the connection" in advice
        server.on("/oauth/token", granted("token"), error(503))
        server.on(PCP_LOOKUP, error(401, "No."))
        step, _, advice = failed("pcp", server.url, token_url=server.url + "/oauth/token", **grant)
        assert step == "call"
        assert "credentials of pcp" in advice


@pytest.mark.parametrize(
    ("reply", "detail", "advice"),
    [
        (error(401, "Who?"), "answered 401: Who?", "credentials of pcp"),
        (error(403, "Not you."), "answered 403: Not you.", "permit this operation"),
        (Reply(404), "answered 404", "pcp_url and pcp_dialect (now opnc)"),
        (Reply(404, b"<html>", {"Content-Type": "text/html"}), "answered 404", "pcp_dialect"),
        (error(500, "Broken."), "answered 500: Broken.", "operator"),
        (Reply(302, headers={"Location": "/"}), "answered 302", "pcp_url"),
        (error(400, "\x1b[31mred" + "x" * 1000), "answered 400", "pcp_url"),
    ],
)
def test_neighbour_test_names_refusals_of_the_first_call(reply: Reply, detail: str, advice: str) -> None:
    with scripted() as server:
        server.on(PCP_LOOKUP, reply)
        found = failed("pcp", server.url, token="t")
        assert found[0] == "call"
        assert detail in found[1]
        assert advice in found[2]
        shown = ccp("neighbour", "test", "pcp", env=environment("pcp", server.url, token="t"))
        assert shown.status == 1
        assert "\x1b" not in shown.out
        assert shown.lines[-1].strip() == found[2]


def test_neighbour_test_shows_no_token_that_a_service_repeats() -> None:
    token = "Zq8/secret+token=="
    echo = error(403, f"Bearer {token} may not do this.")
    slashes = Reply(403, echo.body.replace(b"/", b"\\/"), echo.headers)
    with scripted() as server:
        for reply in (echo, slashes):
            server.on(PCP_LOOKUP, reply)
            _, detail, _ = failed("pcp", server.url, token=token)
            assert detail.endswith("answered 403: Bearer (token) may not do this.")


def test_neighbour_test_of_an_est_server_that_refuses_hides_no_other_service() -> None:
    with scripted() as server:
        server.on("/.well-known/est/cpo/cacerts", Reply(400, b"No such CA.", {"Content-Type": "text/plain"}))
        server.on(PCP_LOOKUP, NOT_FOUND)
        both = environment("est", server.url) | environment("pcp", server.url)
        done = ccp("neighbour", "test", "--json", env=both)
        assert done.status == 1
        pcp, est = sorted(json.loads(done.out), key=lambda report: report["service"] == "est")
        assert (pcp["service"], pcp["ok"], est["service"], est["ok"]) == ("pcp", True, "est", False)
        assert est["steps"][-1]["detail"] == "The EST server refuses the request (status 400): No such CA."
        assert "est_url" in est["advice"]


def test_neighbour_test_asks_an_est_server_for_the_ca_of_each_label(pkis: dict[str, PKI]) -> None:
    with scripted() as server:
        serve_everything(server, pkis["iso2"])
        step, detail, advice = failed("est", server.url, labels='{"cpo": "cpo", "old": "v1-cpo"}')
        assert (step, detail) == ("call", "The EST server does not have this operation for the CA v1-cpo.")
        assert "the label of old in est_labels" in advice
        server.on("/.well-known/est/v1-cpo/cacerts", ca_certificates(pkis["iso2"]))
        report = report_of("est", server.url, status=0, labels='{"cpo": "cpo", "old": "v1-cpo"}')
        assert "; old: 1 certificates of " in report["steps"][-1]["detail"]


def test_neighbour_test_ends_when_a_service_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ccp.server.external.service_check.TIMEOUT", 0.2)
    with scripted() as server:
        server.on(PCP_LOOKUP, HANG)
        step, detail, advice = failed("pcp", server.url)
        assert (step, "in time" in detail) == ("call", True)
        assert advice


@pytest.mark.parametrize(
    ("prefix", "path"),
    [("rcp", "/rootcertificates"), ("cps", "/cpsCertificates"), ("est", "/.well-known/est/cpo/cacerts")],
)
def test_neighbour_test_names_answers_of_something_else(prefix: str, path: str) -> None:
    with scripted() as server:
        for reply in (json_reply({"hello": "world"}), Reply(200, b"<html>", {"Content-Type": "text/html"})):
            server.on(path, reply)
            step, _, advice = failed(prefix, server.url)
            assert step == "call"
            assert f"{prefix}_url" in advice


def test_neighbour_test_verifies_the_certificates_of_a_cps(pkis: dict[str, PKI], tmp_path: Path) -> None:
    with scripted() as server, start({"iso20": pkis["iso20"]}) as pool:
        serve_everything(server, pkis["iso2"])
        env = {**environment("cps", server.url), "CCP_DATABASE": pool.settings.database}
        done = ccp("neighbour", "test", "--json", env=env)
        (report,) = json.loads(done.out)
        assert (done.status, report["ok"]) == (1, False)
        assert "none of them verifies here" in report["steps"][-1]["detail"]
        assert "ccp trust add" in report["advice"]
        # A database that cannot be read says nothing about the service.
        env["CCP_DATABASE"] = f"sqlite:///{tmp_path}/none/none.db"
        done = ccp("neighbour", "test", "--json", env=env)
        assert done.status == 0
        assert "not verified" in done.out


def test_neighbour_test_reads_the_certificates_of_an_opcp_cps(pkis: dict[str, PKI]) -> None:
    pki = pkis["iso2"]
    members = {
        "cpsCertificate": b64(pki.cps.certificate.der),
        "cpsCa2Certificate": b64(pki.cps.sub_cas[0].der),
        "cpsCa1Certificate": b64(pki.cps.sub_cas[1].der),
    }
    with scripted() as server, start({"iso2": pki}) as pool:
        server.on("/cps/signer", json_reply({"cpsCertificates": [members]}))
        env = {**environment("cps", server.url, dialect="opcp"), "CCP_DATABASE": pool.settings.database}
        assert "1 certificates, 1 of them verify" in ccp_ok("neighbour", "test", "cps", env=env).out


def test_neighbour_list_shows_services_without_secrets() -> None:
    grant = {"token_url": "https://login.example/token", "client_id": "pool", "client_secret": SECRET}
    env = {
        **environment("rcp", "https://rcp.example", dialect="opcp", **grant),
        **environment("est", "https://est.example", token=SECRET),
        **environment("cps", "https://cps.example"),
    }
    shown = json.loads(ccp_ok("neighbour", "list", "--json", env=env).out)
    assert [(one["service"], one["dialect"], one["authentication"]) for one in shown] == [
        ("rcp", "opcp", "client credentials of pool"),
        ("est", "opnc", "token"),
        ("cps", "opnc", "none"),
    ]
    lines = ccp_ok("neighbour", "list", env=env).lines
    assert [line.split()[0] for line in lines] == ["service", "rcp", "est", "cps"]
    assert SECRET not in "".join(lines) + json.dumps(shown)


def test_neighbour_commands_without_a_service() -> None:
    assert ccp_ok("neighbour", "test").lines == ["No external service is configured."]
    assert json.loads(ccp_ok("neighbour", "test", "--json").out) == []
    assert json.loads(ccp_ok("neighbour", "list", "--json").out) == []
    assert ccp_error("neighbour", "test", "pcp") == (
        "No Provisioning Certificate Pool is configured: pcp_url is not set."
    )
    assert ccp_error("neighbour", "test", "ocpi").startswith("There is no service ocpi; the services are rcp, pcp")
