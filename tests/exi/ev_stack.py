"""The message classes of an EV stack (the PyPI package iso15118, see `tests.exi.judge`) as a second judge.

An EV that runs it validates a message before it looks at the ResponseCode. The package needs pydantic 1, which
pydantic 2 carries as `pydantic.v1`, so it runs in a process of its own; this file is that process's program too.

    response_codes([("iso2", message), …])      # the code of each message, or what the stack says against it
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def response_codes(messages: Iterable[tuple[str, bytes]]) -> list[str]:
    """messages: "iso2" or "iso20", and EXI. Returns the ResponseCode of each, or "error: …"."""
    from tests.exi.judge import folder

    lines = "".join(f"{edition} {data.hex()}\n" for edition, data in messages)
    run = subprocess.run(
        [sys.executable, "-W", "ignore", Path(__file__), folder().resolve()],
        input=lines, capture_output=True, text=True, timeout=120, check=False,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    codes: list[str] = json.loads(run.stdout.splitlines()[-1])
    return codes


class _Absent:
    """Stands for what the stack imports and the message classes do not use."""

    def __init__(self, *args: object, **options: object) -> None: ...

    def __call__(self, *args: object, **options: object) -> Any:
        return _Absent()

    def __getattr__(self, name: str) -> Any:
        return _Absent()


def _main(place: str) -> None:
    importlib.import_module("pydantic.v1")
    for name, module in list(sys.modules.items()):
        if name.startswith("pydantic.v1"):
            sys.modules["pydantic" + name.removeprefix("pydantic.v1")] = module
    for name in ("environs", "psutil", "netifaces", "dotenv", "iso15118.shared.logging"):
        absent = types.ModuleType(name)
        absent.__getattr__ = lambda attribute: _Absent  # type: ignore[method-assign]
        sys.modules[name] = absent
    sys.path.append(place)
    settings = importlib.import_module("iso15118.shared.settings")
    names = (value for name, value in vars(settings.SettingKey).items() if not name.startswith("_"))
    settings.shared_settings.update(dict.fromkeys(names, False))
    enums = importlib.import_module("iso15118.shared.messages.enums")
    codec = importlib.import_module("iso15118.shared.exi_codec").EXI()
    codec.set_exi_codec(importlib.import_module("iso15118.shared.exificient_exi_codec").ExificientEXICodec())
    namespaces = {"iso2": enums.Namespace.ISO_V2_MSG_DEF, "iso20": enums.Namespace.ISO_V20_COMMON_MSG}
    codes = []
    for line in sys.stdin.read().splitlines():
        edition, data = line.split()
        try:
            message = codec.from_exi(bytes.fromhex(data), namespaces[edition])
            response = message.body.get_message() if edition == "iso2" else message
            codes.append(response.response_code.value)
        except Exception as exc:
            codes.append(f"error: {type(exc).__name__} {exc}")
    print(json.dumps(codes))


if __name__ == "__main__":
    _main(sys.argv[1])
