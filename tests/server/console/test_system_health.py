"""Health of other systems in words, on the overview and on their pages; and audit subjects with links."""

from __future__ import annotations

from datetime import timedelta

import pytest

from ccp.server.audit.pseudonyms import Pseudonyms
from ccp.server.console.audit_subjects import details_of
from ccp.server.console.identifiers import HandleCipher, IdDisplay
from ccp.server.console.system_health import of_peer, of_service, of_subscription, rank
from ccp.server.metrics.last_calls import EVENTS, PEER, SERVICE, LastCalls
from ccp.server.storage.queries import peers, subscriptions
from ccp.server.storage.queries.peers import Peer
from ccp.server.storage.queries.subscriptions import Subscription
from tests.server.console.browsing import Browser
from tests.world import AT, Pool


def calls_at(minutes: int, *made: tuple[str, str, str]) -> LastCalls:
    """Calls that ended some minutes ago: kind, name, outcome."""
    found = LastCalls(clock=lambda: AT.timestamp() - 60 * minutes)
    for kind, name, outcome in made:
        found.record(kind, name, outcome, 0.25)
    return found


def subscription(source: str = "rcp", endpoint_id: str | None = "e", secret: str | None = "s") -> Subscription:
    since = AT - timedelta(days=3)
    return Subscription("id", source, "https://a.example", endpoint_id, secret, ("root.cert.added",), since, since)


@pytest.mark.parametrize(
    ("outcome", "kind", "words"),
    [
        ("found", "ok", "Answered 3 minutes ago, in 250 ms."),
        ("timed_out", "bad", "It did not answer in time 3 minutes ago."),
        ("not_authenticated", "bad", "It refused this pool's access token 3 minutes ago."),
        ("chain", "bad", "It gave an answer that was not accepted (chain) 3 minutes ago."),
        ("overtaken", "quiet", "No vehicle needed it since this worker began."),
    ],
)
def test_system_health_of_a_peer_is_in_words(outcome: str, kind: str, words: str) -> None:
    record = calls_at(3, (PEER, "DE*A", outcome)).of(PEER, "DE*A")
    found = of_peer(Peer("DE*A", "https://a.example"), record, AT, circuit_is_open=False)
    assert (found.kind, found.words, bool(found.action)) == (kind, words, kind == "bad")
    assert found.path == "/peers/DE%2AA"


def test_system_health_says_what_to_do_and_begins_with_the_worst() -> None:
    record = calls_at(3, (SERVICE, "rcp", "ok"), (EVENTS, "rcp", "ok"))
    working = of_service("Root Certificate Pool", record.of(SERVICE, "rcp"), AT)
    damaged = of_peer(Peer("DE*B", "https://b.example", damage="x"), record.of(PEER, "DE*B"), AT, circuit_is_open=False)
    disabled = of_peer(
        Peer("DE*C", "https://c.example", enabled=False), record.of(PEER, "DE*C"), AT, circuit_is_open=True
    )
    subscribed = of_subscription(subscription(), record.of(EVENTS, "rcp"), AT)
    waiting = of_subscription(subscription("peer:DE*B", None, None), record.of(EVENTS, "peer:DE*B"), AT)
    unreadable = of_subscription(subscription("pcp", "e", None), record.of(EVENTS, "pcp"), AT)
    found = sorted([working, disabled, subscribed, waiting, damaged, unreadable], key=rank)
    assert [(each.kind, each.action) for each in found] == [
        ("bad", "ccp peer rotate-secret DE*B"),
        ("bad", "ccp neighbour subscribe pcp"),
        ("warn", "ccp neighbour subscribe DE*B"),
        ("quiet", ""),
        ("ok", ""),
        ("ok", ""),
    ]
    assert subscribed.words == "Subscribed to 1 event 3 days ago. The last event came 3 minutes ago."


def test_system_health_is_on_the_overview_and_on_the_page_of_a_peer(pool: Pool, person: Browser) -> None:
    pool.change(peers.add(Peer("DE*QUIET", "https://quiet.example", client_id="me", secret="s"), AT))
    pool.change(peers.add(Peer("DE*OFF", "https://off.example", client_id="me", secret="s", enabled=False), AT))
    pool.change(subscriptions.put(subscription("peer:DE*QUIET", None, None)))
    page = person.page("/overview")
    for words in (
        "not asked yet DE*QUIET peer pool No vehicle needed it", "disabled DE*OFF peer pool This pool does not ask it.",
        "not accepted Events of DE*QUIET subscription", "ccp neighbour subscribe DE*QUIET",
    ):  # fmt: skip
        assert words in page.text, words
    assert page.text.index("Events of DE*QUIET") < page.text.index("DE*OFF")
    assert "/console/peers/DE%2AQUIET" in page.links
    one = person.page("/peers/DE*QUIET").text
    assert "not asked yet No vehicle needed it since this worker began." in one
    assert "not accepted" in one
    assert "https://quiet.example" in one
    pool.change(subscriptions.remove("id"))
    pool.sql("delete from peer")


def test_audit_subjects_are_words_with_links(pool: Pool, person: Browser) -> None:
    car = pool.car()
    emaid = pool.publish(car).emaid
    page = person.page("/audit")
    for link in (f"/console/contracts/{emaid}", f"/console/vehicles/{car.pcid}"):
        assert link in page.links
    assert f"contract {emaid} vehicle {car.pcid} edition ISO 15118-2 V2G root" in page.text
    assert "{" not in page.text


@pytest.mark.parametrize(
    ("subject", "shown"),
    [
        (None, []),
        ("[]", [("", "[]", "")]),
        ("not JSON", [("", "not JSON", "")]),
        ('{"party": "a/b", "left": true}',
         [("party", "a/b", "/parties/a%2Fb"), ("another variant is left", "yes", "")]),
        ('{"peer": "DE*A"}', [("peer", "DE*A", "/peers/DE%2AA")]),
        ('{"endpoint": "x"}', [("webhook", "x", "/webhooks/x")]),
        ('{"source": "peer:DE*A"}', [("source", "DE*A", "/peers/DE%2AA")]),
        ('{"source": "rcp"}', [("source", "rcp", "/partners#services")]),
        ('{"source": "a file"}', [("source", "a file", "")]),
        ('{"emaid": "no id"}', [("contract", "no id", "")]),
        ('{"roles": ["v2g", "oem"], "none": null}', [("roles", "v2g, oem", "")]),
        ('{"numbers": [1, 2, 3, 4, 5, 6, 7]}', [("numbers", "1, 2, 3, 4, 5 and 2 more", "")]),
        ('{"before": {"name": "A", "wmis": []}}', [("before", "name A, wmis none", "")]),
    ],
)  # fmt: skip
def test_audit_subjects_of_any_shape_are_shown(
    pool: Pool, subject: str | None, shown: list[tuple[str, str, str]]
) -> None:
    ids = IdDisplay(Pseudonyms(pool.settings), HandleCipher(None), in_full=True)  # type: ignore[arg-type]
    assert [(each.label, each.text, each.path) for each in details_of(subject, ids)] == shown
