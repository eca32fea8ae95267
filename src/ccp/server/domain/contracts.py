"""Contracts: which ones are deliverable, and which one a vehicle gets. Pure.

A contract is one EMAID bound to one PCID. It has variants: one signed response per namespace and V2G root of the
provisioning service that signed it. `SignedContract` is one variant together with the metadata of the contract.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple, Protocol

from ccp.errors import NoContract, NotFound, NothingDeliverable
from ccp.errors.codes import ErrorCode
from ccp.ids import EMAID, PCID, Fingerprint, Namespace
from ccp.verify.response import VerifiedInstallationResponse
from ccp.x509.revocation_evidence import CertificateRef


class SignedContract(NamedTuple):
    """One signed CertificateInstallationRes with its metadata. A tuple, because every delivery creates some.

    certificate: the contract certificate, DER. response: the message as published, EXI.
    remaining_from_end: -20 only, bits from RemainingContractCertificateChains to the end of `response`.
    certificates: those below the roots of both chains, for revocation checks; None in rows of older releases.
    provisioning_key: SHA-256 (hex) of the vehicle's key that the contract key was encrypted for, if known.
    root_serial, root_dn: of the V2G root of the provisioning service's chain, as a vehicle may list it.
    """

    emaid: EMAID
    pcid: PCID
    namespace: Namespace
    root_fingerprint: Fingerprint
    root_serial: int
    root_dn: str
    valid_from: datetime
    valid_to: datetime
    certificate: bytes
    response: bytes
    remaining_from_end: int | None
    metadata: str | None
    created_at: datetime
    updated_at: datetime
    is_default: bool = False
    certificates: tuple[CertificateRef, ...] | None = None
    provisioning_key: str | None = None

    def valid_at(self, now: datetime) -> bool:
        """Whether the contract certificate is valid. Certificates count whole seconds; the last one counts fully."""
        return self.valid_from <= now.replace(microsecond=0) <= self.valid_to


def signed_contract(
    verified: VerifiedInstallationResponse,
    pcid: PCID,
    metadata: str | None,
    now: datetime,
    *,
    certificates: tuple[CertificateRef, ...] | None = None,
    provisioning_key: str | None = None,
) -> SignedContract:
    """The contract to store for a vehicle. certificates: of both chains, those of the contract chain first."""
    contract, root = verified.contract_chain.leaf, verified.cps_chain.root
    parsed = verified.response.parsed
    return SignedContract(
        emaid=verified.emaid,
        pcid=pcid,
        namespace=verified.response.namespace,
        root_fingerprint=Fingerprint(root.fingerprint),
        root_serial=root.serial_number,
        root_dn=root.subject_dn,
        valid_from=contract.not_before,
        valid_to=contract.not_after,
        certificate=contract.der,
        response=parsed.data,
        remaining_from_end=parsed.remaining_from_end,
        metadata=metadata,
        created_at=now,
        updated_at=now,
        certificates=certificates,
        provisioning_key=provisioning_key,
    )


class NoDefaultPolicy(StrEnum):
    """Selection for an ISO 15118-2 vehicle if none of its deliverable contracts is the default.

    A default that is expired, revoked, stale, or signed for the other edition only is not deliverable.
    """

    SOLE = "sole"
    NONE = "none"


class RootMatch(StrEnum):
    """Whether a vehicle that lists the root of no variant gets the newest one."""

    LENIENT = "lenient"
    STRICT = "strict"


RootListed = Callable[[SignedContract], bool]
"""Whether the vehicle lists the variant's V2G root."""
IsDeliverable = Callable[[SignedContract], bool]
"""Whether a variant may be delivered: not revoked, and not encrypted for a key that the vehicle no longer has."""


