"""Every operation, by every role, for every kind of id, with every kind of token: exact status, exact body.

The tables below are written out by hand. They do not look at the pool's own role table, which they judge.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

from ccp import exi
from ccp.server.domain.parties import Party, PartyRole
from ccp.server.http.routes.opnc import BASE
from ccp.server.storage.queries import parties, signing_keys
from ccp.testing.partners import Car
from ccp.testing.pki import PKI
from tests.world import (
    AT,
    ISO2,
    Contract,
    Pool,
    b64,
    new_emaid,
    new_pcid,
    opened,
    party,
    post_body,
    response_bytes,
    start,
)

OPERATIONS = (
    "GetContractDataByEmaid",
    "GetContractDataByPcid",
    "GetSignedContractDataByCertificateInstallationReq",
    "AddSignedContractData",
    "DeleteSignedContractDataByEmaid",
    "GetSignedContractDataByEmaidAndPcid",
    "SetSignedContractDataAsDefault",
)
ROLES = ("emsp", "cpo", "oem", "cps", "ccp", "admin", "metrics")
MAY = {
    "GetContractDataByEmaid": "emsp",
    "GetContractDataByPcid": "oem",
    "GetSignedContractDataByCertificateInstallationReq": "cpo, ccp",
    "AddSignedContractData": "emsp, cps",
    "DeleteSignedContractDataByEmaid": "emsp",
    "GetSignedContractDataByEmaidAndPcid": "oem",
    "SetSignedContractDataAsDefault": "oem",
}
"""Roles by operation, in the words of the refusal."""

IDS = ("own", "foreign", "unknown", "malformed")
"""own: of a contract that is there, and the caller's. foreign: of one that is there, and another's. unknown: would be
the caller's, but nothing is there. malformed: breaks its pattern. The operator of a station and another pool own no
vehicles: for them every vehicle is as good as their own."""

BAD_TOKENS = ("none", "expired", "wrong audience", "wrong issuer", "tampered", "none-algorithm", "disabled party")
NEEDED, INVALID = "A bearer token is needed.", "The access token is not valid (any more)."

NOTHING_FOR_EMAID = "The contract for the given EMAID not found."
NOTHING_FOR_PAIR = "The contract for the given EMAID and PCID not found."
NOTHING_FOR_PCID = "No contract for the given PCID found."
MALFORMED = {
    "emaid": r'emaid : must match "^[A-Za-z]{2}[-]?\w{3}[-]?\w{9,28}[-]?(\w{1})?$"',
    "pcid": r'pcid : must match "^[a-zA-Z0-9]{17,18}$"',
}


@dataclass
class Place:
    """The server, and what is in it."""

    pool: Pool
    key: ECKey
    mine: tuple[Car, Contract]
    theirs: tuple[Car, Contract]
    stranger: Car

    def token(self, role: str, kind: str) -> str | None:
        """A token of the role's party that is bad in one way."""
        good = self.pool.token(f"gone_{role}" if kind == "disabled party" else f"only_{role}")
        header, payload, signature = good.split(".")
        claims = json.loads(base64.urlsafe_b64decode(payload + "=="))

        def signed(**other: Any) -> str:
            return jwt.encode({"alg": "ES256", "typ": "at+jwt", "kid": self.key.kid}, {**claims, **other}, self.key)

        if kind == "none":
            return None
        if kind == "expired":
            return signed(iat=claims["iat"] - 7200, exp=claims["iat"] - 60)
        if kind == "wrong audience":
            return signed(aud="https://pool.example.org")
        if kind == "wrong issuer":
            return signed(iss="https://issuer.example.org")
        if kind == "tampered":
            changed = {**claims, "sub": "only_emsp", "client_id": "only_emsp", "exp": claims["exp"] + 60}
            return f"{header}.{_segment(changed)}.{signature}"
        if kind == "none-algorithm":
            return f"{_segment({'alg': 'none', 'typ': 'at+jwt'})}.{payload}."
        assert kind == "disabled party", kind
        return good


