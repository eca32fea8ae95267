"""Checks of the server that runs on this machine: its readiness, what its proxies send, and its memory.

Requests go to the address that the server listens on. The certificate is not verified there: nothing secret is sent.
"""

from __future__ import annotations

import http.client
import json
import re
import ssl
from typing import Final

from ccp.server.diagnosis.context import PROBE_TIMEOUT, Context
from ccp.server.diagnosis.finding import CheckResult
from ccp.server.diagnosis.processes import memory_use
from ccp.server.diagnosis.server_tls import own_address
from ccp.server.metrics import FORWARDED_PROBLEMS
from ccp.server.settings import Settings

_MAX_BYTES: Final = 4_194_304
_NEAR: Final = 0.85
PER_WORKER: Final = 200_000_000
"""Bytes: an idle worker and its caches; see docs/memory.md."""
_BESIDES: Final = 100_000_000
_SAMPLE: Final = re.compile(rf'^{FORWARDED_PROBLEMS}_total\{{problem="(\w+)"\}} (\S+)$', re.MULTILINE)


async def check_server(context: Context, result: CheckResult) -> None:
    """Readiness of the running server, if there is one."""
    settings = context.settings
    place = f"{own_address(settings.host)}:{settings.port}"
    try:
        status, body = await context.blocking(_get, settings, "/health/ready")
    except (OSError, http.client.HTTPException) as exc:
        if _wants_certificate(settings, exc):
            result.skip(f"not known: the server at {place} requires a client certificate (tls_client_ca)")
            return
        result.note(f"no pool answers at {place} ({getattr(exc, 'strerror', None) or type(exc).__name__})")
        return
    if status == 200:
        result.note(f"the pool at {place} is ready")
        return
    reasons = _reasons(body) or [f"GET /health/ready: {status}."]
    result.add("server.not-ready", " ".join(reasons), subject=place)


def _wants_certificate(settings: Settings, exc: Exception) -> bool:
    """Whether a server with `tls_client_ca` has ended a connection because it got no certificate."""
    ended = isinstance(exc, http.client.RemoteDisconnected | ssl.SSLError | ConnectionResetError | BrokenPipeError)
    return settings.tls_client_ca is not None and ended


def _reasons(body: bytes) -> list[str]:
    try:
        found = json.loads(body)["reasons"]
    except (ValueError, KeyError, TypeError):
        return []
    return [reason for reason in found if isinstance(reason, str)] if isinstance(found, list) else []


async def check_proxies(context: Context, result: CheckResult) -> None:
    """What arrives from proxies, as the running server has counted it since its start."""
    settings = context.settings
    result.note(f"trusted_proxies: {', '.join(settings.trusted_proxies) or 'none'}")
    try:
        status, body = await context.blocking(_get, settings, "/metrics")
    except (OSError, http.client.HTTPException) as exc:
        wants = _wants_certificate(settings, exc)
        reason = "the server requires a client certificate" if wants else "no pool answers on this machine"
        result.skip(f"not known: {reason}")
        return
    if status != 200:
        result.skip(f"not known: the server does not show its metrics here (metrics = {settings.metrics.value})")
        return
    counts = {problem: float(value) for problem, value in _SAMPLE.findall(body.decode("utf-8", "replace"))}
    if count := counts.get("untrusted", 0):
        message = f"{count:.0f} requests with X-Forwarded-For came from other addresses than trusted_proxies."
        result.add("proxies.untrusted", message, subject="trusted_proxies")
    if counts.get("missing", 0):
        message = "A request came from a trusted proxy without X-Forwarded-For."
        result.add("proxies.no-address", message, subject="trusted_proxies")
    if not result.findings:
        result.note("nothing unexpected has arrived since the start of the server")


def _get(settings: Settings, path: str) -> tuple[int, bytes]:
    host = own_address(settings.host)
    connection: http.client.HTTPConnection
    if settings.tls_cert is None:
        connection = http.client.HTTPConnection(host, settings.port, timeout=PROBE_TIMEOUT)
    else:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(host, settings.port, timeout=PROBE_TIMEOUT, context=tls)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read(_MAX_BYTES)
    finally:
        connection.close()


async def check_memory(context: Context, result: CheckResult) -> None:
    """The memory limit of the running server's processes, or of this process, against what the workers need."""
    settings = context.settings
    use = await context.blocking(memory_use, settings.port)
    if use is None:
        result.skip("not known on this system")
        return
    needed = settings.workers * PER_WORKER + _BESIDES
    whose = f"{len(use.processes)} process(es) of the pool use {_mb(use.total)}" if use.processes else "no pool runs"
    result.note(f"{whose}; {settings.workers} worker(s) need up to {_mb(needed)}")
    if use.limit is None:
        result.note("no memory limit")
        return
    result.note(f"limit {_mb(use.limit)} ({use.place})")
    if use.limit < needed:
        message = f"The memory limit is {_mb(use.limit)}; {settings.workers} worker(s) need up to {_mb(needed)}."
        result.add("memory.limit-low", message, subject=use.place)
    if use.processes and use.total > _NEAR * use.limit:
        message = f"The pool uses {_mb(use.total)} of {_mb(use.limit)}."
        result.add("memory.limit-near", message, subject=use.place)


def _mb(number: float) -> str:
    return f"{number / 1e6:,.0f} MB"
