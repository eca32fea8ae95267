"""Which CA each fingerprint in the configuration stands for, kept up to date. One for each worker."""

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
    """Resolves the fingerprints of `crl_urls`, `ocsp_sha256` and `operator_cas` to name and public key.

    A certificate is found in the trust store, among those that were remembered, or in a verified chain that a message
    brings; from there it is remembered in the store, so that a restart does not forget it.
    """

    def __init__(self, store: Store, now: Callable[[], datetime]) -> None:
        self._store: Final = store
        self._now: Final = now
        self._maps: Final[dict[str, IssuerMap[Any]]] = {}
        self._warned: Final[set[tuple[str, str]]] = set()
        self.unresolved: frozenset[str] = frozenset()
        """Fingerprints in any setting that are not resolved to a CA yet."""

    def add(self, setting: str, entries: IssuerMap[Any]) -> None:
        """Resolve the fingerprints of a setting, too. Before `refresh`."""
        self._maps[setting] = entries
        self.unresolved |= entries.unresolved

    async def refresh(self) -> None:
        """Look for what is unresolved in the store, and warn of what is not there. Raises Unavailable."""
        if self.unresolved:
            for encoded in await self._store.read(issuer_certificates.list_all()):
                try:
                    self._resolve(Certificate.load(encoded))
                except ChainError:  # Reported when anchors are read; no setting can name it.
                    continue
        for setting, entries in self._maps.items():
            for fingerprint in sorted(entries.unresolved):
                if (setting, fingerprint) not in self._warned:
                    self._warned.add((setting, fingerprint))
                    _log.error("configured issuer not known", setting=setting, fingerprint=fingerprint)

    def concerns(self, chain: VerifiedChain) -> bool:
        """Whether a chain brings a certificate that is configured and was not known."""
        unresolved = self.unresolved
        return bool(unresolved) and any(one.fingerprint in unresolved for one in chain.certificates)

    async def note(self, chains: Iterable[VerifiedChain]) -> None:
        """Take note of certificates of verified chains that are configured. Raises Unavailable."""
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
