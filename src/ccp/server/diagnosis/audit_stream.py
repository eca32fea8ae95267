"""Check of the receiver of the audit trail's stream. It gets no row."""

from __future__ import annotations

import os

from ccp.errors import CCPError
from ccp.server.audit.stream_receivers import SyslogReceiver
from ccp.server.diagnosis.context import Context
from ccp.server.diagnosis.finding import CheckResult
from ccp.server.external.client_tls import ClientTLS
from ccp.server.external.connection_check import connection_failure
from ccp.server.external.outbound import OutboundError, host_of


async def check_audit_stream(context: Context, result: CheckResult) -> None:
    """The receiver takes a connection (syslog), answers a GET (webhook), or can be written (file)."""
    settings = context.settings
    tls = ClientTLS(settings.audit_stream_ca, settings.audit_stream_tls_cert, settings.audit_stream_tls_key)
    if settings.audit_stream is None:
        result.note("the audit trail is not streamed")
        return
    try:
        tls.check("audit_stream")
        if settings.audit_stream == "file" and (path := settings.audit_stream_file) is not None:
            target = path if await context.blocking(path.exists) else path.absolute().parent
            if not await context.blocking(os.access, target, os.W_OK):
                result.add("audit-stream.unreachable", f"{target} cannot be written by this user.", subject=str(path))
            else:
                result.note(f"file {path}")
        elif settings.audit_stream == "syslog" and (address := settings.audit_stream_syslog) is not None:
            await SyslogReceiver(address, tls).send(())
            result.note(f"{address} takes a connection")
        elif settings.audit_stream == "webhook" and (url := settings.audit_stream_url) is not None:
            response = await context.probe(url, configured=True, tls=tls)
            result.note(f"{url} answers (GET: {response.status})")
    except OutboundError as exc:
        place = host_of(settings.audit_stream_url or "")
        found = connection_failure(exc, "audit_stream", place, settings.audit_stream_tls_cert is not None)
        result.add("audit-stream.unreachable", found.step.detail, subject="audit_stream", action=found.advice)
    except CCPError as exc:
        result.add("audit-stream.unreachable", str(exc), subject="audit_stream")
