"""Installation requests and responses: read, verified, answered, refused.

What the octets said and what was verified are different types. A `Verified…` can be made only by the function that
checked it. Nothing here does I/O; time, trust anchors and revocation evidence are arguments.
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

__all__ = [
    "InstallationRequest",
    "InstallationResponse",
    "VerifiedInstallationRequest",
    "VerifiedInstallationResponse",
    "check_request",
    "check_response",
    "claimed_pcid",
    "negative_response",
    "pcid_of",
    "read_request",
    "read_response",
    "with_session",
]
