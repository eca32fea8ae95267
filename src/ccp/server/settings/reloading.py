"""Settings that take effect without a restart, and the comparison of the settings in use with those of the file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ccp.server.settings.model import Settings

_TLS: Final = frozenset({"tls_cert", "tls_key", "tls_client_ca"})
RELOADABLE: Final = _TLS | {
    "broadcast_rate",
    "event_pings_per_minute",
    "log_level",
    "login_failures_per_minute",
    "rate_limit_per_address",
    "rate_limit_per_party",
    "rate_limit_unauthenticated",
    "try_it_per_minute",
}
"""Names of the settings that a reload changes. A file of `_TLS` may be replaced by another, not added or removed."""


@dataclass(frozen=True, slots=True)
class ReloadedSettings:
    """The result of a reload.

    effective: the settings in use after it. changed: names of those that it changed. needs_restart: names of those that
    have another value in the file, but keep the one in use until a restart. Both sorted.
    """

    effective: Settings
    changed: tuple[str, ...]
    needs_restart: tuple[str, ...]


def merge(current: Settings, found: Settings) -> ReloadedSettings:
    """Take the reloadable settings from those that were found, and the others from the current ones."""
    different = {name for name in Settings.model_fields if getattr(current, name) != getattr(found, name)}
    changed = {name for name in different & RELOADABLE if name not in _TLS or _is_replaced(current, found, name)}
    effective = current.model_copy(update={name: getattr(found, name) for name in changed})
    return ReloadedSettings(effective, tuple(sorted(changed)), tuple(sorted(different - changed)))


def replacing(current: Settings, found: Settings) -> Settings:
    """Return the settings of workers that replace those with the current ones: what was found, but TLS as it is.

    Whether the server speaks TLS, and whether clients need a certificate, is constant.
    """
    kept = {name: getattr(current, name) for name in _TLS if not _is_replaced(current, found, name)}
    return found.model_copy(update=kept)


def _is_replaced(current: Settings, found: Settings, name: str) -> bool:
    """Whether both name a file. Whether the server speaks TLS, and whether clients need a certificate, is constant."""
    return getattr(current, name) is not None and getattr(found, name) is not None
