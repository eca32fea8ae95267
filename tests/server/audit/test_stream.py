"""The stream of the audit trail: in order, at least once, by one process at a time, through crashes and outages."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import CapturedCall, CapturingLogger

from ccp.server.audit import stream, stream_receivers
from ccp.server.audit.stream_receivers import FileReceiver, StreamError, SyslogReceiver, syslog_message
from ccp.server.audit.verification import ChainVerifier
from ccp.server.external.client_tls import ClientTLS
from ccp.server.storage.queries import audit_stream as queries
from ccp.server.storage.queries.audit import AuditRow
from ccp.testing.pki import PKI
from tests.cli.run import SOURCE, environment
from tests.databases import sql
from tests.scripted_server import Reply, Scripted, scripted, unused_port
from tests.server.audit import stream_process
from tests.server.audit.made import fill
from tests.server.audit.stream_process import confirmed, in_this_process
from tests.server.storage.made import AT, SECOND, opened
from tests.tls_files import PrivateCA
from tests.waiting import wait_until
from tests.world import start

SECRET = "a key of the audit stream"


def rows_of(url: str) -> list[dict[str, Any]]:
    names = "lane, number, at, actor, action, outcome, trace_id, subject, salt, commitment, hash"
    found = sql(url, f"select {names} from audit order by lane, number")
    return [dict(zip(names.split(", "), row, strict=True)) for row in found]


def check_complete(url: str, received: list[dict[str, Any]], *, seams: int = 0) -> None:
    """Everything arrived, each lane in order; repeated rows are those before a seam, unchanged; the chain holds."""
    kept: dict[int, list[dict[str, Any]]] = {}
    repeated = 0
    for row in received:
        lane = kept.setdefault(row["lane"], [])
        if row["number"] <= len(lane):
            assert row == lane[row["number"] - 1], "the same row again"
            repeated += 1
            continue
        assert row["number"] == len(lane) + 1, "no row is missing and none overtakes"
        lane.append(row)
    assert [row for lane in sorted(kept) for row in kept[lane]] == rows_of(url)
    assert repeated <= seams * stream_process.PER_LANE * 16, "only the batch at a seam is repeated"
    verifier = ChainVerifier()
    for lane in kept.values():
        for row in lane:
            verifier.feed(AuditRow(**row))
    assert not [each for each in verifier.result().broken if "head is missing" not in each.why]


def lines(*files: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def messages(file: Path) -> list[dict[str, Any]]:
    """The rows in RFC 5424 messages, whose header is checked."""
    found = []
    for line in file.read_text().splitlines() if file.exists() else []:
        header = re.fullmatch(r"<(110|109)>1 \d{4}-\d\d-\d\dT[\d:.]+Z \S+ opnc-ccp \d+ (\S+) - (\{.*\})", line)
        assert header, line
        row = json.loads(header[3])
        assert row["action"] == header[2]
        found.append(row)
    return found


@contextmanager
def streaming(url: str, **settings: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process that streams until the block ends."""
    command = [sys.executable, "-m", "tests.server.audit.stream_process", url, json.dumps(settings)]
    process = subprocess.Popen(command, cwd=SOURCE, env=environment())
    try:
        yield process
    finally:
        process.kill()
        process.wait()


# --- File ------------------------------------------------------------------------------------------------------------


def test_stream_to_a_file_survives_rotation_and_two_killed_workers(url: str, tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    settings = {"audit_stream": "file", "audit_stream_file": str(file)}
    fill(url, rows=8)
    with streaming(url, **settings) as first, streaming(url, **settings) as second:
        wait_until(lambda: confirmed(url) >= 32)
        file.rename(tmp_path / "audit.jsonl.1")
        fill(url, rows=8)
        wait_until(file.exists)
        first.send_signal(signal.SIGKILL)
        fill(url, rows=8)
        wait_until(lambda: confirmed(url) >= 16 * 8 + 32)
        second.send_signal(signal.SIGKILL)
    with in_this_process(url, **settings):
        wait_until(lambda: confirmed(url) == 16 * 24)
    check_complete(url, lines(tmp_path / "audit.jsonl.1", file), seams=2)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (file, tmp_path / "audit.jsonl.1")} == {0o600}


