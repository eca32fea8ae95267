"""Cross-check of the ISO 15118-2 key encryption with an independent implementation, in both directions.

The implementation is the PyPI package iso15118, installed with `pip install --no-deps --target` into CCP_JUDGE_DIR, or
into `.judge` in this repository.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from ccp.testing.contract_keys import EncryptedKey
from ccp.testing.pki import Credential
from tests.testing.parties import Party, decrypted_iso2, encrypted_iso2, party

FOLDER = Path(os.environ.get("CCP_JUDGE_DIR") or Path(__file__).resolve().parents[2] / ".judge")

pytestmark = pytest.mark.skipif(
    not (FOLDER / "iso15118" / "shared" / "security.py").exists(), reason=f"no iso15118 in {FOLDER}"
)


def judge(*arguments: str) -> list[bytes]:
    script = Path(__file__).with_name("judge_iso15118.py")
    done = subprocess.run(
        [sys.executable, str(script), str(FOLDER), *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return [bytes.fromhex(part) for part in done.stdout.split()]


def scalar(credential: Credential) -> str:
    assert isinstance(credential.key, EllipticCurvePrivateKey)
    return credential.key.private_numbers().private_value.to_bytes(32, "big").hex()


@pytest.fixture(scope="module")
def who() -> Party:
    return party("P-256")


def test_encrypted_key_is_decrypted_by_the_other_implementation(who: Party) -> None:
    sent = encrypted_iso2(who)
    found = judge("decrypt", scalar(who.car), sent.dh_public_key.hex(), sent.encrypted.hex())
    assert found == [bytes.fromhex(scalar(who.contract))]


def test_key_encrypted_by_the_other_implementation_is_decrypted(who: Party) -> None:
    dh_public_key, encrypted = judge("encrypt", who.car.certificate.der.hex(), scalar(who.contract))
    key = decrypted_iso2(who, EncryptedKey(dh_public_key, encrypted))
    assert key.private_numbers().private_value == int(scalar(who.contract), 16)
