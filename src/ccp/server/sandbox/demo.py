"""The demo: from an empty pool to a car with a contract key, for both editions, over real HTTP."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from ccp.client import Client, Credentials, Delivered, NoContractResponse
from ccp.errors import CCPError
from ccp.ids import EMAID, PCID
from ccp.server.sandbox.local_pool import loopback, running
from ccp.server.sandbox.setup import EMSP_A, EMSP_B, OEM_WMI, World, build_world, register
from ccp.server.settings import Settings
from ccp.server.storage import connect
from ccp.server.storage.engine import schema
from ccp.testing.partners import Car, issue_contract, new_session_id, sign_contract
from ccp.testing.pki import PKI

_TITLES: Final = {"iso2": "ISO 15118-2", "iso20": "ISO 15118-20"}


class StepFailed(CCPError):
    """A step of the demo had another result than expected."""

    outcome = "demo"


@dataclass
class Demo:
    """Reports each step of the demo.

    report: takes the edition, the step, its result, and the duration in seconds.
    """

    report: Callable[[str, str, str, float], None]
    steps: int = 0
    installed: list[str] = field(default_factory=list)

    @contextmanager
    def step(self, edition: str, text: str) -> Iterator[list[str]]:
        """Run a step. Yields a list; the texts added to it are reported as the result."""
        began = time.perf_counter()
        result: list[str] = []
        yield result
        self.steps += 1
        self.report(edition, text, " ".join(result) or "done", time.perf_counter() - began)


async def prepare(folder: Path, base_url: str, now: datetime) -> tuple[World, Settings]:
    """Create a database with PKIs and parties."""
    config = Settings(database=f"sqlite:///{folder / 'ccp.db'}", base_url=base_url, log_level="error")
    schema.upgrade(config.database)
    world = build_world(now)
    store = connect(config.database, secrets_key_file=config.secrets_key_file)
    await store.open()
    try:
        await register(store, world, now)
    finally:
        await store.close()
    return world, config


def run(report: Callable[[str, str, str, float], None]) -> Demo:
    """Run the demo in a temporary directory. report: as for `Demo`.

    Raises StepFailed, ClientError if the pool rejects a request, or the error of a check that the car makes.
    """
    demo = Demo(report)
    now = datetime.now(UTC)
    with tempfile.TemporaryDirectory(prefix="ccp-demo-") as folder, loopback() as (listening, base_url):
        with demo.step("", "build two PKIs, create the database, register six parties") as result:
            world, config = asyncio.run(prepare(Path(folder), base_url, now))
            result.append(f"{len(world.pkis)} PKIs, {len(world.members)} parties")
        with running(config, listening), ExitStack() as stack:
            parties = {
                member.party.name: stack.enter_context(
                    Client(base_url, credentials=Credentials(member.party.client_id, member.secret))
                )
                for member in world.members
            }
            for edition, pki in world.pkis.items():
                _run_edition(demo, edition, pki, parties, now)
    return demo


def _run_edition(demo: Demo, edition: str, pki: PKI, parties: dict[str, Client], now: datetime) -> None:
    title = _TITLES[edition]
    number = 1 if edition == "iso2" else 2
    car = Car.generate(pki, PCID.parse(f"{OEM_WMI}0DEMO{number:09d}"), now)
    first, second = (EMAID.parse(f"{provider}D{number:08d}") for provider in (EMSP_A, EMSP_B))
    oem, cpo = parties["Example OEM"], parties["Example CPO"]
    pcid, namespace = car.pcid, car.namespace

    for emaid, publisher in ((first, "Example eMSP A"), (second, "Example CPS")):
        with demo.step(title, f"{emaid[:5]} makes contract {emaid}, the CPS signs it") as result:
            bundle = issue_contract(pki, emaid, car.pcid, car.provisioning.certificate, now)
            message = sign_contract(pki, bundle, now)
            result.append(f"{len(message)} bytes")
        with demo.step(title, f"{publisher.removeprefix('Example ')} publishes {emaid}"):
            root = pki.v2g_root.certificate
            parties[publisher].publish(
                message, emaid=emaid, pcid=pcid, namespace=namespace, root=root.fingerprint, root_dn=root.subject_dn
            )

    with demo.step(title, f"OEM lists the contracts of {car.pcid}") as result:
        listed = oem.contracts_of_pcid(pcid, namespace=namespace)
        result.append(f"{len(listed)} contracts, default {next(one.emaid for one in listed if one.is_default)}")
    with demo.step(title, f"OEM makes {second} the default"):
        oem.set_default(second, pcid)

    session_id = new_session_id()
    with demo.step(title, "CPO posts the car's signed request") as result:
        delivered = cpo.deliver(car.request(session_id, now), namespace)
        if not isinstance(delivered, Delivered):
            raise StepFailed(f"The car got {delivered.code}: {delivered.reason}")
        result.append(f"{len(delivered.contracts)} response(s)")
    with demo.step(title, "the car checks session, chains and signature, decrypts the key") as result:
        emaid, _ = car.install(delivered.contracts[0].message, session_id, now)
        if emaid != second:
            raise StepFailed(f"The car got {emaid}, not its default contract {second}.")
        result.append(f"installed {emaid}")
        demo.installed.append(f"{title}: {emaid}")

    with demo.step(title, "a car without contracts asks") as result:
        stranger = Car.generate(pki, PCID.parse(f"{OEM_WMI}0NONE{number:09d}"), now)
        result.append(_negative_code(stranger, cpo, now))

    for emaid, emsp in ((first, "Example eMSP A"), (second, "Example eMSP B")):
        with demo.step(title, f"{emaid[:5]} deletes {emaid}"):
            parties[emsp].withdraw(emaid)
    with demo.step(title, "the first car asks again") as result:
        result.append(_negative_code(car, cpo, now))


def _negative_code(car: Car, cpo: Client, now: datetime) -> str:
    """Return the ResponseCode of the negative message that a car gets. Raises StepFailed if it gets a contract."""
    answer = cpo.deliver(car.request(new_session_id(), now), car.namespace)
    if not isinstance(answer, NoContractResponse):
        raise StepFailed("A car got a contract that the pool does not have.")
    return answer.code