class VehicleWish(Protocol):
    """What a vehicle states in its request; see `ccp.verify.InstallationRequest`."""

    @property
    def namespace(self) -> Namespace: ...

    @property
    def prioritized_emaids(self) -> Sequence[EMAID]: ...

    @property
    def max_chains(self) -> int: ...

    def trusts_root_of(self, contract: SignedContract, /) -> bool:
        """Whether the vehicle lists the variant's V2G root."""
        ...


def select(
    wish: VehicleWish,
    stored: Sequence[SignedContract],
    now: datetime,
    *,
    deliverable: IsDeliverable,
    max_one: bool,
    no_default: NoDefaultPolicy,
    root_match: RootMatch,
) -> Sequence[tuple[SignedContract, int | None]]:
    """Select what a vehicle gets, each with the number that remain after it (ISO 15118-20; None for -2).

    max_one: one contract at most, however many the vehicle takes. Raises NoContract, NothingDeliverable.
    """
    if wish.namespace is Namespace.ISO2:
        contract = select_for_iso2(
            stored,
            now,
            root_listed=wish.trusts_root_of,
            deliverable=deliverable,
            no_default=no_default,
            root_match=root_match,
        )
        return [(contract, None)]
    return select_for_iso20(
        stored,
        now,
        root_listed=wish.trusts_root_of,
        deliverable=deliverable,
        prioritized_emaids=wish.prioritized_emaids,
        max_chains=min(wish.max_chains, 1) if max_one else wish.max_chains,
        root_match=root_match,
    )


def select_for_iso2(
    stored: Sequence[SignedContract],
    now: datetime,
    *,
    root_listed: RootListed,
    deliverable: IsDeliverable = lambda contract: True,
    no_default: NoDefaultPolicy = NoDefaultPolicy.SOLE,
    root_match: RootMatch = RootMatch.LENIENT,
) -> SignedContract:
    """Select the contract for an ISO 15118-2 vehicle: the default, in the variant whose root it lists.

    If no deliverable contract is the default, `no_default` applies. stored: every variant of the vehicle, of either
    namespace. Raises NoContract, NothingDeliverable.
    """
    contracts = _deliverable(stored, Namespace.ISO2, now, root_listed, deliverable, root_match)
    default = next((variant for variant in contracts if variant.is_default), None)
    if default is not None:
        return default
    # A default that is not deliverable is ignored, so that the result does not depend on a purge.
    if no_default is NoDefaultPolicy.SOLE and len(contracts) == 1:
        return contracts[0]
    if any(variant.is_default for variant in stored):
        raise NothingDeliverable(
            "The default contract of the vehicle cannot be delivered now.",
            code=ErrorCode.DEFAULT_CONTRACT_NOT_DELIVERABLE,
        )
    raise NothingDeliverable("None of the vehicle's contracts is its default.", code=ErrorCode.NO_DEFAULT_CONTRACT)


def not_selected_reason(
    contract: SignedContract,
    stored: Sequence[SignedContract],
    now: datetime,
    *,
    deliverable: IsDeliverable = lambda contract: True,
    no_default: NoDefaultPolicy = NoDefaultPolicy.SOLE,
) -> str | None:
    """Why an ISO 15118-2 vehicle does not get an otherwise deliverable contract: it is not the default.

    None if the vehicle gets it, and for ISO 15118-20, whose vehicles get the other contracts too. The sentence is for
    the contract's provider and names no other one. stored: every variant of the vehicle, of either namespace.
    """
    if contract.namespace is not Namespace.ISO2 or contract.is_default:
        return None
    try:
        if (
            select_for_iso2(
                stored, now, root_listed=lambda variant: True, deliverable=deliverable, no_default=no_default
            ).emaid
            == contract.emaid
        ):
            return None
    except NotFound:
        pass
    return (
        "The contract is not the vehicle's default contract, and an ISO 15118-2 vehicle gets no other; "
        "the vehicle's manufacturer chooses it."
    )


