"""`Session` without sockets and clock: its actions, backoff and token renewal."""

from __future__ import annotations

from typing import Any

import pytest

from ccp.client import Credentials, NoResponseError, RetryPolicy, Timeouts
from ccp.client.opnc import OPNCOperations
from ccp.client.responses import HttpResponse
from ccp.client.session import Authorize, Exchange, Session, Sleep
from ccp.schemas.common import Routing

NOTHING = HttpResponse(200, {}, b'{"contractDataCollection": []}')


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def session(
    clock: Clock, timeouts: Timeouts = Timeouts(), retry: RetryPolicy = RetryPolicy(), chance: float = 0.0
) -> Session:
    access = Credentials("id", "secret")
    return Session(
        "https://ccp.example", access, timeouts, retry, clock=clock, wall_clock=clock, random=lambda: chance
    )  # fmt: skip


def granted(lifetime: Any) -> HttpResponse:
    return HttpResponse(200, {}, b'{"access_token": "t", "expires_in": %s}' % str(lifetime).encode())


def ask(session: Session, lifetime: Any = None) -> list[type]:
    """A call that succeeds. Returns the kinds of its steps."""
    steps = session.call(OPNCOperations(Routing()).contracts_of_emaid("DEEXAC00000001"))
    kinds: list[type] = []
    step = next(steps)
    try:
        while True:
            kinds.append(type(step))
            if isinstance(step, Authorize):
                token = session.access_token(step.rejected, step.deadline)
                assert isinstance(next(token), Exchange)
                with pytest.raises(StopIteration) as stop:
                    token.send(granted(lifetime))
                step = steps.send(stop.value.value)
            else:
                step = steps.send(NOTHING)
    except StopIteration:
        return kinds


@pytest.mark.parametrize(("lifetime", "used"), [(3600, 3540), (100, 90), ('"600"', 540), ("null", 270)])
def test_session_renews_the_token_shortly_before_it_expires(lifetime: Any, used: float) -> None:
    clock = Clock()
    talk = session(clock)
    assert ask(talk, lifetime) == [Authorize, Exchange]
    clock.now += used - 1
    assert ask(talk) == [Exchange]
    clock.now += 1
    assert ask(talk, lifetime) == [Authorize, Exchange]


def test_session_uses_a_token_without_lifetime_for_one_call() -> None:
    talk = session(Clock())
    assert ask(talk, 0) == [Authorize, Exchange]
    assert ask(talk, 0) == [Authorize, Exchange]


def test_session_uses_a_token_fetched_by_another_call() -> None:
    talk = session(Clock())
    ask(talk, 3600)
    steps = talk.access_token(None, 2000.0)
    with pytest.raises(StopIteration) as stop:
        next(steps)
    assert stop.value.value == "t"


@pytest.mark.parametrize(
    ("chance", "pauses"), [(0.0, [0.1, 0.2, 0.4, 0.8, 1.6, 2.5]), (1.0, [0.2, 0.4, 0.8, 1.6, 3.2, 5])]
)
def test_session_backoff_is_exponential_limited_and_has_jitter(chance: float, pauses: list[float]) -> None:
    clock = Clock()
    talk = session(clock, Timeouts(total=100), RetryPolicy(max_retries=6), chance)
    ask(talk, 3600)
    steps = talk.call(OPNCOperations(Routing()).contracts_of_emaid("DEEXAC00000001"))
    step = next(steps)
    found = []
    for _ in range(6):
        assert isinstance(step, Exchange)
        step = steps.throw(NoResponseError("lost", outcome_unknown=True))
        assert isinstance(step, Sleep)
        found.append(step.delay)
        clock.now += step.delay
        step = next(steps)
    assert found == pytest.approx(pauses)
    with pytest.raises(NoResponseError):
        steps.throw(NoResponseError("lost", outcome_unknown=True))


def test_session_starts_no_attempt_after_the_deadline() -> None:
    clock = Clock()
    talk = session(clock, Timeouts(request=10, total=15))
    ask(talk, 3600)
    steps = talk.call(OPNCOperations(Routing()).contracts_of_emaid("DEEXAC00000001"))
    step = next(steps)
    assert isinstance(step, Exchange)
    assert step.deadline == clock.now + 10
    clock.now += 10
    assert isinstance(steps.throw(NoResponseError("lost", outcome_unknown=True)), Sleep)
    clock.now += 0.1
    step = next(steps)
    assert isinstance(step, Exchange)
    assert step.deadline == pytest.approx(1015.0)
    clock.now = 1015.0
    with pytest.raises(NoResponseError):
        steps.throw(NoResponseError("lost", outcome_unknown=True))
