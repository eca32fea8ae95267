"""The client against a misbehaving server: retries, timeouts, malformed responses and tokens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from typing import Any

import pytest

from ccp.client import (
    AsyncClient,
    Client,
    Credentials,
    MalformedResponseError,
    Namespace,
    NoResponseError,
    NotAuthenticatedError,
    NotFoundError,
    RetryPolicy,
    StatusError,
    Timeouts,
    TokenRefusedError,
    TooManyRequestsError,
    UnavailableError,
    UpstreamFailedError,
    Withdrawn,
)
from tests.client.either import KINDS, EitherClient, connect
from tests.scripted_server import (
    DROP,
    ENDLESS,
    HANG,
    NOT_HTTP,
    TRACE_ID,
    TRICKLED_BODY,
    TRICKLED_HEAD,
    Reply,
    Scripted,
    compressed,
    error,
    granted,
    json_reply,
    nowhere,
    scripted,
)

EMAID = "DEEXAC00000001"
PCID = "WEX00000000000001"
CONTRACTS = f"/opnc/v1/ccp/contractData/emaid/{EMAID}"
DELIVER = "/opnc/v1/ccp/signedcontractdata"
WITHDRAW = f"{DELIVER}/{EMAID}"
NOTHING = json_reply({"contractDataCollection": []})
SECRET = Credentials("example-emsp", "a-secret")

SOON = RetryPolicy(backoff=0.02)
ONE_RETRY = RetryPolicy(max_retries=1, backoff=0.02)

pytestmark = pytest.mark.parametrize("kind", KINDS)


def read(client: EitherClient) -> Any:
    return client.contracts_of_emaid(EMAID)


@pytest.mark.parametrize(
    "failure", [error(502), error(503), error(429), DROP, NOT_HTTP], ids=["502", "503", "429", "dropped", "not HTTP"]
)
@pytest.mark.parametrize("operation", ["read", "deliver", "publish", "default", "withdraw"])
def test_operations_are_all_retried_after_a_temporary_failure(kind: str, failure: Reply, operation: str) -> None:
    calls: dict[str, tuple[str, Reply, Callable[[EitherClient], Any]]] = {
        "read": (CONTRACTS, NOTHING, read),
        "deliver": (DELIVER, error(404), lambda c: c.deliver(b"", Namespace.ISO2)),
        "publish": (DELIVER, Reply(201), lambda c: c.publish(b"", emaid=EMAID, pcid=PCID, namespace=Namespace.ISO2)),
        "default": (f"{WITHDRAW}/{PCID}/setdefault", Reply(200), lambda c: c.set_default(EMAID, PCID)),
        "withdraw": (WITHDRAW, Reply(200), lambda c: c.withdraw(EMAID)),
    }
    path, good, call = calls[operation]
    with scripted() as server, connect(kind, server.url, token="t", retry=SOON) as client:
        server.on(path, failure, failure, good)
        if operation == "deliver":
            with pytest.raises(NotFoundError):
                call(client)
        else:
            call(client)
        first, second, third = server.asked(path)
        assert first == second == third


def test_client_retries_end(kind: str) -> None:
    with (
        scripted() as server,
        connect(kind, server.url, token="t", retry=ONE_RETRY) as client,
    ):
        server.on(CONTRACTS, error(503, "Later."))
        with pytest.raises(UnavailableError, match=r"Later\.") as caught:
            read(client)
        assert (caught.value.status, caught.value.trace_id) == (503, TRACE_ID)
        assert len(server.asked(CONTRACTS)) == 2


@pytest.mark.parametrize("status", [400, 403, 404, 405, 409, 413, 500, 504])
def test_failures_that_are_permanent_are_not_retried(kind: str, status: int) -> None:
    with scripted() as server, connect(kind, server.url, token="t") as client:
        server.on(CONTRACTS, error(status, "Because."))
        with pytest.raises(StatusError, match="Because") as caught:
            read(client)
        assert caught.value.status == status
        assert len(server.asked(CONTRACTS)) == 1


def test_error_without_the_apis_body_is_reported_by_its_status(kind: str) -> None:
    with scripted() as server, connect(kind, server.url, token="t") as client:
        for body in (b"<html>Bad gateway</html>", b"", b'["x"]', b'{"errorMessages": "x", "traceId": 1}'):
            server.on(CONTRACTS, Reply(418, body))
            with pytest.raises(StatusError, match="418") as caught:
                read(client)
            assert caught.value.trace_id is None


def test_retry_after_is_respected(kind: str) -> None:
    for asked, least in (("1", 1.0), ("a date", 0.9), ("garbage", 0.1)):
        with scripted() as server, connect(kind, server.url, token="t") as client:
            after = formatdate(time.time() + 2, usegmt=True) if asked == "a date" else asked
            server.on(CONTRACTS, error(429, Retry_After=after), NOTHING)
            began = time.monotonic()
            read(client)
            assert least <= time.monotonic() - began < 3.5


def test_retry_after_beyond_the_deadline_is_not_waited_for(kind: str) -> None:
    with scripted() as server, connect(kind, server.url, token="t", timeouts=Timeouts(total=5)) as client:
        server.on(CONTRACTS, error(429, Retry_After="60"), NOTHING)
        began = time.monotonic()
        with pytest.raises(TooManyRequestsError) as caught:
            read(client)
        assert time.monotonic() - began < 1
        assert caught.value.retry_after == 60
        assert len(server.asked(CONTRACTS)) == 1


@pytest.mark.parametrize("reply", [HANG, TRICKLED_HEAD, TRICKLED_BODY], ids=["nothing", "head", "body"])
def test_request_timeout_limits_a_slow_server(kind: str, reply: Reply) -> None:
    with (
        scripted() as server,
        connect(kind, server.url, token="t", timeouts=Timeouts(request=0.3), retry=ONE_RETRY) as client,
    ):
        server.on(CONTRACTS, reply)
        began = time.monotonic()
        with pytest.raises(NoResponseError, match="in time") as caught:
            read(client)
        assert 0.6 < time.monotonic() - began < 2.0
        assert caught.value.outcome_unknown
        assert len(server.asked(CONTRACTS)) == 2
        # And the connection that was given up is not used again.
        server.on(CONTRACTS, NOTHING)
        assert read(client) == ()


def test_client_timeout_of_a_call_overrides_the_clients(kind: str) -> None:
    with scripted() as server, connect(kind, server.url, token="t") as client:
        server.on(DELIVER, HANG)
        began = time.monotonic()
        with pytest.raises(NoResponseError):
            client.deliver(b"", Namespace.ISO2, timeout=0.3)
        assert time.monotonic() - began < 1.5
        # The token is part of it.
        with connect(kind, server.url, credentials=SECRET) as other:
            server.on("/oauth/token", HANG)
            with pytest.raises(NoResponseError):
                other.deliver(b"", Namespace.ISO2, timeout=0.3)
            assert time.monotonic() - began < 3


def test_connection_that_is_refused_has_a_known_outcome(kind: str) -> None:
    with (
        connect(kind, nowhere(), token="t") as client,
        pytest.raises(NoResponseError, match="refuses the connection") as caught,
    ):
        read(client)
    assert not caught.value.outcome_unknown


@pytest.mark.parametrize(
    ("reply", "match"),
    [
        (ENDLESS, "larger than 4096"),
        (Reply(200, b" " * 5000), "larger than 4096"),
        (compressed({"contractDataCollection": []}), "compressed"),
        (Reply(200, b"not JSON"), "not a ContractDataCollection"),
        (Reply(200, b""), "not a ContractDataCollection"),
        (json_reply({"contractDataCollection": [{"emaid": EMAID}]}), "not a ContractDataCollection"),
        (json_reply({"contractDataCollection": "x"}), "not a ContractDataCollection"),
        (error(503, "x" * 5000), "larger than 4096"),
    ],
)
def test_response_that_is_malformed_is_rejected(kind: str, reply: Reply, match: str) -> None:
    with scripted() as server, connect(kind, server.url, token="t", max_response_bytes=4096) as client:
        server.on(CONTRACTS, reply)
        with pytest.raises(MalformedResponseError, match=match):
            read(client)
        assert len(server.asked(CONTRACTS)) == 1


@pytest.mark.parametrize(
    "items",
    [
        [],
        [{"certificateInstallationRes": "AAAA"}],
        [{"certificateInstallationRes": "not Base64!"}],
        [{"certificateInstallationRes": "AAAA", "emaid": "x"}],
    ],
)
def test_deliver_rejects_unreadable_messages(kind: str, items: list[dict[str, str]]) -> None:
    complete = {"emaid": EMAID, "pcid": PCID, "xsdMsgDefNamespace": str(Namespace.ISO2)}
    with scripted() as server, connect(kind, server.url, token="t") as client:
        server.on(DELIVER, json_reply({"signedContractDataCollection": [{**complete, **item} for item in items]}))
        with pytest.raises(MalformedResponseError):
            client.deliver(b"", Namespace.ISO2)


def test_client_follows_no_redirect(kind: str) -> None:
    with scripted() as server, scripted() as other, connect(kind, server.url, token="t") as client:
        server.on(CONTRACTS, Reply(307, headers={"Location": other.url + CONTRACTS}))
        with pytest.raises(StatusError, match="307"):
            read(client)
        assert not other.received


# --- Withdrawing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [DROP, error(502)], ids=["dropped", "502"])
def test_withdraw_is_unconfirmed_when_not_found_after_a_lost_response(kind: str, lost: Reply) -> None:
    with scripted() as server, connect(kind, server.url, token="t") as client:
        server.on(WITHDRAW, lost, error(404))
        assert client.withdraw(EMAID) == Withdrawn(confirmed=False)


def test_withdraw_of_an_unknown_contract_is_not_found(kind: str) -> None:
    with scripted() as server, connect(kind, server.url, token="t") as client:
        server.on(WITHDRAW, error(429), error(404))
        with pytest.raises(NotFoundError):
            client.withdraw(EMAID)
        server.on(WITHDRAW, error(502, "The certificate cannot be revoked."))
        with pytest.raises(UpstreamFailedError, match="revoked"):
            client.withdraw(EMAID)


# --- Tokens ----------------------------------------------------------------------------------------------------------


def test_token_is_fetched_once_and_kept(kind: str) -> None:
    with scripted() as server, connect(kind, server.url, credentials=SECRET) as client:
        server.on("/oauth/token", granted("the-token"))
        server.on(CONTRACTS, NOTHING)
        for _ in range(5):
            read(client)
        (asked,) = server.asked("/oauth/token")
        assert asked.body == b"grant_type=client_credentials&client_id=example-emsp&client_secret=a-secret"
        assert asked.headers["content-type"] == "application/x-www-form-urlencoded"
        assert {one.headers["authorization"] for one in server.asked(CONTRACTS)} == {"Bearer the-token"}


def test_token_from_another_issuer(kind: str) -> None:
    with scripted() as server, scripted() as issuer:
        access = Credentials("id", "s&cret", f"{issuer.url}/token", audience="https://ccp.example", scope="a b")
        with connect(kind, server.url, credentials=access) as client:
            issuer.on("/token", granted())
            server.on(CONTRACTS, NOTHING)
            read(client)
            form = b"client_secret=s%26cret&audience=https%3A%2F%2Fccp.example&scope=a+b"
            assert issuer.received[0].body.endswith(form)


def test_token_that_is_rejected_is_replaced_once(kind: str) -> None:
    with scripted() as server, connect(kind, server.url, credentials=SECRET) as client:
        server.on("/oauth/token", granted("first"), granted("second"), granted("third"))
        server.on(CONTRACTS, NOTHING, error(401), NOTHING)
        read(client)
        read(client)
        assert [one.headers["authorization"] for one in server.asked(CONTRACTS)] == [
            *("Bearer first", "Bearer first", "Bearer second"),
        ]
        server.on(CONTRACTS, error(401, "Not you."))
        with pytest.raises(NotAuthenticatedError, match="Not you"):
            read(client)
        assert len(server.asked("/oauth/token")) == 3


def test_token_that_is_fixed_is_not_replaced(kind: str) -> None:
    with scripted() as server, connect(kind, server.url, token="static") as client:
        server.on(CONTRACTS, error(401))
        with pytest.raises(NotAuthenticatedError):
            read(client)
        assert [one.target.partition("?")[0] for one in server.received] == [CONTRACTS]


def test_token_is_not_replaced_after_403(kind: str) -> None:
    with scripted() as server, connect(kind, server.url, credentials=SECRET) as client:
        server.on("/oauth/token", granted())
        server.on(CONTRACTS, error(403))
        with pytest.raises(StatusError):
            read(client)
        assert len(server.asked("/oauth/token")) == 1


def test_token_request_is_shared_by_concurrent_calls(kind: str) -> None:
    with scripted() as server:
        server.on("/oauth/token", granted())
        server.on(CONTRACTS, NOTHING)
        if kind == "sync":
            with Client(server.url, credentials=SECRET) as client, ThreadPoolExecutor(20) as threads:
                list(threads.map(client.contracts_of_emaid, [EMAID] * 20))
        else:

            async def together() -> None:
                async with AsyncClient(server.url, credentials=SECRET) as client:
                    await asyncio.gather(*(client.contracts_of_emaid(EMAID) for _ in range(20)))

            asyncio.run(together())
        assert len(server.asked("/oauth/token")) == 1
        assert len(server.asked(CONTRACTS)) == 20


def test_token_request_is_retried(kind: str) -> None:
    with scripted() as server, connect(kind, server.url, credentials=SECRET) as client:
        server.on("/oauth/token", DROP, error(503), granted())
        server.on(CONTRACTS, NOTHING)
        assert read(client) == ()


@pytest.mark.parametrize(
    "reply",
    [
        Reply(200, b"token"),
        json_reply({}),
        json_reply({"access_token": 5, "expires_in": 3600}),
        granted("two words"),
        granted("line\nbreak"),
        granted(token_type="mac"),
        granted(expires_in="soon"),
        error(404, "No contract for the given PCID found."),  # Of a pool, say, whose token endpoint is elsewhere.
        error(405),
    ],
)
def test_malformed_token_response_is_rejected(kind: str, reply: Reply) -> None:
    with scripted() as server, connect(kind, server.url, credentials=SECRET) as client:
        server.on("/oauth/token", reply)
        with pytest.raises(MalformedResponseError):
            read(client)
        assert not server.asked(CONTRACTS)


def test_credentials_that_are_refused_are_not_retried(kind: str) -> None:
    with scripted() as server, connect(kind, server.url, credentials=SECRET) as client:
        server.on("/oauth/token", json_reply({"error": "invalid_client", "error_description": "Who?"}, 401))
        with pytest.raises(TokenRefusedError, match="Who") as caught:
            read(client)
        assert (caught.value.error, caught.value.status) == ("invalid_client", 401)
        assert len(server.received) == 1


def test_secrets_are_not_in_reprs_and_errors(kind: str) -> None:
    assert "a-secret" not in repr(SECRET)
    with connect(kind, nowhere(), credentials=SECRET) as client, pytest.raises(NoResponseError) as caught:
        read(client)
    assert "a-secret" not in repr(caught.value) + str(caught.value)


def test_client_is_usable_after_a_cancelled_call(kind: str) -> None:
    if kind == "sync":
        pytest.skip("a thread cannot be cancelled")

    async def story(server: Scripted) -> None:
        async with AsyncClient(server.url, credentials=SECRET) as client:
            server.on("/oauth/token", HANG)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await client.contracts_of_emaid(EMAID)
            server.on("/oauth/token", granted())
            server.on(CONTRACTS, NOTHING)
            assert await client.contracts_of_emaid(EMAID) == ()

    with scripted() as server:
        asyncio.run(story(server))
