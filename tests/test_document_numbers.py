"""Numbers in the documents: defaults of settings, limits and counts are those of the code, in the words of the page."""

from __future__ import annotations

from typing import Any

import pytest

from ccp.client.operations import DELIVER_TIMEOUT
from ccp.exi.xml import MAX_XML_BYTES
from ccp.server.access.party_registry import DEFAULT_OVERLAP
from ccp.server.audit import refusals, stream
from ccp.server.audit.refused_deliveries import _MAX_OF_CALLER
from ccp.server.domain.subscriptions import MAX_PREVIOUS_SECRETS
from ccp.server.events.webhooks import MAX_WEBHOOKS
from ccp.server.external import host_limits, provisioning_pool, resolver, response_limits
from ccp.server.external.pki_service import REVOKE_TIMEOUT
from ccp.server.http.connection_limits import MAX_REFUSED
from ccp.server.http.deadlines import IDLE_TIMEOUT, SHORTEST_HANDSHAKE, SHORTEST_TIMEOUT
from ccp.server.http.inbound_events import MAX_AGE
from ccp.server.http.overload import RETRY_AFTER
from ccp.server.http.uvicorn_options import uvicorn_options
from ccp.server.pool import broadcast_limits, peer_links, peers
from ccp.server.pool.delivery import DELIVERY_TIMEOUT
from ccp.server.runtime.background import MAX_SILENCE
from ccp.server.settings import Settings
from ccp.server.storage.engine import time_limits
from ccp.server.storage.queries import refusals as refusal_rows
from ccp.server.trust import revocation, revocation_client, revocation_refresh, root_sync
from ccp.x509 import path_validation
from tests.documents import DOCS

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def default(name: str) -> Any:
    return Settings.model_fields[name].default


def word(number: float) -> str:
    return WORDS[int(number)]


