"""Hostile callers, each in its own thread. Every message is new and made with real cryptography.

    with Hostility(port, world, rate=1.0) as hostile:      # rate: a factor on every caller's own rate
        ...
    hostile.statuses["flipped publication"]                # Counter of status codes; 0 without a response

Each request comes from another address, as a trusted proxy reports it; other tests cover limits by address.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import random
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from ccp.ids import EMAID, PCID, Namespace
from ccp.schemas.common import encode_base64
from ccp.server.domain.parties import PartyRole
from ccp.testing.partners import Car, issue_contract, sign_contract
from ccp.testing.pki import CONTRACT, PKI, StatusURLs
from ccp.testing.revocation import sign_crl, sign_ocsp_response
from rig import world
from rig.world import PATH

_TARGET: Final = PATH + "/signedcontractdata"
_MAX_SLOW: Final = 100
_NO_ANSWER: Final = (OSError, http.client.HTTPException)


def flipped(data: bytes, bit: int) -> bytes:
    """The data with one bit flipped. bit: counted from the highest bit of the first byte."""
    changed = bytearray(data)
    changed[bit // 8] ^= 0x80 >> bit % 8
    return bytes(changed)


class Hostility:
    """The callers. statuses: status codes by caller."""

    def __init__(self, port: int, made: world.World, tokens: world.Tokens, evil: PKI, rate: float = 1.0) -> None:
        """evil: a PKI that the pool trusts and whose eMSP names a new address in every certificate."""
        self._port, self._world, self._tokens, self._evil = port, made, tokens, evil
        self._rate = rate
        self._stopping = threading.Event()
        self._numbers = iter(range(secrets.randbelow(1 << 20), 1 << 60))
        self._stack = ExitStack()
        self.statuses: dict[str, Counter[int]] = {}

    def __enter__(self) -> Hostility:
        responder = self._stack.enter_context(_responder(self._evil))
        callers: list[tuple[str, float, Callable[[_Caller], int]]] = [
            ("flipped publication", 8.0, _Caller.flipped_publication),
            ("flipped request", 8.0, _Caller.flipped_request),
            # So many that what is remembered of vehicles is full within minutes, also on a busy machine.
            *((f"unknown car {number}", 10.0, _Caller.unknown_car) for number in range(2)),
            ("garbage", 5.0, _Caller.garbage),
            ("wrong token", 4.0, _Caller.wrong_token),
            ("wrong secret", 0.5, _Caller.wrong_secret),
            ("large body", 1.0, _Caller.large_body),
            ("strange path", 4.0, _Caller.strange_path),
            ("slow client", 2.0, _Caller.slow_client),
            *((f"new address {number}", 0.7, _Caller.new_address) for number in range(3)),
        ]
        threads = []
        for name, rate, act in callers:
            counter = self.statuses.setdefault(name.rstrip(" 0123456789"), Counter())
            caller = _Caller(self, responder)
            threads.append(threading.Thread(target=self._run, args=(caller, counter, rate, act), daemon=True))
        for thread in threads:
            thread.start()
        self._stack.callback(lambda: [thread.join(60) for thread in threads])
        self._stack.callback(self._stopping.set)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _run(self, caller: _Caller, counter: Counter[int], rate: float, act: Callable[[_Caller], int]) -> None:
        due = time.monotonic()
        while True:
            due = max(due, time.monotonic() - 5) + caller.chance.expovariate(rate * self._rate)
            if self._stopping.wait(max(0.0, due - time.monotonic())):
                break
            try:
                counter[act(caller)] += 1
            except _NO_ANSWER:
                counter[0] += 1
                caller.reconnect()
        caller.close()


class _Caller:
    """One thread's connection and random source. Every method is one action and returns the status of its response."""

    def __init__(self, whole: Hostility, responder: int) -> None:
        self.responder = responder
        self.chance = random.Random(secrets.randbits(64))
        self._whole = whole
        self._at = datetime.now(UTC).replace(microsecond=0)
        self._http = http.client.HTTPConnection("127.0.0.1", whole._port, timeout=30)
        self._slow: list[socket.socket] = []

    def reconnect(self) -> None:
        self._http.close()

    def close(self) -> None:
        self._http.close()
        for each in self._slow:
            each.close()

    def flipped_publication(self) -> int:
        contract = self.chance.choice(self._contracts())
        message = flipped(contract.message, self.chance.randrange(8 * len(contract.message)))
        body = {**contract.publication, "certificateInstallationRes": encode_base64(message)}
        dry = "?dryRun=true" if self.chance.random() < 0.7 else ""
        return self._send("PUT", _TARGET + dry, json.dumps(body).encode(), PartyRole.CPS)

    def flipped_request(self) -> int:
        contract = self.chance.choice(self._contracts())
        data = base64.b64decode(json.loads(contract.request)["certificateInstallationReq"])
        changed = flipped(data, self.chance.randrange(8 * len(data)))
        return self._post(changed, str(contract.car.namespace))

    def unknown_car(self) -> int:
        fleet = self.chance.choice(list(self._whole._world.fleets.values()))
        pcid = PCID.parse(f"WXQ0U{self.chance.randrange(10**12):012d}")
        car = Car.from_credential(fleet.pki, fleet.pki.vehicle(pcid, now=self._at), pcid)
        return self._post(car.request(self.chance.randbytes(8), self._at), str(car.namespace))

    def new_address(self) -> int:
        """A contract whose certificate names a new status address, usually on a new host."""
        number = next(self._whole._numbers)
        host = f"127.{number >> 16 & 127}.{number >> 8 & 255}.{number & 255}" if number % 4 else "127.0.0.1"
        base = f"http://{host}:{self.responder}/{number}"
        pki = self._whole._evil
        named = replace(pki.emsp_sub2, status_urls=StatusURLs(ocsp=base, crl=base + ".crl"))
        pki = replace(pki, emsp_sub2=named)
        pcid = PCID.parse(f"WXAE0{number % 10**12:012d}")
        emaid = EMAID.parse(f"DEEXAN{number % 10**8:08d}")
        car = Car.from_credential(pki, pki.vehicle(pcid, now=self._at), pcid)
        message = sign_contract(pki, issue_contract(pki, emaid, pcid, car.provisioning.certificate, self._at), self._at)
        body = {
            "certificateInstallationRes": encode_base64(message),
            "emaid": emaid,
            "pcid": pcid,
            "xsdMsgDefNamespace": str(car.namespace),
        }
        dry = "?dryRun=true" if number % 2 else ""
        return self._send("PUT", _TARGET + dry, json.dumps(body).encode(), PartyRole.CPS)

    def garbage(self) -> int:
        body = self.chance.choice(_GARBAGE)(self.chance)
        return self._send(
            self.chance.choice(("PUT", "POST")), _TARGET, body, self.chance.choice((PartyRole.CPS, PartyRole.CPO))
        )

    def wrong_token(self) -> int:
        token = self.chance.choice(list(self._whole._tokens.values()))
        kind = self.chance.randrange(3)
        if kind == 0:
            token = secrets.token_urlsafe(60)
        elif kind == 1:
            head, body, signature = token.split(".")
            token = f"{head}.{body}.{secrets.token_urlsafe(64)[: len(signature)]}"
        else:
            head = encode_base64(json.dumps({"alg": "ES256", "kid": secrets.token_hex(8)}).encode()).rstrip("=")
            token = ".".join((head, *token.split(".")[1:]))
        return self._send("POST", _TARGET, b"{}", token)

    def wrong_secret(self) -> int:
        who = self.chance.choice(("example-cpo-a", secrets.token_hex(12)))
        form = f"grant_type=client_credentials&client_id={who}&client_secret={secrets.token_urlsafe(20)}"
        return self._send("POST", "/oauth/token", form.encode(), None, "application/x-www-form-urlencoded")

    def large_body(self) -> int:
        size = self.chance.choice((100_000, 250_000, 262_144, 300_000, 2_000_000))
        filler = self.chance.choice((b"A", b"[1,", b'{"a":', b"\x00", b"\xff")) * size
        body = b'{"certificateInstallationRes": "' + filler[:size] + b'"}'
        return self._send("PUT", _TARGET, body, PartyRole.CPS)

    def strange_path(self) -> int:
        path = "/" + secrets.token_urlsafe(self.chance.choice((10, 100, 3000)))
        kind = self.chance.randrange(5)
        if kind == 0:
            path = f"{PATH}/contractData/emaid/DEEXA{self.chance.randrange(10**9):09d}"
        elif kind == 1:
            path = f"{PATH}/signedcontractdata/{secrets.token_hex(500)}/{secrets.token_hex(8)}"
        elif kind == 2:
            path = f"{_TARGET}?{secrets.token_hex(4)}={secrets.token_hex(200)}&dryRun={secrets.token_hex(2)}"
        method = self.chance.choice(("GET", "GET", "DELETE", "PATCH", secrets.token_hex(4).upper()))
        return self._send(method, path, b"", self.chance.choice((None, PartyRole.EMSP, PartyRole.OEM)))

    def slow_client(self) -> int:
        """Begin a request that never completes, and send one byte of each earlier one."""
        made = socket.create_connection(("127.0.0.1", self._whole._port), timeout=5)
        made.sendall(self.chance.choice((b"P", b"POST /op", _SLOW_HEAD, _SLOW_HEAD + b"\r\n" + b"x" * 1000)))
        self._slow.append(made)
        alive = []
        for each in self._slow:
            try:
                each.send(b"x")
                alive.append(each)
            except OSError:
                each.close()
        while len(alive) > _MAX_SLOW:
            alive.pop(self.chance.randrange(len(alive))).close()
        self._slow = alive
        return 0

    def _contracts(self) -> tuple[world.Contract, ...]:
        return self.chance.choice([fleet.contracts for fleet in self._whole._world.fleets.values()])

    def _post(self, message: bytes, namespace: str) -> int:
        members = {"certificateInstallationReq": encode_base64(message), "xsdMsgDefNamespace": namespace}
        return self._send("POST", _TARGET, json.dumps(members).encode(), PartyRole.CPO)

    def _send(
        self, method: str, path: str, body: bytes, who: PartyRole | str | None, kind: str = "application/json"
    ) -> int:
        """who: a role, whose token is sent; a token; or None."""
        headers = {
            "Content-Type": kind,
            "X-Forwarded-For": f"198.18.{self.chance.randrange(256)}.{self.chance.randrange(256)}",
        }
        if who is not None:
            token = self._whole._tokens[who, self.chance.choice(world.SETS)] if isinstance(who, PartyRole) else who
            headers["Authorization"] = f"Bearer {token}"
        self._http.request(method, path, body or None, headers)
        answer = self._http.getresponse()
        answer.read()
        return answer.status


