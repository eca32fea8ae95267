"""EST pass-through: limits of time and of concurrent exchanges."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ccp.server.domain.parties import PartyRole
from ccp.server.external import est as est_client
from ccp.testing.pki import PKI
from tests.scripted_server import HANG, Received, Reply
from tests.server.http.api.answers import sentences
from tests.server.http.est.requests import certificates, enrol, signing_request
from tests.server.http.est.server import certs_only, est_server
from tests.waiting import wait_until
from tests.world import party, start


def test_enrolment_ends_in_time_if_the_est_server_hangs(pkis: dict[str, PKI], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(est_client, "TIMEOUT", 0.4)
    with est_server() as est, start(pkis, **est.settings()) as pool:
        est.answer = lambda request: HANG
        assert sentences(enrol(pool, signing_request()), 502) == ["The EST server does not answer now."]
        rows = pool.sql("select outcome from audit where action = 'certificate.issued'")
        assert rows == [("upstream",)]


def test_enrolments_of_one_party_leave_room_for_those_of_another(pkis: dict[str, PKI]) -> None:
    other = party("cpo-2", PartyRole.CPO, operators="NLEXC")
    proceed = threading.Event()
    with est_server() as est, start(pkis, (other,), **est.settings()) as pool, ThreadPoolExecutor(9) as threads:

        def answer(request: Received) -> Reply:
            if "NL*EXC" not in est.read(request).subject.rfc4514_string():
                assert proceed.wait(20)
            return certs_only(est.ca.issue(est.read(request)))

        est.answer = answer
        for name in ("cpo", "cpo-2"):
            pool.token(name)
        waiting = [threads.submit(enrol, pool, signing_request()) for _ in range(8)]
        wait_until(lambda: len(est.seen) == 4)
        assert certificates(enrol(pool, signing_request("NL*EXC*E1"), caller="cpo-2"))
        assert len(est.seen) == 5
        proceed.set()
        for one in waiting:
            assert certificates(one.result(20))
        assert len(est.seen) == 9
