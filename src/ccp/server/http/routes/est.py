"""EST for operators of charging stations, passed on to the configured EST server. Source: RFC 7030; OPCP 1.0, EST.

Charging station back ends reach contract pool, roots and EST under one base URL, in several forms of the paths:

    /.well-known/cpo/simpleenroll                        as back ends in production send it
    /cpo/simpleenroll/ISO15118-2                         an older form of the same
    /.well-known/est/cpo/simpleenroll/ISO15118-20        as published
    /.well-known/est/simpleenroll                        RFC 7030 without a label
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ccp.errors import FieldError
from ccp.ids import Namespace
from ccp.server.domain.authorization import EnrolmentOperation
from ccp.server.domain.parties import PartyRole
from ccp.server.external.est import ESTOperation, Pending
from ccp.server.http import query_parameters
from ccp.server.http.errors import error_response
from ccp.server.http.request_context import RequestContext
from ccp.server.http.responses import json_content
from ccp.server.pool.enrolment import Enrolment
from ccp.x509.certificates import Certificate
from ccp.x509.certs_only import encode_certs_only
from ccp.x509.signing_requests import MAX_BYTES

DEFAULT_CA: Final = "cpo"
EDITIONS: Final = {Namespace.ISO2: "ISO15118-2", Namespace.ISO20: "ISO15118-20"}
ALGORITHMS: Final = ("secp256r1", "secp521r1", "ed448")
_PREFIXES: Final = ("/.well-known/est/{ca}", "/.well-known/{ca}", "/{ca}")
_OPERATIONS: Final = {
    ESTOperation.CA_CERTS: EnrolmentOperation.CA_CERTIFICATES,
    ESTOperation.SIMPLE_ENROLL: EnrolmentOperation.ENROL,
    ESTOperation.SIMPLE_REENROLL: EnrolmentOperation.REENROL,
}
_NAMESPACE: Final = "xsdMsgDefNamespace"
_NO_LABEL: Final = "est"  # In the place of a label: RFC 7030 without one.
_REST: Final = re.compile(r"(?:/(?P<edition>[^/]+)(?:/(?P<algorithm>[^/]+))?)?/?")
"""What may follow the operation in a path."""
_REQUEST_TYPES: Final = ("application/pkcs10", "application/octet-stream", "text/plain", "")
_CERTS_ONLY: Final = "application/pkcs7-mime; smime-type=certs-only"


def routes(enrolment: Enrolment, context: RequestContext) -> list[Route]:
    """Return the routes. Each takes what may follow the operation: edition and algorithm."""

    def endpoint(operation: ESTOperation) -> Any:
        async def handle(request: Request) -> Response:
            return await _handle(enrolment, context, operation, request)

        return handle

    return [
        Route(
            f"{prefix}/{operation}{{rest:path}}",
            endpoint(operation),
            methods=["GET" if operation is ESTOperation.CA_CERTS else "POST"],
            name=_OPERATIONS[operation].value,
        )
        for prefix in _PREFIXES
        for operation in ESTOperation
    ]


async def _handle(enrolment: Enrolment, context: RequestContext, operation: ESTOperation, request: Request) -> Response:
    changes = operation is not ESTOperation.CA_CERTS
    rest = _REST.fullmatch(request.path_params["rest"])
    if rest is None or (changes and rest["algorithm"] is not None):
        raise HTTPException(404)
    caller = await context.authenticate(request.scope, request.headers, _OPERATIONS[operation])
    query = query_parameters.check(request.scope["query_string"], (_NAMESPACE,) if changes else (), changes=changes)
    edition = _edition(rest["edition"], query.get(_NAMESPACE))
    algorithm = rest["algorithm"]
    if algorithm is not None and algorithm not in ALGORITHMS:
        raise FieldError(f"algorithm : must be one of {', '.join(ALGORITHMS)}")
    ca = request.path_params["ca"]
    selection = enrolment.select(DEFAULT_CA if ca == _NO_LABEL else ca, edition, algorithm)
    if not changes:
        return _certificates(await enrolment.ca_certificates(caller, selection))
    _check_type(request)
    body = await context.read_body(request.receive, request.headers, MAX_BYTES)
    caller = await context.reauthenticate(request.scope, request.headers, caller)
    found = await enrolment.enrol(caller, _OPERATIONS[operation], selection, body, context.clock())
    if isinstance(found, Pending):
        sentence = (
            "The EST server has not issued the certificate yet; "
            f"send the same request again in {found.retry_after} seconds."
        )
        return error_response(request, 202, (sentence,), {"Retry-After": str(found.retry_after)})
    return _certificates(found)


def _edition(in_path: str | None, namespace: str | None) -> str | None:
    """The edition that a request names in its path, its query, or both. Raises FieldError."""
    if in_path is not None and in_path not in EDITIONS.values():
        raise FieldError(f"iso-version : must be one of {', '.join(EDITIONS.values())}")
    in_query = None if namespace is None else EDITIONS[Namespace.parse(namespace)]
    if in_path and in_query and in_path != in_query:
        raise FieldError(f"{_NAMESPACE} : means {in_query}, but the path names {in_path}")
    return in_path or in_query


def _check_type(request: Request) -> None:
    """Refuse a body that claims to be something else than a request. Raises HTTPException."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in _REQUEST_TYPES:
        raise HTTPException(415, "The body must have the Content-Type application/pkcs10.")