_SLOW_HEAD: Final = b"POST /opnc/v1/ccp/signedcontractdata HTTP/1.1\r\nHost: ccp.example\r\nContent-Length: 5000\r\n"
_GARBAGE: Final[tuple[Callable[[random.Random], bytes], ...]] = (
    lambda chance: chance.randbytes(chance.randrange(1, 3000)),
    lambda chance: b"[" * chance.randrange(1, 5000),
    lambda chance: json.dumps({secrets.token_hex(8): "x" for _ in range(200)}).encode(),
    lambda chance: json.dumps({"certificateInstallationRes": chance.randbytes(900).hex(), "emaid": "x"}).encode(),
    lambda chance: json.dumps(
        {"certificateInstallationReq": encode_base64(chance.randbytes(900)), "xsdMsgDefNamespace": Namespace.ISO2}
    ).encode(),
    lambda chance: b'{"emaid": 1e999, "emaid": "\\ud800", "pcid": ' + b"9" * 4000 + b"}",
    lambda chance: b"",
)


@contextlib.contextmanager
def _responder(evil: PKI) -> Iterator[int]:
    """An OCSP and CRL server that returns valid responses for other certificates, flipped ones, and garbage."""
    at = datetime.now(UTC).replace(microsecond=0)
    issuer, times = evil.emsp_sub2, {"this_update": at - timedelta(minutes=1), "next_update": at + timedelta(hours=8)}
    other = issuer.issue("DEEXAOTHER0001", CONTRACT, now=at).certificate
    response = sign_ocsp_response(other, issuer, **times)
    crl = sign_crl(issuer, dict.fromkeys(range(1, 40), at), **times)
    chance = random.Random(5)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self._say(response, "application/ocsp-response")

        def do_GET(self) -> None:
            self._say(crl if self.path.endswith(".crl") else response, "application/pkix-crl")

        def _say(self, data: bytes, kind: str) -> None:
            what = chance.randrange(5)
            if what == 0:
                data = chance.randbytes(chance.randrange(2000))
            elif what < 4:
                data = flipped(data, chance.randrange(8 * len(data)))
            self.send_response(chance.choice((200, 200, 200, 200, 404, 500)))
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # The pool hangs up on it at times.
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
