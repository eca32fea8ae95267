"""A program: POST without a framework, the upper bound for a server that does the same work.

    python bench/rig/bare.py CONFIG DATABASE PORT

One asyncio protocol on uvloop parses HTTP by hand (a well-formed head with a Content-Length) and does the pool's work
with the package's own functions: Base64, EXI, the vehicle's signature and chain, stored evidence of both chains, lookup
in the same SQLite file, selection, replacement of the header, JSON. It has no tokens, rate limits, roles or log.
Several processes share a port (SO_REUSEPORT).
"""

from __future__ import annotations

import asyncio
import base64
import signal
import sqlite3
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import uvloop

from ccp import verify
from ccp.ids import Namespace
from ccp.schemas.common import encode_base64
from ccp.schemas.opnc import distinguished_name
from ccp.server import settings
from ccp.server.app import build_services
from ccp.server.domain import contracts
from ccp.server.domain.contracts import SignedContract
from ccp.server.storage.engine.query import Query, T
from ccp.server.storage.engine.schema import sqlite_file
from ccp.server.storage.queries import contracts as queries
from ccp.server.storage.queries import revocation
from ccp.x509.path_validation import TrustAnchors
from ccp.x509.revocation_evidence import certificate_refs
from ccp.x509.revocation_policy import DeferredRevocation, check_refs


class Work:
    """The work of one POST, without HTTP."""

    def __init__(self, database: str, anchors: TrustAnchors, rules: Any) -> None:
        self._connection = sqlite3.connect(sqlite_file(database), isolation_level=None)
        self._connection.execute("pragma query_only = on")
        self._anchors = anchors
        self._rules = rules
        self._statements: dict[str, str] = {}

    def _ask(self, query: Query[T]) -> T:
        steps = iter(query)
        try:
            statement, parameters = next(steps)
            while True:
                known = self._statements.get(statement) or self._statements.setdefault(
                    statement, statement.replace("$", "?")
                )
                statement, parameters = steps.send(self._connection.execute(known, parameters).fetchall())
        except StopIteration as stop:
            answer: T = stop.value
            return answer

    def answer(self, body: bytes) -> bytes:
        fields = orjson.loads(body)
        at = datetime.now(UTC)
        namespace = Namespace(fields["xsdMsgDefNamespace"])
        request = verify.read_request(base64.b64decode(fields["certificateInstallationReq"]), namespace)
        verified = verify.check_request(request, anchors=self._anchors, revocation=DeferredRevocation(), now=at)
        if verified.chain is None:
            raise RuntimeError("There are OEM roots.")
        keys = certificate_refs((verified.chain,))
        stored = self._ask(queries.by_vehicle(verified.pcid))
        theirs = [key for contract in stored for key in contract.certificates or ()]
        known = self._ask(revocation.load((*keys, *theirs), self._rules))
        check_refs(keys, known, self._rules, at)

        def good(contract: SignedContract) -> bool:
            check_refs(contract.certificates or (), known, self._rules, at)
            return True

        chosen = contracts.select_for_iso2(stored, at, root_listed=request.trusts_root_of, deliverable=good)
        item = {
            "certificateInstallationRes": encode_base64(verify.with_session(chosen, request.session_id, at)),
            "emaid": chosen.emaid,
            "pcid": chosen.pcid,
            "xsdMsgDefNamespace": chosen.namespace,
            "cpsV2GRootCertificateFingerprint": chosen.root_fingerprint,
        }
        if name := distinguished_name(chosen.root_dn):
            item["cpsRootDistinguishedName"] = name
        return orjson.dumps({"signedContractDataCollection": [item]})


class Bare(asyncio.Protocol):
    def __init__(self, work: Work) -> None:
        self._work = work
        self._data = bytearray()
        self._transport: asyncio.Transport

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._data[:end]).lower()
            length = int(head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0] or 0)
            if len(self._data) < end + 4 + length:
                return
            body = bytes(self._data[end + 4 : end + 4 + length])
            del self._data[: end + 4 + length]
            answer = self._work.answer(body) if body else b"{}"
            self._transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                % (len(answer), answer)
            )


async def serve() -> None:
    config, database, port = sys.argv[1:]
    built = build_services(settings.load(Path(config), database=database))
    await built.open()
    work = Work(database, built.trust.anchors, built.revocation.rules)
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    server = await loop.create_server(lambda: Bare(work), "127.0.0.1", int(port), reuse_port=True)
    await ended.wait()
    server.close()
    await built.close()


if __name__ == "__main__":
    uvloop.run(serve())