def select_for_iso20(
    stored: Sequence[SignedContract],
    now: datetime,
    *,
    root_listed: RootListed,
    deliverable: IsDeliverable = lambda contract: True,
    prioritized_emaids: Iterable[EMAID] = (),
    max_chains: int,
    root_match: RootMatch = RootMatch.LENIENT,
) -> list[tuple[SignedContract, int]]:
    """Select the contracts for an ISO 15118-20 vehicle, each with the number of those that remain after it.

    First the EMAIDs that the vehicle prioritises, in its order, the default, the oldest; up to `max_chains`.
    The vehicle repeats its request while the remaining number is above zero, and the charging station delivers them
    one by one. stored: every variant of the vehicle, of either namespace.
    Raises NoContract, NothingDeliverable. Source: ISO 15118-20 [V2G20-1579].
    """
    rank = {emaid: place for place, emaid in enumerate(dict.fromkeys(prioritized_emaids))}
    contracts = _deliverable(stored, Namespace.ISO20, now, root_listed, deliverable, root_match)
    # The age of a contract is that of its first variant, whichever variant the vehicle gets.
    created_at_by_emaid: dict[EMAID, datetime] = {}
    for variant in stored:
        created_at_by_emaid[variant.emaid] = min(
            created_at_by_emaid.get(variant.emaid, variant.created_at), variant.created_at
        )
    contracts.sort(
        key=lambda c: (rank.get(c.emaid, len(rank)), not c.is_default, created_at_by_emaid[c.emaid], c.emaid)
    )
    chosen = contracts[:max_chains]
    if not chosen:
        raise NothingDeliverable(
            "The vehicle asks for no contract certificate chain.", code=ErrorCode.NO_CHAIN_REQUESTED
        )
    return [(contract, len(chosen) - place) for place, contract in enumerate(chosen, start=1)]


def prioritized(found: Iterable[SignedContract], emaids: Iterable[EMAID]) -> list[SignedContract]:
    """Contracts with those of these EMAIDs first, in the order of the EMAIDs; the others keep their order."""
    rank = {emaid: place for place, emaid in enumerate(dict.fromkeys(emaids))}
    return sorted(found, key=lambda contract: rank.get(contract.emaid, len(rank)))


def _deliverable(
    stored: Sequence[SignedContract],
    namespace: Namespace,
    now: datetime,
    root_listed: RootListed,
    deliverable: IsDeliverable,
    root_match: RootMatch,
) -> list[SignedContract]:
    """One variant of every deliverable contract. Raises NoContract, NothingDeliverable."""
    if not stored:
        raise NoContract("No contract is stored for the vehicle.")
    written = [variant for variant in stored if variant.namespace is namespace]
    if not written:
        raise NothingDeliverable(
            "No contract of the vehicle is signed for its version of ISO 15118.", code=ErrorCode.NO_CONTRACT_FOR_EDITION
        )
    valid = [variant for variant in written if variant.valid_at(now)]
    if not valid:
        raise NothingDeliverable("No contract of the vehicle is valid now.", code=ErrorCode.NO_VALID_CONTRACT)
    variants: dict[EMAID, list[SignedContract]] = {}
    for variant in filter(deliverable, valid):
        variants.setdefault(variant.emaid, []).append(variant)
    if not variants:
        raise NothingDeliverable(
            "Every valid contract of the vehicle is stale, revoked, or of unknown standing.",
            code=ErrorCode.NO_USABLE_CONTRACT,
        )
    best = []
    for candidates in variants.values():
        candidates.sort(key=lambda variant: variant.updated_at, reverse=True)
        match = next(filter(root_listed, candidates), None)
        if match is None and root_match is RootMatch.LENIENT:
            match = candidates[0]
        if match is not None:
            best.append(match)
    if not best:
        raise NothingDeliverable(
            "No contract of the vehicle is valid now and signed under a V2G root that it lists.",
            code=ErrorCode.NO_CONTRACT_FOR_ROOT,
        )
    return best
