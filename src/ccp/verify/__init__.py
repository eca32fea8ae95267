"""Installation requests and responses: read, verified, answered, refused.

What the octets said and what was verified are different types. A `Verified…` can be made only by the function that
checked it. Nothing here does I/O; time, trust anchors and revocation evidence are arguments.
"""

from ccp.verify.request import (
    InstallationRequest,
    VerifiedInstallationRequest,
    pcid_of,
    pcid_said,
    read_request,
    verify_request,
)
from ccp.verify.response import InstallationResponse, VerifiedInstallationResponse, read_response, verify_response
from ccp.verify.response_writer import refuse, with_session

__all__ = [
    "InstallationRequest",
    "InstallationResponse",
    "VerifiedInstallationRequest",
    "VerifiedInstallationResponse",
    "pcid_of",
    "pcid_said",
    "read_request",
    "read_response",
    "refuse",
    "verify_request",
    "verify_response",
    "with_session",
]
