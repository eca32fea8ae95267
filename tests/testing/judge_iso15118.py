"""Runs in a process of its own: what the PyPI package iso15118 makes of a contract key.

    python judge_iso15118.py FOLDER decrypt PROVISIONING_SCALAR DH_PUBLIC_KEY ENCRYPTED   -> scalar
    python judge_iso15118.py FOLDER encrypt PROVISIONING_CERTIFICATE CONTRACT_SCALAR      -> DH public key, encrypted

All values are hex. Only `iso15118/shared/security.py` is loaded, with our cryptography. The package pins pydantic 1, so
every other module of it, and what cryptography has given up since, is replaced by an empty stand-in that these two
functions do not use.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, derive_private_key


class _StandIn(types.ModuleType):
    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Exception,), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.split(".")[0] == "iso15118" or fullname == "cryptography.hazmat.backends.openssl.backend":
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        return


def main(folder: str, action: str, *values: str) -> None:
    sys.meta_path.append(_Finder())  # Last: what really exists is used.
    spec = importlib.util.spec_from_file_location("security", Path(folder) / "iso15118" / "shared" / "security.py")
    assert spec is not None
    assert spec.loader is not None
    security = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(security)
    decoded = [bytes.fromhex(value) for value in values]
    if action == "decrypt":
        key = derive_private_key(int.from_bytes(decoded[0], "big"), SECP256R1())
        print(security.decrypt_priv_key(decoded[2], key, security.to_ec_pub_key(decoded[1])).hex())
    else:
        key = derive_private_key(int.from_bytes(decoded[1], "big"), SECP256R1())
        print(*(part.hex() for part in security.encrypt_priv_key(decoded[0], key)))


if __name__ == "__main__":
    main(*sys.argv[1:])
