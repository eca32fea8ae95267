"""Certificates from files: a snapshot of trust anchors without a database, and what a command is given.

Apart from `ccp.server.trust.anchors`, so that commands that check a file do without the libraries of the server.
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
    """A certificate that names itself as its issuer is an anchor; others are known intermediates."""
    try:
        return certificate.is_self_issued
    except ChainError:  # Its name can be compared with nothing, so nothing it issued is ever found below it.
        return False


def read_certificate_files(path: Path) -> Iterator[tuple[Path, Certificate]]:
    """Every certificate of a file (PEM with one or more, or DER) or of a directory's files.

    Raises ConfigurationError.
    """
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.is_file() and p.suffix.lower() in _SUFFIXES)
    elif path.is_file():
        found = [path]
    else:
        raise ConfigurationError(f"There is no file or directory {path}.")
    for file in found:
        octets = file.read_bytes()
        try:
            loaded = Certificate.load_pem(octets) if b"-----BEGIN" in octets else (Certificate.load(octets),)
        except ChainError as exc:
            raise ConfigurationError(f"{file} holds no certificate: {exc}") from exc
        for certificate in loaded:
            yield file, certificate


def load_trust_directory(path: Path) -> TrustAnchors:
    """A snapshot of a directory: what lies in it directly is trusted for every role, in `v2g`, `emsp`, `oem` for that
    one.

    Raises ConfigurationError.
    """
    if not path.is_dir():
        raise ConfigurationError(f"There is no directory {path}.")
    entries = [(role, certificate) for _, certificate in read_certificate_files(path) for role in AnchorRole]
    for role in AnchorRole:
        if (path / role.value).is_dir():
            entries += [(role, certificate) for _, certificate in read_certificate_files(path / role.value)]
    roots = [entry for entry in entries if is_self_issued(entry[1])]
    return TrustAnchors.build(roots, [entry for entry in entries if entry not in roots])
