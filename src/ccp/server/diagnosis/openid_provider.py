"""Check of the OpenID provider of the console."""

from __future__ import annotations

import json

from ccp.errors import CCPError
from ccp.server.diagnosis.context import PROBE_TIMEOUT, Context
from ccp.server.diagnosis.finding import CheckResult
from ccp.server.external.client_tls import ClientTLS
from ccp.server.external.connection_check import connection_failure
from ccp.server.external.outbound import OutboundError, host_of

_MAX_BYTES = 262_144


async def check_openid(context: Context, result: CheckResult) -> None:
    """The provider's metadata can be fetched, and is of the configured issuer.

    Source: OpenID Connect Discovery 1.0 clause 4.
    """
    config = context.settings.console_oidc
    if config is None:
        result.note("no OpenID provider is configured")
        return
    url = f"{config.issuer.rstrip('/')}/.well-known/openid-configuration"
    tls, began = ClientTLS(config.ca), context.clock()
    try:
        tls.check("console_oidc")
        response = await context.outbound.request(
            "GET", url, block_private=False, timeout=PROBE_TIMEOUT, max_bytes=_MAX_BYTES, tls=tls
        )
    except OutboundError as exc:
        found = connection_failure(exc, "console_oidc", host_of(url), False)
        result.add("openid.fails", found.step.detail, subject="console_oidc", action=found.advice)
        return
    except CCPError as exc:
        result.add("openid.fails", str(exc), subject="console_oidc")
        return
    context.note_date(url, response, began)
    try:
        issuer = json.loads(response.body)["issuer"] if response.status == 200 else None
    except (ValueError, TypeError, KeyError):
        issuer = None
    if issuer is None:
        result.add("openid.fails", f"GET {url}: {response.status}, without an issuer.", subject="console_oidc")
    elif issuer != config.issuer:
        message = f"{url} is of the issuer {str(issuer)[:200]!r}, not {config.issuer!r}."
        result.add("openid.fails", message, subject="console_oidc")
    else:
        result.note(f"{config.issuer} answers")
