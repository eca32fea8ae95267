"""Access tokens for external services: when they are fetched, renewed and shared, and what an endpoint may answer."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs

import pytest
import structlog
from structlog.testing import LogCapture

from ccp.errors import UpstreamError
from ccp.server.external.access_tokens import ClientCredentials, TokenError
from ccp.server.external.outbound import OutboundClient, OutboundError
from ccp.server.external.service_connection import ServiceConnection
from ccp.server.settings.services import ServiceSettings
from tests.scripted_server import (
    DROP,
    ENDLESS,
    HANG,
    NOT_HTTP,
    Received,
    Reply,
    Scripted,
    error,
    granted,
    json_reply,
    scripted,
)
from tests.server.external.calls import with_outbound

T = TypeVar("T")


SECRET = "hunter2-of-the-pool"


TOKEN = "/oauth/token"


ROOTS = "/roots"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def server() -> Iterator[Scripted]:
    with scripted() as running:
        running.on(ROOTS, json_reply({}))
        running.on(TOKEN, granted("first"), granted("second"), granted("third"))
        yield running


@pytest.fixture
def logs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every event that a logger of the project writes, at every level."""
    capture = LogCapture()
    logger = structlog.wrap_logger(
        None, processors=[capture], wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG)
    )
    for name, module in list(sys.modules.items()):
        if name.startswith("ccp.") and hasattr(module, "_log"):
            monkeypatch.setattr(module, "_log", logger)
    return capture.entries


def described(server: Scripted, **members: Any) -> ServiceSettings:
    values = {"token_url": server.url + TOKEN, "client_id": "pool", "client_secret": SECRET, **members}
    return ServiceSettings(url=server.url, **values)


def run(server: Scripted, use: Callable[[ServiceConnection, Clock], Awaitable[T]], **members: Any) -> T:
    async def start(out: OutboundClient) -> T:
        clock = Clock()
        return await use(ServiceConnection(out, described(server, **members), "Test service", clock), clock)

    return with_outbound(start)


async def ask(connection: ServiceConnection, timeout: float = 5.0) -> int:  # noqa: ASYNC109
    return (await connection.request("GET", ROOTS, timeout=timeout, max_bytes=10_000)).status


def presented(server: Scripted) -> list[str]:
    """The tokens that the service received."""
    return [one.headers.get("authorization", "").removeprefix("Bearer ") for one in server.asked(ROOTS)]


def test_client_credentials_are_requested_when_first_needed_and_kept(server: Scripted) -> None:
    async def use(connection: ServiceConnection, clock: Clock) -> None:
        assert server.asked(TOKEN) == []
        for _ in range(3):
            assert await ask(connection) == 200

    run(server, use, audience="https://service.example", scope="read write")
    (asked,) = server.asked(TOKEN)
    assert asked.method == "POST"
    assert asked.headers["content-type"] == "application/x-www-form-urlencoded"
    assert parse_qs(asked.body.decode()) == {
        "grant_type": ["client_credentials"],
        "client_id": ["pool"],
        "client_secret": [SECRET],
        "audience": ["https://service.example"],
        "scope": ["read write"],
    }
    assert presented(server) == ["first"] * 3


def test_client_credentials_are_renewed_in_the_background_before_they_expire(server: Scripted) -> None:
    async def use(connection: ServiceConnection, clock: Clock) -> None:
        await ask(connection)
        clock.now += 3600 * 0.69
        await ask(connection)
        assert len(server.asked(TOKEN)) == 1
        clock.now += 3600 * 0.17
        await ask(connection)  # Does not wait for the renewal that it starts.
        assert isinstance(connection.tokens, ClientCredentials)
        if (renewal := connection.tokens._fetching) is not None:
            await renewal
        await ask(connection)

    run(server, use)
    assert presented(server) == ["first", "first", "first", "second"]
    assert len(server.asked(TOKEN)) == 2


