"""Queries of an import to external services: revocation status once for all workers, provisioning keys as for PUT."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

from ccp.server.external.provisioning_pool import key_fingerprint
from ccp.testing.partners import Car
from ccp.testing.pki import PKI, StatusURLs
from ccp.testing.revocation import sign_crl
from ccp.x509.certificates import Certificate
from tests.scripted_server import Reply, scripted
from tests.server.bulk.fleet import body, database, jsonl, new_emaid, new_pcid
from tests.server.bulk.imports import counts, imported, reports
from tests.server.external.examples import serve_chain
from tests.server.storage.made import sql
from tests.world import AT, read

LOOPBACK = json.dumps(["127.0.0.0/8"])


def test_import_fetches_status_once_per_issuer_and_refuses_revoked(tmp_path: Path, pkis: dict[str, PKI]) -> None:
    with scripted() as server:
        pki = PKI.generate(AT, status_urls=lambda name: StatusURLs(crl=f"{server.url}/{name.replace(' ', '-')}"))
        bodies = [body(pki) for _ in range(130)]
        revoked = new_emaid()
        issuers = [pki.v2g_root, pki.cps_sub1, pki.cps_sub2, pki.emsp_root, pki.emsp_sub1, pki.emsp_sub2]
        bodies.insert(100, body(pki, revoked))
        serial = Certificate.load(read(bodies[100]).contract_certificate).serial_number
        for issuer in issuers:
            listed = {serial: AT - timedelta(hours=1)} if issuer is pki.emsp_sub2 else {}
            data = sign_crl(issuer, listed, this_update=AT - timedelta(hours=1), next_update=AT + timedelta(days=1))
            server.on("/" + issuer.certificate.subject_cn.replace(" ", "-"), data)
        target = database(tmp_path / "pool", {**pkis, "iso2": pki})
        file, report = tmp_path / "fleet.jsonl", tmp_path / "refused.jsonl"
        file.write_bytes(jsonl(*bodies))
        done = imported(target, file, "--refused", report, status=1, more={"CCP_EGRESS_ALLOW_NETWORKS": LOOPBACK})
        assert counts(done) == {"created": 130, "refused": 1}
        (refused,) = reports(report)
        assert (refused["line"], refused["emaid"]) == (101, revoked)
        assert "was revoked at" in refused["errorMessages"][0]
        assert "again" not in refused
        assert {request.path: server.count(request.path) for request in server.received} == {
            "/" + issuer.certificate.subject_cn.replace(" ", "-"): 1 for issuer in issuers
        }


def test_import_stores_provisioning_keys_as_put_does(tmp_path: Path, pkis: dict[str, PKI]) -> None:
    with scripted() as pcp:
        pki = pkis["iso2"]
        known, unknown = new_pcid(), new_pcid()
        car = Car.generate(pki, known, AT)
        serve_chain(pcp, car)
        pcp.on("*", Reply(404))
        target = database(tmp_path / "pool", pkis)
        file = tmp_path / "fleet.jsonl"
        file.write_bytes(jsonl(body(pki, pcid=known), body(pki, pcid=unknown)))
        more = {"CCP_EGRESS_ALLOW_NETWORKS": LOOPBACK, "CCP_PCP_URL": pcp.url, "CCP_REQUIRE_KNOWN_VEHICLE": "false"}
        imported(target, file, more=more)
        kept = dict(sql(target.url, "select pcid, provisioning_key from contract"))
        assert kept == {known: key_fingerprint(car.provisioning.certificate), unknown: None}
        assert sorted(call.path.rpartition("/")[2] for call in pcp.received) == sorted([known, unknown])
