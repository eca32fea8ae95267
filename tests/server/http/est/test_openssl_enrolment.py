"""EST pass-through with OpenSSL as the client: PKCS#10 in, PKCS#7 out, and a chain that verifies."""

from __future__ import annotations

import base64
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from ccp.testing.pki import PKI
from tests.server.http.est.requests import ENROL, EVSE, post
from tests.server.http.est.server import est_server
from tests.world import start

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


def openssl(folder: Path, *arguments: str, data: bytes = b"") -> bytes:
    done = subprocess.run(["openssl", *arguments], cwd=folder, input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.mark.parametrize("curve", ["prime256v1", "secp521r1"])
def test_openssl_enrolment_of_a_station_ends_with_a_verified_chain(
    tmp_path: Path, pkis: dict[str, PKI], curve: str
) -> None:
    openssl(tmp_path, "ecparam", "-name", curve, "-genkey", "-noout", "-out", "station.key")
    openssl(tmp_path, "req", "-new", "-key", "station.key", "-subj", f"/CN={EVSE}/O=Example", "-out", "station.csr")
    with est_server() as est, start(pkis, **est.settings()) as pool:
        bearer = {"Authorization": f"Bearer {pool.token('cpo')}"}
        cas = pool.http.get("/.well-known/cpo/cacerts", headers=bearer)
        body = openssl(tmp_path, "req", "-in", "station.csr", "-outform", "DER")
        answer = post(pool, openssl(tmp_path, "base64", data=body), ENROL)
        passed_on = base64.b64decode(est.seen[-1].body)
    assert (cas.status_code, answer.status_code) == (200, 200)
    openssl(tmp_path, "req", "-inform", "DER", "-verify", "-noout", data=passed_on)
    assert passed_on == body
    for name, found in (("cas", cas), ("station", answer)):
        message = openssl(tmp_path, "base64", "-d", data=found.content)
        listed = openssl(tmp_path, "pkcs7", "-inform", "DER", "-print_certs", data=message)
        (tmp_path / f"{name}.pem").write_bytes(listed)
        # Signed content would be printed; a message of certificates only has none.
        shown = openssl(tmp_path, "cms", "-cmsout", "-print", "-inform", "DER", data=message).decode()
        assert "eContent: <ABSENT>" in shown
        assert shown.split("signerInfos:")[1].split() == ["<EMPTY>"]
    (tmp_path / "root.pem").write_bytes(est.ca.root.public_bytes(Encoding.PEM))
    openssl(tmp_path, "verify", "-CAfile", "root.pem", "-untrusted", "cas.pem", "station.pem")
    key = openssl(tmp_path, "pkey", "-in", "station.key", "-pubout")
    assert openssl(tmp_path, "x509", "-in", "station.pem", "-noout", "-pubkey") == key
    assert b"DE*EXC*E0001" in openssl(tmp_path, "x509", "-in", "station.pem", "-noout", "-subject")
