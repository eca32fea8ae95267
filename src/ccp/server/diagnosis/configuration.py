"""Checks of the settings: are they valid, and do they fit a pool that partners call?"""

from __future__ import annotations

import ipaddress
from typing import Final
from urllib.parse import urlsplit

from ccp.server.diagnosis.context import Context
from ccp.server.diagnosis.finding import CheckResult
from ccp.server.settings import RevocationMode, VehicleTrust
from ccp.server.settings.examination import Source

_LABORATORY: Final = {
    "vehicle_trust": (VehicleTrust.SIGNATURE, "the chain of a vehicle's certificate is not verified"),
    "revocation": (RevocationMode.OFF, "revoked certificates are accepted"),
    "event_allow_http": (True, "webhooks without TLS are accepted"),
}


async def check_configuration(context: Context, result: CheckResult) -> None:
    """The configuration can be loaded, and serves a public pool."""
    examination, settings = context.examination, context.settings
    result.note(f"file: {examination.file.absolute()}" if examination.file else "no configuration file")
    counts = {source: list(examination.named.values()).count(source) for source in Source}
    given = [f"{count} from the {source.value}" for source, count in counts.items() if count]
    result.note(f"{', '.join(given) or 'no setting is given'}; all others have their default")
    for problem in examination.problems:
        result.add("configuration.invalid", problem)
    for name, (value, effect) in _LABORATORY.items():
        if getattr(settings, name) == value:
            result.add("configuration.laboratory", f"{name} = {value}: {effect}.", subject=name)
    if is_loopback(settings.host):
        return
    if settings.base_url is None:
        result.add(
            "configuration.base-url-missing",
            f"The pool listens on {settings.host}, and tokens are issued for {settings.public_url}.",
            subject="base_url",
        )
    if urlsplit(settings.public_url).scheme == "http":
        result.add(
            "configuration.base-url-http",
            f"The pool listens on {settings.host}, and its URL is {settings.public_url}, without TLS.",
            subject="base_url",
        )


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