def _certificates(certificates: Iterable[Certificate]) -> Response:
    return Response(
        base64.encodebytes(encode_certs_only(certificates)),
        headers={"Content-Type": _CERTS_ONLY, "Content-Transfer-Encoding": "base64"},
    )


def descriptions() -> dict[str, dict[str, Any]]:
    """Return the OpenAPI description: the paths of back ends in production, and the published ones."""
    ca = _parameter("ca", "path", "The CA, by its name in est_labels.")
    edition = _parameter("iso-version", "path", "Edition of ISO 15118.", list(EDITIONS.values()))
    algorithm = _parameter("algorithm", "path", "Algorithm of the CA.", list(ALGORITHMS))
    found = {
        "/.well-known/cpo/cacerts": _description(ESTOperation.CA_CERTS, "Production"),
        "/.well-known/est/{ca}/cacerts/{iso-version}/{algorithm}": _description(
            ESTOperation.CA_CERTS, "", ca, edition, algorithm
        ),
    }
    for operation in (ESTOperation.SIMPLE_ENROLL, ESTOperation.SIMPLE_REENROLL):
        found[f"/.well-known/cpo/{operation}"] = _description(operation, "Production")
        found[f"/.well-known/est/{{ca}}/{operation}/{{iso-version}}"] = _description(operation, "", ca, edition)
    return found


def _parameter(name: str, place: str, text: str, values: list[str] | None = None) -> dict[str, Any]:
    schema = {"type": "string", **({"enum": values} if values else {})}
    return {"name": name, "in": place, "required": place == "path", "description": text, "schema": schema}


def _description(operation: ESTOperation, suffix: str, *parameters: dict[str, Any]) -> dict[str, Any]:
    """Describe one operation at one path. suffix: makes its operation id unique."""
    changes = operation is not ESTOperation.CA_CERTS
    text = {"schema": {"type": "string", "description": "Base64 with any line breaks."}}
    name = _OPERATIONS[operation].value
    found: dict[str, Any] = {
        "operationId": f"{name}{suffix}",
        "summary": name,
        "tags": ["EST"],
        "parameters": list(parameters),
        "responses": {
            "200": {"description": "Certificates in PKCS#7.", "content": {"application/pkcs7-mime": text}},
            **{
                str(status): {"description": "Error", "content": json_content("Error")}
                for status in (400, 401, 403, 404, *((413, 415) if changes else ()), 500, 502, 503)
            },
        },
        "security": [{"oauth2": [PartyRole.CPO.value]}, {"bearer": []}],
    }
    if changes:
        found["parameters"].append(
            _parameter(_NAMESPACE, "query", "Edition, where the path names none.", [each.value for each in Namespace])
        )
        found["requestBody"] = {"required": True, "content": {"application/pkcs10": text}}
        found["responses"]["202"] = {
            "description": "Not issued yet; see Retry-After.",
            "content": json_content("Error"),
        }
    return {"post" if changes else "get": found}
