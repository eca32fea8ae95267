"""What a conversation does with time and chance, driven by hand: no sockets, no clock."""

from __future__ import annotations

from typing import Any

import pytest

from ccp.client import Credentials, Limits, NoAnswerError
from ccp.client.operations import Answer, OPNCCalls
from ccp.client.session import Authorise, Conversation, Exchange, Pause
from ccp.schemas.common import Routing

NOTHING = Answer(200, {}, b'{"contractDataCollection": []}')


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def conversation(clock: Clock, limits: Limits = Limits(), chance: float = 0.0) -> Conversation:
    access = Credentials("id", "secret")
    return Conversation(
        "https://ccp.example", access, limits, clock=clock, wall_clock=clock, chance=lambda: chance
    )  # fmt: skip


def granted(lifetime: Any) -> Answer:
    return Answer(200, {}, b'{"access_token": "t", "expires_in": %s}' % str(lifetime).encode())


def ask(conversation: Conversation, lifetime: Any = None) -> list[type]:
    """A call that succeeds. Returns the kinds of its steps."""
    steps = conversation.call(OPNCCalls(Routing()).contracts_of_emaid("DEEXAC00000001"))
    kinds: list[type] = []
    step = next(steps)
    try:
        while True:
            kinds.append(type(step))
            if isinstance(step, Authorise):
                token = conversation.token(step.stale, step.deadline)
                assert isinstance(next(token), Exchange)
                with pytest.raises(StopIteration) as stop:
                    token.send(granted(lifetime))
                step = steps.send(stop.value.value)
            else:
                step = steps.send(NOTHING)
    except StopIteration:
        return kinds


@pytest.mark.parametrize(("lifetime", "used"), [(3600, 3540), (100, 90), ('"600"', 540), ("null", 270)])
def test_a_token_is_replaced_shortly_before_it_ends(lifetime: Any, used: float) -> None:
    clock = Clock()
    talk = conversation(clock)
    assert ask(talk, lifetime) == [Authorise, Exchange]
    clock.now += used - 1
    assert ask(talk) == [Exchange]
    clock.now += 1
    assert ask(talk, lifetime) == [Authorise, Exchange]


def test_a_token_without_any_time_is_used_for_one_call() -> None:
    talk = conversation(Clock())
    assert ask(talk, 0) == [Authorise, Exchange]
    assert ask(talk, 0) == [Authorise, Exchange]


def test_a_token_that_another_call_fetched_meanwhile_is_taken() -> None:
    talk = conversation(Clock())
    ask(talk, 3600)
    steps = talk.token(None, 2000.0)
    with pytest.raises(StopIteration) as stop:
        next(steps)
    assert stop.value.value == "t"


@pytest.mark.parametrize(
    ("chance", "pauses"), [(0.0, [0.1, 0.2, 0.4, 0.8, 1.6, 2.5]), (1.0, [0.2, 0.4, 0.8, 1.6, 3.2, 5])]
)
def test_pauses_double_up_to_a_limit_with_chance_in_them(chance: float, pauses: list[float]) -> None:
    clock = Clock()
    talk = conversation(clock, Limits(retries=6, total=100), chance)
    ask(talk, 3600)
    steps = talk.call(OPNCCalls(Routing()).contracts_of_emaid("DEEXAC00000001"))
    step = next(steps)
    found = []
    for _ in range(6):
        assert isinstance(step, Exchange)
        step = steps.throw(NoAnswerError("lost", outcome_unknown=True))
        assert isinstance(step, Pause)
        found.append(step.seconds)
        clock.now += step.seconds
        step = next(steps)
    assert found == pytest.approx(pauses)
    with pytest.raises(NoAnswerError):
        steps.throw(NoAnswerError("lost", outcome_unknown=True))


def test_no_attempt_is_begun_that_could_not_end_in_time() -> None:
    clock = Clock()
    talk = conversation(clock, Limits(exchange=10, total=15))
    ask(talk, 3600)
    steps = talk.call(OPNCCalls(Routing()).contracts_of_emaid("DEEXAC00000001"))
    step = next(steps)
    assert isinstance(step, Exchange)
    assert step.deadline == clock.now + 10
    clock.now += 10
    assert isinstance(steps.throw(NoAnswerError("lost", outcome_unknown=True)), Pause)
    clock.now += 0.1
    step = next(steps)
    assert isinstance(step, Exchange)
    assert step.deadline == pytest.approx(1015.0)
    clock.now = 1015.0
    with pytest.raises(NoAnswerError):
        steps.throw(NoAnswerError("lost", outcome_unknown=True))