def test_client_credentials_of_workers_are_renewed_at_different_times(server: Scripted) -> None:
    async def use(connection: ServiceConnection, clock: Clock) -> list[float]:
        times = []
        for part in (0.0, 0.5, 0.999):
            tokens = ClientCredentials(connection.settings, connection._outbound, "Test", clock, lambda part=part: part)
            await tokens.get()
            times.append(tokens._renew_at - clock.now)
        return times

    assert [round(time) for time in run(server, use)] == [2520, 2790, 3059]


def test_access_token_is_kept_until_it_expires_after_a_failed_renewal(server: Scripted) -> None:
    server.on(TOKEN, granted("first"), error(503))

    async def use(connection: ServiceConnection, clock: Clock) -> None:
        await ask(connection)
        clock.now += 3600 * 0.9
        for _ in range(20):
            assert await ask(connection) == 200
            await asyncio.sleep(0.01)
        assert len(server.asked(TOKEN)) == 4, "the first, and three before the circuit opens"
        clock.now += 3600 * 0.1 + 1
        with pytest.raises(TokenError, match="no access token for the Test service"):
            await ask(connection)

    run(server, use)
    assert presented(server) == ["first"] * 21


def test_access_token_that_is_rejected_is_renewed_once_and_the_request_repeated(server: Scripted) -> None:
    server.on(ROOTS, error(401), json_reply({}))
    assert run(server, lambda connection, clock: ask(connection)) == 200
    assert presented(server) == ["first", "second"]


def test_access_tokens_that_are_rejected_cause_one_token_request_in_ten_seconds(server: Scripted) -> None:
    server.on(ROOTS, error(401))
    server.on(TOKEN, *(granted(f"t{number}") for number in range(50)))

    async def use(connection: ServiceConnection, clock: Clock) -> None:
        for _ in range(10):
            assert await ask(connection) == 401
        assert len(server.asked(TOKEN)) == 2
        clock.now += 10
        assert await ask(connection) == 401
        assert len(server.asked(TOKEN)) == 3

    run(server, use)
    assert len(presented(server)) == 13


def test_access_token_that_is_rejected_is_kept_while_there_is_no_other_one(server: Scripted) -> None:
    """A service may reject one request only."""
    server.on(ROOTS, error(401), json_reply({}))
    server.on(TOKEN, granted("first"), error(503))

    async def use(connection: ServiceConnection, clock: Clock) -> None:
        assert await ask(connection) == 401
        assert await ask(connection) == 200
        server.on(TOKEN, granted("second"))
        server.on(ROOTS, error(401), json_reply({}))
        assert await ask(connection) == 200

    run(server, use)
    assert presented(server) == ["first", "first", "first", "second"]


def test_access_token_that_is_rejected_is_renewed_for_all_concurrent_callers(server: Scripted) -> None:
    server.on(ROOTS, lambda one: error(401) if one.headers["authorization"].endswith("first") else json_reply({}))
    second = granted("second")
    second.delay = 0.2
    server.on(TOKEN, granted("first"), second, granted("third"))

    async def use(connection: ServiceConnection, clock: Clock) -> list[int]:
        await connection.tokens.get()
        return await asyncio.gather(*(ask(connection) for _ in range(8)))

    assert run(server, use) == [200] * 8
    assert len(server.asked(TOKEN)) == 2


def test_access_token_that_is_rejected_gives_way_to_the_one_fetched_meanwhile(server: Scripted) -> None:
    async def use(connection: ServiceConnection, clock: Clock) -> list[str | None]:
        first = await connection.tokens.get()
        second = await connection.tokens.get(rejected=first)
        return [first, second, await connection.tokens.get(rejected=first)]

    assert run(server, use) == ["first", "second", "second"]
    assert len(server.asked(TOKEN)) == 2


def test_fixed_token_is_not_repeated_after_a_rejection(server: Scripted) -> None:
    server.on(ROOTS, error(401))

    async def use(out: OutboundClient) -> int:
        return await ask(ServiceConnection(out, ServiceSettings(url=server.url, token="fixed"), "Test service"))

    assert with_outbound(use) == 401
    assert presented(server) == ["fixed"]


