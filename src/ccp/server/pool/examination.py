"""Examination of one message: its content, checks and chains, and what a vehicle would get for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ccp import exi, verify
from ccp.errors import EXIError, FieldError
from ccp.ids import EMAID, PCID, Namespace
from ccp.server.domain.contracts import SignedContract
from ccp.server.pool.delivery_preview import DeliveryPreview, DeliveryPreviews
from ccp.server.pool.verification_reports import VerificationReports
from ccp.server.storage import Store
from ccp.server.storage.queries import contracts as queries
from ccp.verify import Explanation, InstallationRequest, InstallationResponse
from ccp.verify.verifier import is_request, open_message
from ccp.x509.path_validation import VerifiedChain
from ccp.x509.revocation_policy import DeferredRevocation


@dataclass(frozen=True, slots=True)
class CertificatePath:
    """The certificates of a message that belong to one path, leaf first, DER. name: of the path."""

    name: str
    certificates: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Examination:
    """What a message is and what the pool makes of it.

    data: EXI. tree: the JSON form of the message, None if it cannot be decoded. paths: as sent. verified: the paths
    that end in a trust anchor. preview: for a request whose checks pass, what the vehicle would get now.
    """

    data: bytes
    explanation: Explanation
    namespace: Namespace | None = None
    is_request: bool = False
    tree: dict[str, Any] | None = None
    emaid: EMAID | None = None
    pcid: PCID | None = None
    paths: tuple[CertificatePath, ...] = ()
    verified: tuple[VerifiedChain, ...] = ()
    preview: DeliveryPreview | None = None


class Examinations:
    """Examines messages by the pool's anchors, settings and stored revocation state. Nothing is stored or fetched."""

    def __init__(
        self,
        store: Store,
        reports: VerificationReports,
        previews: DeliveryPreviews,
    ) -> None:
        self._store = store
        self._reports = reports
        self._previews = previews

    async def of(self, data: bytes, now: datetime, *, with_contracts: bool = True) -> Examination:
        """Examine a message. data: EXI. with_contracts: whether to look up what is stored for the vehicle."""
        message, explanation = open_message(data, now)
        if message is None:
            return Examination(data, explanation)
        namespace = Namespace(exi.namespace_of(message))
        tree = exi.to_json(message)
        try:
            if is_request(message):
                request = verify.read_request(data, namespace)
                return await self._request(request, explanation, tree, now, with_contracts)
            return await self._response(verify.read_response(data, namespace), explanation, tree, now)
        except EXIError as exc:
            explanation.checks.run("Content of the message", _raising(exc))
            return Examination(data, explanation, namespace, tree=tree)

    async def _request(
        self,
        request: InstallationRequest,
        opened: Explanation,
        tree: dict[str, Any],
        now: datetime,
        with_contracts: bool,
    ) -> Examination:
        deferred = DeferredRevocation()
        checks, warnings = await self._reports.on_request(request, now, deferred=deferred)
        pcid, preview = verify.claimed_pcid(request), None
        if with_contracts and checks.passed and pcid is not None:
            stored: list[SignedContract] = await self._store.read(queries.by_vehicle(pcid))
            preview = await self._previews.of(pcid, request.namespace, stored, now, wish=request)
        return Examination(
            request.parsed.data,
            Explanation(opened.title, checks, now, warnings),
            request.namespace,
            is_request=True,
            tree=tree,
            pcid=pcid,
            paths=(CertificatePath("Provisioning", (request.certificate, *request.sub_certificates)),),
            verified=tuple(deferred.chains),
            preview=preview,
        )

    async def _response(
        self, response: InstallationResponse, opened: Explanation, tree: dict[str, Any], now: datetime
    ) -> Examination:
        deferred = DeferredRevocation()
        checks, warnings = await self._reports.on_response(
            response, emaid=None, root=None, now=now, fetch=False, deferred=deferred
        )
        emaid = None
        for chain in deferred.chains:
            if chain.leaf.der == response.contract_certificate:
                with contextlib.suppress(FieldError):  # One of the checks says so.
                    emaid = EMAID.parse(chain.leaf.subject_cn)
        return Examination(
            response.parsed.data,
            Explanation(opened.title, checks, now, warnings),
            response.namespace,
            tree=tree,
            emaid=emaid,
            paths=(
                CertificatePath("Contract", (response.contract_certificate, *response.contract_sub_certificates)),
                CertificatePath("Provisioning service", (response.cps_certificate, *response.cps_sub_certificates)),
            ),
            verified=tuple(deferred.chains),
        )


def _raising(error: EXIError) -> Callable[[], None]:
    def check() -> None:
        raise error

    return check
