"""Traces of requests with OpenTelemetry, for pools that export them.

    spans = tracing.start(__version__)          # None: nothing is exported, and opentelemetry is not imported
    if spans is not None:
        store = TracedStore(store, spans)

Tracing is on if the environment names an OTLP endpoint and the extra `otel` is installed. Objects are wrapped when they
are built, so a pool without tracing runs the same code as one of a release that knows no tracing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    from ccp.server.tracing.spans import Spans

_log = structlog.get_logger("ccp.server.tracing")

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


def start(version: str, environment: Mapping[str, str] = os.environ) -> Spans | None:
    """Start the export of traces in this process, if the environment asks for it.

    version: of the pool. Returns None, with a log event if that is not what the environment asks for.
    """
    if not any(environment.get(name) for name in ENDPOINTS):
        return None
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or environment.get("OTEL_TRACES_EXPORTER") == "none":
        return None
    if reason := _obstacle(environment):
        _log.warning("traces not exported", reason=reason)
        return None
    from ccp.server.tracing.spans import Spans

    return Spans(version)


def _obstacle(environment: Mapping[str, str]) -> str | None:
    exporter = environment.get("OTEL_TRACES_EXPORTER") or "otlp"
    if exporter != "otlp":
        return f"OTEL_TRACES_EXPORTER is {exporter}; the pool exports with otlp only."
    protocol = next((environment[name] for name in _PROTOCOLS if environment.get(name)), "http/protobuf")
    if protocol != "http/protobuf":
        return f"The OTLP protocol is {protocol}; the pool exports with http/protobuf only."
    if not _is_installed():
        return "The libraries are not installed; install opnc-ccp[otel]."
    return None


def _is_installed() -> bool:
    try:
        return all(map(find_spec, ("opentelemetry.exporter.otlp.proto.http", "opentelemetry.sdk")))
    except ModuleNotFoundError:
        return False
