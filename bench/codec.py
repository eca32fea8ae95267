"""Speed of the codec: `python bench/codec.py`.

Best of many runs, in microseconds per call, and as ratios to reference work in the same run: ten times SHA-256 over the
same bytes, and EXIficient through py4j if it is available (`make judge`). Ratios are comparable between machines,
microseconds are not.
"""

from __future__ import annotations

import base64
import hashlib
import json
import pathlib
import random
import sys
import timeit
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from ccp.exi import decode, encode, iso2, iso20, parse, replace_header_fields, signed_info_fragment, to_json, xmldsig  # noqa: E402

_EXI = "http://www.w3.org/TR/canonical-exi/"


def request() -> iso2.V2G_Message:
    """A signed ISO-2 request of about 953 bytes, like the published one, with random bytes for a certificate."""
    rng = random.Random(953)
    digest = xmldsig.DigestMethod("http://www.w3.org/2001/04/xmlenc#sha256")
    reference = xmldsig.Reference(None, None, "#ID1", (xmldsig.Transform(_EXI),), digest, rng.randbytes(32))
    method = xmldsig.SignatureMethod("http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha256")
    info = xmldsig.SignedInfo(None, xmldsig.CanonicalizationMethod(_EXI), method, (reference,))
    signature = xmldsig.Signature(None, info, xmldsig.SignatureValue(None, rng.randbytes(64)))
    roots = (iso2.X509IssuerSerial("CN=V2G Root CA TEST, O=Example, C=DE, DC=V2G", 12345),)
    body = iso2.CertificateInstallationReq("ID1", rng.randbytes(612), roots)
    return iso2.V2G_Message(iso2.Header(rng.randbytes(8), None, signature), body)


def response20() -> iso20.CertificateInstallationRes:
    rng = random.Random(20)
    header = iso20.Header(rng.randbytes(8), 1_700_000_000, request().Header.Signature)
    chain = iso20.CertificateChain(rng.randbytes(900), (rng.randbytes(900), rng.randbytes(900)))
    data = iso20.SignedInstallationData("id1", chain, "SECP521", rng.randbytes(133), rng.randbytes(94))
    return iso20.CertificateInstallationRes(header, "OK", "Finished", chain, data, 0)


def best(call: Callable[[], Any], number: int, repeat: int) -> float:
    """Microseconds per call, the best of `repeat` runs."""
    call()
    return min(timeit.repeat(call, number=number, repeat=repeat)) / number * 1e6


def exificient() -> Any:
    from tests.exi import judge

    if reason := judge.missing():
        print(f"Without EXIficient: {reason}.\n")
        return None
    return judge.judge()


def main() -> None:
    response = decode(base64.b64decode((ROOT / "tests/vectors/installation_res_iso2_opnc_example.b64").read_text()))
    judge = exificient()
    print(f"{'':34}{'bytes':>7}{'µs':>9}{'/ 10 SHA-256':>14}{'EXIficient µs':>16}{'of it':>8}")
    for name, message in (("ISO-2 request", request()), ("ISO-2 response", response), ("-20 response", response20())):
        data = encode(message)
        measure = 10 * best(lambda data=data: hashlib.sha256(data).digest(), 2000, 20)
        theirs: dict[str, float] = {}
        if judge is not None:
            from tests.exi import judge as judging

            namespace = judging.ISO2 if isinstance(message, iso2.V2G_Message) else judging.ISO20
            text = json.dumps(to_json(message))
            theirs["read"] = best(lambda o=data, n=namespace: judge.plain_decode(o, n), 1, 40)
            theirs["write"] = best(lambda t=text, n=namespace: judge.plain_encode(t, n), 1, 40)
        calls: dict[str, Callable[[], Any]] = {
            "read": lambda o=data: decode(o),
            "read with positions, like one before": lambda o=data: parse(o),
            "write": lambda m=message: encode(m),
            "replace SessionID": lambda o=data: replace_header_fields(o, session_id=b"12345678"),
            "cut SignedInfo": lambda p=parse(data): signed_info_fragment(p),
        }
        for what, call in calls.items():
            ours = best(call, 200, 40)
            line = f"{name + ', ' + what:34}{len(data):7}{ours:9.1f}{ours / measure:14.2f}"
            if what in theirs:
                line += f"{theirs[what]:16.0f}{ours / theirs[what]:8.4f}"
            print(line)


if __name__ == "__main__":
    main()
