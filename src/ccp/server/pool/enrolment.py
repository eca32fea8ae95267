"""Certificates for charging stations: requests of operators, passed on to the configured EST server.

The pool presents its own credentials there, so the EST server cannot tell operators apart. Therefore the pool checks
whose charging station a request names, limits which CAs can be asked, and records each request before it is sent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from ccp.errors import CCPError, FieldError, NotAuthorised, NotFound, Unavailable
from ccp.errors.codes import ErrorCode
from ccp.ids import OperatorId
from ccp.server.domain.authorization import EnrolmentOperation, authorise_role
from ccp.server.domain.parties import Caller, Party
from ccp.server.external.est import CASelection, ESTOperation, ESTServer, Pending
from ccp.server.runtime.clock import Clock
from ccp.server.settings import EnrolmentSubjects
from ccp.server.storage import Store
from ccp.server.storage.queries import audit
from ccp.server.storage.queries.audit import Action, Entry
from ccp.x509.certificates import Certificate
from ccp.x509.signing_requests import SigningRequest, read_signing_request

_OPERATIONS: Final = {
    EnrolmentOperation.ENROL: ESTOperation.SIMPLE_ENROLL,
    EnrolmentOperation.REENROL: ESTOperation.SIMPLE_REENROLL,
}
_EVSE_ID: Final = re.compile(r"([A-Za-z]{2}\*?\w{3})\*?E[\w*]{1,30}", re.ASCII)
"""With the operator id as its first group. Source: ISO 15118-2 clause H.2.1, as published for this operation."""
_NO_SERVER: Final = "This pool passes no certificate requests on, because no EST server is configured (est_url)."
_MAX_LOGGED: Final = 200  # Characters of a subject or issuer in the audit trail.


class Enrolment:
    """EST operations for operators of charging stations. now: time of the request."""

    def __init__(
        self,
        store: Store,
        server: ESTServer | None,
        labels: Mapping[str, str],
        subjects: EnrolmentSubjects,
        clock: Clock,
    ) -> None:
        """server: None: every operation raises NotFound. labels: names of CAs that callers may use, and theirs at the
        server. subjects: which common names a request may have.
        """
        self._store = store
        self._server = server
        self._labels = labels
        self._subjects = subjects
        self._clock = clock

    def select(self, ca: str, edition: str | None, algorithm: str | None) -> CASelection:
        """The CA that a caller names. Raises NotFound if neither the name nor its lower-case form is configured, and
        without an EST server.
        """
        if self._server is None:
            raise NotFound(_NO_SERVER, code=ErrorCode.ENROLMENT_NOT_FOUND)
        label = self._labels.get(ca, self._labels.get(ca.lower()))
        if label is None:
            raise NotFound(
                f"This pool passes on requests for the CAs {', '.join(sorted(self._labels))} only.",
                code=ErrorCode.ENROLMENT_NOT_FOUND,
            )
        return CASelection(label, edition, algorithm)

    async def ca_certificates(self, caller: Caller, selection: CASelection) -> tuple[Certificate, ...]:
        """The certificates of a CA. Raises NotFound, Unavailable, UpstreamError."""
        if self._server is None:
            raise NotFound(_NO_SERVER, code=ErrorCode.ENROLMENT_NOT_FOUND)
        return await self._server.ca_certificates(selection, caller.party.client_id)

    async def enrol(
        self, caller: Caller, operation: EnrolmentOperation, selection: CASelection, body: bytes, now: datetime
    ) -> tuple[Certificate, ...] | Pending:
        """Check a certificate signing request, and pass it on. Returns the issued certificate first.

        body: as `ccp.x509.signing_requests.read_signing_request` takes it. The request is recorded in the audit trail
        before it is sent, and its outcome before this returns. Raises FieldError, NotAuthorised, NotFound, ESTRefusal,
        UpstreamError; Unavailable if the EST server or the database is temporarily unavailable.
        """
        if self._server is None:
            raise NotFound(_NO_SERVER, code=ErrorCode.ENROLMENT_NOT_FOUND)
        request = read_signing_request(body)
        if self._subjects is EnrolmentSubjects.OWN:
            check_own_station(caller.party, request)
        subject: dict[str, Any] = {
            "operation": operation.value,
            "csr_sha256": request.fingerprint,
            "subject": request.subject[:_MAX_LOGGED],
            "ca": selection.label,
        }
        standing = caller.standing(lambda party: authorise_role(party, operation))
        actor = caller.party.client_id
        begun = Entry(now, actor, Action.CERTIFICATE_REQUESTED, subject, trace_id=caller.trace_id)
        await self._store.write(audit.record(begun, standing=standing))
        outcome = "cancelled"
        try:
            found = await self._server.enrol(_OPERATIONS[operation], request, selection, actor)
            if isinstance(found, Pending):
                outcome = "pending"
            else:
                outcome = "ok"
                subject |= _issued(found[0])
        except CCPError as exc:
            outcome = exc.outcome
            raise
        except Exception:
            outcome = "crashed"
            raise
        finally:
            ended = Entry(self._clock(), actor, Action.CERTIFICATE_ISSUED, subject, outcome, caller.trace_id)
            try:
                await self._store.write(audit.record(ended))
            except Unavailable as exc:
                raise Unavailable("The outcome cannot be recorded now; a certificate may have been issued.") from exc
        return found


def check_own_station(party: Party, request: SigningRequest) -> None:
    """Check that a request names an EVSE of the party. Raises FieldError, NotAuthorised."""
    match = _EVSE_ID.fullmatch(request.common_name)
    if match is None:
        raise FieldError("The common name of the certificate signing request must be one EVSE id, such as DE*ABC*E123.")
    operator = OperatorId.parse(match[1])
    if operator not in party.operator_ids:
        raise NotAuthorised(
            f"The operator id {operator} of the EVSE is not registered for the caller.",
            code=ErrorCode.ID_NOT_REGISTERED,
        )


def _issued(certificate: Certificate) -> dict[str, str]:
    return {
        "fingerprint": certificate.fingerprint,
        "serial": f"{certificate.serial_number:x}",
        "issuer": certificate.issuer_dn[:_MAX_LOGGED],
    }
