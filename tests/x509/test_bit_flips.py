"""Every bit of certificates turned over, with OpenSSL as the judge: the walk never accepts what OpenSSL refuses.

OPNC_CCP_BIT_FLIPS sets how many of the bits are tried (all of them: 0), spread evenly over all certificates of both key
kinds and all three usages.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ccp.errors import ChainError
from ccp.testing.pki import Algorithm
from ccp.x509.certificates import Certificate
from ccp.x509.path_validation import TrustAnchors
from ccp.x509.profiles import Profile, Usage
from tests.x509.made import AT, ROLES, chain, unused_bit

crypto = pytest.importorskip("OpenSSL.crypto", reason="pyOpenSSL is not installed")

COUNT = int(os.environ.get("OPNC_CCP_BIT_FLIPS", "1500"))
PROFILES: dict[Algorithm, Profile] = {"P-256": Profile.ISO2, "P-521": Profile.ISO20, "Ed448": Profile.ISO20}


@dataclass(frozen=True)
class Encoded:
    """A chain as bytes, leaf first, root last; the form in which a message and the trust store bring it."""

    usage: Usage
    algorithm: Algorithm
    certificates: tuple[bytes, ...]

    def flipped(self, which: int, bit: int) -> Encoded:
        raw = bytearray(self.certificates[which])
        raw[bit // 8] ^= 0x80 >> bit % 8
        changed = (*self.certificates[:which], bytes(raw), *self.certificates[which + 1 :])
        return Encoded(self.usage, self.algorithm, changed)

    def walk_accepts(self) -> bool:
        try:
            leaf, *offered, root = map(Certificate.load, self.certificates)
            anchors = TrustAnchors.build([(ROLES[self.usage], root)])
            anchors.verify(leaf, offered, usage=self.usage, now=AT, profile=PROFILES[self.algorithm])
        except ChainError:
            return False
        return True

    def openssl_accepts(self) -> bool:
        try:
            leaf, *offered, root = (crypto.load_certificate(crypto.FILETYPE_ASN1, der) for der in self.certificates)
            store = crypto.X509Store()
            store.add_cert(root)
            store.set_time(AT)
            crypto.X509StoreContext(store, leaf, chain=offered).verify_certificate()
        except (crypto.Error, crypto.X509StoreContextError):
            return False
        return True


def made(usage: Usage, algorithm: Algorithm) -> Encoded:
    whole = chain(usage, algorithm=algorithm)
    certificates = (whole.leaf, *whole.offered, whole.root.certificate)
    return Encoded(usage, algorithm, tuple(one.der for one in certificates))


CHAINS = [made(usage, algorithm) for algorithm in PROFILES for usage in Usage]


def every_bit() -> Iterator[tuple[Encoded, int, int]]:
    for one in CHAINS:
        for which, der in enumerate(one.certificates):
            for bit in range(8 * len(der)):
                yield one, which, bit


def test_bit_flip_never_makes_the_walk_accept_what_openssl_refuses() -> None:
    for one in CHAINS:
        assert one.walk_accepts()
        assert one.openssl_accepts()
    bits = list(every_bit())
    # An odd step meets every bit of a byte.
    step = 1 if not COUNT else max(1, len(bits) // COUNT - 1) | 1
    tried = bits[::step]
    accepted = []
    for one, which, bit in tried:
        changed = one.flipped(which, bit)
        if changed.walk_accepts():
            accepted.append((one.usage, one.algorithm, which, bit))
            assert changed.openssl_accepts(), accepted[-1]
    print(f"{len(tried)} of {len(bits)} bits tried, {len(accepted)} accepted by both")
    assert len(tried) >= min(COUNT, len(bits))
    # Nothing but a signed certificate's own bytes carries the verdict: hardly anything may be changed in it.
    assert len(accepted) < len(tried) / 100


@pytest.mark.parametrize("algorithm", ["P-256", "P-521"])
def test_signature_that_claims_an_unused_bit_is_refused_like_by_openssl(algorithm: Algorithm) -> None:
    whole = chain(Usage.CPS, algorithm=algorithm)
    leaf = unused_bit(whole.leaf, whole.sub2.key)
    encoded = Encoded(Usage.CPS, algorithm, (leaf, *(one.der for one in (*whole.offered, whole.root.certificate))))
    assert not encoded.openssl_accepts()
    with pytest.raises(
        ChainError, match=r'The signature or public key of certificate "DEABCC00000001" claims unused bits'
    ):
        Certificate.load(leaf)
    sub_ca = unused_bit(whole.offered[0], whole.sub1.key)
    with pytest.raises(ChainError, match='The signature or public key of certificate "Sub2" claims unused bits'):
        Certificate.load(sub_ca)


@pytest.mark.parametrize("algorithm", list(PROFILES))
def test_public_key_that_claims_unused_bits_is_refused(algorithm: Algorithm) -> None:
    """Also in a contract leaf, whose key nothing in the pool uses."""
    der, bits, start = b"", b"", 0
    while not start or der[start + len(bits)] & 1:  # A bit that is said to be unused is zero.
        leaf = chain(Usage.CONTRACT, algorithm=algorithm).leaf
        info = leaf.public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        bits = info[info.index(leaf.public_key_algorithm) + len(leaf.public_key_algorithm) :].partition(b"\0")[2]
        der, start = leaf.der, leaf.der.index(bits) - 1
    with pytest.raises(ChainError, match=r"The signature or public key of certificate .* claims unused bits"):
        Certificate.load(der[:start] + b"\x01" + der[start + 1 :])
