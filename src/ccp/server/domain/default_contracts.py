"""Default contracts, and the limits on the number of a vehicle's contracts. Pure.

An ISO 15118-2 vehicle gets its default contract only. The vehicle's manufacturer chooses it. Until then the default is
*automatic*: the first contract that is published for the vehicle. The provider of the default is stored, so that a
provider that renews its contract by DELETE and PUT gets the default back, even if another provider publishes in
between. While the default is automatic and another provider has a contract too, the vehicle is *contested*: a provider
that knows only the PCID could have published first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from ccp.errors import LimitExceeded
from ccp.ids import EMAID, ProviderId


class AutomaticDefault(StrEnum):
    """The contract that becomes a vehicle's default without a choice of its manufacturer."""

    FIRST = "first"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class VehicleRules:
    """The operator's settings for the contracts of one vehicle."""

    automatic_default: AutomaticDefault = AutomaticDefault.FIRST
    max_contracts: int = 16
    max_contracts_of_provider: int = 4


@dataclass(frozen=True, slots=True)
class Default:
    """The default contract of a vehicle.

    emaid: the default, None if there is none. provider: the stored provider, whose next contract becomes the default
    again; None if there has been no default yet. chosen: the manufacturer chose a contract of that provider.
    """

    emaid: EMAID | None = None
    provider: ProviderId | None = None
    chosen: bool = False

    @property
    def automatic(self) -> bool:
        """Whether there is a default that the manufacturer did not choose.

        A renewal by the chosen provider counts as chosen.
        """
        return self.emaid is not None and not (self.chosen and self.emaid.provider == self.provider)


def default_after_publication(
    default: Default,
    emaid: EMAID,
    *,
    first: bool,
    automatic: AutomaticDefault = AutomaticDefault.FIRST,
    wanted: bool | None = None,
) -> Default:
    """The default after the publication of a contract.

    first: the contract is new, and the vehicle has no other one except expired and revoked ones. wanted: for an import,
    whether the contract was the default in its source; None if unknown. An import never displaces a default.
    """
    if default.emaid == emaid or wanted is False:
        return default
    if default.provider == emaid.provider and (default.chosen or automatic is AutomaticDefault.FIRST):
        # A default of another provider is temporary: a choice of the manufacturer would have changed `provider`.
        if default.emaid is None or default.emaid.provider != default.provider:
            return replace(default, emaid=emaid)
        return default
    if default.emaid is not None:
        return default
    if wanted:
        # Without automatic defaults, an imported default was chosen.
        chosen = default.chosen or (default.provider is None and automatic is AutomaticDefault.NONE)
        return Default(emaid, default.provider or emaid.provider, chosen)
    if automatic is AutomaticDefault.FIRST and first:
        return replace(default, emaid=emaid, provider=default.provider or emaid.provider)
    return default


def contesting_providers(default: Default, emaids: Iterable[EMAID]) -> frozenset[ProviderId]:
    """The providers that contest a vehicle's automatic default; empty if it was chosen or there is none.

    emaids: of the vehicle's contracts.
    """
    if default.emaid is None or not default.automatic:
        return frozenset()
    return frozenset(emaid.provider for emaid in emaids) - {default.emaid.provider}


def check_capacity(default: Default, emaid: EMAID, others: Collection[EMAID], rules: VehicleRules) -> None:
    """Check that one more contract may be stored for a vehicle. others: its stored contracts. Raises LimitExceeded.

    The total limit does not apply to the stored provider. Otherwise other providers could take the place that its
    contract frees during a renewal by DELETE and PUT.
    """
    if sum(other.provider == emaid.provider for other in others) >= rules.max_contracts_of_provider:
        raise LimitExceeded(
            f"The vehicle has {rules.max_contracts_of_provider} contracts of this provider already; delete one first."
        )
    if len(others) >= rules.max_contracts and default.provider != emaid.provider:
        raise LimitExceeded("The vehicle has as many contracts as this pool keeps for one vehicle.")