def test_access_token_request_is_shared_by_concurrent_callers(server: Scripted) -> None:
    slow = granted("shared")
    slow.delay = 0.2
    server.on(TOKEN, slow)

    async def use(connection: ServiceConnection, clock: Clock) -> list[int]:
        impatient = asyncio.create_task(ask(connection))
        await asyncio.sleep(0.05)
        impatient.cancel()  # It started the request that the others wait for.
        return await asyncio.gather(*(ask(connection) for _ in range(20)))

    assert run(server, use) == [200] * 20
    assert len(server.asked(TOKEN)) == 1
    assert presented(server) == ["shared"] * 20


@pytest.mark.parametrize(
    "reply", [error(500), DROP, NOT_HTTP, ENDLESS, Reply(302, headers={"Location": ROOTS}), json_reply({}),
              json_reply({"error": "invalid_client"}, 401), Reply(200, b"<html>", {"Content-Type": "text/html"})],
    ids=lambda reply: f"{reply.status}-{reply.body[:12]!r}",
)  # fmt: skip
def test_token_endpoint_that_fails_opens_the_circuit_and_is_not_flooded(server: Scripted, reply: Reply) -> None:
    server.on(TOKEN, reply)

    async def use(connection: ServiceConnection, clock: Clock) -> None:
        for _ in range(20):
            with pytest.raises(TokenError):
                await ask(connection)
        assert len(server.asked(TOKEN)) == 3
        clock.now += 15
        for _ in range(5):
            with pytest.raises(TokenError):
                await ask(connection)
        assert len(server.asked(TOKEN)) == 4
        server.on(TOKEN, granted("late"))
        clock.now += 30
        assert await ask(connection) == 200

    run(server, use)
    assert presented(server) == ["late"]


def test_token_endpoint_that_hangs_costs_a_caller_its_own_timeout(server: Scripted) -> None:
    server.on(TOKEN, HANG)

    async def use(connection: ServiceConnection, clock: Clock) -> float:
        began = asyncio.get_running_loop().time()
        with pytest.raises(OutboundError, match="The token endpoint of the Test service did not answer"):
            await ask(connection, timeout=0.2)
        return asyncio.get_running_loop().time() - began

    assert run(server, use) < 1.5
    assert len(server.asked(TOKEN)) == 1


def test_token_endpoint_that_hangs_is_named_after_a_rejection_too(server: Scripted) -> None:
    server.on(ROOTS, error(401))
    server.on(TOKEN, granted("first"), HANG)

    async def use(connection: ServiceConnection, clock: Clock) -> None:
        with pytest.raises(OutboundError, match="The token endpoint of the Test service did not answer"):
            await ask(connection, timeout=0.2)

    run(server, use)
    assert presented(server) == ["first"]


def test_token_request_of_opcp_is_json_and_has_another_form_in_reserve(server: Scripted) -> None:
    server.on(TOKEN, granted("first", 10), Reply(415), granted("second", 10), granted("third"))

    async def use(connection: ServiceConnection, clock: Clock) -> None:
        for _ in range(3):
            await ask(connection)
            clock.now += 11

    run(server, use, dialect="opcp", audience="https://service.example")
    kinds = [one.headers["content-type"].rpartition("/")[2] for one in server.asked(TOKEN)]
    assert kinds == ["json", "json", "x-www-form-urlencoded", "x-www-form-urlencoded"]
    assert json.loads(server.asked(TOKEN)[0].body) == {
        "grant_type": "client_credentials",
        "client_id": "pool",
        "client_secret": SECRET,
        "audience": "https://service.example",
    }
    assert presented(server) == ["first", "second", "third"]


def test_token_request_of_opcp_is_a_form_where_json_counts_as_no_credentials(server: Scripted) -> None:
    def grant(received: Received) -> Reply:
        form = parse_qs(received.body.decode())
        return granted("by-form") if "client_secret" in form else json_reply({"error": "invalid_client"}, 401)

    server.on(TOKEN, grant)

    async def use(connection: ServiceConnection, clock: Clock) -> None:
        await ask(connection)
        clock.now += 3601
        await ask(connection)

    run(server, use, dialect="opcp")
    assert presented(server) == ["by-form"] * 2
    assert len(server.asked(TOKEN)) == 3, "JSON is tried once"