def _segment(members: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(members).encode()).rstrip(b"=").decode()


def _members() -> list[Party]:
    ids = {"emsp": {"providers": "DEMXA"}, "oem": {"wmis": "MXA"}, "cpo": {"operators": "DEMXC"}, "cps": {}}
    cps = {"providers": "DEMXA"}
    only = [party(f"only_{role}", PartyRole(role), **(cps if role == "cps" else ids.get(role, {}))) for role in ROLES]
    gone_ids = {"emsp": {"providers": "DEGON"}, "oem": {"wmis": "GON"}, "cps": {"providers": "DEMXA"}}
    return only + [party(f"gone_{role}", PartyRole(role), **gone_ids.get(role, {})) for role in ROLES]


@pytest.fixture(scope="module")
def place(pkis: dict[str, PKI]) -> Iterator[Place]:
    with start(pkis, parties_too=_members()) as pool:
        for role in ROLES:
            pool.token(f"gone_{role}")
            pool.change(parties.disable(f"gone_{role}"))

        async def signing() -> signing_keys.TokenKey:
            async with opened(pool.settings) as store:
                return (await store.read(signing_keys.list_all()))[0]

        stored = asyncio.run(signing())
        mine = pool.car(wmi="MXA")
        theirs = pool.car(wmi="WXB")
        _until_disabled(pool)
        yield Place(
            pool,
            ECKey.import_key(stored.private_key, {"kid": stored.kid}),
            (mine, pool.publish(mine, new_emaid("DEMXA"))),
            (theirs, pool.publish(theirs, new_emaid("NLEXB"))),
            pool.car(wmi="MXA"),
        )


def _until_disabled(pool: Pool) -> None:
    """The last party that was disabled is refused within five seconds; the others were disabled before it."""
    deadline = datetime.now(UTC) + timedelta(seconds=5)
    while pool.client(f"gone_{ROLES[-1]}").get("/contractData/emaid/x").status_code != 401:
        assert datetime.now(UTC) < deadline, "a disabled party still has access after five seconds"


def ask(place: Place, operation: str, kind: str, token: str | None) -> tuple[httpx.Response, Contract, Car]:
    """Call an operation for a kind of id. Returns the answer and what it was about."""
    car, contract = place.theirs if kind == "foreign" else place.mine
    emaid, pcid = str(contract.emaid), str(car.pcid)
    if kind == "unknown":
        car = place.stranger
        emaid, pcid = str(new_emaid("DEMXA")), str(new_pcid("MXA"))
    if kind == "malformed":
        emaid, pcid = "DE!MXA", "MXA"
    path, method, body = _call(operation, emaid, pcid)
    if operation == "AddSignedContractData":
        if kind == "unknown":
            car = place.pool.car(wmi="MXA")
            contract = place.pool.contract(car, new_emaid("DEMXA"))
        body = {**contract.body, "emaid": emaid} if kind == "malformed" else contract.body
    elif operation == "GetSignedContractDataByCertificateInstallationReq":
        body = post_body(car.request(b"\1\2\3\4\5\6\7\0", AT), ISO2)
        if kind == "malformed":
            body["certificateInstallationReq"] = "AAAA"
    headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
    answer = place.pool.http.request(method, BASE + path, headers=headers, json=body)
    return answer, contract, car


def _call(operation: str, emaid: str, pcid: str) -> tuple[str, str, dict[str, Any] | None]:
    return {
        "GetContractDataByEmaid": (f"/contractData/emaid/{emaid}", "GET", None),
        "GetContractDataByPcid": (f"/contractData/pcid/{pcid}", "GET", None),
        "GetSignedContractDataByCertificateInstallationReq": ("/signedcontractdata", "POST", {}),
        "AddSignedContractData": ("/signedcontractdata", "PUT", {}),
        "DeleteSignedContractDataByEmaid": (f"/signedcontractdata/{emaid}", "DELETE", None),
        "GetSignedContractDataByEmaidAndPcid": (f"/signedcontractdata/{emaid}/{pcid}", "GET", None),
        "SetSignedContractDataAsDefault": (f"/signedcontractdata/{emaid}/{pcid}/setdefault", "POST", None),
    }[operation]


