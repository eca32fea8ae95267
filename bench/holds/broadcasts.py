"""A flood of broadcasts for vehicles that no pool knows, with many healthy peers."""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from ccp import exi, verify
from ccp.errors import NoContract
from ccp.ids import EMAID, PCID
from ccp.schemas.common import PLACEHOLDER_EMAID, PLACEHOLDER_PCID, encode_base64
from ccp.server import logging, settings
from ccp.server.app import build_services
from ccp.server.domain.parties import PartyRole
from ccp.server.storage.engine import schema
from ccp.server.storage.queries import peers as registry
from ccp.testing.partners import Car, issue_contract, sign_contract
from request import token_of
from rig import fake_peers, processes, world
from rig.open_loop import Stream, running
from rig.report import Row

AIMS: Final = (
    "One party sends 60 broadcasts a second (`broadcast: true`), each for another unknown vehicle. All peers are "
    "healthy and answer at once that they have no contract. Aims: vehicles with a contract in this pool are hardly "
    "slower; no circuit of a healthy peer opens; a vehicle of another party still gets a contract that only one "
    "peer has. One worker, the peers (one process) and the load share two cores."
)

PEERS: Final = 20
_SESSION: Final = bytes.fromhex("00112233445566aa")
_ALONE: Final = b"Other pools were not asked"
_WARM_UP: Final = 2.0


@dataclass(frozen=True)
class _Plan:
    peers: int
    seconds: float  # Of each of the two phases.
    others: float  # Requests of other cars a second.
    cars: int
    searched: int
    flood: float  # Broadcasts a second.
    share: float  # Of requests that have to be answered as wanted.
    limit: float | None  # Of the ratio of medians; None where a busy machine decides it.
    settings: str = ""


_LONG: Final = _Plan(PEERS, 20.0, 60.0, 256, 32, 60.0, 1.0, 1.5)
# So little that a busy machine can do it; the limit is lower in its place, so that it counts.
_SHORT: Final = _Plan(6, 5.0, 10.0, 64, 4, 20.0, 0.75, None, "peer_delivery_timeout = 3\nbroadcast_rate = 40\n")


