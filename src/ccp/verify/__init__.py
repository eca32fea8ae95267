"""Verification of CertificateInstallation messages: signatures, certificate chains, key material, revocation.

Verifying returns evidence or raises; nothing returns a bool. What was received and what was verified have different
types, and only the function that checked a message can create its `Verified…` type. No I/O except reading a directory
of certificates; time, trust anchors and revocation evidence are arguments.

    >>> from ccp.verify import NoRevocationCheck, Trust, explain_response, verify_response
    >>> trust = Trust.from_directory(directory, revocation=NoRevocationCheck())
    >>> verified = verify_response(data, trust=trust, now=now)
    >>> verified.emaid
    'DEEXAC00000001'
    >>> verified.cps_chain.leaf.subject_cn
    'CPS SIM'
    >>> print(explain_response(data[:-1] + b"X", trust=trust, now=now))
    no message
     1 failed: EXI message
    ...
    NOT verified

`verify_request` and `explain_request` do the same for the request of a vehicle. The functions below them (`read_…`,
`check_…`) take trust anchors and a revocation checker; `with_session` and `negative_response` build what a
vehicle gets.
"""

from ccp.verify.request import (
    InstallationRequest,
    VerifiedInstallationRequest,
    check_request,
    claimed_pcid,
    pcid_of,
    read_request,
)
from ccp.verify.response import InstallationResponse, VerifiedInstallationResponse, check_response, read_response
from ccp.verify.response_writer import negative_response, with_session
from ccp.verify.verifier import (
    Explanation,
    Trust,
    explain,
    explain_request,
    explain_response,
    verify_request,
    verify_response,
)
from ccp.x509.revocation_policy import HardFailRevocation, NoRevocationCheck, RevocationChecker

__all__ = [
    "Explanation",
    "HardFailRevocation",
    "InstallationRequest",
    "InstallationResponse",
    "NoRevocationCheck",
    "RevocationChecker",
    "Trust",
    "VerifiedInstallationRequest",
    "VerifiedInstallationResponse",
    "check_request",
    "check_response",
    "claimed_pcid",
    "explain",
    "explain_request",
    "explain_response",
    "negative_response",
    "pcid_of",
    "read_request",
    "read_response",
    "verify_request",
    "verify_response",
    "with_session",
]
