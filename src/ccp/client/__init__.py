"""Client library for a Contract Certificate Pool: for charging back ends, eMSPs, OEMs and other pools.

    from ccp.client import Client, Credentials, Delivered, Namespace

    with Client("https://pool.example", credentials=Credentials("example-cpo", secret)) as pool:
        result = pool.deliver(request, Namespace.ISO2)      # request: EXI, as the vehicle sent it
        send_to_vehicle(result.message)                     # positive or negative, both go to the vehicle
        if isinstance(result, Delivered):
            print(result.contracts[0].emaid)

A back end for charging stations passes payloads of OCPP through `get_15118_ev_certificate`, and returns what it gets.

`AsyncClient` has the same methods as coroutines. Messages are EXI, or their Base64 as text, as OCPP carries them. The
library handles JSON, access tokens, retries and timeouts. Every failure of a call is a `ClientError`; see
`ccp.client.errors` for the classes. An argument that is not a valid id raises `ccp.errors.FieldError`.

The library is sans-IO, as h11 is: `operations` turns arguments into a request and a response into a result, with the
two dialects in `opnc` and `opcp`; `session` decides as a generator when to send, wait, retry and fetch a token;
`clients` runs that generator over sockets, blocking or asynchronous. Only `clients` does I/O.
"""

from ccp.client.clients import TLS, AsyncClient, Client
from ccp.client.errors import (
    BadRequestError,
    ClientCertificateError,
    ClientError,
    ExpiredCertificateError,
    MalformedResponseError,
    NameMismatchError,
    NameResolutionError,
    NoResponseError,
    NotAuthenticatedError,
    NotAuthorisedError,
    NotFoundError,
    PlainHTTPError,
    RefusedConnectionError,
    StatusError,
    TimedOutError,
    TLSError,
    TLSRequiredError,
    TokenRefusedError,
    TooLargeError,
    TooManyRequestsError,
    UnavailableError,
    UntrustedCertificateError,
    UpstreamFailedError,
)
from ccp.client.model import (
    CheckResult,
    ContractState,
    Credentials,
    Delivered,
    DryRunReport,
    EVCertificate,
    NewWebhookSecret,
    NoContractResponse,
    PingResult,
    RemovedWebhook,
    RetryPolicy,
    Root,
    SignedResponse,
    Timeouts,
    Webhook,
    Withdrawn,
)
from ccp.client.operations import Dialect
from ccp.ids import EMAID, PCID, Fingerprint, Namespace
from ccp.schemas.common import PartyType, Routing
from ccp.x509.profiles import AnchorRole

__all__ = [
    "EMAID",
    "PCID",
    "TLS",
    "AnchorRole",
    "AsyncClient",
    "BadRequestError",
    "CheckResult",
    "Client",
    "ClientCertificateError",
    "ClientError",
    "ContractState",
    "Credentials",
    "Delivered",
    "Dialect",
    "DryRunReport",
    "EVCertificate",
    "ExpiredCertificateError",
    "Fingerprint",
    "MalformedResponseError",
    "NameMismatchError",
    "NameResolutionError",
    "Namespace",
    "NewWebhookSecret",
    "NoContractResponse",
    "NoResponseError",
    "NotAuthenticatedError",
    "NotAuthorisedError",
    "NotFoundError",
    "PartyType",
    "PingResult",
    "PlainHTTPError",
    "RefusedConnectionError",
    "RemovedWebhook",
    "RetryPolicy",
    "Root",
    "Routing",
    "SignedResponse",
    "StatusError",
    "TLSError",
    "TLSRequiredError",
    "TimedOutError",
    "Timeouts",
    "TokenRefusedError",
    "TooLargeError",
    "TooManyRequestsError",
    "UnavailableError",
    "UntrustedCertificateError",
    "UpstreamFailedError",
    "Webhook",
    "Withdrawn",
]
