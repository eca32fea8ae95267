"""The example in the docstring of each public package runs as it is printed."""

from __future__ import annotations

import doctest
import importlib
import inspect
import json
import textwrap
from pathlib import Path
from typing import Any

import pytest

from ccp import exi, verify
from ccp.ids import Namespace
from ccp.testing import PKI, Car, Provider
from tests.exi.samples import EXAMPLE
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


def run_doctest(package: str, **names: Any) -> None:
    """Run the `>>>` example of a package with these names."""
    module = importlib.import_module(package)
    found = doctest.DocTestParser().get_doctest(module.__doc__ or "", names, package, module.__file__, 0)
    assert found.examples
    flags = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
    assert doctest.DocTestRunner(optionflags=flags).run(found).failed == 0


def test_exi_example_runs() -> None:
    run_doctest("ccp.exi", data=EXAMPLE)


def test_x509_example_runs() -> None:
    pki = PKI.generate(AT)
    leaf, sub_cas = pki.cps.certificate, pki.cps.sub_cas
    run_doctest("ccp.x509", root=pki.v2g_root.certificate, leaf=leaf, sub_cas=sub_cas, now=AT)


def test_verify_example_runs(tmp_path: Path) -> None:
    pki = PKI.generate(AT)
    for role, root in (("v2g", pki.v2g_root), ("emsp", pki.emsp_root)):
        (tmp_path / role).mkdir()
        (tmp_path / role / "root.pem").write_bytes(root.certificate.pem())
    car = Car.generate(pki, "WEX0TEST000000001", AT)
    contract = Provider(pki, "DEEXA").sign_contract(car, "DEEXAC00000001", AT)
    run_doctest("ccp.verify", data=contract.message, directory=tmp_path, now=AT)


@pytest.mark.parametrize("package", ["ccp.exi", "ccp.x509", "ccp.verify", "ccp.client", "ccp.testing"])
def test_package_example_exports_exist(package: str) -> None:
    module = importlib.import_module(package)
    assert set(module.__all__) <= set(vars(module))