def refused(answer: httpx.Response, status: int, *sentences: str) -> None:
    """The answer is exactly this error."""
    trace = answer.headers["x-trace-id"]
    assert str(uuid.UUID(trace)) == trace
    assert (answer.status_code, answer.json()) == (status, {"errorMessages": list(sentences), "traceId": trace})
    assert ("www-authenticate" in answer.headers) == (status == 401)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_callers_without_a_valid_token_learn_and_change_nothing(place: Place, operation: str, role: str) -> None:
    for bad, kind in itertools.product(BAD_TOKENS, IDS):
        answer, _, _ = ask(place, operation, kind, place.token(role, bad))
        refused(answer, 401, NEEDED if bad == "none" else INVALID)
    still_there(place)


@pytest.mark.parametrize(
    ("operation", "role"),
    [(operation, role) for operation in OPERATIONS for role in ROLES if role not in MAY[operation].split(", ")],
)
def test_role_that_the_operation_is_not_for_is_refused_whatever_it_asks_for(
    place: Place, operation: str, role: str
) -> None:
    for kind in IDS:
        answer, _, _ = ask(place, operation, kind, place.pool.token(f"only_{role}"))
        refused(answer, 403, f"{operation} is for the role {MAY[operation]}.")
    still_there(place)


def still_there(place: Place) -> None:
    for _, contract in (place.mine, place.theirs):
        assert place.pool.stored(contract.emaid) == 1


Expected = Callable[[httpx.Response, Contract, Car], None]


def error(status: int, *sentences: str) -> Expected:
    return lambda answer, contract, car: refused(answer, status, *sentences)


def foreign_provider(answer: httpx.Response, contract: Contract, car: Car) -> None:
    refused(answer, 403, f"The provider id of {contract.emaid} is not registered for the caller.")


def foreign_wmi(answer: httpx.Response, contract: Contract, car: Car) -> None:
    refused(answer, 403, f"The WMI of {car.pcid} is not registered for the caller.")


def empty(status: int) -> Expected:
    def check(answer: httpx.Response, contract: Contract, car: Car) -> None:
        assert (answer.status_code, answer.content) == (status, b"")

    return check


def contract_data(answer: httpx.Response, contract: Contract, car: Car) -> None:
    assert answer.status_code == 200, answer.text
    (item,) = answer.json()["contractDataCollection"]
    assert set(answer.json()) == {"contractDataCollection"}
    certificate = item.pop("contractCertificate")
    assert base64.b64decode(certificate) == contract.certificate
    valid_from, valid_to = (datetime.fromisoformat(item.pop(name)) for name in ("certValidFrom", "certValidTo"))
    assert valid_from <= AT < valid_to
    assert item.pop("cpsV2GRootDistinguishedName").startswith("CN=")
    assert item == {
        "pcid": car.pcid,
        "emaid": contract.emaid,
        "xsdMsgDefNamespace": ISO2,
        "defaultContract": True,
        "cpsV2GRootCertificateFingerprint": _root(car),
    }


def signed_contract_data(answer: httpx.Response, contract: Contract, car: Car) -> None:
    item = one_item(answer)
    assert item.pop("cpsRootDistinguishedName").startswith("CN=")
    assert item == {
        "certificateInstallationRes": b64(contract.message),
        "emaid": contract.emaid,
        "pcid": car.pcid,
        "xsdMsgDefNamespace": ISO2,
        "cpsV2GRootCertificateFingerprint": _root(car),
    }


def delivered(answer: httpx.Response, contract: Contract, car: Car) -> None:
    item = one_item(answer)
    sent, published = exi.decode(response_bytes(item)), exi.decode(contract.message)
    assert sent.Header.SessionID == b"\1\2\3\4\5\6\7\0"
    assert sent == published._replace(Header=published.Header._replace(SessionID=sent.Header.SessionID))
    del item["certificateInstallationRes"]
    assert item.pop("cpsRootDistinguishedName").startswith("CN=")
    assert item == {
        "emaid": contract.emaid,
        "pcid": car.pcid,
        "xsdMsgDefNamespace": ISO2,
        "cpsV2GRootCertificateFingerprint": _root(car),
    }


