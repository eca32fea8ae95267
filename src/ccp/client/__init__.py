"""Client library: call a pool from a charging back end, an eMSP, an OEM, or another pool.

    from ccp.client import Client, Credentials, Namespace

    with Client("https://ccp.example", credentials=Credentials("example-cpo", secret)) as ccp:
        answer = ccp.deliver(exi_request, Namespace.ISO2)
        answer_to_station = answer.message     # for the vehicle in any case; if it is Delivered, with a contract

`AsyncClient` has the same methods to be awaited. Messages are EXI octets (or, as OCPP has them, Base64 as text); JSON,
tokens, retries and time limits are the library's business. Every failure is one of the exceptions in
`ccp.client.errors`; a `FieldError` says that an argument is no id.

How it is made: `calls` turns a method's arguments into a `Call` and an answer into a value, in either dialect;
`conversation` says in which order to send, wait and ask for tokens, as a generator; `faces` drives that generator
over sockets, blocking or not. Only the last one does I/O.
"""

from ccp.client.clients import TLS, AsyncClient, Client
from ccp.client.errors import (
    AnsweredError,
    BadRequestError,
    ClientError,
    MalformedAnswerError,
    NoAnswerError,
    NotAuthenticatedError,
    NotAuthorisedError,
    NotFoundError,
    TokenRefusedError,
    TooLargeError,
    TooManyRequestsError,
    UnavailableError,
    UpstreamFailedError,
)
from ccp.client.model import (
    Check,
    ContractState,
    Credentials,
    Delivered,
    Limits,
    Refused,
    Report,
    SignedResponse,
    Withdrawn,
)
from ccp.client.operations import Dialect
from ccp.ids import EMAID, PCID, Fingerprint, Namespace
from ccp.schemas.common import PartyType, Routing

__all__ = [
    "EMAID",
    "PCID",
    "TLS",
    "AnsweredError",
    "AsyncClient",
    "BadRequestError",
    "Check",
    "Client",
    "ClientError",
    "ContractState",
    "Credentials",
    "Delivered",
    "Dialect",
    "Fingerprint",
    "Limits",
    "MalformedAnswerError",
    "Namespace",
    "NoAnswerError",
    "NotAuthenticatedError",
    "NotAuthorisedError",
    "NotFoundError",
    "PartyType",
    "Refused",
    "Report",
    "Routing",
    "SignedResponse",
    "TokenRefusedError",
    "TooLargeError",
    "TooManyRequestsError",
    "UnavailableError",
    "UpstreamFailedError",
    "Withdrawn",
]
