"""The OpenAPI description of the API.

FastAPI describes the ordinary routes. This module adds the fast-path operations, the bodies that routes read
themselves, the server address and the security schemes. Source: OpenAPI 3.1.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from ccp.errors import codes as error_codes
from ccp.errors.codes import ErrorCode
from ccp.schemas.common import RoutingHeaders
from ccp.schemas.ocpp import PATH as OCPP_PATH
from ccp.schemas.ocpp import (
    EVCertificateHeaders,
    EVCertificateQuery,
    Get15118EVCertificateRequest,
    Get15118EVCertificateResponse,
)
from ccp.schemas.opcp import TAG, OPCPNotFound, OPCPSignedContractData, OPCPSignedContractDataRequest
from ccp.schemas.opcp import DeliverHeaders as OPCPDeliverHeaders
from ccp.schemas.opnc import (
    DeliverHeaders,
    GetSignedContractDataReq,
    PublishQuery,
    SignedContractData,
    SignedContractDataCollection,
)
from ccp.server.domain.authorization import OCPPOperation, Operation, role_table
from ccp.server.domain.parties import PartyRole
from ccp.server.http.responses import json_content
from ccp.server.http.routes import (
    admin,
    admin_peers,
    est,
    events,
    oauth,
    ocpp,
    opcp,
    opcp_roots,
    opnc,
    pcp_webhook,
    subscribed_events,
)

OAUTH2: Final = "oauth2"
BEARER: Final = "bearer"

_SCOPES: Final = {
    PartyRole.EMSP: "contracts of the eMSP's own provider ids",
    PartyRole.CPO: "requests of vehicles",
    PartyRole.OEM: "vehicles of the OEM's own WMIs",
    PartyRole.CPS: "publication for the providers that the CPS signs for",
    PartyRole.CCP: "requests that another pool passes on",
    PartyRole.ADMIN: "the registers of parties and peers, and the metrics",
    PartyRole.METRICS: "the metrics",
}
_FAILURES: Final = (400, 401, 403, 404, 413, 415, 500, 503)
_DELIVER: Final = "Return the contracts of the vehicle that signed the CertificateInstallationReq."
_PUBLISH: Final = "Verify and store a signed contract, for the eMSP that owns it or a CPS that signs for it."
_GET_EV_CERTIFICATE: Final = (
    "Take the payload of Get15118EVCertificateRequest of OCPP 2.0.1 or 2.1, and return that of the response. A refusal "
    "is a 200 with the status Failed."
)


def describe(app: FastAPI, public_url: str) -> dict[str, Any]:
    """Return the description of an application, computed once."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        components = document.setdefault("components", {})
        schemas = components.setdefault("schemas", {})
        # FastAPI describes a 422 response that the pool never sends: invalid parameters are answered with 400.
        for item in document["paths"].values():
            for operation in item.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        for model in (
            SignedContractData,
            GetSignedContractDataReq,
            SignedContractDataCollection,
            Get15118EVCertificateRequest,
            Get15118EVCertificateResponse,
            *events.BODIES,
            *admin.BODIES,
            *admin_peers.BODIES,
        ):
            _add_schema(schemas, model)
        document["paths"][f"{opnc.BASE}/signedcontractdata"] = {
            "post": _operation(
                Operation.DELIVER, _DELIVER, DeliverHeaders, GetSignedContractDataReq, SignedContractDataCollection
            ),
            "put": _operation(Operation.PUBLISH, _PUBLISH, RoutingHeaders, SignedContractData, query=PublishQuery),
        }
        document["paths"][OCPP_PATH] = {
            "post": {
                **_operation(
                    OCPPOperation.GET_15118_EV_CERTIFICATE,
                    _GET_EV_CERTIFICATE,
                    EVCertificateHeaders,
                    Get15118EVCertificateRequest,
                    Get15118EVCertificateResponse,
                    EVCertificateQuery,
                ),
                "tags": [ocpp.TAG],
            }
        }
        document["paths"][pcp_webhook.PATH] = {"post": pcp_webhook.description()}
        document["paths"][subscribed_events.PATH] = {"post": subscribed_events.description()}
        document["paths"].update(est.descriptions())
        if any(getattr(route, "path", None) == opcp_roots.ROOTS for route in app.routes):
            for opcp_model in (OPCPSignedContractData, OPCPSignedContractDataRequest, OPCPNotFound):
                _add_schema(schemas, opcp_model)
            deliver = _operation(
                Operation.DELIVER, _DELIVER, OPCPDeliverHeaders, GetSignedContractDataReq, OPCPSignedContractData
            )
            deliver["responses"]["404"]["content"] = json_content(OPCPNotFound.__name__)
            publish = _operation(
                Operation.PUBLISH, _PUBLISH, RoutingHeaders, OPCPSignedContractDataRequest, query=PublishQuery
            )
            document["paths"][f"{opcp.BASE}/signedContractData"] = {"post": _opcp(deliver), "put": _opcp(publish)}
            # FastAPI describes a success of every route; there is no trust list.
            del document["paths"][opcp_roots.TRUST_LIST]["get"]["responses"]["200"]
        _add_error_codes(document)
        document["servers"] = [{"url": public_url}]
        components["securitySchemes"] = _security_schemes(public_url)
        _add_security(document)
        app.openapi_schema = document
    return app.openapi_schema