def nothing_delivered(answer: httpx.Response, contract: Contract, car: Car) -> None:
    item = one_item(answer)
    assert base64.b64decode(item.pop("certificateInstallationRes"))
    assert item == {
        "emaid": "ZZZZZ000000000",
        "pcid": car.pcid,
        "xsdMsgDefNamespace": ISO2,
        "metaData": "No contract is stored for the vehicle.",
    }


def not_exi(answer: httpx.Response, contract: Contract, car: Car) -> None:
    assert answer.status_code == 400
    assert set(answer.json()) == {"errorMessages", "traceId"}
    first, why = answer.json()["errorMessages"]
    assert first == "EXI format is invalid!"
    assert "at bit" in why


def one_item(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    assert set(answer.json()) == {"signedContractDataCollection"}
    (item,) = answer.json()["signedContractDataCollection"]
    return dict(item)


def _root(car: Car) -> str:
    return car.v2g_roots[0].fingerprint


OUTCOMES: dict[str, dict[str, Expected]] = {
    "GetContractDataByEmaid": {
        "own": contract_data,
        "foreign": foreign_provider,
        "unknown": error(404, NOTHING_FOR_EMAID),
        "malformed": error(400, MALFORMED["emaid"]),
    },
    "GetContractDataByPcid": {
        "own": contract_data,
        "foreign": foreign_wmi,
        "unknown": error(404, NOTHING_FOR_PCID),
        "malformed": error(400, MALFORMED["pcid"]),
    },
    "GetSignedContractDataByCertificateInstallationReq": {
        "own": delivered,
        "foreign": delivered,
        "unknown": nothing_delivered,
        "malformed": not_exi,
    },
    "AddSignedContractData": {
        "own": empty(201),
        "foreign": foreign_provider,
        "unknown": empty(201),
        "malformed": error(400, MALFORMED["emaid"]),
    },
    "GetSignedContractDataByEmaidAndPcid": {
        "own": signed_contract_data,
        "foreign": foreign_wmi,
        "unknown": error(404, NOTHING_FOR_EMAID),
        "malformed": error(400, MALFORMED["emaid"], MALFORMED["pcid"]),
    },
    "SetSignedContractDataAsDefault": {
        "own": empty(200),
        "foreign": foreign_wmi,
        "unknown": error(400, NOTHING_FOR_PAIR),
        "malformed": error(400, MALFORMED["emaid"], MALFORMED["pcid"]),
    },
    # Last: it takes away what the others ask for.
    "DeleteSignedContractDataByEmaid": {
        "foreign": foreign_provider,
        "unknown": error(404, NOTHING_FOR_EMAID),
        "malformed": error(400, MALFORMED["emaid"]),
        "own": empty(200),
    },
}


@pytest.mark.parametrize(
    ("operation", "role", "kind"),
    [(operation, role, kind) for operation in OUTCOMES for role in MAY[operation].split(", ") for kind in IDS],
)
def test_role_that_the_operation_is_for_gets_what_is_its_own(
    place: Place, operation: str, role: str, kind: str
) -> None:
    answer, contract, car = ask(place, operation, kind, place.pool.token(f"only_{role}"))
    OUTCOMES[operation][kind](answer, contract, car)
    if operation == "DeleteSignedContractDataByEmaid" and kind == "own":
        assert place.pool.stored(contract.emaid) == 0
        place.mine = (car, place.pool.publish(car, contract.emaid))


def test_matrix_tables_leave_nothing_out() -> None:
    assert set(OUTCOMES) == set(MAY) == set(OPERATIONS)
    assert all(set(outcomes) == set(IDS) for outcomes in OUTCOMES.values())
    assert set(ROLES) == set(PartyRole)
