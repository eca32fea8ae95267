"""The pool's rules: one method for each operation. The only owner of transactions."""

from __future__ import annotations

import binascii
from dataclasses import dataclass
from datetime import datetime

from ccp import contracts, installation
from ccp.auth import Operation, authorise
from ccp.contracts import NoContract, NoDefaultPolicy, RootMatch, SignedContract
from ccp.errors import CCPError, EXIError, NotFound, VerificationError
from ccp.ids import EMAID, PCID, Fingerprint, Namespace
from ccp.installation import VerifiedInstallationRequest
from ccp.parties import Party
from ccp.peers import Peers
from ccp.pki.evidence import Revocation
from ccp.settings import Settings, VehicleTrust
from ccp.store import Store
from ccp.store import contracts as questions
from ccp.trust import Trust


@dataclass(frozen=True, slots=True)
class Answer:
    """A contract, and its response as it goes out."""

    contract: SignedContract
    response: bytes


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that was read but gets no contract. pcid: None where the vehicle's certificate names none."""

    pcid: PCID | None
    response: bytes
    reason: CCPError


class Pool:
    """Everything the API can ask. `at` is the time of the request, taken once at the edge."""

    def __init__(self, store: Store, trust: Trust, revocation: Revocation, peers: Peers, settings: Settings) -> None:
        self._store = store
        self._trust = trust
        self._revocation = revocation
        self._peers = peers
        self._vehicle_trust: VehicleTrust = settings.vehicle_trust
        self._no_default: NoDefaultPolicy = settings.no_default_policy
        self._root_match: RootMatch = settings.root_match

    async def deliver(
        self, caller: Party, namespace: Namespace, message: str, *, broadcast: bool, at: datetime
    ) -> list[Answer] | Refusal:
        """Answer a vehicle's CertificateInstallationReq.

        message: EXI in Base64. broadcast: other pools may be asked. Raises EXIError, NotAuthorised, Unavailable.
        """
        authorise(caller, Operation.DELIVER)
        request = installation.read_request(_octets(message), namespace)
        pcid = None
        try:
            verified = installation.verify_request(
                request,
                anchors=self._trust.anchors if self._vehicle_trust is VehicleTrust.CHAIN else None,
                revocation=self._revocation,
                at=at,
            )
            pcid = verified.pcid
            return await self._choose(verified, broadcast, at)
        except (VerificationError, NotFound) as exc:
            negative = installation.refuse(namespace, request.session_id, exc, at)
            return Refusal(pcid or installation.pcid_said(request), negative, exc)

    async def _choose(self, verified: VerifiedInstallationRequest, broadcast: bool, at: datetime) -> list[Answer]:
        request = verified.request
        stored = await self._store.read(questions.by_vehicle(verified.pcid))
        try:
            if request.namespace is Namespace.ISO2:
                contract = contracts.choose_one(
                    stored,
                    at,
                    listed=request.lists_root_of,
                    no_default=self._no_default,
                    root_match=self._root_match,
                )
                return [Answer(contract, installation.answer(contract, request.session_id, at))]
            chosen = contracts.choose_many(
                stored,
                at,
                listed=request.lists_root_of,
                prioritised=request.prioritised,
                maximum=request.maximum,
                root_match=self._root_match,
            )
            return [Answer(c, installation.answer(c, request.session_id, at, remaining)) for c, remaining in chosen]
        except NotFound:
            if broadcast and (found := await self._peers.ask(verified)):
                return [Answer(*item) for item in found]
            raise

    async def publish(
        self,
        caller: Party,
        *,
        emaid: EMAID,
        pcid: PCID,
        namespace: Namespace,
        message: str,
        root: Fingerprint | None,
        metadata: str | None,
        at: datetime,
    ) -> None:
        """Check a signed response and store it; durable when this returns.

        message: EXI in Base64. root: the V2G root that the publisher names. Raises NotAuthorised, EXIError,
        MismatchError, VerificationError, Unavailable.
        """
        authorise(caller, Operation.PUBLISH, emaid)
        verified = installation.verify_response(
            installation.read_response(_octets(message), namespace),
            emaid=emaid,
            root=root,
            anchors=self._trust.anchors,
            revocation=self._revocation,
            at=at,
        )
        await self._store.write(questions.publish(verified.signed_contract(pcid, metadata, at), at))

    async def withdraw(self, caller: Party, emaid: EMAID, at: datetime) -> None:
        """Remove a contract with all its variants. Raises NotAuthorised, NotFound, Unavailable."""
        authorise(caller, Operation.WITHDRAW, emaid)
        await self._store.write(questions.withdraw(emaid, at))

    async def set_default(self, caller: Party, emaid: EMAID, pcid: PCID, at: datetime) -> None:
        """Make a contract the vehicle's default. Raises NotAuthorised, NotFound, Unavailable."""
        authorise(caller, Operation.SET_DEFAULT, pcid)
        await self._store.write(questions.set_default(emaid, pcid, at))

    async def contract_data_by_emaid(
        self, caller: Party, emaid: EMAID, namespace: Namespace, root: Fingerprint | None
    ) -> list[SignedContract]:
        """The variants of a contract, newest first. Raises NotAuthorised, NotFound."""
        authorise(caller, Operation.GET_CONTRACT_DATA_BY_EMAID, emaid)
        stored = await self._store.read(questions.by_emaid(emaid))
        return _matching(stored, namespace, root, "The contract for the given EMAID not found.")

    async def contract_data_by_pcid(self, caller: Party, pcid: PCID, namespace: Namespace) -> list[SignedContract]:
        """The variants of a vehicle's contracts, newest first. Raises NotAuthorised, NotFound."""
        authorise(caller, Operation.GET_CONTRACT_DATA_BY_PCID, pcid)
        stored = await self._store.read(questions.by_vehicle(pcid))
        return _matching(stored, namespace, None, "No contract for the given PCID found.")

    async def signed_contract_data(
        self,
        caller: Party,
        emaid: EMAID,
        pcid: PCID,
        *,
        session_id: bytes,
        namespace: Namespace,
        root: Fingerprint | None,
        at: datetime,
    ) -> list[Answer]:
        """A contract's responses for a vehicle's maker, newest first.

        session_id: put into the responses; without one they are as they were published. Raises NotAuthorised, NotFound.
        """
        authorise(caller, Operation.GET_SIGNED_CONTRACT_DATA, pcid)
        stored = [contract for contract in await self._store.read(questions.by_emaid(emaid)) if contract.pcid == pcid]
        found = _matching(stored, namespace, root, "The contract for the given EMAID not found.")
        return [Answer(c, installation.answer(c, session_id, at) if session_id else c.response) for c in found]


def _matching(
    stored: list[SignedContract], namespace: Namespace, root: Fingerprint | None, otherwise: str
) -> list[SignedContract]:
    found = [c for c in stored if c.namespace is namespace and (root is None or c.root_fingerprint == root)]
    if not found:
        raise NoContract(otherwise)
    return sorted(found, key=lambda contract: contract.updated_at, reverse=True)


def _octets(message: str) -> bytes:
    """A message's octets. Raises EXIError: for the caller, what is not Base64 is not EXI either."""
    try:
        octets = binascii.a2b_base64(message, strict_mode=True)
    except ValueError as exc:
        raise EXIError("not Base64 (RFC 4648 clause 4)") from exc
    # The decoder passes over padding that is not needed; the encoder knows one form of it.
    if binascii.b2a_base64(octets, newline=False) != message.encode("ascii"):
        raise EXIError("not Base64 (RFC 4648 clause 4)")
    return octets