def _add_schema(schemas: dict[str, Any], model: type[BaseModel]) -> None:
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(schema.pop("$defs", {}))
    schemas[model.__name__] = schema


def _operation(
    operation: Operation | OCPPOperation,
    description: str,
    headers: type[RoutingHeaders],
    body: type[BaseModel],
    response: type[BaseModel] | None = None,
    query: type[BaseModel] | None = None,
) -> dict[str, Any]:
    """Describe a fast-path operation. response: of a 200; without one, success is a 201 without a body."""
    success: dict[str, Any] = {"description": "Success"}
    if response is not None:
        success["content"] = json_content(response.__name__)
    return {
        "operationId": operation.value,
        "summary": operation.value,
        "description": description,
        "parameters": [*_parameters(headers, "header"), *(_parameters(query, "query") if query else ())],
        "requestBody": {"required": True, "content": json_content(body.__name__)},
        "responses": {
            "201" if response is None else "200": success,
            **{str(status): {"description": "Error", "content": json_content("Error")} for status in _FAILURES},
        },
    }


def _parameters(model: type[BaseModel], place: str) -> Iterator[dict[str, Any]]:
    """Describe the optional parameters that a model declares. place: header or query."""
    for name, schema in model.model_json_schema()["properties"].items():
        text = {"description": schema.pop("description")} if "description" in schema else {}
        yield {"name": name, "in": place, "required": False, **text, "schema": schema}


def _opcp(operation: dict[str, Any]) -> dict[str, Any]:
    operation.update(operationId=f"{TAG}{operation['operationId']}", tags=[TAG])
    return operation


_REFUSALS_WITH_200: Final = frozenset(
    {Operation.DELIVER.value, TAG + Operation.DELIVER.value, OCPPOperation.GET_15118_EV_CERTIFICATE.value}
)


def _add_error_codes(document: dict[str, Any]) -> None:
    """Add the header with the stable code to each response that can be a refusal."""
    document["components"]["headers"] = {
        error_codes.HEADER: {
            "description": "The stable code of a refusal.",
            "schema": {"type": "string", "enum": [code.value for code in ErrorCode]},
        }
    }
    for item in document["paths"].values():
        for operation in item.values():
            for status, response in operation["responses"].items():
                if int(status) >= 400 or (status == "200" and operation["operationId"] in _REFUSALS_WITH_200):
                    reference = f"#/components/headers/{error_codes.HEADER}"
                    response.setdefault("headers", {})[error_codes.HEADER] = {"$ref": reference}


def _security_schemes(public_url: str) -> dict[str, Any]:
    return {
        OAUTH2: {
            "type": "oauth2",
            "description": "Client credentials of a registered party. A scope is one of its roles; all without.",
            "flows": {
                "clientCredentials": {
                    "tokenUrl": public_url + oauth.PATH,
                    "scopes": {role.value: description for role, description in _SCOPES.items()},
                }
            },
        },
        BEARER: {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "JWT",
            "description": "An access token of the pool, or of an issuer that it trusts.",
        },
    }


def _add_security(document: dict[str, Any]) -> None:
    """Add to each operation the roles that may call it, unless it has a `security` entry already."""
    roles: defaultdict[str, list[str]] = defaultdict(list)
    for operation, role, _ in role_table():
        roles[operation.value].append(role.value)
    for item in document["paths"].values():
        for operation in item.values():
            allowed = roles[operation["operationId"].removeprefix(TAG)]
            operation.setdefault("security", [*({OAUTH2: [role]} for role in allowed), {BEARER: []}])
