"""Client secrets: hashes, and the cost of a failed attempt."""

from __future__ import annotations

import time

import pytest

from ccp.server.access.client_secrets import _matches as matches
from ccp.server.access.client_secrets import hash_secret, matching_hash, new_secret


def test_secret_is_kept_as_a_salted_argon2id_hash_that_it_alone_fits() -> None:
    secret = new_secret()
    first, second = hash_secret(secret), hash_secret(secret)
    assert first.startswith("$argon2id$")
    assert first != second
    assert secret not in first
    assert matches(first, secret)
    assert matches(second, secret)
    for wrong in ("", secret[:-1], secret + "x", secret.swapcase(), first):
        assert not matches(first, wrong)


def test_hash_that_is_none_fits_nothing_and_is_no_error() -> None:
    for entry in ("", "x", "$argon2id$v=19$m=1,t=1,p=1$AAAA", "plain"):
        assert not matches(entry, "plain")


def test_secrets_are_long_and_never_the_same() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert min(map(len, secrets)) >= 43


def test_secrets_fit_while_both_are_live() -> None:
    older, newer = new_secret(), new_secret()
    hashes = [hash_secret(newer), hash_secret(older)]
    assert matching_hash(hashes, newer) == hashes[0]
    assert matching_hash(hashes, older) == hashes[1]
    assert matching_hash(hashes, new_secret()) is None
    assert matching_hash([], older) is None


@pytest.mark.parametrize("live", [0, 1, 2])
def test_matching_hash_takes_the_same_time_for_any_number_of_secrets(live: int) -> None:
    hashes = [hash_secret(new_secret()) for _ in range(live)]

    def cost(known: list[str]) -> float:
        began = time.thread_time()
        matching_hash(known, "wrong")
        return time.thread_time() - began

    both = [hash_secret(new_secret()), hash_secret(new_secret())]
    ours = min(cost(hashes) for _ in range(5))
    assert ours == pytest.approx(min(cost(both) for _ in range(5)), rel=0.35), "one hash more or less is half as much"
