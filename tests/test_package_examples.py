"""The example in the docstring of each public package runs as it is printed."""

from __future__ import annotations

import importlib
import inspect
import json
import textwrap
from typing import Any

import pytest

from ccp import exi, verify
from ccp.ids import Namespace
from tests.world import AT, SESSION, Pool


def example(package: str) -> str:
    """The first indented block of a package's docstring."""
    paragraphs = (inspect.getdoc(importlib.import_module(package)) or "").splitlines()
    start = next(number for number, line in enumerate(paragraphs) if line.startswith("    "))
    end = next(number for number, line in enumerate(paragraphs) if number > start and line and not line.startswith(" "))
    return textwrap.dedent("\n".join(paragraphs[start:end]))


def test_schemas_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    body = {"emaid": "DEEXAC00000001", "pcid": "WEX0TEST000000001", "certificateInstallationRes": "AAAA"}
    exec(example("ccp.schemas"), {"body": json.dumps({**body, "xsdMsgDefNamespace": Namespace.ISO2}).encode()})
    assert capsys.readouterr().out == "DEEXAC00000001 WEX0TEST000000001\n"


def test_testing_example_runs() -> None:
    def deliver(message: bytes, request: bytes) -> bytes:
        session_id = verify.read_request(request, Namespace.ISO2).session_id
        return exi.replace_header_fields(message, session_id=session_id)

    scope: dict[str, Any] = {"deliver": deliver}
    exec(example("ccp.testing"), scope)
    assert scope["emaid"] == "DEEXAC00000001"


def test_client_example_runs(pool: Pool, capsys: pytest.CaptureFixture[str]) -> None:
    car = pool.car()
    contract = pool.publish(car)
    received: list[bytes] = []
    scope: dict[str, Any] = {
        "secret": pool.world.member("cpo").secret,
        "request": car.request(SESSION, AT),
        "send_to_vehicle": received.append,
    }
    code = example("ccp.client").replace("https://pool.example", pool.base_url).replace("example-cpo", "cpo")
    exec(code, scope)
    assert car.install(received[0], SESSION, AT)[0] == contract.emaid
    assert capsys.readouterr().out == f"{contract.emaid}\n"
