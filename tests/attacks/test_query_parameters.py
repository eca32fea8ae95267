"""Query parameters that are misspelt, repeated or unknown, at every operation that there is."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from ccp.schemas.opnc import PublishQuery
from ccp.server.http import query_parameters
from ccp.server.http.routes import oauth, subscribed_events
from ccp.server.http.routes.opnc import BASE
from ccp.testing.pki import PKI
from tests.server.http.api.answers import sentences
from tests.world import Pool, new_emaid, start

SECRET = "a secret of the Provisioning Certificate Pool"
PCP_EVENTS = f"{BASE}/events/pcp"
READING_POSTS = {f"{BASE}/signedcontractdata", "/v1/ccp/signedContractData"}
"""Deliveries: they read."""


@pytest.fixture(scope="module")
def served(pkis: dict[str, PKI]) -> Iterator[Pool]:
    with start({"iso2": pkis["iso2"]}, pcp_webhook_secret=SECRET) as running:
        yield running


def operations(pool: Pool) -> list[tuple[str, str, dict[str, Any]]]:
    """Method, path and operation of everything that the description has."""
    paths = pool.http.get("/openapi.json").json()["paths"]
    del paths[subscribed_events.PATH]  # There is nothing at it but for a subscription.
    return [(method.upper(), path, each) for path, item in paths.items() for method, each in item.items()]


def known(operation: dict[str, Any]) -> list[str]:
    return [each["name"] for each in operation.get("parameters", ()) if each["in"] == "query"]


def call(pool: Pool, method: str, path: str, query: str) -> httpx.Response:
    """Call an operation whose path has ids that nothing belongs to."""
    emaid, pcid = new_emaid("DEALL"), "ALL0QUERY00000001"
    vehicle = path == "/v1/ccp/signedContractData/{id}" and method == "GET"
    ids = {
        "emaid": emaid,
        "pcid": pcid,
        "id": pcid if vehicle else emaid,
        "client_id": "missing",
        "party_id": "missing",
    }
    ids |= {"rootCertificateId": "x", "ca": "cpo", "iso-version": "ISO15118-2", "algorithm": "secp256r1"}
    headers = {"Authorization": f"Bearer {pool.token('everything')}"}
    if path == PCP_EVENTS:
        headers = {"X-Operator-Signature": hmac.new(SECRET.encode(), b"{}", hashlib.sha256).hexdigest()}
    content = None if method in ("GET", "DELETE") else b"{}"
    return pool.http.request(method, f"{path.format(**ids)}?{query}", headers=headers, content=content)


def misspelt(name: str) -> set[str]:
    """Other letter case, other separators, and a letter or two inserted, left out, replaced or swapped."""
    half = len(name) // 2
    found = {
        name.lower(),
        name.upper(),
        name.swapcase(),
        f"{name[:half]}_{name[half:]}",
        f"{name[:half]}-{name[half:]}",
    }
    if len(name) < 4:
        return found - {name}  # It resembles too many others; see `suggestions.closest`.
    found |= {f"{name}s", name[:half] + name[half + 1 :], f"{name[:half]}x{name[half + 1 :]}", f"%20{name}"}
    found |= {name[:half] + name[half + 1] + name[half] + name[half + 2 :]}
    if len(name) >= 6:
        found |= {name[:-2], f"{name}ed", f"?{name}"}
    return {wrong for wrong in found if len(wrong.strip("%20_-?")) >= 4} - {name}


def test_query_parameter_cases_cover_every_operation(served: Pool) -> None:
    found = operations(served)
    assert len(found) > 25
    names = {name for _, _, operation in found for name in known(operation)}
    assert names >= {"dryRun", "sessionID", "xsdMsgDefNamespace", "rootType", "limit", "cursor", "state"}


def test_query_parameter_that_is_misspelt_is_400_at_every_operation(served: Pool) -> None:
    for method, path, operation in operations(served):
        for name in known(operation):
            for wrong in misspelt(name):
                reported = sentences(call(served, method, path, f"{wrong}=true"), 400)
                assert reported[0].endswith(f": did you mean {name}?"), (method, path, wrong, reported)


def test_query_parameter_that_is_repeated_is_400_at_every_operation(served: Pool) -> None:
    for method, path, operation in operations(served):
        for name in known(operation):
            assert f"{name} : is given more than once" in sentences(
                call(served, method, path, f"{name}=true&{name}=true"), 400
            ), (method, path)


@pytest.mark.parametrize("name", ["verbose", "v", "_", "", "utm_source", "dry", "%00"])
def test_query_parameter_that_is_unknown_is_400_for_changes_and_ignored_by_reads(served: Pool, name: str) -> None:
    for method, path, operation in operations(served):
        reads = method == "GET" or (method == "POST" and path in READING_POSTS)
        answer = call(served, method, path, f"{name}=1")
        plain = call(served, method, path, "")
        if reads:
            assert answer.status_code == plain.status_code, (method, path, answer.text)
            # A list may contain the sentences of earlier refusals.
            assert answer.is_success or "query parameter" not in answer.text
        else:
            (found,) = sentences(answer, 400)
            others = ", ".join(sorted(known(operation))) or "none"
            assert found.endswith(f" : unknown query parameter; this operation knows {others}"), (method, path, found)


@pytest.mark.parametrize("dialect", [BASE + "/signedcontractdata", "/v1/ccp/signedContractData"])
@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("dryrun=true", "dryrun: did you mean dryRun?"),
        ("dry_run=true", "dry_run: did you mean dryRun?"),
        ("DryRun=true", "DryRun: did you mean dryRun?"),
        ("dry%52un=true&dryRun=true", "dryRun : is given more than once"),
        ("dryRun=true&dryRun=false", "dryRun : is given more than once"),
        ("dryRunn=true", "dryRunn: did you mean dryRun?"),
        ("validateOnly=true", "validateOnly : unknown query parameter; this operation knows dryRun"),
        ("dryRun", "dryRun : must be true or false"),
        ("dryRun=1", "dryRun : must be true or false"),
        ("dryRun=true%00", "dryRun : must be true or false"),
    ],
)
def test_dry_run_that_is_misspelt_stores_nothing(served: Pool, dialect: str, query: str, sentence: str) -> None:
    contract = served.contract(served.car())
    headers = {"Authorization": f"Bearer {served.token('cps')}"}
    answer = served.http.put(f"{dialect}?{query}", json=contract.body, headers=headers)
    assert sentences(answer, 400) == [sentence]
    assert served.stored(contract.emaid) == 0
    report = served.http.put(f"{dialect}?dryRun=True", json=contract.body, headers=headers)
    assert report.json()["passed"] is True
    assert served.stored(contract.emaid) == 0


def test_session_id_that_is_misspelt_is_400_and_not_ignored(served: Pool) -> None:
    car = served.car()
    contract = served.publish(car)
    for name in ("sessionid", "sessionId", "session_id", "SessionID"):
        answer = served.oem.get(f"/signedcontractdata/{contract.emaid}/{car.pcid}?{name}=0102030405060708")
        assert sentences(answer, 400) == [f"{name}: did you mean sessionID?"]


def test_caller_is_authenticated_before_query_parameters_are_checked(served: Pool) -> None:
    contract = served.contract(served.car())
    for party, status in ((None, 401), ("cpo", 403)):
        answer = served.client(party).put("/signedcontractdata?dryrun=true", json=contract.body)
        assert sentences(answer, status)


def test_query_parameter_name_is_quoted_short_and_without_control_characters(served: Pool) -> None:
    name = "%1B%5B31m" + "%E2%80%AE" + "a" * 500
    (reported,) = sentences(served.cps.put(f"/signedcontractdata?{name}=1", json={}), 400)
    assert reported.isprintable()
    assert len(reported) < 130
    many = "&".join(f"name{number}=1" for number in range(40))
    assert len(sentences(served.cps.put(f"/signedcontractdata?{many}", json={}), 400)) == 10


def test_query_parameters_without_number_are_refused_cheaply(served: Pool) -> None:
    car, long = served.car(), "cpsV2GRootCertificateFingerprint"
    served.publish(car)
    names = [f"{long[:at]}xyz{long[at + 3 :]}" for at in range(len(long) - 3)]
    query = "&".join(f"{name}=" for name in names)
    began = time.thread_time()
    for _ in range(100):
        query_parameters.check(query.encode(), {long, "sessionID", "xsdMsgDefNamespace"}, changes=False)
    assert (time.thread_time() - began) / 100 < 0.02
    reported = sentences(served.oem.get(f"/contractData/pcid/{car.pcid}?{'&'.join(['a=1'] * 51)}"), 400)
    assert reported == ["The query has more than 50 parameters."]


def test_suggestions_ignore_short_and_distant_names() -> None:
    for name in ("id", "lim", "dry", "run", "date", "status1x", "sort", "offset", "page", "format", "accept", "root"):
        assert query_parameters.check(f"{name}=1".encode(), {"limit", "cursor", "state"}, changes=False) == {}
    assert query_parameters.read(PublishQuery, b"dryRun=TRUE", changes=True).dry_run is True
    assert query_parameters.read(PublishQuery, b"", changes=True).dry_run is False


def test_credentials_in_the_url_of_the_token_endpoint_are_refused(served: Pool) -> None:
    form = {"grant_type": "client_credentials", "client_id": "cpo", "client_secret": served.world.member("cpo").secret}
    assert served.http.post(f"{oauth.PATH}?trace=1", data=form).status_code == 200
    for name in ("scope", "client_secret", "audience"):
        answer = served.http.post(f"{oauth.PATH}?{name}=x", data=form)
        assert answer.status_code == 400
        assert answer.json() == {
            "error": "invalid_request",
            "error_description": f"{name} must be in the body, not in the URL",
        }


def test_health_and_keys_ignore_parameters(served: Pool) -> None:
    for path in ("/health", "/health/live", "/health/ready", oauth.JWKS_PATH, oauth.METADATA_PATH, "/openapi.json"):
        assert served.http.get(f"{path}?cache=1&cache=2").status_code == 200