def hours(seconds: float) -> int:
    return int(seconds // 3600)


CLAIMS = [
    ("integrating", f"no response within {default('event_timeout'):g} seconds"),
    ("integrating", f"retries {word(default('event_retries'))} times, an hour apart"),
    ("integrating", f"It gives up events after {word(default('event_max_age') / 86_400)} days."),
    ("integrating", f"You may have {MAX_WEBHOOKS} webhooks."),
    ("integrating", f"You may send {word(default('event_pings_per_minute'))} a minute"),
    ("integrating", f"by default and at most {hours(default('event_secret_overlap'))} hours"),
    ("integrating", f"{word(MAX_PREVIOUS_SECRETS)} may be valid at a time"),
    (
        "integrating",
        f"The car waits five seconds in total, the station {DELIVER_TIMEOUT:g};",
    ),
    (
        "integrating",
        f"for {default('refusal_retention') // 86_400} days unless the operator has set",
    ),
    ("integrating", f"for {word(default('ocpp_repetition_time') / 60)} minutes after the previous one"),
    ("operations", f"every `statistics_interval` seconds ({default('statistics_interval'):g})"),
    ("operations", f"`Retry-After: {RETRY_AFTER}`"),
    ("operations", f"(for at most {uvicorn_options(Settings())['timeout_graceful_shutdown']} seconds)"),
    ("operations", f"has not succeeded for more than {MAX_SILENCE:g} seconds."),
    ("operations", f"at most {_MAX_OF_CALLER} new ones a minute in each worker"),
    ("operations", f"in each worker, and {refusal_rows.MAX_ROWS_OF_CALLER:,} in all"),
    ("operations", f"A read waits for at most {time_limits.READ_TIMEOUT:g} seconds and a change for at most"),
    ("operations", f"and a change for at most {time_limits.WRITE_TIMEOUT:g}, whatever it waits for"),
    ("audit", f"within {stream.LEASE:g} seconds when it is killed"),
    ("security", f"at most {word(path_validation.MAX_INTERMEDIATES_SENT)} offered, at most"),
    ("security", f"at most {word(path_validation.MAX_INTERMEDIATES_USED)} used"),
    ("security", f"{MAX_XML_BYTES:,} bytes; reading ends"),
    ("security", f"at most {default('max_contracts_per_vehicle_and_provider')} contracts of one provider"),
    ("security", f"and {default('max_contracts_per_vehicle')} in total for one vehicle"),
    ("security", f"one attempt every {word(60 / default('login_failures_per_minute'))} seconds"),
    ("security", f"every {12 / default('login_failures_per_minute'):g} seconds if the address is known"),
    ("security", f"At most {MAX_REFUSED} connections are in this state"),
    ("security", f"closed after {SHORTEST_TIMEOUT:g} seconds instead of {IDLE_TIMEOUT:g}"),
    ("security", f"and a TLS handshake {SHORTEST_HANDSHAKE:g}."),
    (
        "security",
        f"gets at most {word(refusals._MAX_ROWS_PER_KIND)} rows a minute, and {refusals._MAX_ROWS} are written",
    ),
    ("trust", f"the time limit of a vehicle's request, {DELIVERY_TIMEOUT:g} seconds."),
    ("trust", f"| OCSP | {revocation_client.OCSP_TIMEOUT:g} s, {revocation_client.OCSP_MAX_BYTES:,} bytes."),
    ("trust", f"| CRL | {revocation_client.CRL_TIMEOUT:g} s, {revocation_client.CRL_MAX_BYTES:,} bytes;"),
    ("trust", f"{host_limits.RATE:g} requests a second, bursts of {host_limits.BURST}."),
    ("trust", f"At most {host_limits._MAX_QUEUED:,} requests of one caller wait"),
    ("trust", f"The pool keeps the state of {host_limits._MAX_HOSTS:,} hosts"),
    ("trust", f"{response_limits.MAX_HEAD_BYTES:,} bytes, {response_limits.MAX_HEADER_LINES} lines"),
    ("trust", f"{response_limits.MAX_INTERIM_RESPONSES} interim responses"),
    ("trust", f"A caller waits {resolver.TIMEOUT:g} s."),
    ("trust", f"at most {revocation._MAX_BACKGROUND} fetches concurrently"),
    ("trust", f"a round about every {revocation._REFRESH_INTERVAL:g} seconds, {revocation_refresh._BATCH} CRLs"),
    ("trust", f"Missing evidence is fetched concurrently, for {word(revocation.PUBLICATION_TIMEOUT)} seconds at most"),
    ("trust", f"plus or minus {root_sync._JITTER:.0%}".replace("%", " %")),
    ("trust", f"caches it for {provisioning_pool._CACHE_SECONDS:g} seconds"),
    ("trust", f"The PKI service has {word(REVOKE_TIMEOUT)} seconds for each certificate"),
    ("trust", f"An event older than {word(MAX_AGE.days)} days is 400."),
    (
        "known-limitations",
        f"| vehicles' requests to one peer | {peer_links.VEHICLE_REQUESTS[0]} | {peer_links.VEHICLE_REQUESTS[1]} |",
    ),
    (
        "known-limitations",
        f"| addressed requests to one peer | {peer_links.ADDRESSED_REQUESTS[0]} | {peer_links.ADDRESSED_REQUESTS[1]} |",
    ),
    (
        "known-limitations",
        f"| addressed requests to all peers | {peers._TOTAL_ADDRESSED[0]} | {peers._TOTAL_ADDRESSED[1]} |",
    ),
    (
        "known-limitations",
        f"{broadcast_limits.IN_FLIGHT[1]} in flight ({broadcast_limits.IN_FLIGHT[0]} of all parties)",
    ),
    ("known-limitations", f"`peer_negative_ttl` seconds ({default('peer_negative_ttl'):g})"),
    ("how-to/rotate", f"stays valid for {DEFAULT_OVERLAP // 86_400} days"),
    ("how-to/connect-an-emsp", f"within {default('event_timeout'):g} seconds"),
]


@pytest.mark.parametrize(("page", "claim"), CLAIMS)
def test_document_numbers_are_those_of_the_code(page: str, claim: str) -> None:
    assert claim in " ".join((DOCS / f"{page}.md").read_text("utf-8").split())
