"""Client of a PKI service: OPNC RevokeCert."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Final

import orjson
import structlog

from ccp import verify
from ccp.errors import ChainError, ConfigurationError, FieldError, Unavailable, UpstreamError
from ccp.ids import Fingerprint
from ccp.schemas.common import encode_base64
from ccp.server.domain.contracts import SignedContract
from ccp.server.external.outbound import HttpResponse
from ccp.server.external.service_client import ServiceClient, get_member, parse_json
from ccp.server.external.service_connection import ServiceConnection
from ccp.x509.certificates import Certificate
from ccp.x509.issuer_map import IssuerMap

_log = structlog.get_logger("ccp.server.external.pki_service")

REASON_HEADER: Final = "X-Revocation-Reason"
REVOKE_TIMEOUT: Final = 10.0
"""A CA may need an HSM and publish a CRL; the eMSP that deletes the contract waits for it."""
_MAX_BYTES: Final = 65_536  # The published answer has no body; errors are a few sentences.
# If a response is lost, the eMSP gets 502 although the certificate is revoked. When the eMSP deletes again, the PKI
# service refuses with words like these, and the certificate is revoked as requested. The published API has no code for
# this case.
_ALREADY_REVOKED: Final = re.compile(r"\balready (been )?revoked\b", re.IGNORECASE)


class RevocationReason(StrEnum):
    """Why a contract certificate is revoked. Source: OPNC API 1.0, revokeCertificateReq."""

    PRIVILEGE_WITHDRAWN = "privilegeWithdrawn"
    AFFILIATION_CHANGED = "affiliationChanged"
    SUPERSEDED = "superseded"
    UNSPECIFIED = "unspecified"
    KEY_COMPROMISE = "keyCompromise"
    AA_COMPROMISE = "aACompromise"
    CESSATION_OF_OPERATION = "cessationOfOperation"

    @classmethod
    def parse(cls, text: str | None) -> RevocationReason:
        """Parse the header's value; cessationOfOperation if there is none. Raises FieldError."""
        if text is None:
            return cls.CESSATION_OF_OPERATION
        try:
            return cls(text)
        except ValueError as exc:
            raise FieldError(f"{REASON_HEADER} : must be one of {', '.join(cls)}") from exc


class PKIService(ServiceClient):
    """OPNC RevokeCert. The service's URL ends in /pki, and the published path below it starts with /pki again."""

    name = "PKI service"

    def __init__(
        self,
        connection: ServiceConnection,
        operator_cas: Iterable[str] = (),
        timeout: float | None = None,
    ) -> None:
        """operator_cas: fingerprints of CA certificates. timeout: seconds for one revocation; None: REVOKE_TIMEOUT.

        Raises ConfigurationError.
        """
        super().__init__(connection)
        self._timeout = REVOKE_TIMEOUT if timeout is None else timeout
        try:
            fingerprints = [Fingerprint.parse(text, "operator_cas") for text in operator_cas]
            self.operator_cas: Final = IssuerMap(dict.fromkeys(fingerprints, True))
        except FieldError as exc:
            raise ConfigurationError(*exc.messages) from exc

    async def revoke_issued(self, variants: Iterable[SignedContract], reason: RevocationReason) -> list[Certificate]:
        """Revoke the contract certificates of these variants that an operator CA issued; return those certificates.

        Raises UpstreamError for the first one that cannot be revoked; Unavailable if the CA of a fingerprint in
        `operator_cas` is not known yet and may be the issuer.
        """
        issued = {}
        for contract in variants:
            if is_issued_by_operator(contract, self.operator_cas):
                issued[contract.certificate] = Certificate.load(contract.certificate)
            elif self.operator_cas.unresolved:
                raise Unavailable(
                    "The pool does not know yet which CA a fingerprint in its configuration means, so it cannot tell "
                    "whether the contract certificate has to be revoked; nothing was deleted."
                )
        for certificate in issued:
            await self.revoke(certificate, reason)
        return list(issued.values())

    async def revoke(self, certificate: bytes, reason: RevocationReason) -> None:
        """Revoke a certificate. Not retried: the published API does not say that the operation is idempotent.

        certificate: DER. Raises UpstreamError unless the service confirms the revocation.
        """
        body = orjson.dumps({"certificate": encode_base64(certificate), "revocationReason": reason.value})
        response = await self._call(
            "POST", "/pki/revokeCertificate", timeout=self._timeout, max_bytes=_MAX_BYTES, body=body
        )
        messages = _error_messages(response)
        if response.status in (400, 409) and any(_ALREADY_REVOKED.search(message) for message in messages):
            return
        if response.status not in (200, 204) or messages:
            _log.warning("revocation refused", status=response.status, messages=[text[:200] for text in messages])
            raise UpstreamError(
                f"The PKI service did not revoke the contract certificate (status {response.status}); "
                "nothing was deleted."
            )
        if response.body and response.media_type == "text/html":  # A login page or a proxy, not the service.
            raise UpstreamError("The PKI service's answer is not one of a PKI service; nothing was deleted.")
        if response.body and response.media_type == "application/json":
            parse_json(response, self.name)


def is_issued_by_operator(contract: SignedContract, operator_cas: IssuerMap[bool]) -> bool:
    """Whether one of these CAs issued the contract certificate, as far as the CAs are known. Pure.

    The issuer is one of the sub-CA certificates of the stored response, and it must have signed the certificate; a
    matching name is not enough. A stored response was verified when it was published.
    """
    if not operator_cas:
        return False
    response = verify.read_response(contract.response, contract.namespace)
    leaf = Certificate.load(response.contract_certificate)
    for der in response.contract_sub_certificates:
        issuer = Certificate.load(der)
        if operator_cas.of(issuer):
            try:
                leaf.verify_issued_by(issuer)
            except ChainError:
                continue
            return True
    return False


def _error_messages(response: HttpResponse) -> list[str]:
    """The error messages in a response; empty if it has none."""
    try:
        parsed = orjson.loads(response.body)
    except orjson.JSONDecodeError:
        return []
    messages = get_member(parsed, "errorMessages")
    return [str(message) for message in messages] if isinstance(messages, list) else []
