"""Base64 as partners write it: the same text is accepted, or refused with the same sentence, wherever it is read."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.run import ccp
from tests.server.http.api.answers import sentences
from tests.world import AT, SESSION, Pool, post_body


def wrapped(message: bytes) -> str:
    """Lines of 64 characters with CR LF, indented, and white space at both ends."""
    text = base64.b64encode(message).decode()
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return "\t " + "\r\n    ".join(lines) + "\f\v\n"


V2GTP = bytes.fromhex("01fe8001")

WRONG: dict[str, tuple[Callable[[bytes], str], str]] = {
    "URL-safe": (lambda m: base64.urlsafe_b64encode(m + b"\xfb\xff").decode(), "URL-safe alphabet"),
    "unpadded": (
        lambda m: base64.b64encode(m + bytes(1 + (-len(m) % 3))).decode().rstrip("="),
        "its padding is missing",
    ),
    "hexadecimal": (bytes.hex, "looks like hexadecimal"),
    "XML": (lambda m: "<V2G_Message/>", "looks like XML"),
    "V2GTP": (lambda m: base64.b64encode(V2GTP + len(m).to_bytes(4, "big") + m).decode(), "V2GTP header (01FE)"),
    "V2GTP in hexadecimal": (lambda m: (V2GTP + len(m).to_bytes(4, "big") + m).hex(), "V2GTP header (01FE)"),
    "double": (lambda m: base64.b64encode(base64.b64encode(m)).decode(), "looks like double Base64"),
    "empty": (lambda m: " ", "The text is empty"),
}


def refusals(pool: Pool, folder: Path, bodies: list[dict[str, Any]]) -> list[list[str]]:
    """Import lines into the pool's database. Returns the sentences of those that were refused."""
    source, report = folder / "lines.jsonl", folder / "refused.jsonl"
    source.write_text("".join(json.dumps(body) + "\n" for body in bodies))
    env = {"CCP_DATABASE": pool.settings.database, "CCP_LOG_LEVEL": "error"}
    done = ccp("import", source, "--refused", report, "--workers", 1, env=env)
    assert done.status in (0, 1), done.err
    lines = report.read_text().splitlines() if report.exists() else []
    return [json.loads(line)["errorMessages"] for line in lines]


def test_base64_with_white_space_is_accepted_by_put_post_import_and_dry_run(pool: Pool, tmp_path: Path) -> None:
    for edition in ("iso2", "iso20"):
        car = pool.car(edition)
        put, line = pool.contract(car), pool.contract(car)
        body = {**put.body, "certificateInstallationRes": wrapped(put.message)}
        report = pool.cps.put("/signedcontractdata?dryRun=true", json=body)
        assert report.json()["passed"] is True
        assert pool.cps.put("/signedcontractdata", json=body).status_code == 201
        assert refusals(pool, tmp_path, [{**line.body, "certificateInstallationRes": wrapped(line.message)}]) == []
        request = {
            **post_body(b"", str(car.namespace)),
            "certificateInstallationReq": wrapped(car.request(SESSION, AT)),
        }
        answer = pool.cpo.post("/signedcontractdata", json=request)
        item = answer.json()["signedContractDataCollection"][0]
        assert "metaData" not in item
        # What is stored is the message, not the text that it came in.
        served = pool.oem.get(
            f"/signedcontractdata/{put.emaid}/{car.pcid}", params={"xsdMsgDefNamespace": str(car.namespace)}
        )
        (stored,) = served.json()["signedContractDataCollection"]
        assert stored["certificateInstallationRes"] == base64.b64encode(put.message).decode()
        assert pool.stored(line.emaid) == 1


def test_base64_that_is_invalid_is_named_alike_by_put_post_and_import(pool: Pool, tmp_path: Path) -> None:
    car = pool.car()
    contract, request = pool.contract(car), car.request(SESSION, AT)
    bodies, reported = [], []
    for write, expected in WRONG.values():
        body = {**contract.body, "certificateInstallationRes": write(contract.message)}
        bodies.append(body)
        reported.append(sentences(pool.cps.put("/signedcontractdata", json=body), 400))
        asked = {**post_body(b"", str(car.namespace)), "certificateInstallationReq": write(request)}
        for answer in (reported[-1], sentences(pool.cpo.post("/signedcontractdata", json=asked), 400)):
            assert answer[0] == "EXI format is invalid!"
            assert expected in answer[1]
    assert refusals(pool, tmp_path, bodies) == reported
    assert pool.stored(contract.emaid) == 0


@pytest.mark.parametrize("kind", ["URL-safe", "unpadded", "V2GTP", "V2GTP in hexadecimal", "double", "empty"])
def test_verify_names_what_a_file_looks_like_as_put_does(pool: Pool, tmp_path: Path, kind: str) -> None:
    write, expected = WRONG[kind]
    file = tmp_path / "message.b64"
    file.write_text(write(pool.contract(pool.car()).message))
    env = {"CCP_DATABASE": pool.settings.database, "CCP_LOG_LEVEL": "error"}
    done = ccp("verify", file, env=env)
    assert done.status != 0
    assert expected.lower() in (done.out + done.err).lower()
