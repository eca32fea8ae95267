"""Resolution of CA fingerprints in the settings to CAs (name and public key)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, Final

import structlog

from ccp.errors import ChainError
from ccp.server.storage import Store
from ccp.server.storage.queries import issuer_certificates
from ccp.x509.certificates import Certificate
from ccp.x509.issuer_map import IssuerMap
from ccp.x509.path_validation import VerifiedChain

_log = structlog.get_logger("ccp.server.trust.configured_issuers")


class ConfiguredIssuers:
    """Resolves the fingerprints in `crl_urls`, `ocsp_sha256` and `operator_cas`. One per worker.

    The certificate of a fingerprint is a trust anchor, a stored issuer certificate, or part of a verified chain. From a
    chain it is stored, so that it is known after a restart.
    """

    def __init__(self, store: Store, now: Callable[[], datetime]) -> None:
        self._store: Final = store
        self._now: Final = now
        self._maps: Final[dict[str, IssuerMap[Any]]] = {}
        self._warned: Final[set[tuple[str, str]]] = set()
        self.unresolved: frozenset[str] = frozenset()
        """Fingerprints in the settings that are not resolved yet."""

    def add(self, setting: str, entries: IssuerMap[Any]) -> None:
        """Add the fingerprints of a setting. Call it before `refresh`."""
        self._maps[setting] = entries
        self.unresolved |= entries.unresolved

    async def refresh(self) -> None:
        """Resolve fingerprints from the store and log those that stay unresolved, once each. Raises Unavailable."""
        if self.unresolved:
            for encoded in await self._store.read(issuer_certificates.list_all()):
                try:
                    self._resolve(Certificate.load(encoded))
                except ChainError:  # Logged when anchors are loaded; no setting can name it.
                    continue
        for setting, entries in self._maps.items():
            for fingerprint in sorted(entries.unresolved):
                if (setting, fingerprint) not in self._warned:
                    self._warned.add((setting, fingerprint))
                    _log.error("configured issuer not known", setting=setting, fingerprint=fingerprint)

    def has_unresolved(self, chain: VerifiedChain) -> bool:
        """Whether a chain contains a certificate of an unresolved fingerprint."""
        unresolved = self.unresolved
        return bool(unresolved) and any(certificate.fingerprint in unresolved for certificate in chain.certificates)

    async def learn(self, chains: Iterable[VerifiedChain]) -> None:
        """Store and resolve certificates of verified chains that the settings name. Raises Unavailable."""
        unresolved = self.unresolved
        if not unresolved:
            return
        found = {one for chain in chains for one in chain.certificates if one.fingerprint in unresolved}
        for certificate in found:
            await self._store.write(issuer_certificates.add(certificate.fingerprint, certificate.der, self._now()))
            self._resolve(certificate)
            _log.info(
                "configured issuer found", fingerprint=certificate.fingerprint, certificate=certificate.display_name
            )

    def _resolve(self, certificate: Certificate) -> None:
        for entries in self._maps.values():
            entries.resolve(certificate)
        self.unresolved -= {certificate.fingerprint}
