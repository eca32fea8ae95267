"""What the SQLite engine reads in the event loop is bounded: each question finds its rows by an index, or is long.

Requests wait for what is read there. A question that the server asks anywhere stands in `QUESTIONS` with an example of
it; a new one has to be added.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from ccp.ids import EMAID, PCID, Namespace
from ccp.server.domain.default_contracts import VehicleRules
from ccp.server.domain.parties import Party
from ccp.server.storage.engine.query import Question, Steps
from ccp.server.storage.queries import (
    audit,
    change_counters,
    contracts,
    due_deliveries,
    erasure,
    events,
    parties,
    purging,
    revocation,
    secrets,
    subscribers,
    vehicles,
)
from ccp.server.storage.queries.change_counters import Topic
from ccp.x509.revocation_policy import Key, Rules
from tests.server.storage.made import AT, new_database, variant, write
from tests.server.storage.plans import asked, plan

SOURCES = Path(contracts.__file__).parents[2]
COMMANDS = ("sandbox", "bulk", "audit/trail.py")
"""What runs in a process of its own, where no request waits. `ccp.server.audit.trail` walks through the trail for
commands alone."""

E, P = EMAID("DEEXAE00000001"), PCID("WEX0LOOP000000001")
LONG = "long"
SMALL = "of a table that the operator fills, or of one row"

QUESTIONS: dict[str, Any] = {
    "_revision": SMALL,
    "anchors.every": SMALL,
    "signing_keys.every": SMALL,
    "peers questions.every": SMALL,
    "issuer_certificates.every": SMALL,
    "change_counters.numbers": SMALL,
    "change_counters.entries": change_counters.entries(Topic.PARTIES, 1, 200),
    "questions.changed": subscribers.changed(Topic.PARTIES, 1, 2),
    "questions.page": subscribers.page("", 200),
    "parties.page": parties.page("", 200),
    "parties.changed": parties.changed(1, 2),
    "parties.find_named": parties.find_named("Example"),
    "parties.secrets_of": parties.secrets_of("example", AT),
    "party_registry query": parties.lives("example", AT),
    "webhooks question": events.webhooks("example"),
    "events.webhook": events.webhook("example"),
    "owned": events.webhook("example"),
    "events.are_new": "the first row that it meets",
    "due_deliveries.look": due_deliveries.look(AT),
    "due_deliveries.page": due_deliveries.page(AT, ""),
    "events.backlog": LONG,
    "events.beyond": LONG,
    "holder": contracts.holder(E),
    "waiting": contracts.waiting(P, Namespace.ISO2),
    "vehicles.bindings": vehicles.bindings(P),
    "questions.by_emaid": contracts.by_emaid(E),
    "questions.by_vehicle": contracts.by_vehicle(P),
    "questions.by_vehicle_and_emaid": contracts.by_vehicle_and_emaid(P, E),
    "questions.spent": contracts.spent(E, AT),
    "contracts.check_publication": contracts.check_publication(E, P, AT, AT, VehicleRules()),
    "evidence.known": revocation.known([Key("issuer", 1, None)], Rules()),
    "questions.known": revocation.known([Key("issuer", 1, ("http://crl.example/",))], Rules()),
    "questions.crl": revocation.crl("issuer", "http://crl.example/"),
    "still": SMALL,
    "questions.find": secrets.find("example"),
    "erasure.watched": LONG,
    "audit.naming_in_lane": LONG,
    "audit.ends": SMALL,
    "queries.expired": LONG,
    "queries.revoked": LONG,
    "queries.idle_vehicles": LONG,
}
LONG_ONES = (
    events.backlog(),
    events.backlogs(),
    events.beyond(AT),
    events.deliveries("example"),
    audit.naming_in_lane(E, 1, 0, 1),
    erasure.watched(("", "")),
    purging.expired(AT),
    purging.revoked(),
    purging.idle_vehicles(AT),
    audit.found(audit.Filter(ids=(E,)), 100),
)
LARGE = (
    "contract", "vehicle", "emaid_claim", "evidence", "watched_certificate", "outbox", "delivery", "audit", "party",
    "webhook", "change_log",
)  # fmt: skip


def reads() -> dict[str, str]:
    """The questions that the server gives to `store.read`, by name, with where."""
    found = {}
    for path in sorted(SOURCES.rglob("*.py")):
        place = path.relative_to(SOURCES)
        if place.parts[0] in COMMANDS or str(place) in COMMANDS:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "read"):
                continue
            if "store" in ast.unparse(node.func.value):
                asks = node.args[0]
                name = ast.unparse(asks.func if isinstance(asks, ast.Call) else asks)
                alone = name in ("question", "questions.every")
                found[f"{place.stem} {name}" if alone else name] = f"{place}:{node.lineno}"
    return found


def test_every_question_of_the_server_is_known_to_be_bounded_or_long() -> None:
    found = reads()
    assert {name: where for name, where in found.items() if name not in QUESTIONS} == {}
    assert {name for name in QUESTIONS if name not in found} == set()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = new_database(tmp_path_factory.mktemp("plans"))
    write(made, contracts.publish(variant(E, P), AT), parties.add(Party("example", "Example", frozenset()), "x", AT))
    return made


@pytest.mark.parametrize("name", [name for name, each in QUESTIONS.items() if not isinstance(each, str)])
def test_a_question_of_the_event_loop_finds_its_rows_by_an_index(url: str, name: str) -> None:
    for statement, parameters in asked(url, QUESTIONS[name]):
        told = plan(url, statement, parameters)
        read_whole = re.findall(rf"SCAN (?:{'|'.join(LARGE)})\b.*", told)
        # A partial index of rows that a release before has written, of which there are few.
        assert [line for line in read_whole if "party_not_folded" not in line] == [], statement


@pytest.mark.parametrize("question", LONG_ONES, ids=lambda question: question.__name__)
def test_a_question_that_may_read_much_is_marked_as_long(question: Steps[Any]) -> None:
    assert isinstance(question, Question)
    assert question.long
