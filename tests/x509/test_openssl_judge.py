"""OpenSSL as an independent judge: the walk must never accept what OpenSSL refuses.

The other way round is no defect. The walk knows rules that OpenSSL does not: roles, algorithms, at most two sub-CAs.
OPNC_CCP_RANDOM_CHAINS sets how many chains are tried, OPNC_CCP_RANDOM_SEED which.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest

from ccp.errors import ChainError
from ccp.x509.profiles import Profile
from tests.x509.random_chains import RandomChain, random_chains

crypto = pytest.importorskip("OpenSSL.crypto", reason="pyOpenSSL is not installed")

COUNT = int(os.environ.get("OPNC_CCP_RANDOM_CHAINS", "2000"))
SEED = int(os.environ.get("OPNC_CCP_RANDOM_SEED", "15118"))


def walk_accepts(one: RandomChain) -> bool:
    try:
        one.anchors().verify(one.leaf, one.offered, usage=one.usage, now=one.at, profile=Profile.ISO2)
    except ChainError:
        return False
    return True


def openssl_accepts(one: RandomChain) -> bool:
    def read(der: bytes) -> object:
        return crypto.load_certificate(crypto.FILETYPE_ASN1, der)

    store = crypto.X509Store()
    try:
        store.add_cert(read(one.root.der))
        store.set_time(one.at)
        context = crypto.X509StoreContext(store, read(one.leaf.der), chain=[read(sub.der) for sub in one.offered])
        context.verify_certificate()
    except (crypto.Error, crypto.X509StoreContextError):  # Some names it does not even read.
        return False
    return True


def test_openssl_judge_accepts_all_that_the_walk_accepts() -> None:
    tally: Counter[tuple[bool, bool]] = Counter()
    for one in random_chains(COUNT, SEED):
        ours, theirs = walk_accepts(one), openssl_accepts(one)
        tally[ours, theirs] += 1
        assert not (ours and not theirs), f"seed {SEED}, chain {one.number}: {one.wounds or 'no wound'}"
        if not one.wounds:
            assert ours, f"seed {SEED}, chain {one.number} is whole and was refused"
    # The comparison is worth something only if both verdicts are frequent, and each for the other's reasons.
    assert tally[True, True] > COUNT / 5
    assert tally[False, False] > COUNT / 5
    assert tally[False, True] > COUNT / 100
