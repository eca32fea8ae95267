"""Published and hand-made messages, and a bit writer for encodings that the encoder does not write."""

from __future__ import annotations

import base64
import pathlib

import pytest

from ccp.exi import iso2

HERE = pathlib.Path(__file__).parent
# Published in the API description that the product implements.
EXAMPLE = base64.b64decode((HERE.parent / "vectors" / "installation_res_iso2_opnc_example.b64").read_text())
_SHARED = HERE.parents[1].parent / "shared" / "vectors"


def shared_vector(name: str) -> bytes:
    """A published message that may not be distributed with the project."""
    path = _SHARED / name
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    return base64.b64decode(path.read_text())


CHAIN = iso2.CertificateChain("ID1", b"leaf", (b"sub",))
RESPONSE = iso2.V2G_Message(
    iso2.Header(b"\0"),
    iso2.CertificateInstallationRes(
        "OK",
        CHAIN._replace(Id=None),
        CHAIN,
        iso2.ContractSignatureEncryptedPrivateKey("ID2", bytes(48)),
        iso2.DHpublickey("ID3", bytes(65)),
        iso2.EMAID("ID4", "DEICECOPNCCERT"),
    ),
)
REQUEST = iso2.V2G_Message(
    iso2.Header(b"12345678"),
    iso2.CertificateInstallationReq("ID1", b"certificate", (iso2.X509IssuerSerial("CN=root", 12345),)),
)


class Stream:
    """Bits written by hand, for forms that the encoder does not write."""

    def __init__(self, encoded: bytes, end: int) -> None:
        """Begin with the first `end` bits of a message."""
        self.bits = f"{int.from_bytes(encoded):0{8 * len(encoded)}b}"[:end]

    def add(self, *pieces: str | bytes | tuple[int, int]) -> Stream:
        for piece in pieces:
            if isinstance(piece, str):
                self.bits += piece
            elif isinstance(piece, bytes):
                self.bits += "".join(f"{byte:08b}" for byte in piece)
            else:
                self.bits += f"{piece[0]:0{piece[1]}b}"
        return self

    def encoded(self) -> bytes:
        padded = self.bits + "0" * (-len(self.bits) % 8)
        return int(padded, 2).to_bytes(len(padded) // 8)
