"""Get15118EVCertificate: payloads of OCPP as a charging back end has them in its hands. The same in both dialects."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, Final

from ccp.client.model import EVCertificate
from ccp.client.responses import HttpResponse, decode_base64, limited, malformed, parse
from ccp.errors import FieldError
from ccp.schemas.ocpp import Get15118EVCertificateRequest, Get15118EVCertificateResponse, OCPPVersion

_MEMBERS: Final = {name.lower(): name for name in Get15118EVCertificateRequest.model_fields if name != "customData"}


def request_payload(request: Mapping[str, Any]) -> dict[str, Any]:
    """The payload to send, from a payload whose names have any case and underscores; other members are left out.

    Libraries of OCPP write the names in their own way: the package ocpp makes prioritized_emai_ds of prioritizedEMAIDs.
    """
    named = {str(name).replace("_", "").lower(): value for name, value in request.items()}
    return {name: named[folded] for folded, name in _MEMBERS.items() if named.get(folded) is not None}


def query(version: str | None, broadcast: bool, max_exi_response: int | None) -> dict[str, str | None]:
    """The query parameters. Raises FieldError for an unknown version."""
    if version is not None:
        known = version.lower().removeprefix("ocpp")
        if known not in list(OCPPVersion):
            raise FieldError(f"version : must be one of {', '.join(OCPPVersion)}")
        version = known
    return {
        "ocppVersion": version,
        "broadcast": None if broadcast else "false",
        "maxExiResponse": None if max_exi_response is None else str(max_exi_response),
    }


def message_key(message_id: str | None) -> str:
    """The idempotency key of a call; without a message id a random one, which the retries of the call share.

    Raises FieldError for an id that no header can carry.
    """
    if message_id is None:
        return secrets.token_hex(16)
    if not (0 < len(message_id) <= 255 and message_id.isascii() and message_id.isprintable()):
        raise FieldError("message_id : must be 1 to 255 printable ASCII characters")
    return message_id


def parse_certificate_response(response: HttpResponse) -> EVCertificate:
    """Read the response. Raises MalformedResponseError."""
    found = parse(Get15118EVCertificateResponse, response)
    limits = OCPPVersion.V2_1.limits
    if found.status == "Accepted" and not found.exiResponse:
        raise malformed("The response is accepted and has no message.", response)
    decode_base64(found.exiResponse, response)
    info = found.statusInfo
    return EVCertificate(
        found.status,
        found.exiResponse,
        found.remainingContracts,
        None if info is None else info.reasonCode,
        None if info is None else limited(info.additionalInfo, limits.info),
        response.trace_id,
    )