@pytest.mark.parametrize("name", ["invalid_client", "unauthorized_client", "invalid_scope"])
def test_token_request_that_is_refused_for_its_content_is_not_repeated(
    server: Scripted, name: str, logs: list[Any]
) -> None:
    server.on(TOKEN, json_reply({"error": name}, 400))

    async def use(connection: ServiceConnection, clock: Clock) -> None:
        with pytest.raises(TokenError):
            await ask(connection)
        assert logs[0]["reason"] == f"The token endpoint answered 400 ({name})."

    run(server, use)
    assert len(server.asked(TOKEN)) == 1


def test_token_and_secret_files_are_read_again_when_they_change(server: Scripted, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(" from-a-file\n")

    async def use(out: OutboundClient) -> None:
        clock = Clock()
        service = ServiceSettings(url=server.url, token_file=file)
        connection = ServiceConnection(out, service, "Test service", clock)
        await ask(connection)
        replace(file, "renewed")
        clock.now += 1
        await ask(connection)
        replace(file, "renewed-again")
        server.on(ROOTS, error(401), json_reply({}))
        assert await ask(connection) == 200
        # While the file cannot be read, the last token serves.
        file.write_text("")
        clock.now += 1
        await ask(connection)
        file.unlink()
        clock.now += 1
        assert await ask(connection) == 200
        with pytest.raises(TokenError):
            await ask(ServiceConnection(out, service, "Test service", clock))

    with_outbound(use)
    assert presented(server) == ["from-a-file", "renewed", "renewed", *["renewed-again"] * 3]
    secret = tmp_path / "secret"
    secret.write_text("old\n")

    async def grant(connection: ServiceConnection, clock: Clock) -> None:
        await ask(connection)
        replace(secret, "new")
        clock.now += 3601
        await ask(connection)

    run(server, grant, client_secret=None, client_secret_file=secret)
    assert [parse_qs(one.body.decode())["client_secret"] for one in server.asked(TOKEN)] == [["old"], ["new"]]


def replace(path: Path, text: str) -> None:
    other = path.with_suffix(".new")
    other.write_text(text)
    os.replace(other, path)


def test_secrets_are_in_no_log_event_error_or_traceback(server: Scripted, logs: list[Any]) -> None:
    """Everything that goes wrong with a token, with every logger of the process at its most talkative."""
    hidden = {SECRET, "granted-token", "fixed-token"}
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(1)
    texts: list[str] = []
    echo = json_reply({"error": "invalid_client", "error_description": SECRET}, 400)
    replies: list[tuple[Reply, Reply]] = [
        (granted("granted-token"), reply) for reply in (json_reply({}), error(401), DROP, NOT_HTTP, ENDLESS, HANG)
    ]
    replies += [(reply, json_reply({})) for reply in (echo, error(500, SECRET), DROP, NOT_HTTP, ENDLESS, HANG)]
    try:
        for token, service in replies:
            server.on(TOKEN, token)
            server.on(ROOTS, service)

            async def use(connection: ServiceConnection, clock: Clock) -> None:
                texts.append(f"{connection!r} {connection.tokens!r} {connection.settings!r} {vars(connection)}")
                try:
                    await ask(connection, timeout=0.3)
                except (UpstreamError, OutboundError) as exc:
                    texts.extend(traceback.format_exception(exc))
                    texts.append(structlog.processors.format_exc_info(None, "", {"exc_info": exc})["exception"])

            run(server, use)

        async def fixed(out: OutboundClient) -> None:
            server.on(ROOTS, DROP)
            connection = ServiceConnection(out, ServiceSettings(url=server.url, token="fixed-token"), "Test service")
            try:
                await ask(connection)
            except OutboundError as exc:
                texts.extend(traceback.format_exception(exc))

        with_outbound(fixed)
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    everything = "\n".join([*texts, lines.getvalue(), *map(str, logs)])
    assert "receive_response_headers" in lines.getvalue(), "httpcore's own log was read"
    assert "access token not obtained" in everything
    assert [secret for secret in hidden if secret in everything] == []
