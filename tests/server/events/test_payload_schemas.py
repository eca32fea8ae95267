"""Each kind of event, as it is sent, against the published schemas of webhooks. Skipped where those are absent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from ccp.server.domain.subscriptions import ROOT_KINDS, EventKind
from ccp.testing.pki import PKI, build_root
from tests.attacks.provisioning_events import SECRET, send_event
from tests.background_rounds import wait_until_loaded
from tests.cli.run import ccp_ok
from tests.published_items import SHARED
from tests.server.events.receiver import Receiver, receiving
from tests.server.events.subscriptions import REFRESH, SETTINGS, everything, settle, subscribed
from tests.waiting import wait_until
from tests.world import Pool, new_emaid, start

SCHEMAS = {
    "opnc": SHARED / "opnc-spec/apis/event/webhook.payload.v1.json",
    "opcp": SHARED / "opcp-spec/webhook.payload.v1.json",
}
OWN = {"contested", "validTo", "noticeDays", "reason"}
"""Members of payloads that are not in the published description."""


@pytest.fixture(scope="module")
def events(pkis: dict[str, PKI], tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Any]]]:
    """At least one event of each kind and edition, from a running pool."""
    more: dict[str, Any] = {"pcp_webhook_secret": SECRET, "purge_interval": 0}
    chosen = {name: pkis[name] for name in ("iso2", "iso20")}
    with start(chosen, refresh_interval=REFRESH, **SETTINGS, **more) as pool, receiving() as receiver:
        # The second subscriber uses the older family of names.
        older = [name.replace("emsp.", "mo.", 1) for name in everything()]
        with subscribed(pool, receiver, everything()), subscribed(pool, receiver, older, ["other_emsp"]):
            wait_until_loaded("subscribers")
            cause_all(pool, receiver, tmp_path_factory.mktemp("roots"))
        yield [sent.event for sent in receiver.received]


def cause_all(pool: Pool, receiver: Receiver, folder: Path) -> None:
    for edition in ("iso2", "iso20"):
        car, second = pool.car(edition), pool.car(edition)
        contract = pool.publish(car)
        settle(pool)
        pool.publish(car, contract.emaid)
        pool.publish(car, new_emaid("NLEXB"))
        pool.ask(car)
        end = int((datetime.now(UTC) + timedelta(days=20)).timestamp())
        pool.sql("update contract set valid_to = ? where emaid = ?", end, str(contract.emaid))
        wait_until(lambda: any(sent.kind == EventKind.EXPIRING for sent in receiver.received))
        receiver.says("/oem", 503, 409, 200)
        pool.publish(second)
        settle(pool)
        for kind in ("deleted", "updated", "factory.reset"):
            pool.publish(second, new_emaid("NLEXB"))
            assert send_event(pool, f"mo.prov.cert.{kind}", second.pcid).status_code == 200
        assert pool.emsp.delete(f"/signedcontractdata/{contract.emaid}").status_code == 200
    now = datetime.now(UTC)
    for algorithm, role in (("P-256", "v2g"), ("P-521", "emsp"), ("Ed448", "oem")):
        valid = now - timedelta(days=2), now + timedelta(days=100)
        ended = now - timedelta(days=2), now - timedelta(days=1)
        for name, period in (("Valid", valid), ("Ended", ended)):
            root = build_root(f"{name} Root {role}", now=now, algorithm=algorithm, valid=period).certificate  # type: ignore[arg-type]
            path = folder / f"{root.fingerprint}.pem"
            path.write_bytes(root.pem())
            ccp_ok("trust", "add", path, "--role", role, env={"CCP_DATABASE": pool.settings.database})
            if name == "Valid":
                ccp_ok("trust", "remove", root.fingerprint, "--yes", env={"CCP_DATABASE": pool.settings.database})
    wait_until(lambda: sum(sent.kind == EventKind.ROOT_EXPIRED for sent in receiver.asked("/cpo")) == 3)
    settle(pool)


def test_events_of_each_kind_were_sent(events: list[dict[str, Any]]) -> None:
    """What the other tests of this module check is complete."""
    names = {event["eventType"] for event in events}
    older = {kind.replace("emsp.", "mo.", 1) for kind in EventKind if kind.startswith("emsp.")}
    assert names >= set(EventKind)
    assert names - set(EventKind) <= older
    assert names >= {"mo.prov.cert.deleted", "mo.prov.cert.updated", "mo.prov.cert.factory.reset"}


@pytest.mark.parametrize("dialect", SCHEMAS)
def test_events_are_valid_against_the_published_schema(dialect: str, events: list[dict[str, Any]]) -> None:
    of_roots, of_contracts = published(dialect)
    for event in events:
        schema = of_roots if event["eventType"] in ROOT_KINDS else of_contracts
        jsonschema.Draft7Validator(schema).validate(event)
        assert set(event) <= set(schema["properties"])
        assert set(event["payload"]) - OWN <= set(schema["properties"]["payload"]["properties"]) | OPCP_ONLY[dialect]
        assert datetime.fromisoformat(event["timestamp"]).tzinfo is not None
        assert event["timestamp"].endswith("Z")


OPCP_ONLY = {"opnc": {"signatureAlgorithm", "fingerprintSHA256"}, "opcp": set[str]()}
"""Members that only the newer of the two descriptions has."""


@pytest.mark.parametrize("dialect", SCHEMAS)
def test_events_have_all_their_published_members(dialect: str, events: list[dict[str, Any]]) -> None:
    for schema, is_root in zip(published(dialect), (True, False), strict=True):
        mine = [event for event in events if (event["eventType"] in ROOT_KINDS) is is_root]
        assert set().union(*mine) == set(schema["properties"])
        payloads = [event["payload"] for event in mine]
        assert set().union(*payloads) >= set(schema["properties"]["payload"]["properties"])


def published(dialect: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The schemas of events of roots and of contracts, without their known mistakes."""
    if not SCHEMAS[dialect].is_file():
        pytest.skip("the published descriptions are not beside the repository")
    paths = json.loads(SCHEMAS[dialect].read_text("utf-8"))["paths"]
    of_roots, of_contracts = (
        deepcopy(path["post"]["requestBody"]["content"]["application/json"]["schema"]) for path in paths.values()
    )
    for schema in (of_roots, of_contracts):
        # The namespace of drafts of ISO 15118-20; the pool writes the one of the standard.
        schema["properties"]["xsdMsgDefNamespace"]["enum"].append("urn:iso:15118:20:2020:MsgDef")
    members = of_contracts["properties"]["payload"]["properties"]
    # A sentence in the place of a pattern.
    del members["contractCert"]["pattern"]
    # A SHA-256 fingerprint by its description, with no pattern or that of a UUID.
    members["cpsSignerRootFingerprint"]["pattern"] = "^[0-9a-f]{64}$"
    # The names of the family emsp.… are published elsewhere; the last three are the pool's own.
    of_contracts["properties"]["eventType"]["enum"] += [
        *(f"{family}.{name}" for family in ("emsp", "mo") for name in EMSP_NAMES),
        "oem.vehicle.contested",
    ]
    return of_roots, of_contracts


EMSP_NAMES = tuple(kind.removeprefix("emsp.") for kind in EventKind if kind.startswith("emsp."))
