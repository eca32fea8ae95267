"""Verification reports: every check on a message, with its result, as the pool would make it."""

from __future__ import annotations

import contextlib
from datetime import datetime
from typing import Any

from ccp import verify
from ccp.errors import VerificationError
from ccp.ids import EMAID, Fingerprint
from ccp.server.settings import Settings, VehicleTrust
from ccp.server.trust.anchors import TrustStore
from ccp.server.trust.revocation import RevocationService
from ccp.verify import InstallationRequest, InstallationResponse, lint
from ccp.verify.report import CheckList
from ccp.x509.revocation_policy import DeferredRevocation


class VerificationReports:
    """Reports on responses and requests, by the pool's anchors, policy and revocation state.

    Each message is verified twice: first to learn its chains, then with their revocation state.
    """

    def __init__(self, trust: TrustStore, revocation: RevocationService, settings: Settings) -> None:
        self._trust = trust
        self._revocation = revocation
        self._vehicle_trust: VehicleTrust = settings.vehicle_trust

    async def on_response(
        self,
        response: InstallationResponse,
        *,
        emaid: EMAID | None,
        root: Fingerprint | None,
        now: datetime,
        fetch: bool,
        caller: str = "",
        deferred: DeferredRevocation | None = None,
    ) -> tuple[CheckList, tuple[str, ...]]:
        """Every check on a response, and the warnings.

        emaid, root: what the response has to be for; None if that is not checked. fetch: whether to fetch revocation
        status that is missing. It is fetched only for chains that are valid, which they are if a trusted provisioning
        service signed the message, whatever else is wrong with it. caller: client id of the party whose budget pays
        for fetching. deferred: receives these chains.
        """
        deferred = DeferredRevocation() if deferred is None else deferred
        arguments = {"emaid": emaid, "root": root, "anchors": self._trust.anchors, "now": now}
        _verify_response(CheckList(collect=True), response, revocation=deferred, **arguments)
        stored = await (
            self._revocation.evaluate_with_fetch(deferred.chains, now, caller=caller)
            if fetch
            else self._revocation.evaluate(deferred.chains)
        )
        checks = CheckList(collect=True)
        _verify_response(checks, response, revocation=stored, **arguments)
        return checks, (*lint.lint_response(response, self._trust.anchors, now), *stored.warnings)

    async def on_request(
        self, request: InstallationRequest, now: datetime, *, deferred: DeferredRevocation | None = None
    ) -> tuple[CheckList, tuple[str, ...]]:
        """Every check that a delivery makes on a vehicle's request, and the warnings. Nothing is fetched.

        deferred: receives the vehicle's chain. Unknown revocation status of a vehicle fails no check, unless the policy
        requires it.
        """
        anchors = self._trust.anchors if self._vehicle_trust is VehicleTrust.CHAIN else None
        deferred = DeferredRevocation() if deferred is None else deferred
        _verify_request(CheckList(collect=True), request, anchors=anchors, revocation=deferred, now=now)
        stored = await self._revocation.evaluate_for_vehicle(deferred.chains)
        checks = CheckList(collect=True)
        _verify_request(checks, request, anchors=anchors, revocation=stored, now=now)
        return checks, (*lint.lint_request(request, self._trust.anchors), *stored.warnings)


def _verify_response(checks: CheckList, response: InstallationResponse, **arguments: Any) -> None:
    """Run every check on a response; their results are in `checks`."""
    with contextlib.suppress(VerificationError):
        verify.check_response(response, checks=checks, **arguments)


def _verify_request(checks: CheckList, request: InstallationRequest, **arguments: Any) -> None:
    with contextlib.suppress(VerificationError):
        verify.check_request(request, checks=checks, **arguments)
