"""Which requests a worker starts, in which order, and which it sheds; with a clock of the test's own."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Hashable
from typing import Any

import pytest
from uvicorn.protocols.http.flow_control import FlowControl

from ccp.server.http.admission import Admission
from ccp.server.http.fair_queue import MAX_STARTS, Lane, Reason
from ccp.server.http.request_cycle import RequestCycle

VEHICLE = "POST", "/opnc/v1/ccp/signedcontractdata"
BULK = "PUT", "/opnc/v1/ccp/signedcontractdata"
PARTIES = "one", "two", "three"


class Request:
    """A request that ends when the test says so. token: "" for none."""

    def __init__(self, crowd: Crowd, token: str, address: str | None = "192.0.2.1") -> None:
        self.lane: Lane | None = None
        self.caller: Hashable = None
        self.place = 0.0, 0
        self.arrived = 0.0
        self.period = 0
        self.crowd, self.token, self._address = crowd, token, address

    def begin(self) -> None:
        self.crowd.started.append(self)

    def refuse(self) -> None:
        self.crowd.refused.append(self)

    def drop(self) -> None:
        self.crowd.dropped.append(self)

    def authorization(self) -> bytes:
        return self.token.encode()

    def address(self) -> Hashable:
        return self._address


class Crowd:
    """Requests of several callers at one admission. A turn takes five milliseconds."""

    def __init__(self) -> None:
        self.now = 100.0
        self.admission = Admission(lambda: self.now)
        for party in PARTIES:
            self.admission.identified(party.encode(), party)
        self.started: list[Request] = []
        self.refused: list[Request] = []
        self.dropped: list[Request] = []

    def offer(self, token: str, kind: tuple[str, str] = VEHICLE, count: int = 1, **more: Any) -> list[Request]:
        made = [Request(self, token, **more) for _ in range(count)]
        for request in made:
            self.admission.offer(request, *kind)
        return made

    async def turn(self, seconds: float = 0.005) -> None:
        """What was started is answered, and the loop turns."""
        for request in self.started:
            self.admission.ended(request)
        self.now += seconds
        await asyncio.sleep(0)

    async def turn_of(self, token: str, seconds: float = 0.005) -> None:
        """As `turn`, but only one caller's requests are answered."""
        for request in self.started:
            if request.token == token:
                self.admission.ended(request)
        self.now += seconds
        await asyncio.sleep(0)

    async def overload(self, token: str = "one", seconds: float = 0.3) -> None:
        """A caller asks for more than is served until its queue counts as one that lasts."""
        until = self.now + seconds
        while self.now < until:
            self.offer(token, count=3 * MAX_STARTS)
            await self.turn()
        assert self.admission.overloaded

    def count(self, found: list[Request]) -> Counter[str]:
        return Counter(request.token for request in found)


