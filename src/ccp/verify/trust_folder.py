"""Trust anchors from certificate files.

A directory is read like this: certificates directly in it are trusted for every role, those in `v2g`, `emsp` and `oem`
for that role. A self-issued certificate is an anchor, any other a known intermediate.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ccp.errors import ChainError, ConfigurationError
from ccp.x509.certificates import Certificate
from ccp.x509.path_validation import TrustAnchors
from ccp.x509.profiles import AnchorRole

_SUFFIXES: Final = {".pem", ".der", ".crt", ".cer"}


def is_self_issued(certificate: Certificate) -> bool:
    """Whether issuer and subject are the same name. False if a name cannot be read."""
    try:
        return certificate.is_self_issued
    except ChainError:  # No path can go through a name that cannot be compared.
        return False


def read_certificate_files(path: Path) -> Iterator[tuple[Path, Certificate]]:
    """Read the certificates of a file (PEM with one or more, or DER), or of all files of a directory.

    Raises ConfigurationError.
    """
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.is_file() and p.suffix.lower() in _SUFFIXES)
    elif path.is_file():
        found = [path]
    else:
        raise ConfigurationError(f"There is no file or directory {path}.")
    for file in found:
        data = file.read_bytes()
        try:
            loaded = Certificate.load_pem(data) if b"-----BEGIN" in data else (Certificate.load(data),)
        except ChainError as exc:
            raise ConfigurationError(f"{file} holds no certificate: {exc}") from exc
        for certificate in loaded:
            yield file, certificate


def load_trust_directory(path: Path) -> TrustAnchors:
    """Read a directory as described above. Raises ConfigurationError."""
    if not path.is_dir():
        raise ConfigurationError(f"There is no directory {path}.")
    entries = [(role, certificate) for _, certificate in read_certificate_files(path) for role in AnchorRole]
    for role in AnchorRole:
        if (path / role.value).is_dir():
            entries += [(role, certificate) for _, certificate in read_certificate_files(path / role.value)]
    roots = [entry for entry in entries if is_self_issued(entry[1])]
    return TrustAnchors.build(roots, [entry for entry in entries if entry not in roots])
