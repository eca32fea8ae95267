"""The catalogue of error codes: one stable code for every refusal, what it means, and who has to do what.

A code stands in the header `X-Error-Code`, in the log, and in the records of refused deliveries. Codes are words that
never change their meaning; a new meaning is a new code. A code says no more than the sentences of the response do.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, NamedTuple


class Responsible(StrEnum):
    """Who has to act. The caller is the party whose system sent the request."""

    CALLER = "caller"
    EMSP = "eMSP"
    CPO = "CPO"
    OEM = "OEM"
    CPS = "CPS"
    OPERATOR = "pool operator"


class ErrorCode(StrEnum):
    """A stable code.

    responsible: who has to act. status: of the HTTP response in most cases; a delivery with a negative message has 200.
    meaning, action: one or more sentences.
    """

    responsible: Responsible
    status: int
    meaning: str
    action: str

    def __new__(cls, value: str, responsible: Responsible, status: int, meaning: str, action: str) -> ErrorCode:
        """Make a member of one row of the catalogue."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.responsible, member.status, member.meaning, member.action = responsible, status, meaning, action
        return member

    # HTTP.
    HTTP_INVALID = ("http-invalid", Responsible.CALLER, 400,
        "The request is not valid HTTP/1.1, or its connection ended before it was complete.",
        "Correct the HTTP client or the proxy between; the sentence says what cannot be read.",
    )  # fmt: skip
    PATH_NOT_FOUND = ("path-not-found", Responsible.CALLER, 404,
        "There is no operation at this path.",
        "Correct the address. Paths are in the OpenAPI description of the pool.",
    )  # fmt: skip
    METHOD_NOT_ALLOWED = ("method-not-allowed", Responsible.CALLER, 405,
        "The path exists, but not with this HTTP method.",
        "Use one of the methods in the header Allow.",
    )  # fmt: skip
    REQUEST_TIMEOUT = ("request-timeout", Responsible.CALLER, 408,
        "The head or the body of the request did not arrive in time.",
        "Send the request at once and in whole; look for a slow network or proxy.",
    )  # fmt: skip
    BODY_TOO_LARGE = ("body-too-large", Responsible.CALLER, 413,
        "The body is larger than the pool accepts.",
        "Send less. The operator can raise the limit with the setting max_body.",
    )  # fmt: skip
    URI_TOO_LONG = ("uri-too-long", Responsible.CALLER, 414,
        "Path and query together are too long.",
        "Correct the address; no operation needs so many bytes.",
    )  # fmt: skip
    MEDIA_TYPE_UNSUPPORTED = ("media-type-unsupported", Responsible.CALLER, 415,
        "The body has a content type or a compression that the operation does not take.",
        "Send the body uncompressed, with the content type that the sentence names.",
    )  # fmt: skip
    HEAD_TOO_LARGE = ("head-too-large", Responsible.CALLER, 431,
        "The head of the request has too many bytes or too many headers.",
        "Send fewer headers.",
    )  # fmt: skip
    HTTP_NOT_IMPLEMENTED = ("http-not-implemented", Responsible.CALLER, 501,
        "The request needs a part of HTTP that the pool does not have.",
        "Send an ordinary HTTP/1.1 request.",
    )  # fmt: skip
    HTTP_VERSION_UNSUPPORTED = ("http-version-unsupported", Responsible.CALLER, 505,
        "The request is of another version than HTTP/1.1.",
        "Use HTTP/1.1.",
    )  # fmt: skip
    CONNECTION_LIMIT_EXCEEDED = ("connection-limit-exceeded", Responsible.CALLER, 429,
        "One address has more connections open than the pool accepts.",
        "Keep connections open and use them again.",
    )  # fmt: skip
    OVERLOADED = ("overloaded", Responsible.OPERATOR, 503,
        "The pool has more requests or connections than it can serve in time.",
        "Callers repeat the request after Retry-After. The operator looks at the metrics and adds capacity.",
    )  # fmt: skip
    NOT_READY = ("not-ready", Responsible.OPERATOR, 503,
        "The worker cannot do its work now, or is being stopped.",
        "Send the request to another worker or again later. The reasons are in the body; the operator runs ccp doctor.",
    )  # fmt: skip
    INTERNAL_ERROR = ("internal-error", Responsible.OPERATOR, 500,
        "The pool failed. This is a fault of the pool.",
        "The operator finds the trace id in the log and reports the fault.",
    )  # fmt: skip
    CONFIGURATION_INVALID = ("configuration-invalid", Responsible.OPERATOR, 500,
        "The configuration of the pool, or a file that it names, cannot be used.",
        "The operator corrects what the sentence names; ccp doctor examines the whole configuration.",
    )  # fmt: skip

    # Input.
    INPUT_INVALID = ("input-invalid", Responsible.CALLER, 400,
        "The request was passed on to another pool, which refused it as wrong.",
        "Correct what the sentence names; it is the other pool's. If it is unclear, ask the operator of that pool.",
    )  # fmt: skip
    FIELD_INVALID = ("field-invalid", Responsible.CALLER, 400,
        "A member of the body, a parameter, or a header is missing or breaks its pattern, or the body is not JSON.",
        "Correct the fields that the sentences name.",
    )  # fmt: skip
    MESSAGE_UNREADABLE = ("message-unreadable", Responsible.CALLER, 400,
        "The message is not valid Base64, or not a valid EXI message of the expected kind and edition.",
        "Send the message as it was received; the sentence has the position of the fault. Often a proxy has changed "
        "it, or a request was sent where a response is expected.",
    )  # fmt: skip
    MESSAGE_TOO_LONG = ("message-too-long", Responsible.CPO, 400,
        "The message is longer than the charging station or its version of OCPP takes.",
        "State the right ocppVersion, or raise maxExiResponse where the station takes more.",
    )  # fmt: skip
    ACTION_UNSUPPORTED = ("action-unsupported", Responsible.CPO, 400,
        "The vehicle asks for an update of its contract certificate, which the pool does not serve.",
        "Configure the station or vehicle to install a contract certificate.",
    )  # fmt: skip
    VALUES_DISAGREE = ("values-disagree", Responsible.CALLER, 400,
        "Two values of the request that have to be the same, such as an id in the path and in the body, are not.",
        "Correct the values that the sentence names.",
    )  # fmt: skip

    # Access.
    TOKEN_MISSING = ("token-missing", Responsible.CALLER, 401,
        "The request has no bearer token.",
        "Get a token at /oauth/token and send it in the header Authorization.",
    )  # fmt: skip
    TOKEN_INVALID = ("token-invalid", Responsible.CALLER, 401,
        "The access token is not valid: expired, of another audience or issuer, changed, or of a disabled party.",
        "Get a new token. If that does not help, ask the operator for the reason, which is in the log.",
    )  # fmt: skip
    CLIENT_CREDENTIALS_INVALID = ("client-credentials-invalid", Responsible.CALLER, 401,
        "The client is unknown, or its secret is wrong or missing.",
        "Check client id and secret; the operator can issue a new secret.",
    )  # fmt: skip
    CLIENT_CERTIFICATE_INVALID = ("client-certificate-invalid", Responsible.CALLER, 401,
        "Access tokens are bound to a TLS client certificate, and the request has none that can be read.",
        "Connect with the client certificate. Behind a proxy, the operator checks what the proxy passes on.",
    )  # fmt: skip
    TOKEN_REQUEST_INVALID = ("token-request-invalid", Responsible.CALLER, 400,
        "The request to the token endpoint is malformed.",
        "Send grant_type=client_credentials as RFC 6749 clause 4.4 describes it.",
    )  # fmt: skip
    SCOPE_NOT_HELD = ("scope-not-held", Responsible.CALLER, 400,
        "The requested scope names a role that the client does not have.",
        "Leave out scope, or name roles of the client.",
    )  # fmt: skip
    NOT_ALLOWED = ("not-allowed", Responsible.CALLER, 403,
        "The credentials are right, but the caller lacks a right that the operation needs.",
        "The sentence says what is missing. Ask the operator to register it.",
    )  # fmt: skip
    ROLE_MISSING = ("role-missing", Responsible.CALLER, 403,
        "The operation is for a role that the caller does not have.",
        "Use the credentials of a party with this role, or ask the operator to register the role.",
    )  # fmt: skip
    ID_NOT_REGISTERED = ("id-not-registered", Responsible.CALLER, 403,
        "The provider id, WMI or operator id of the request is not registered for the caller.",
        "Ask the operator to register the id for the party.",
    )  # fmt: skip
    SENDER_MISMATCH = ("sender-mismatch", Responsible.CALLER, 403,
        "The headers OPNC-from-party-type and OPNC-from-party-id do not fit the party of the token.",
        "Correct the headers, or leave them out.",
    )  # fmt: skip
    EVENT_SIGNATURE_INVALID = ("event-signature-invalid", Responsible.CALLER, 403,
        "The signature of an event is missing or wrong.",
        "Check the shared secret on both sides; the signature is over the body as sent.",
    )  # fmt: skip
    RATE_LIMIT_EXCEEDED = ("rate-limit-exceeded", Responsible.CALLER, 429,
        "The caller sends more requests than its rate limit allows.",
        "Wait as long as Retry-After says. Ask the operator for a higher limit if the load is right.",
    )  # fmt: skip

    # The vehicle's request.
    PROVISIONING_CERTIFICATE_INVALID = ("provisioning-certificate-invalid", Responsible.OEM, 400,
        "The provisioning certificate in the vehicle's request cannot be read.",
        "The OEM examines the certificate that was put into the vehicle.",
    )  # fmt: skip
    PROVISIONING_CERTIFICATE_WITHOUT_PCID = ("provisioning-certificate-without-pcid", Responsible.OEM, 400,
        "The common name of the provisioning certificate is no PCID.",
        "The OEM issues provisioning certificates with the PCID as common name.",
    )  # fmt: skip
    REQUEST_SIGNATURE_INVALID = ("request-signature-invalid", Responsible.OEM, 400,
        "The vehicle's signature does not fit its request and its provisioning certificate.",
        "The message was changed on the way, or the vehicle signs wrongly. The CPO compares the bytes at the station "
        "with those that were sent; if they are equal, the OEM examines the vehicle.",
    )  # fmt: skip
    PROVISIONING_CHAIN_UNTRUSTED = ("provisioning-chain-untrusted", Responsible.OPERATOR, 400,
        "The provisioning certificate has no valid chain to an OEM root that this pool trusts.",
        "The operator adds the OEM's root and sub-CAs. If they are trusted, the OEM corrects the certificate.",
    )  # fmt: skip
    PROVISIONING_CERTIFICATE_EXPIRED = ("provisioning-certificate-expired", Responsible.OEM, 400,
        "A certificate of the vehicle's provisioning chain has expired.",
        "The OEM renews the provisioning certificate of the vehicle.",
    )  # fmt: skip
    PROVISIONING_CERTIFICATE_REVOKED = ("provisioning-certificate-revoked", Responsible.OEM, 400,
        "A certificate of the vehicle's provisioning chain is revoked.",
        "The OEM puts a new provisioning certificate into the vehicle.",
    )  # fmt: skip
    PROVISIONING_CERTIFICATE_REPLACED = ("provisioning-certificate-replaced", Responsible.OEM, 400,
        "The vehicle signs with a provisioning certificate that the Provisioning Certificate Pool has replaced.",
        "The OEM brings the current certificate into the vehicle, or corrects the entry in its Provisioning "
        "Certificate Pool.",
    )  # fmt: skip
    REQUEST_NOT_VERIFIED = ("request-not-verified", Responsible.OEM, 400,
        "The vehicle's request did not pass every check.",
        "The sentence names the check; ccp verify reports all of them. The OEM corrects the vehicle or its "
        "provisioning certificate.",
    )  # fmt: skip

    # What a vehicle gets.
    NO_CONTRACT_FOR_VEHICLE = ("no-contract-for-vehicle", Responsible.EMSP, 404,
        "No contract is stored for the vehicle here, and no other pool that was asked has one.",
        "The driver's eMSP has the contract signed and published for this PCID. A driver without a contract "
        "signs one first.",
    )  # fmt: skip
    NO_CONTRACT_AT_ADDRESSED_POOL = ("no-contract-at-addressed-pool", Responsible.EMSP, 404,
        "The pool that the request is addressed to has no contract for the vehicle now.",
        "The CPO addresses the right pool, or none. The driver's eMSP publishes the contract there.",
    )  # fmt: skip
    NO_CONTRACT_FOR_EDITION = ("no-contract-for-edition", Responsible.EMSP, 404,
        "Contracts are stored for the vehicle, but none is signed for its edition of ISO 15118.",
        "The driver's eMSP publishes the contract for this edition too.",
    )  # fmt: skip
    NO_VALID_CONTRACT = ("no-valid-contract", Responsible.EMSP, 404,
        "Every contract of the vehicle has expired or is not valid yet.",
        "The driver's eMSP renews the contract.",
    )  # fmt: skip
    NO_USABLE_CONTRACT = ("no-usable-contract", Responsible.EMSP, 404,
        "Every valid contract of the vehicle is revoked, of unknown revocation status, or made for another "
        "provisioning certificate.",
        "The driver's eMSP has the contract signed again for the current provisioning certificate.",
    )  # fmt: skip
    NO_CONTRACT_FOR_ROOT = ("no-contract-for-root", Responsible.EMSP, 404,
        "No contract of the vehicle is signed under a V2G root that the vehicle lists.",
        "The driver's eMSP publishes the contract with a provisioning service under one of these roots.",
    )  # fmt: skip
    NO_DEFAULT_CONTRACT = ("no-default-contract", Responsible.OEM, 404,
        "The vehicle has several contracts, and none is its default.",
        "The OEM sets the default contract.",
    )  # fmt: skip
    DEFAULT_CONTRACT_NOT_DELIVERABLE = ("default-contract-not-deliverable", Responsible.EMSP, 404,
        "The default contract of the vehicle cannot be delivered now.",
        "The eMSP of the default contract renews it, or the OEM makes another contract the default.",
    )  # fmt: skip
    NO_CHAIN_REQUESTED = ("no-chain-requested", Responsible.OEM, 404,
        "The vehicle asks for zero contract certificate chains.",
        "The OEM corrects MaximumContractCertificateChains; the CPO checks what the station passes on.",
    )  # fmt: skip
    NOTHING_DELIVERABLE = ("nothing-deliverable", Responsible.EMSP, 404,
        "Contracts are stored for the vehicle, but none can be delivered now.",
        "The sentence says why. The driver's eMSP looks at the contract with GetContractDataByEmaid and publishes it "
        "again.",
    )  # fmt: skip
    DELIVERY_TIMEOUT = ("delivery-timeout", Responsible.OPERATOR, 503,
        "The pool could not answer the vehicle in time.",
        "The vehicle asks again. If it repeats, the operator looks at the database, the peers and the load.",
    )  # fmt: skip
    REVOCATION_STATUS_UNKNOWN = ("revocation-status-unknown", Responsible.OPERATOR, 503,
        "The revocation status of a certificate is required and not known now.",
        "Repeat the request. If it repeats, the operator looks at the CRL and OCSP addresses that fail.",
    )  # fmt: skip

    # Publication.
    RESPONSE_NOT_OK = ("response-not-ok", Responsible.CPS, 400,
        "The message is a negative or unfinished CertificateInstallationRes.",
        "The CPS publishes messages with the ResponseCode OK.",
    )  # fmt: skip
    CONTRACT_CERTIFICATE_INVALID = ("contract-certificate-invalid", Responsible.EMSP, 400,
        "The contract certificate cannot be read.",
        "The eMSP has a correct certificate issued.",
    )  # fmt: skip
    CPS_CERTIFICATE_INVALID = ("cps-certificate-invalid", Responsible.CPS, 400,
        "The certificate of the provisioning service cannot be read.",
        "The CPS puts its right certificate into its messages.",
    )  # fmt: skip
    EMAID_MISMATCH = ("emaid-mismatch", Responsible.EMSP, 400,
        "The EMAID of the request, of the message and of the contract certificate are not the same.",
        "The eMSP publishes the message with the EMAID that it was made for.",
    )  # fmt: skip
    ROOT_MISMATCH = ("root-mismatch", Responsible.CPS, 400,
        "The chain of the provisioning service leads to another V2G root than the request names.",
        "Name the right root, or leave out cpsV2GRootCertificateFingerprint.",
    )  # fmt: skip
    CPS_CHAIN_UNTRUSTED = ("cps-chain-untrusted", Responsible.CPS, 400,
        "The provisioning service's certificate has no valid chain to a V2G root that this pool trusts.",
        "The CPS sends its sub-CAs; the operator adds the V2G root if it is missing.",
    )  # fmt: skip
    CPS_CERTIFICATE_EXPIRED = ("cps-certificate-expired", Responsible.CPS, 400,
        "A certificate of the provisioning service's chain has expired.",
        "The CPS signs with a valid certificate.",
    )  # fmt: skip
    CPS_CERTIFICATE_REVOKED = ("cps-certificate-revoked", Responsible.CPS, 400,
        "A certificate of the provisioning service's chain is revoked.",
        "The CPS signs with a valid certificate.",
    )  # fmt: skip
    CONTRACT_CHAIN_UNTRUSTED = ("contract-chain-untrusted", Responsible.EMSP, 400,
        "The contract certificate has no valid chain to an eMSP or V2G root that this pool trusts.",
        "The eMSP sends its sub-CAs; the operator adds the root if it is missing.",
    )  # fmt: skip
    CONTRACT_CERTIFICATE_EXPIRED = ("contract-certificate-expired", Responsible.EMSP, 400,
        "A certificate of the contract's chain has expired.",
        "The eMSP has a new contract certificate issued.",
    )  # fmt: skip
    CONTRACT_CERTIFICATE_REVOKED = ("contract-certificate-revoked", Responsible.EMSP, 400,
        "A certificate of the contract's chain is revoked.",
        "The eMSP has a new contract certificate issued.",
    )  # fmt: skip
    RESPONSE_SIGNATURE_INVALID = ("response-signature-invalid", Responsible.CPS, 400,
        "The signature of the provisioning service does not fit the message.",
        "The CPS corrects its signature; a message must not be changed after it was signed.",
    )  # fmt: skip
    DH_PUBLIC_KEY_INVALID = ("dh-public-key-invalid", Responsible.CPS, 400,
        "The DH public key is no point on its curve, or has the wrong length.",
        "The CPS corrects the key agreement.",
    )  # fmt: skip
    ENCRYPTED_KEY_INVALID = ("encrypted-key-invalid", Responsible.CPS, 400,
        "The encrypted private key has the wrong length, or does not go with the curve.",
        "The CPS corrects the encryption of the contract key.",
    )  # fmt: skip
    RESPONSE_NOT_VERIFIED = ("response-not-verified", Responsible.CPS, 400,
        "The message did not pass every check.",
        "Read the report of the checks: PUT with dryRun=true, or ccp verify.",
    )  # fmt: skip
    PROVISIONING_CERTIFICATE_CHANGED = ("provisioning-certificate-changed", Responsible.CPS, 400,
        "The vehicle's provisioning certificate changed while the contract was being published.",
        "The CPS signs the contract for the current certificate and publishes it again.",
    )  # fmt: skip
    VEHICLE_UNKNOWN = ("vehicle-unknown", Responsible.OEM, 400,
        "The Provisioning Certificate Pool does not know the PCID.",
        "The eMSP checks the PCID. The OEM publishes the vehicle's provisioning certificate.",
    )  # fmt: skip
    CONTRACT_LIMIT_REACHED = ("contract-limit-reached", Responsible.EMSP, 400,
        "The vehicle has as many contracts as the pool keeps for one vehicle, or for one provider.",
        "The eMSP deletes a contract that is not needed.",
    )  # fmt: skip

    # State.
    NOT_FOUND = ("not-found", Responsible.CALLER, 404,
        "What the request names does not exist, or is not visible to the caller.",
        "Correct the id.",
    )  # fmt: skip
    CONTRACT_NOT_FOUND = ("contract-not-found", Responsible.CALLER, 404,
        "No contract with this id is stored that the caller may see.",
        "Correct the EMAID or the PCID, the edition, or the V2G root.",
    )  # fmt: skip
    POOL_NOT_FOUND = ("pool-not-found", Responsible.CALLER, 404,
        "The pool in OPNC-to-party-id is not connected to this one, or the request was passed on by a pool already.",
        "Correct OPNC-to-party-id, or leave it out.",
    )  # fmt: skip
    ROOT_NOT_FOUND = ("root-not-found", Responsible.CALLER, 404,
        "No root of this pool has the id.",
        "Take the id from the list of roots.",
    )  # fmt: skip
    PARTY_NOT_FOUND = ("party-not-found", Responsible.CALLER, 404,
        "No party has this name or client id.",
        "Take the id from the list of parties.",
    )  # fmt: skip
    WEBHOOK_NOT_FOUND = ("webhook-not-found", Responsible.CALLER, 404,
        "The party has no webhook with this id.",
        "Take the id from the list of endpoints.",
    )  # fmt: skip
    ENROLMENT_NOT_FOUND = ("enrolment-not-found", Responsible.CALLER, 404,
        "The pool passes on no certificate requests, or none for this CA.",
        "Use one of the CAs that the sentence names.",
    )  # fmt: skip
    CONFLICT = ("conflict", Responsible.CALLER, 400,
        "The change contradicts what is stored: a name or an id is in use, or a limit is reached.",
        "The sentence says with what it collides. Choose another name or id, or remove what is in the way.",
    )  # fmt: skip
    PRECONDITION_FAILED = ("precondition-failed", Responsible.CALLER, 412,
        "The party has changed since it was read.",
        "Read it again, and repeat the change with the new ETag.",
    )  # fmt: skip

    # Temporary failures and other systems.
    TEMPORARILY_UNAVAILABLE = ("temporarily-unavailable", Responsible.OPERATOR, 503,
        "The pool or a system that it depends on does not answer now. Nothing has changed, unless the "
        "sentence says otherwise.",
        "Repeat the request after Retry-After. If it repeats, the operator looks at the log.",
    )  # fmt: skip
    DATABASE_UNAVAILABLE = ("database-unavailable", Responsible.OPERATOR, 503,
        "The database does not answer, or cannot write. Nothing has changed, unless the sentence says otherwise.",
        "Repeat the request after Retry-After. The operator looks at the database.",
    )  # fmt: skip
    POOL_UNAVAILABLE = ("pool-unavailable", Responsible.OPERATOR, 503,
        "Another pool that the request is for cannot be reached, failed, or is asked too often.",
        "Repeat the request after Retry-After. If it repeats, the operators of the two pools talk: ccp peer.",
    )  # fmt: skip
    UPSTREAM_FAILED = ("upstream-failed", Responsible.OPERATOR, 502,
        "A system that the pool depends on refused or failed; nothing was changed.",
        "The operator looks at this system: ccp neighbour test.",
    )  # fmt: skip
    ENROLMENT_REFUSED = ("enrolment-refused", Responsible.CALLER, 400,
        "The EST server refused the certificate request.",
        "The sentence is that of the EST server. Correct the certificate request, or ask the CA that runs the server.",
    )  # fmt: skip

    # Verification outside of a named check.
    VERIFICATION_FAILED = ("verification-failed", Responsible.CALLER, 400,
        "The input can be read, but a check of its signature, chain or content failed.",
        "The sentence names the check. Send the input as its signer made it, or have it signed again.",
    )  # fmt: skip
    SIGNATURE_INVALID = ("signature-invalid", Responsible.CALLER, 400,
        "A signature does not fit what it signs.",
        "The sentence says which one. Send the signed bytes unchanged; if they are, its signer makes the "
        "signature again.",
    )  # fmt: skip
    CERTIFICATE_INVALID = ("certificate-invalid", Responsible.CALLER, 400,
        "A certificate or a certificate request cannot be read, or has no valid chain.",
        "The sentence says which one and why. Have it issued again, or send the missing sub-CAs.",
    )  # fmt: skip
    CERTIFICATE_EXPIRED = ("certificate-expired", Responsible.CALLER, 400,
        "A certificate in the request has expired.",
        "Have the certificate renewed, and send the new one.",
    )  # fmt: skip
    CERTIFICATE_REVOKED = ("certificate-revoked", Responsible.CALLER, 400,
        "A certificate in the request is revoked by its CA.",
        "Have a new certificate issued, and send it.",
    )  # fmt: skip
    KEY_MATERIAL_INVALID = ("key-material-invalid", Responsible.CALLER, 400,
        "A public key or an encrypted key is malformed.",
        "The sentence says which one. Make the key again, in the form that ISO 15118 gives for the edition.",
    )  # fmt: skip