def looped(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(test())

    run.__name__ = test.__name__
    return run


@looped
async def test_admission_starts_few_requests_at_once() -> None:
    crowd = Crowd()
    crowd.offer("one", count=MAX_STARTS)
    assert len(crowd.started) == MAX_STARTS
    assert not crowd.admission.waiting


@looped
async def test_admission_has_one_class_for_all_requests_of_vehicles() -> None:
    crowd = Crowd()
    paths = ("/opnc/v1/ccp/signedcontractdata", "/v1/ccp/signedContractData", "/ocpp/v1/get15118EVCertificate")
    found = [crowd.offer("one", ("POST", path))[0].lane for path in paths]
    assert found == [crowd.admission.vehicles] * 3


@looped
async def test_admission_limits_the_starts_of_one_iteration() -> None:
    crowd = Crowd()
    crowd.offer("one", count=5 * MAX_STARTS)
    for turn in range(1, 6):
        assert len(crowd.started) == turn * MAX_STARTS
        await crowd.turn()
    assert not crowd.refused


@looped
async def test_burst_is_served_whole() -> None:
    crowd = Crowd()
    crowd.offer("one", count=20 * MAX_STARTS)
    while crowd.admission.waiting:
        await crowd.turn()
    assert len(crowd.started) == 20 * MAX_STARTS
    assert not crowd.refused


@looped
async def test_queue_that_lasts_keeps_its_newest_requests_alone() -> None:
    crowd = Crowd()
    first = crowd.offer("one", count=400)
    for _ in range(100):
        last = crowd.offer("one", count=MAX_STARTS)
        await crowd.turn()
        if crowd.admission.overloaded:
            break
    lane = crowd.admission.vehicles
    assert len(lane.queue) <= lane.short_queue
    assert set(last) <= {entry[2] for entry in lane.queue} | set(crowd.started)
    assert set(crowd.refused) <= set(first) | set(crowd.refused)
    assert crowd.admission.shed["vehicle", Reason.QUEUE_AGE] > 100


@looped
async def test_admission_under_overload_refuses_at_once_and_work_goes_on() -> None:
    crowd = Crowd()
    await crowd.overload()
    crowd.started.clear()
    crowd.refused.clear()
    for _ in range(100):
        crowd.offer("one", count=50)
        await crowd.turn()
    assert len(crowd.started) >= 390
    assert len(crowd.refused) >= 4500
    assert max(crowd.now - entry[2].arrived for entry in crowd.admission.vehicles.queue) < 0.1


@looped
async def test_admission_ignores_time_in_which_the_loop_was_blocked() -> None:
    crowd = Crowd()
    crowd.offer("one", count=100)
    await crowd.turn(seconds=0.8)
    assert not crowd.admission.overloaded
    while crowd.admission.waiting:
        await crowd.turn()
    assert not crowd.refused


@looped
async def test_admission_of_the_next_wave_of_an_overload_is_not_in_whole() -> None:
    crowd = Crowd()
    await crowd.overload()
    while crowd.admission.waiting:
        await crowd.turn()
    crowd.refused.clear()
    crowd.offer("one", count=300)
    lane = crowd.admission.vehicles
    assert len(lane.queue) <= lane.short_queue
    assert len(crowd.refused) >= 300 - MAX_STARTS - lane.short_queue


@looped
async def test_overload_ends_a_second_after_the_last_refusal() -> None:
    crowd = Crowd()
    await crowd.overload()
    while crowd.admission.waiting:
        await crowd.turn()
    assert crowd.admission.overloaded
    crowd.admission.settle()
    crowd.now += 0.9
    crowd.admission.settle()
    assert crowd.admission.overloaded
    crowd.now += 0.2
    crowd.admission.settle()  # As the worker does every half second, whether or not requests come.
    assert not crowd.admission.overloaded
    crowd.refused.clear()
    crowd.offer("one", count=100)
    assert not crowd.refused


@looped
async def test_queue_no_longer_than_the_short_one_is_no_overload() -> None:
    crowd = Crowd()
    clients = MAX_STARTS + crowd.admission.vehicles.short_queue
    for _ in range(400):  # Each client asks again when it has its answer.
        crowd.offer("one", count=clients - crowd.admission.waiting)
        await crowd.turn()
        assert not crowd.admission.overloaded
    assert not crowd.refused


@looped
async def test_request_that_waited_too_long_is_not_started() -> None:
    crowd = Crowd()
    (old, *_) = crowd.offer("one", count=4 * MAX_STARTS)[MAX_STARTS:]
    await crowd.turn(seconds=1.1)
    assert old in crowd.refused
    assert old not in crowd.started


@looped
async def test_admission_refuses_in_time_what_waits_for_others_to_end() -> None:
    crowd = Crowd()
    crowd.admission.vehicles.max_in_flight = 0  # type: ignore[misc]
    waiting = crowd.offer("one", count=5)
    await asyncio.sleep(0)
    crowd.now += 1.1
    await asyncio.sleep(0.1)
    assert crowd.refused == waiting


@looped
async def test_slot_that_becomes_free_is_used_at_once() -> None:
    crowd = Crowd()
    crowd.admission.vehicles.max_in_flight = 1  # type: ignore[misc]
    first, second = crowd.offer("one", count=2)
    await asyncio.sleep(0)
    assert crowd.started == [first]
    crowd.admission.ended(first)
    await asyncio.sleep(0)
    assert crowd.started == [first, second]


@looped
async def test_admission_of_one_callers_flood_does_not_shed_another_callers_vehicles() -> None:
    crowd = Crowd()
    await crowd.overload("one")
    crowd.started.clear()
    crowd.refused.clear()
    for _ in range(200):
        crowd.offer("one", count=40)
        crowd.offer("two", count=1)
        await crowd.turn()
    assert crowd.count(crowd.refused)["two"] == 0
    assert crowd.count(crowd.started)["two"] >= 199


@looped
async def test_callers_that_all_ask_too_much_have_equal_shares() -> None:
    crowd = Crowd()
    await crowd.overload("one")
    crowd.started.clear()
    for _ in range(400):
        crowd.offer("one", count=60)
        crowd.offer("two", count=12)
        crowd.offer("three", count=6)
        await crowd.turn()
    shares = crowd.count(crowd.started)
    assert max(shares.values()) < 1.3 * min(shares[party] for party in PARTIES)


@looped
async def test_tokens_that_were_never_verified_do_not_displace_those_that_were() -> None:
    crowd = Crowd()
    await crowd.overload("one")
    crowd.started.clear()
    for turn in range(200):
        crowd.offer(f"invented {turn}", count=40, address=f"192.0.2.{turn}")
        crowd.offer("two", count=2)
        await crowd.turn()
    assert crowd.count(crowd.refused)["two"] == 0
    assert any(token.startswith("invented") for token in crowd.count(crowd.started)), "they do not starve"


@looped
async def test_token_that_proves_invalid_loses_its_partys_share() -> None:
    crowd = Crowd()
    await crowd.overload("one")
    crowd.offer("one", count=20)
    assert crowd.admission.try_shed(b"one", "192.0.2.1")
    crowd.admission.identified(b"one", None)
    assert not crowd.admission.try_shed(b"one", "192.0.2.1"), "it is one of the unverified now, and they have room"


@looped
async def test_vehicles_go_before_bulk_and_bulk_does_not_starve() -> None:
    crowd = Crowd()
    bulk = set(crowd.offer("two", BULK, count=100))
    for _ in range(400):
        crowd.offer("one", count=3 * MAX_STARTS)
        await crowd.turn()
    started = [request in bulk for request in crowd.started[MAX_STARTS:]]
    assert 0.03 < sum(started[:1000]) / len(started[:1000]) < 0.1


@looped
async def test_bulk_uses_what_vehicles_leave() -> None:
    crowd = Crowd()
    crowd.offer("two", BULK, count=40)
    while crowd.admission.waiting:
        await crowd.turn()
    assert crowd.count(crowd.started)["two"] == 40


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready", "/metrics"])
def test_probes_never_wait(path: str) -> None:
    async def probe() -> None:
        crowd = Crowd()
        await crowd.overload()
        (probe,) = crowd.offer("", ("GET", path))
        assert crowd.started[-1] is probe

    asyncio.run(probe())


@looped
async def test_admission_gives_a_flood_of_probes_a_share_and_answers_a_balancers_probe() -> None:
    crowd = Crowd()
    for _ in range(100):
        crowd.offer("", ("GET", "/health/ready"), count=100, address="203.0.113.1")
        crowd.offer("one", count=MAX_STARTS)
        await crowd.turn()
    assert crowd.count(crowd.started)["one"] > 0.7 * len(crowd.started)
    for _ in range(20):
        (probe,) = crowd.offer("", ("GET", "/health/live"), address="192.0.2.9")
        crowd.offer("", ("GET", "/health/ready"), count=100, address="203.0.113.1")
        for _ in range(3):
            await crowd.turn()
        assert probe in crowd.started


@pytest.mark.parametrize("header", [b"Bearer  token", b"Bearer token ", b"Bearer \ttoken", b"Bearer " + b"t" * 5000])
def test_header_that_is_written_in_an_unusual_way_is_not_remembered(header: bytes) -> None:
    admission = Admission()
    admission.identified(header, "one")
    assert not admission._parties


@looped
async def test_request_whose_client_has_gone_is_never_started() -> None:
    crowd = Crowd()
    gone = crowd.offer("one", count=3 * MAX_STARTS)[-1]
    crowd.admission.disconnected(gone)
    while crowd.admission.waiting:
        await crowd.turn()
    assert crowd.dropped == [gone]
    assert gone not in crowd.started
    assert crowd.admission.shed["vehicle", Reason.CLIENT_GONE] == 1


@looped
async def test_callers_and_tokens_that_come_once_leave_nothing_that_grows() -> None:
    crowd = Crowd()
    await crowd.overload("one")
    for number in range(20_000):
        crowd.admission.identified(b"%d" % number, "one")
        crowd.offer(f"x{number}", address=str(number))
        if number % 10 == 0:
            crowd.offer("one", count=20)
            await crowd.turn()
    assert len(crowd.admission._parties) <= 16_384
    assert all(len(lane._tags) <= 4096 for lane in crowd.admission.lanes)
    assert all(len(lane.queue) <= lane.max_waiting for lane in crowd.admission.lanes)


@pytest.mark.parametrize(
    ("connections", "requests", "starts", "in_progress", "queued"),
    [
        (100, 10_000, 4, 16, 16),
        (100, 1_000, 15, 40, 16),
        (1_000, 2_000, 32, 128, 32),
        (10_000, 5_000, 32, 128, 32),
    ],
    ids=["few_busy_connections", "few_connections", "many_connections", "mostly_idle_connections"],
)
def test_admission_starts_fewer_requests_an_iteration_the_busier_each_connection_is(
    connections: int, requests: int, starts: int, in_progress: int, queued: int
) -> None:
    async def ask() -> None:
        crowd = Crowd()
        admission = crowd.admission
        await crowd.overload()
        for _ in range(160):
            crowd.offer("one", count=100)
            admission.asking, admission.arrived = connections, requests
            before = len(crowd.started)
            await crowd.turn()
        assert len(crowd.started) - before == starts
        assert admission._enough_overloaded == in_progress
        assert admission.vehicles.short_queue == queued

    asyncio.run(ask())


@looped
async def test_admission_puts_background_work_off_under_overload_and_it_goes_on() -> None:
    crowd = Crowd()
    assert all(crowd.admission.has_time() for _ in range(10))
    await crowd.overload()
    done = 0
    for _ in range(200):
        crowd.offer("one", count=50)
        await crowd.turn()
        done += crowd.admission.has_time()
    assert 8 <= done <= 11, "ten in the second that these turns take"


@looped
async def test_admission_starts_more_while_requests_wait_for_other_services() -> None:
    crowd = Crowd()
    crowd.offer("one", count=200)
    for _ in range(1000):
        if len(crowd.started) == 200:
            break
        await asyncio.sleep(0.001)  # Nothing is to be done meanwhile, and none of them ends.
    assert len(crowd.started) == 200
    assert not crowd.refused


@looped
async def test_admission_has_no_more_under_way_in_a_busy_loop_than_it_needs() -> None:
    crowd = Crowd()
    for _ in range(50):
        crowd.offer("one", count=20)
        crowd.now += 0.005  # Each turn takes that long, and none of them ends.
        await asyncio.sleep(0)
    assert len(crowd.started) <= 48
    assert len(crowd.refused) > 100


@looped
async def test_requests_that_take_long_keep_no_others_waiting_in_a_busy_loop_either() -> None:
    crowd = Crowd()
    slow = crowd.offer("one", BULK, count=200)
    while len(crowd.started) < 48:
        crowd.now += 0.005
        await asyncio.sleep(0)
    crowd.now += 1.0
    (quick,) = crowd.offer("two", BULK)
    for _ in range(120):
        crowd.offer("three")  # Vehicles keep the loop busy, and are answered.
        await crowd.turn_of("three")
    assert quick in crowd.started
    assert crowd.admission.bulk.in_flight == len(crowd.started) - len([r for r in crowd.started if r.token == "three"])
    for request in crowd.started:
        crowd.admission.ended(request)
    assert crowd.admission.bulk.in_flight == 0
    assert crowd.admission.bulk.may_start(1), "what ended late is not counted twice"
    assert slow


@looped
async def test_admission_does_not_count_responses_that_clients_do_not_read() -> None:
    flow = FlowControl(asyncio.Transport())
    flow.pause_writing()
    admission = Admission()
    cycle = RequestCycle.__new__(RequestCycle)
    cycle.flow, cycle.admission, cycle.disconnected, cycle.keep_alive = flow, admission, False, True
    cycle.waiting_for_100_continue = cycle.more_body = False
    admission.vehicles.started(cycle)
    sending = asyncio.create_task(cycle.send({"type": "http.response.start", "status": 200, "headers": []}))
    await asyncio.sleep(0)
    assert not sending.done()
    assert admission.vehicles.in_flight == 0
    admission.ended(cycle)
    assert admission.vehicles.in_flight == 0
    sending.cancel()
