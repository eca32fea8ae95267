"""Trust anchors: read from files, kept in the store, held in memory as an immutable snapshot."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from ccp.errors import ChainError, ConfigurationError
from ccp.pki.certificates import Certificate
from ccp.pki.paths import Role, TrustAnchors
from ccp.store import Store, anchors
from ccp.store.anchors import TrustedCertificate

_SUFFIXES = {".pem", ".der", ".crt", ".cer"}


class Trust:
    """The current snapshot. A request takes it once and sees no other."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.anchors = TrustAnchors.build([])

    async def refresh(self) -> None:
        """Take over what the store holds now."""
        roots: list[tuple[Role, Certificate]] = []
        intermediates: list[tuple[Role, Certificate]] = []
        for trusted in await self._store.read(anchors.every()):
            entry = Role(trusted.role), Certificate.load(trusted.certificate)
            (roots if trusted.is_root else intermediates).append(entry)
        self.anchors = TrustAnchors.build(roots, intermediates, self.anchors.version + 1)


def is_self_issued(certificate: Certificate) -> bool:
    """A certificate that names itself as its issuer is an anchor; others are known intermediates."""
    return certificate.issuer_name == certificate.subject_name


def read_files(path: Path) -> Iterator[tuple[Path, Certificate]]:
    """Every certificate of a file (DER, or PEM with several), or of a directory's files. Raises ConfigurationError."""
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


def trusted(certificate: Certificate, role: Role, source: str, at: datetime) -> TrustedCertificate:
    """A certificate as the store keeps it."""
    return TrustedCertificate(
        role.value,
        certificate.fingerprint,
        is_self_issued(certificate),
        certificate.der,
        certificate.subject_cn,
        source,
        at,
    )


def from_directory(path: Path) -> TrustAnchors:
    """A snapshot of a directory: what lies in it directly is trusted for every role, in `v2g`, `emsp`, `oem` for that
    one.

    Raises ConfigurationError.
    """
    if not path.is_dir():
        raise ConfigurationError(f"There is no directory {path}.")
    entries = [(role, certificate) for _, certificate in read_files(path) for role in Role]
    for role in Role:
        if (path / role.value).is_dir():
            entries += [(role, certificate) for _, certificate in read_files(path / role.value)]
    roots = [entry for entry in entries if is_self_issued(entry[1])]
    return TrustAnchors.build(roots, [entry for entry in entries if entry not in roots])
