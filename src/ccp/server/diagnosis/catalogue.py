"""The checks of a pool, in the order in which they are shown."""

from __future__ import annotations

from typing import Final

from ccp.server.diagnosis.audit_stream import check_audit_stream
from ccp.server.diagnosis.clock import check_clock
from ccp.server.diagnosis.configuration import check_configuration
from ccp.server.diagnosis.database import check_database, check_disk
from ccp.server.diagnosis.files import check_files
from ccp.server.diagnosis.finding import Diagnosis
from ccp.server.diagnosis.openid_provider import check_openid
from ccp.server.diagnosis.partners import check_peers, check_services, check_webhooks
from ccp.server.diagnosis.run import TIMEOUT, Check, run_checks
from ccp.server.diagnosis.running_server import check_memory, check_proxies, check_server
from ccp.server.diagnosis.server_tls import check_public_url, check_server_tls
from ccp.server.diagnosis.trust import check_anchors, check_revocation_hosts
from ccp.server.runtime.clock import Clock, utc_now
from ccp.server.settings.examination import Examination
from ccp.server.storage import Store

CHECKS: Final = (
    Check("configuration", "Configuration", check_configuration),
    Check("files", "Files", check_files),
    Check("database", "Database", check_database),
    Check("disk", "Disk space", check_disk),
    Check("clock", "Clock", check_clock, last=True),
    Check("tls", "TLS of the server", check_server_tls),
    Check("public-url", "Public URL", check_public_url, network=True),
    Check("server", "Running server", check_server),
    Check("proxies", "Proxies", check_proxies),
    Check("memory", "Memory", check_memory),
    Check("anchors", "Trusted certificates", check_anchors),
    Check("revocation", "OCSP responders and CRLs", check_revocation_hosts, network=True),
    Check("services", "External services", check_services, network=True),
    Check("peers", "Peers", check_peers, network=True),
    Check("webhooks", "Webhooks", check_webhooks),
    Check("audit-stream", "Stream of the audit trail", check_audit_stream, network=True),
    Check("openid", "OpenID provider of the console", check_openid, network=True),
)
"""Checks without `network` call nothing but the database and the server on this machine."""


async def diagnose(
    examination: Examination,
    *,
    offline: bool = False,
    store: Store | None = None,
    clock: Clock = utc_now,
    timeout: float = TIMEOUT,  # noqa: ASYNC109  a result, not an error
) -> Diagnosis:
    """Run every check; see `ccp.server.diagnosis.run.run_checks`."""
    return await run_checks(CHECKS, examination, offline=offline, store=store, clock=clock, timeout=timeout)
