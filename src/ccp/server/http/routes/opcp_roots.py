"""The Root Certificate Pool of OPCP 1.0 under `/v1/root`: the pool serves its own trust anchors, to every party.

Its operations for an administrator are not offered: the operator changes the anchors with `ccp trust`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel
from starlette.responses import Response

from ccp.errors import FieldError, NotFound
from ccp.errors.codes import ErrorCode
from ccp.ids import Namespace
from ccp.schemas.common import JSONObject, encode_base64
from ccp.schemas.opcp import TAG, RootCertificateCollection, RootResponse
from ccp.schemas.timestamps import rfc3339
from ccp.server.domain.authorization import PublicRootOperation
from ccp.server.http.request_context import Handler, RequestContext, Target, target_dependency
from ccp.server.http.responses import FastJSONResponse, error_descriptions
from ccp.server.pool.operations import Pool
from ccp.server.trust.root_catalogue import CurrentRootCatalogue, ListedRoot
from ccp.x509.names import parse_dn
from ccp.x509.profiles import ROOT_TYPES, AnchorRole

ROOTS: Final = "/v1/root/rootCerts"
TRUST_LIST: Final = "/v1/root/ctl"

# The published description names the edition of ISO 15118-20 by this alias.
_EDITIONS: Final = {Namespace.ISO2: Namespace.ISO2.value, Namespace.ISO20: "urn:iso:15118:20:2022:MsgDef"}
_UNKNOWN_ROOT: Final = "Root certificate with the given ID is not found"
_NO_TRUST_LIST: Final = "This pool has no certificate trust list; GET /v1/root/rootCerts lists its roots."


def router(pool: Pool, context: RequestContext, catalogue: CurrentRootCatalogue) -> APIRouter:
    """Return the routes."""
    api = APIRouter(tags=[TAG])

    def target_of(operation: PublicRootOperation) -> Any:
        return target_dependency(context, pool, operation)

    def add(path: str, operation: PublicRootOperation, model: type[BaseModel] | None) -> Callable[[Handler], Handler]:
        statuses = [400, 401, 403, 404, 500, 503]
        responses = error_descriptions(statuses)
        if model is not None:
            responses[200] = {"model": model}
        return api.api_route(
            path,
            methods=["GET"],
            name=f"{TAG} {operation.value}",
            operation_id=f"{TAG}{operation.value}",
            summary=operation.value,
            response_class=Response,
            responses=responses,
        )

    def listed(target: Target) -> list[ListedRoot]:
        """Return the roots that have not expired. Raises NotFound for a request that is for another pool."""
        if target.pool is not pool:
            raise NotFound("A request for roots is not passed on.", code=ErrorCode.POOL_NOT_FOUND)
        now = context.clock().replace(microsecond=0)
        return [root for root in catalogue.of(pool.anchors).roots if now <= root.certificate.not_after]

    @add(ROOTS, PublicRootOperation.GET_ROOT_CERTIFICATES, RootCertificateCollection)
    async def root_certificates(
        target: Target = target_of(PublicRootOperation.GET_ROOT_CERTIFICATES),
        root_type: Annotated[str | None, Query(alias="rootType", description="V2G, MO or OEM.")] = None,
    ) -> Response:
        """List the roots that the pool trusts, for every party, without expired ones."""
        wanted = _roles(root_type)
        items = [_root(root) for root in listed(target) if root.role in wanted]
        return FastJSONResponse({"RootCertificateCollection": {"rootCertificates": items}})

    @add(f"{ROOTS}/{{rootCertificateId}}", PublicRootOperation.GET_ROOT_CERTIFICATE, RootResponse)
    async def root_certificate(
        root_id: Annotated[str, Path(alias="rootCertificateId", description="The id from the list of roots.")],
        target: Target = target_of(PublicRootOperation.GET_ROOT_CERTIFICATE),
    ) -> Response:
        """Return one of the listed roots."""
        for root in listed(target):
            if str(root.id) == root_id.lower():
                return FastJSONResponse({"RootResponse": _root(root)})
        raise NotFound(_UNKNOWN_ROOT, code=ErrorCode.ROOT_NOT_FOUND)

    @add(TRUST_LIST, PublicRootOperation.GET_TRUST_LIST, None)
    async def trust_list(target: Target = target_of(PublicRootOperation.GET_TRUST_LIST)) -> Response:
        """Answer that there is no certificate trust list. No format and no signer of one is defined."""
        raise NotFound(_NO_TRUST_LIST)

    return api


def _roles(root_type: str | None) -> frozenset[AnchorRole]:
    """Return the roles of the roots that the query selects. Raises FieldError."""
    if root_type is None:
        return frozenset(AnchorRole)
    known = {**{name: frozenset({role}) for role, name in ROOT_TYPES.items()}, "EMSP": frozenset({AnchorRole.EMSP})}
    # PE: roots of private environments, of which the pool has none.
    found = {**known, "PE": frozenset[AnchorRole]()}.get(root_type.upper())
    if found is None:
        raise FieldError(f"rootType : must be one of {', '.join(ROOT_TYPES.values())}")
    return found


def _root(root: ListedRoot) -> JSONObject:
    certificate = root.certificate
    identifier = certificate.authority_key_identifier or certificate.key_identifier or b""
    members = {
        "rootCertificateId": str(root.id),
        "distinguishedName": certificate.subject_dn,
        "caCertificate": encode_base64(certificate.der),
        "commonName": certificate.subject_cn,
        "rootAuthorityKeyIdentifier": encode_base64(identifier),
        "rootAuthorityKeyIdentifierHex": identifier.hex(),
        "rootIssuerSerialNumber": f"{certificate.serial_number:x}",
        "validFrom": rfc3339(certificate.not_before),
        "validTo": rfc3339(certificate.not_after),
        "organizationName": dict(parse_dn(certificate.subject_dn)).get("O", ""),
        "rootType": root.root_type,
        "fingerprint": certificate.fingerprint,
        "fingerprintSha1": root.fingerprint_sha1,
    }
    if root.key is not None and root.edition is not None:
        members.update(signatureAlgorithm=root.key, xsdMsgDefNamespace=_EDITIONS[root.edition])
    if root.cross_certificates is not None:
        members["crossCertificatePair"] = encode_base64(root.cross_certificates)
    return members