HEADER: Final = "X-Error-Code"
BY_VALUE: Final[Mapping[str, ErrorCode]] = {code.value: code for code in ErrorCode}


class Advice(NamedTuple):
    """What a code means, and who has to do what."""

    responsible: Responsible
    meaning: str
    action: str


_OF_A_NEWER_RELEASE: Final = Advice(
    Responsible.OPERATOR,
    "This release does not know the code; a newer one stored it.",
    "Read the sentence of the refusal, or look at it with the newer release.",
)


def advice_on(value: str) -> Advice:
    """Return the advice on a stored code, which may be of a newer release during a rolling upgrade."""
    code = BY_VALUE.get(value)
    return _OF_A_NEWER_RELEASE if code is None else Advice(code.responsible, code.meaning, code.action)


HTTP_CODES: Final[Mapping[int, ErrorCode]] = {
    400: ErrorCode.HTTP_INVALID,
    404: ErrorCode.PATH_NOT_FOUND,
    405: ErrorCode.METHOD_NOT_ALLOWED,
    408: ErrorCode.REQUEST_TIMEOUT,
    413: ErrorCode.BODY_TOO_LARGE,
    414: ErrorCode.URI_TOO_LONG,
    415: ErrorCode.MEDIA_TYPE_UNSUPPORTED,
    429: ErrorCode.CONNECTION_LIMIT_EXCEEDED,
    431: ErrorCode.HEAD_TOO_LARGE,
    501: ErrorCode.HTTP_NOT_IMPLEMENTED,
    503: ErrorCode.OVERLOADED,
    505: ErrorCode.HTTP_VERSION_UNSUPPORTED,
}
"""Codes of refusals of the HTTP layer, which have no error class, by status."""


def code_of_status(status: int) -> ErrorCode:
    """Return the code of a refusal of the HTTP layer."""
    return HTTP_CODES.get(status, ErrorCode.INTERNAL_ERROR)