def run(short: bool, folder: Path) -> Iterator[Row]:
    plan = _SHORT if short else _LONG
    at = datetime.now(UTC).replace(microsecond=0)
    built = world.build(at, {"iso2": plan.cars})
    pki = built.fleets["iso2"].pki
    unknown = [
        Car.generate(pki, PCID(f"WXA0FLOOD{number:08d}"), at) for number in range(int(plan.flood * plan.seconds * 1.3))
    ]
    searched = [Car.generate(pki, PCID(f"WXC0AFAR0{number:08d}"), at) for number in range(plan.searched)]
    far = {}
    for number, car in enumerate(searched):
        emaid = EMAID(f"DEEXCF{number:08d}")
        message = sign_contract(pki, issue_contract(pki, emaid, car.pcid, car.provisioning.certificate, at), at)
        item = {
            "certificateInstallationRes": encode_base64(exi.replace_header_fields(message, session_id=_SESSION)),
            "emaid": emaid,
            "pcid": car.pcid,
            "xsdMsgDefNamespace": car.namespace,
        }
        far[encode_base64(car.request(_SESSION, at))] = _collection(item), car
    nothing = NoContract("No contract is stored for the vehicle.")
    negative = {
        "certificateInstallationRes": encode_base64(
            verify.negative_response(unknown[0].namespace, _SESSION, nothing, at)
        ),
        "emaid": PLACEHOLDER_EMAID,
        "pcid": PLACEHOLDER_PCID,
        "xsdMsgDefNamespace": unknown[0].namespace,
        "metaData": str(nothing),
    }
    holder = fake_peers.Peer(contracts={message: body for message, (body, _) in far.items()})
    others = [fake_peers.Peer() for _ in range(plan.peers - 1)]
    others.insert(plan.peers // 2, holder)
    with (
        fake_peers.running(others, _collection(negative)) as peers,
        _serving(folder, built, peers.ports, plan.settings) as server,
    ):
        tokens = {
            letter: token_of(f"http://127.0.0.1:{server.port}/oauth/token", member.party.client_id, member.secret)
            for (role, letter), member in built.members.items()
            if role is PartyRole.CPO
        }
        yield from _flood(plan, server, built, peers, tokens, unknown, list(far), at)


def _flood(
    plan: _Plan,
    server: processes.Server,
    built: world.World,
    peers: fake_peers.Peers,
    tokens: dict[str, str],
    unknown: list[Car],
    far: list[str],
    at: datetime,
) -> Iterator[Row]:
    known = [c for c in built.fleets["iso2"].contracts if c.letter not in "AC"]
    namespace = unknown[0].namespace
    asking = [
        json.dumps({"certificateInstallationReq": text, "xsdMsgDefNamespace": namespace}).encode() for text in far
    ]
    flood = [
        json.dumps(
            {"certificateInstallationReq": encode_base64(car.request(_SESSION, at)), "xsdMsgDefNamespace": namespace}
        )
        for car in unknown
    ]
    begins, ends = _WARM_UP + plan.seconds, _WARM_UP + 2 * plan.seconds
    streams = [
        Stream(
            "others",
            tuple(world.message_of("POST", _PATH, tokens[c.letter], c.request) for c in known),
            plan.others,
            ends,
            30,
            labels=(("contract", b'"emaid":"DEEX'),),
        ),
        Stream(
            "flood",
            tuple(_broadcast(tokens["A"], body.encode()) for body in flood),
            plan.flood,
            plan.seconds,
            60,
            start=begins,
            labels=(("alone", _ALONE), ("nothing", b"No contract is stored")),
            open_first=False,
        ),
        Stream(
            "searching",
            tuple(_broadcast(tokens["C"], body) for body in asking),
            2.0,
            plan.seconds,
            10,
            start=begins,
            labels=(("found", b'"emaid":"DEEXCF'),),
        ),
    ]
    (worker,) = server.workers()
    with _descriptors(worker) as most, running(server.port, streams) as load:
        outcomes = load.result()
    cars = outcomes["others"]
    figures = _metrics(server.port)
    before, during = ({"start": _WARM_UP, "end": begins}, {"start": begins, "end": ends})
    p50, p50_flood = cars.percentile(0.5, **before), cars.percentile(0.5, **during)
    p99, p99_flood = cars.percentile(0.99, **before), cars.percentile(0.99, **during)
    good = cars.good(within=4.0, label="contract", **during)
    ratio = p50_flood / p50
    yield Row(
        f"other cars' p50, with {plan.peers} peers and the flood",
        f"≤ {plan.limit:g} times that without" if plan.limit else "none",
        f"{1000 * p50_flood:.1f} ms, {1000 * p50:.1f} ms without: {ratio:.2f}",
        ratio <= plan.limit if plan.limit else None,
    )
    yield Row("their p99", "none", f"{1000 * p99_flood:.1f} ms, {1000 * p99:.1f} ms without", None)
    due = cars.due(**during)
    share = "all" if plan.share == 1 else f"≥ {plan.share:.0%}"
    yield Row(
        "other cars with their contract within 4 s", share, f"{good} of {len(due)}", good >= plan.share * len(due)
    )
    flooded = outcomes["flood"]
    labels = [answer.label for answer in flooded.answers if answer.status == 200]
    asked, alone = labels.count("nothing"), labels.count("alone")
    yield Row(
        "broadcasts of the flood, answered within 4 s",
        f"{share}, some of each kind",
        f"{flooded.good(within=4.0)} of {len(flooded.answers)}: {asked} after asking peers, {alone} from here alone",
        flooded.good(within=4.0) >= plan.share * len(flooded.answers) and asked > 0 and alone > 0,
    )
    searching = outcomes["searching"]
    found = searching.good(within=4.0, label="found")
    yield Row(
        "another party's cars, whose contract one peer holds",
        "all found within 4 s" if plan.share == 1 else "some found within 4 s",
        f"{found} of {len(searching.answers)}, p50 {1000 * searching.percentile(0.5):.0f} ms",
        found == len(searching.answers) if plan.share == 1 else found > 0,
    )
    yield Row("descriptors that the worker has open at most", "< 300", str(most[0]), most[0] < 300)
    judged = sum(value for name, _, value in figures if name == "ccp_peer_circuit_open")
    total: dict[str, float] = {}
    for name, labels, value in figures:
        if name == "ccp_peer_requests_total":
            total[labels["outcome"]] = total.get(labels["outcome"], 0) + value
    calls = ", ".join(f"{count:.0f} {outcome}" for outcome, count in sorted(total.items()))
    yield Row("circuits of healthy peers that are open at the end", "0", f"{judged:.0f}; calls: {calls}", judged == 0)
    yield Row(
        "connections that peers accepted",
        "none",
        f"{sum(peers.connections())} for {sum(peers.asked())} requests",
        None,
    )


_PATH: Final = f"{world.PATH}/signedcontractdata"


def _collection(item: dict[str, object]) -> bytes:
    return json.dumps({"signedContractDataCollection": [item]}, separators=(",", ":")).encode()


def _broadcast(token: str, body: bytes) -> bytes:
    return world.message_of("POST", _PATH, token, body).replace(b"\r\n", b"\r\nbroadcast: true\r\n", 1)


@contextmanager
def _serving(folder: Path, built: world.World, ports: tuple[int, ...], more: str) -> Iterator[processes.Server]:
    """A pool with one worker, and a registered peer at each port."""
    config, database = folder / "ccp.toml", f"sqlite:///{folder / 'ccp.db'}"
    config.write_text(f'base_url = "{world.BASE_URL}"\npool_id = "pool-here"\n{more}')
    schema.upgrade(database)
    loaded = settings.load(config, database=database)
    logging.configure(loaded.model_copy(update={"log_level": "error"}))

    async def fill() -> None:
        await world.fill(loaded, built)
        assembled = build_services(loaded)
        await assembled.open()
        try:
            for number, port in enumerate(ports):
                peer = registry.Peer(f"pool-{number}", f"http://127.0.0.1:{port}", token="a-token")
                await assembled.store.write(registry.add(peer, built.at))
        finally:
            await assembled.close()

    asyncio.run(fill())
    with processes.serving(config, database, 1, folder / "server.log") as server:
        yield server


@contextmanager
def _descriptors(pid: int) -> Iterator[list[int]]:
    """The largest number of open file descriptors of a process during the context."""
    most, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            most[0] = max(most[0], len(list(Path(f"/proc/{pid}/fd").iterdir())))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


def _metrics(port: int) -> list[tuple[str, dict[str, str], float]]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return [
        (one.name, one.labels, one.value) for family in text_string_to_metric_families(text) for one in family.samples
    ]
