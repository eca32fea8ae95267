"""Background work goes on whatever a newer release writes, and what does not go on is seen."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import httpx
import pytest
from structlog.testing import CapturingLogger

from ccp.server.http.routes.opnc import BASE
from ccp.server.runtime import background
from ccp.server.sandbox.local_pool import loopback, running
from ccp.server.storage.queries import parties, peers, unknown_values, webhooks
from ccp.server.storage.queries.peers import Peer
from ccp.testing.pki import PKI
from tests.server.events.receiver import receiving, webhook
from tests.server.http.metrics_reading import read_metrics, sample
from tests.waiting import wait_until
from tests.world import AT, Pool, start


@contextmanager
def workers(pkis: dict[str, PKI], count: int = 2, **options: Any) -> Iterator[tuple[Pool, list[str]]]:
    """Several servers on one database. Returns the first, and the addresses of all."""
    with ExitStack() as stack:
        pool = stack.enter_context(start(pkis, log_level="warning", **options))
        urls = [pool.base_url]
        for _ in range(count - 1):
            listening, url = stack.enter_context(loopback())
            stack.enter_context(running(pool.settings, listening))
            urls.append(url)
        yield pool, urls


def ready(url: str) -> tuple[int, list[str]]:
    answer = httpx.get(f"{url}/health/ready", timeout=5)
    return answer.status_code, answer.json().get("reasons", [])


def statuses(pool: Pool, urls: list[str], name: str) -> list[int]:
    headers = {"Authorization": f"Bearer {pool.token(name)}"}
    return [
        httpx.get(f"{url}{BASE}/contractData/emaid/DEEXAT99999999", headers=headers, timeout=5).status_code
        for url in urls
    ]


def log_of(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> CapturingLogger:
    """What a module logs from now on. A logger that was used before keeps the standard error of that time."""
    log = CapturingLogger()
    monkeypatch.setattr(module, "_log", log)
    return log


def test_refresh_with_an_unknown_role_still_disables_parties(
    pkis: dict[str, PKI], monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown_values.warn.cache_clear()
    log = log_of(unknown_values, monkeypatch)
    with workers(pkis) as (pool, urls):
        assert statuses(pool, urls, "emsp") == [404, 404]
        # As a newer release would, during a rolling upgrade.
        pool.sql("update party set roles = ? where client_id = 'other_emsp'", '["emsp", "future-role"]')
        pool.sql("update party set roles = ? where client_id = 'small_cps'", '["future-role"]')
        pool.sql("update change_count set number = number + 1 where topic = 'parties'")
        pool.change(parties.disable("emsp"))
        wait_until(lambda: statuses(pool, urls, "emsp") == [401, 401], 5)
        assert [ready(url)[0] for url in urls] == [200, 200]
        # What is known of the other party's roles goes on; what is not known grants nothing.
        assert statuses(pool, urls, "other_emsp") == [403, 403]
        assert statuses(pool, urls, "small_cps") == [403, 403]
        # A change by this release leaves the unknown role to the newer one.
        pool.change(parties.disable("other_emsp"))
        ((roles,),) = pool.sql("select roles from party where client_id = 'other_emsp'")
        assert json.loads(roles) == ["emsp", "future-role"]
        assert sample(read_metrics(urls[0]), "ccp_task_failures_total", task="refresh_parties") == 0
    ignored = [call.kwargs for call in log.calls if call.args == ("unknown value ignored",)]
    assert sorted((each["column"], each["value"], each["row"]) for each in ignored) == [
        ("party.roles", "future-role", "other_emsp"),
        ("party.roles", "future-role", "small_cps"),
    ], "one warning for each, not one a second"


def test_refresh_skips_rows_of_a_newer_release(pkis: dict[str, PKI]) -> None:
    with workers(pkis, pool_id="pool-a") as (pool, urls):
        count = "update change_count set number = number + 1"
        columns = "role, fingerprint, is_root, certificate, label, source, added_at"
        copied = columns.replace("role", "'future'")
        pool.sql(f"insert into trust_anchor ({columns}) select {copied} from trust_anchor where role = 'v2g'")
        unreadable = f"insert into trust_anchor ({columns}) values ('v2g', 'ff', true, ?, 'future', 'test', 0)"
        pool.sql(unreadable, b"\x30\x00")
        pool.sql("insert into token_key (kid, private_key, created_at) values ('future', 'of another kind', 1)")
        pool.change(peers.add(Peer("future", pool.base_url, "opnc", token="t"), AT))
        pool.sql("update peer set dialect = 'future'")
        contract = pool.contract(pool.car())
        root = pool.pki().v2g_root.certificate.fingerprint
        assert pool.cps.put("/signedcontractdata", json=contract.body).status_code == 201
        pool.sql("delete from trust_anchor where fingerprint = ?", root)
        pool.sql(count)

        def refused() -> bool:
            headers = {"Authorization": f"Bearer {pool.token('cps')}"}
            url = f"{BASE}/signedcontractdata"
            return all(httpx.put(one + url, json=contract.body, headers=headers).status_code == 400 for one in urls)

        wait_until(refused, 5)
        assert [ready(url)[0] for url in urls] == [200, 200]
        found = read_metrics(urls[0])
        for task in ("poll_changes", "refresh_anchors", "refresh_token_keys", "refresh_peers"):
            assert sample(found, "ccp_task_failures_total", task=task) == 0, task


def test_background_task_table_that_is_unreadable_fails_readiness_with_a_reason(
    pkis: dict[str, PKI], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "MAX_SILENCE", 2.0)
    log = log_of(background, monkeypatch)
    with workers(pkis) as (pool, urls):
        assert [ready(url) for url in urls] == [(200, []), (200, [])]
        assert statuses(pool, urls, "emsp") == [404, 404]
        began = time.monotonic()
        pool.sql("alter table peer rename to gone")
        pool.sql("insert into change_count (topic, number) values ('peers', 1)")
        pool.change(parties.disable("emsp"))
        # The other tables are taken over meanwhile.
        wait_until(lambda: statuses(pool, urls, "emsp") == [401, 401], 5)
        reason = "The background task refresh_peers has not succeeded for more than 2 seconds."
        wait_until(lambda: [ready(url) for url in urls] == [(503, [reason])] * 2)
        assert time.monotonic() - began > 2
        assert httpx.get(urls[0] + "/health/live").status_code == 200
        assert sample(read_metrics(urls[0]), "ccp_task_failures_total", task="refresh_peers") >= 2
        pool.sql("alter table gone rename to peer")
        wait_until(lambda: [ready(url) for url in urls] == [(200, [])] * 2)
    failed = [call.kwargs for call in log.calls if call.args == ("background task failed",)]
    assert {each["task"] for each in failed} == {"refresh_peers"}
    assert {each["failures"] for each in failed} >= {1, 2}


def test_event_of_an_unknown_kind_does_not_block_others(pkis: dict[str, PKI]) -> None:
    allowed = {"egress_allow_networks": ("127.0.0.0/8",), "event_dispatch": True, "event_allow_http": True}
    with receiving() as receiver, start(pkis, **allowed) as pool:
        car = pool.car()
        pool.sql("insert into outbox (pcid, rev, kind, emaid, payload, created_at, lease_until, attempts) "
                 "values (?, 0, 'oem.contract.future', 'DEEXAT00000000', '{}', 1, 0, 0)", car.pcid)  # fmt: skip
        pool.change(webhooks.put(webhook(f"{receiver.url}/maker", "oem")))
        pool.publish(car)
        wait_until(lambda: receiver.received)
        assert pool.sql("select kind from outbox") == [("oem.contract.future",)]
        assert sample(read_metrics(pool.base_url), "ccp_task_failures_total", task="event_dispatch") == 0


def test_variant_of_an_unknown_edition_does_not_block_others(pkis: dict[str, PKI]) -> None:
    with start(pkis) as pool:
        car = pool.car()
        contract = pool.publish(car)
        columns = "pcid, emaid, root_fingerprint, root_serial, root_dn, valid_from, valid_to, certificate, response, remaining_from_end, is_default, created_at, updated_at, rev"  # noqa: E501
        pool.sql(f"insert into contract (namespace, {columns}) select 'urn:iso:15118:20:2030:MsgDef', {columns} "
                 "from contract where emaid = ?", str(contract.emaid))  # fmt: skip
        (item,) = pool.ask(car)
        assert item["emaid"] == contract.emaid
        assert [one["emaid"] for one in pool.listed(car)] == [contract.emaid]
        assert pool.emsp.delete(f"/signedcontractdata/{contract.emaid}").status_code == 200
        assert pool.stored(contract.emaid) == 0