def test_stream_is_sent_by_one_process_and_handed_over_at_its_end(url: str, tmp_path: Path) -> None:
    settings = {"audit_stream": "file", "audit_stream_file": str(tmp_path / "audit.jsonl")}
    with in_this_process(url, **settings):
        with in_this_process(url, **settings):
            fill(url, rows=4)
            wait_until(lambda: confirmed(url) == 64)
        fill(url, rows=4)
        wait_until(lambda: confirmed(url) == 128)
    check_complete(url, lines(tmp_path / "audit.jsonl"))
    assert sql(url, "select lease_until from audit_stream") == [(0,)], "the lease was given back"


def appended(path: Path, *data: bytes) -> FileReceiver:
    receiver = FileReceiver(path)
    for each in data:
        receiver._append(each)
    return receiver


def test_stream_file_cuts_a_torn_line_and_keeps_other_writers_out(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    file.write_bytes(b'{"lane":0}\n{"lane":1,"num')
    first = appended(file, b'{"lane":1}\n')
    assert file.read_bytes() == b'{"lane":0}\n{"lane":1}\n'
    with pytest.raises(OSError, match="another process writes it"):
        appended(file, b"x\n")
    file.rename(tmp_path / "old")
    first._append(b"y\n")
    assert file.read_bytes() == b"y\n"


def test_stream_file_that_is_rotated_during_a_write_gets_the_rows_in_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "audit.jsonl"
    receiver = appended(file, b"a\n")
    sync, renamed = os.fsync, []

    def rotate(descriptor: int) -> None:
        sync(descriptor)
        if not renamed:
            renamed.append(file.rename(tmp_path / "old"))

    monkeypatch.setattr(os, "fsync", rotate)
    receiver._append(b"b\n")
    assert ((tmp_path / "old").read_bytes(), file.read_bytes()) == (b"a\nb\n", b"b\n")


def test_stream_file_on_a_full_disk_keeps_no_part_of_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "audit.jsonl"
    receiver = appended(file, b"a\n")
    written = os.write

    def full(descriptor: int, data: bytes) -> int:
        written(descriptor, bytes(data)[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="space"):
        receiver._append(b"bcdef\n")
    assert file.read_bytes() == b"a\n"


def test_stream_file_is_never_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"")
    (tmp_path / "audit.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        appended(tmp_path / "audit.jsonl", b"x\n")


# --- Syslog ----------------------------------------------------------------------------------------------------------


@contextmanager
def receiving(port: int, file: Path, dies_after: int = 0) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "tests.server.audit.syslog_receiver", str(port), str(file), str(dies_after)]
    process = subprocess.Popen(command, cwd=SOURCE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
    finally:
        process.kill()
        process.wait()


def test_stream_to_syslog_repeats_what_a_dying_receiver_has_not_read(url: str, tmp_path: Path) -> None:
    port, file = unused_port(), tmp_path / "received"
    fill(url, rows=6)
    with in_this_process(url, audit_stream="syslog", audit_stream_syslog=f"tcp://127.0.0.1:{port}"):
        for dies_after in (5, 37):  # Within the first batch, and within the second of the next process.
            with receiving(port, file, dies_after) as process:
                assert process.wait(30) == 9
        with receiving(port, file):
            wait_until(lambda: confirmed(url) == 96)
    check_complete(url, messages(file), seams=2)


def sample() -> AuditRow:
    return AuditRow(3, 1, 1_700_000_000_000_000, "cps", "contract.published", "ok", None, "{}", "00", "11", "22")


def send(receiver: SyslogReceiver) -> None:
    asyncio.run(receiver.send([sample(), sample()]))


@contextmanager
def accepting(serve: Callable[[socket.socket], None], path: Path | None = None) -> Iterator[str]:
    """A server for one connection. Yields its address, without the scheme."""
    if path is None:
        listening = socket.create_server(("127.0.0.1", 0))
        address = f"127.0.0.1:{listening.getsockname()[1]}"
    else:
        listening, address = socket.socket(socket.AF_UNIX), str(path)
        listening.bind(address)
        listening.listen()

    def run() -> None:
        with suppress(OSError):
            connection, _ = listening.accept()
            with connection, suppress(OSError):
                serve(connection)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield address
    finally:
        listening.close()
        thread.join(10)


def read_all(connection: socket.socket) -> bytes:
    data = b""
    while part := connection.recv(4096):
        data += part
    return data


def test_stream_to_syslog_over_a_unix_socket(tmp_path: Path) -> None:
    got: list[bytes] = []
    with accepting(lambda connection: got.append(read_all(connection)), tmp_path / "socket") as path:
        send(SyslogReceiver(f"unix://{path}", ClientTLS()))
    message = syslog_message(sample())
    assert got == [b"%d %s" % (len(message), message) * 2]


@pytest.mark.parametrize("ending", ["close_notify", "end of the stream"])
def test_stream_to_syslog_over_tls_is_confirmed_by_the_end(tmp_path: Path, ending: str) -> None:
    ca = PrivateCA(tmp_path)
    context, got = ca.server(), []

    def serve(plain: socket.socket) -> None:
        with context.wrap_socket(plain, server_side=True) as connection:
            got.append(read_all(connection))
            if ending == "close_notify":
                connection.unwrap()

    with accepting(serve) as address:
        send(SyslogReceiver(f"tls://{address}", ClientTLS(ca=ca.ca)))
    assert got[0].count(b"contract.published") >= 2


def test_stream_to_syslog_over_tls_fails_without_the_client_certificate(tmp_path: Path) -> None:
    ca = PrivateCA(tmp_path)
    context = ca.server(mutual=True)

    def serve(plain: socket.socket) -> None:
        with context.wrap_socket(plain, server_side=True) as connection:
            read_all(connection)

    with accepting(serve) as address, pytest.raises(StreamError):
        send(SyslogReceiver(f"tls://{address}", ClientTLS(ca=ca.ca)))
    client = ca.issue("client", client=True)
    with accepting(serve) as address:
        send(SyslogReceiver(f"tls://{address}", ClientTLS(ca.ca, client.cert, client.key)))


def test_stream_to_syslog_over_tls_fails_for_an_unknown_ca(tmp_path: Path) -> None:
    ca, other = PrivateCA(tmp_path), PrivateCA(tmp_path, "Other CA")
    context = ca.server()

    def serve(plain: socket.socket) -> None:
        context.wrap_socket(plain, server_side=True)

    with accepting(serve) as address, pytest.raises(StreamError, match="certificate verify failed"):
        send(SyslogReceiver(f"tls://{address}", ClientTLS(ca=other.ca)))


def test_stream_to_syslog_fails_when_the_receiver_leaves_data_unread(tmp_path: Path) -> None:
    with accepting(lambda connection: connection.recv(10)) as address, pytest.raises(StreamError):
        send(SyslogReceiver(f"tcp://{address}", ClientTLS()))
    with accepting(lambda connection: connection.recv(10), tmp_path / "s") as path, pytest.raises(StreamError):
        send(SyslogReceiver(f"unix://{path}", ClientTLS()))


def test_stream_to_syslog_that_hangs_fails_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_receivers, "SEND_TIMEOUT", 0.3)
    ended = threading.Event()
    with accepting(lambda connection: bool(ended.wait(10)) and None) as address:
        with pytest.raises(StreamError, match=r"did not take the rows within 0\.3 seconds"):
            send(SyslogReceiver(f"tcp://{address}", ClientTLS()))
        ended.set()


def test_stream_to_a_datagram_socket_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(str(tmp_path / "log"))
        with pytest.raises(StreamError, match="datagram socket"):
            send(SyslogReceiver(f"unix://{tmp_path}/log", ClientTLS()))


# --- Webhook ---------------------------------------------------------------------------------------------------------


def posted(server: Scripted, accepted: bool) -> Iterator[dict[str, Any]]:
    """The rows of the requests that were, or were not, answered with 200; signatures are checked."""
    for number, request in enumerate(server.asked("/audit")):
        signature = hmac.new(SECRET.encode(), request.body, hashlib.sha256).hexdigest()
        assert request.headers["x-operator-signature"] == f"sha256={signature}"
        body = json.loads(request.body)
        assert body["format"] == "opnc-ccp audit 1"
        if (number in (0, 3)) != accepted:
            yield from body["rows"]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[CapturedCall]:
    logger = CapturingLogger()
    monkeypatch.setattr(stream, "_log", logger)
    return logger.calls


def test_stream_to_a_webhook_retries_and_logs_an_outage_once(url: str, log: list[CapturedCall]) -> None:
    fill(url, rows=8)
    with scripted() as server:
        server.on("/audit", Reply(500), Reply(200), Reply(204), Reply(302), Reply(200))
        settings = {"audit_stream": "webhook", "audit_stream_secret": SECRET}
        with in_this_process(url, audit_stream_url=f"{server.url}/audit", **settings):
            wait_until(lambda: confirmed(url) == 128)
        check_complete(url, list(posted(server, accepted=True)))
        assert len(list(posted(server, accepted=False))) > 0
    events = [(call.method_name, call.args[0], call.kwargs.get("reason")) for call in log]
    assert events == [
        ("error", "audit stream interrupted", "The webhook answered 500."),
        ("info", "audit stream resumed", None),
        ("error", "audit stream interrupted", "The webhook answered 302."),
        ("info", "audit stream resumed", None),
    ]


def test_stream_outage_is_one_event_however_long_it_is(url: str, log: list[CapturedCall]) -> None:
    fill(url, rows=1)
    with scripted() as server:
        server.on("/audit", *[Reply(503)] * 4, Reply(200))
        settings = {"audit_stream": "webhook", "audit_stream_secret": SECRET}
        with in_this_process(url, audit_stream_url=f"{server.url}/audit", **settings):
            wait_until(lambda: confirmed(url) == 16)
    assert [call.args[0] for call in log] == ["audit stream interrupted", "audit stream resumed"]
    assert log[1].kwargs["failures"] == 4


# --- Lease and position ----------------------------------------------------------------------------------------------


def test_stream_lease_excludes_others_until_it_ends(url: str) -> None:
    async def run() -> None:
        async with opened(url) as store:
            assert await store.write(queries.claim("file", "a", AT, AT + 10 * SECOND))
            assert not await store.write(queries.claim("file", "b", AT + 9 * SECOND, AT + 19 * SECOND))
            assert not await store.read(queries.is_free("file", AT + 9 * SECOND))
            assert await store.write(queries.claim("file", "a", AT + 9 * SECOND, AT + 19 * SECOND)), "renewed"
            assert await store.write(queries.claim("file", "b", AT + 19 * SECOND, AT + 29 * SECOND))
            with pytest.raises(queries.LeaseLost):
                await store.write(queries.advance("file", "a", [sample()]))
            assert sql(url, "select * from audit_stream_position") == []
            await store.write(queries.release("file", "a"))
            assert not await store.read(queries.is_free("file", AT + 20 * SECOND)), "it is another's"

    asyncio.run(run())


def test_stream_batch_ends_where_a_lane_was_cut(url: str) -> None:
    fill(url, lanes=(0, 1), rows=3)

    async def run() -> queries.Pending:
        async with opened(url) as store:
            return await store.read(queries.pending("file", 2))

    found = asyncio.run(run())
    assert found.count == 6
    assert [(row.lane, row.number) for row in found.rows] == [(0, 1), (1, 1), (0, 2)]


# --- The pool --------------------------------------------------------------------------------------------------------


def test_pool_streams_its_trail_and_shows_the_lag(pkis: dict[str, PKI], tmp_path: Path) -> None:
    file = tmp_path / "missing" / "audit.jsonl"
    with start(pkis, audit_stream="file", audit_stream_file=file) as pool:

        def metric(name: str) -> float:
            line = next(line for line in pool.http.get("/metrics").text.splitlines() if line.startswith(f"{name} "))
            return float(line.split()[1])

        contract = pool.publish(pool.car())
        wait_until(lambda: metric("ccp_audit_stream_failures_total") >= 1)
        assert metric("ccp_audit_stream_lag_rows") >= 1
        pool.publish(pool.car())  # The pool works meanwhile.
        file.parent.mkdir()
        wait_until(lambda: file.exists() and str(contract.emaid) in file.read_text())
        wait_until(lambda: metric("ccp_audit_stream_lag_rows") == 0)
        check_complete(pool.settings.database, lines(file))
        assert metric("ccp_audit_stream_rows_total") == len(lines(file))
        assert metric("ccp_audit_stream_lag_seconds") == 0


def test_pool_answers_while_the_receiver_of_its_trail_hangs(pkis: dict[str, PKI]) -> None:
    with socket.socket() as hanging:
        hanging.bind(("127.0.0.1", 0))
        hanging.listen()  # The kernel accepts; no program answers.
        url = f"http://127.0.0.1:{hanging.getsockname()[1]}/"
        with start(pkis, audit_stream="webhook", audit_stream_url=url, audit_stream_secret=SECRET) as pool:
            hanging.accept()[0].recv(1)  # A batch is being sent.
            began = time.monotonic()
            for _ in range(5):
                car = pool.car()
                pool.publish(car)
                pool.ask(car)
            assert time.monotonic() - began < stream_receivers.SEND_TIMEOUT, "no request waited for the batch"
