"""Another pool in the place of this one: requests that are addressed to it.

A `RemotePool` has the methods of `Pool` that are not a vehicle's, and answers in the same shapes. The caller is
authorised here exactly as for this pool, and then once more there, as what this pool is registered as; the request is
sent once, and never passed on a second time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar, get_args

from ccp.client import (
    AsyncClient,
    ClientError,
    ContractState,
    NoResponseError,
    NotAuthenticatedError,
    NotAuthorisedError,
    NotFoundError,
    PartyType,
    Routing,
    StatusError,
    TokenRefusedError,
    TooManyRequestsError,
    UnavailableError,
    UpstreamFailedError,
)
from ccp.errors import (
    CCPError,
    Conflict,
    EXIError,
    FieldError,
    InputError,
    MismatchError,
    NotAuthorised,
    NotFound,
    Unavailable,
    UpstreamError,
    VerificationError,
)
from ccp.exi.base64_text import message_bytes
from ccp.ids import EMAID, PCID, Fingerprint, Namespace
from ccp.server.domain.authorization import ROLE_TABLE, Operation, Subject, authorise
from ccp.server.domain.contracts import SignedContract
from ccp.server.domain.parties import Caller, Party, PartyRole
from ccp.server.external.pki_service import RevocationReason
from ccp.server.pool.peer_limits import whole_seconds
from ccp.server.pool.peers import From, Peers
from ccp.server.pool.service import Answer
from ccp.verify.report import Checks

T = TypeVar("T")

_NOBODY: Final[From] = (None, None)
_ORDER: Final = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class RemoteContract:
    """What another pool tells of a contract, by the names of `SignedContract`.

    created_at: is not told; as in the answer, the newest come first, and only that order is meant. root_fingerprint:
    None, root_dn: empty, where the dialect does not tell them.
    """

    emaid: EMAID
    pcid: PCID
    namespace: Namespace
    certificate: bytes
    is_default: bool
    valid_from: datetime
    valid_to: datetime
    created_at: datetime
    root_fingerprint: Fingerprint | None
    root_dn: str


class RemotePool:
    """What a caller can ask of another pool.

    Besides what a method names, it raises the other pool's own refusal with its sentences (InputError, NotAuthorised,
    NotFound, Conflict, UpstreamError, Unavailable); Unavailable for a pool that is silent or broken; UpstreamError for
    one that does not take our credentials, or whose answer does not hold here.
    """

    def __init__(self, peers: Peers, party_id: str, sender: From = _NOBODY) -> None:
        """sender: whom the request says it is from, already held against the caller."""
        self._peers = peers
        self._to = party_id
        self._sender = sender

    async def publish(
        self,
        caller: Caller,
        *,
        emaid: EMAID,
        pcid: PCID,
        namespace: Namespace,
        message: str,
        root: Fingerprint | None,
        metadata: str | None,
        at: datetime,
        began: datetime | None = None,
    ) -> None:
        """The other pool makes every check. message: EXI in Base64. Raises NotAuthorised, EXIError."""
        octets = message_bytes(message)

        async def send(client: AsyncClient, routing: Routing) -> None:
            await client.publish(
                octets, emaid=emaid, pcid=pcid, namespace=namespace, root=root, metadata=metadata, routing=routing
            )

        await self._call(caller, Operation.PUBLISH, emaid, send, changes=True)

    async def examine(
        self,
        caller: Caller,
        *,
        emaid: EMAID,
        pcid: PCID,
        namespace: Namespace,
        message: str,
        root: Fingerprint | None,
        at: datetime,
        began: datetime | None = None,
    ) -> tuple[Checks, tuple[str, ...]]:
        """Raises FieldError: a pool that does not know the parameter would store the contract."""
        authorise(caller.party, Operation.PUBLISH, emaid)
        raise FieldError("dryRun : is for the pool that is called; a dry run is not passed on")

    async def withdraw(
        self,
        caller: Caller,
        emaid: EMAID,
        at: datetime,
        *,
        revoke: bool = True,
        reason: RevocationReason = RevocationReason.CESSATION_OF_OPERATION,
    ) -> None:
        """Raises NotAuthorised."""

        async def send(client: AsyncClient, routing: Routing) -> None:
            await client.withdraw(emaid, revoke=revoke, reason=reason.value, routing=routing)

        await self._call(caller, Operation.WITHDRAW, emaid, send, changes=True)

    async def set_default(self, caller: Caller, emaid: EMAID, pcid: PCID, at: datetime) -> None:
        """Raises NotAuthorised."""

        async def send(client: AsyncClient, routing: Routing) -> None:
            await client.set_default(emaid, pcid, routing=routing)

        await self._call(caller, Operation.SET_DEFAULT, pcid, send, changes=True)

    async def contract_data_by_emaid(
        self, caller: Caller, emaid: EMAID, namespace: Namespace, root: Fingerprint | None, at: datetime
    ) -> list[tuple[RemoteContract, str | None]]:
        """As `Pool.contract_data_by_emaid`. Raises NotAuthorised."""

        async def send(client: AsyncClient, routing: Routing) -> list[ContractState]:
            found = await client.contracts_of_emaid(emaid, namespace=namespace, root=root, routing=routing)
            wanted = (None, root)  # Not every dialect tells it.
            return _fitting(found, namespace, lambda told: told.emaid == emaid and (not root or told.root in wanted))

        found = await self._call(caller, Operation.GET_CONTRACT_DATA_BY_EMAID, emaid, send)
        return list(zip(_remote(found), (told.undeliverable for told in found), strict=True))

    async def contract_data_by_pcid(self, caller: Caller, pcid: PCID, namespace: Namespace) -> list[RemoteContract]:
        """As `Pool.contract_data_by_pcid`. Raises NotAuthorised."""

        async def send(client: AsyncClient, routing: Routing) -> list[ContractState]:
            found = await client.contracts_of_pcid(pcid, namespace=namespace, routing=routing)
            return _fitting(found, namespace, lambda told: told.pcid == pcid)

        return _remote(await self._call(caller, Operation.GET_CONTRACT_DATA_BY_PCID, pcid, send))

    async def signed_contract_data(
        self,
        caller: Caller,
        emaid: EMAID,
        pcid: PCID,
        *,
        session_id: bytes,
        namespace: Namespace,
        root: Fingerprint | None,
        at: datetime,
        handed_out: bool = True,
    ) -> list[Answer]:
        """As `Pool.signed_contract_data`, verified here as a delivery of another pool is. Raises NotAuthorised.

        handed_out: for the other pool to say, which gets a GET in any case.
        """

        async def send(client: AsyncClient, routing: Routing) -> list[SignedContract]:
            found = await client.signed_contracts(
                emaid, pcid, session_id=session_id, namespace=namespace, root=root, routing=routing
            )
            if not found or any(item.namespace is not namespace or item.emaid != emaid for item in found):
                raise MismatchError("The answer is not of the contract and edition that were asked for.")
            return [
                await self._peers.verified(item, namespace, pcid, at, session_id=session_id or None, root=root)
                for item in found
            ]

        found = await self._call(caller, Operation.GET_SIGNED_CONTRACT_DATA, pcid, send)
        return [Answer(contract, contract.response) for contract in found]

    async def _call(
        self,
        caller: Caller,
        operation: Operation,
        subject: Subject,
        send: Callable[[AsyncClient, Routing], Awaitable[T]],
        *,
        changes: bool = False,
    ) -> T:
        authorise(caller.party, operation, subject)
        sender, to = _sender(caller.party, operation, subject, self._sender), self._to
        try:
            return await self._peers.call(to, caller, sender, operation.value, send)
        except ClientError as exc:
            raise _as_ours(exc, to, changes) from exc
        except (MismatchError, EXIError) as exc:
            raise Unavailable(f"The pool {to} answered something else than it was asked.") from exc
        except VerificationError as exc:
            raise UpstreamError(f"What the pool {to} has does not hold here.", *exc.messages) from exc


def _sender(party: Party, operation: Operation, subject: Subject, said: From) -> From:
    """Who a request is from: as its sender says it, completed by the role and the id that allow the request."""
    rules = ROLE_TABLE[operation]
    role = next(role for role in rules if role in party.roles and rules[role].allows(party, subject))
    kind, name = said
    if name is None and role is PartyRole.EMSP and isinstance(subject, EMAID):
        name = subject.provider
    elif name is None and role is PartyRole.OEM and isinstance(subject, PCID):
        name = subject.wmi
    return kind or _PARTY_TYPES.get(role), name


_PARTY_TYPES: Final[dict[str, PartyType]] = {kind: kind for kind in get_args(PartyType)}


def _fitting(
    found: Iterable[ContractState], namespace: Namespace, fits: Callable[[ContractState], bool]
) -> list[ContractState]:
    """What another pool tells, when all of it is what it was asked for. Raises MismatchError."""
    told = list(found)
    if not told or not all(each.namespace is namespace and fits(each) for each in told):
        raise MismatchError("The answer is not of the contracts that were asked for.")
    return told


def _remote(found: Iterable[ContractState]) -> list[RemoteContract]:
    return [
        RemoteContract(
            told.emaid,
            told.pcid,
            told.namespace,
            told.certificate,
            told.is_default,
            told.valid_from,
            told.valid_to,
            _ORDER - timedelta(microseconds=place),
            told.root,
            told.root_dn or "",
        )
        for place, told in enumerate(found)
    ]


def _as_ours(exc: ClientError, to: str, changes: bool) -> CCPError:
    """What a request's sender is told of it."""
    unknown = ("Whether it has done what was asked is not known; it may be asked again.",) if changes else ()
    match exc:
        case NoResponseError(outcome_unknown=True):
            return Unavailable(f"The pool {to} did not answer.", *unknown)
        case NoResponseError():
            return Unavailable(f"The pool {to} cannot be reached.")
        case TokenRefusedError() | NotAuthenticatedError():
            return UpstreamError(f"The pool {to} does not take this pool's credentials.")
        case NotAuthorisedError():
            return NotAuthorised(*exc.messages)
        case NotFoundError():
            return NotFound(*exc.messages)
        case TooManyRequestsError(retry_after=after):
            # Our rate there, not this caller's rate here.
            return Unavailable(f"The pool {to} is asked too often just now.", retry_after=whole_seconds(after))
        case UnavailableError(retry_after=after) if exc.trace_id is not None:
            return Unavailable(*exc.messages, retry_after=whole_seconds(after))
        case UpstreamFailedError() if exc.trace_id is not None:
            return UpstreamError(*exc.messages)
        case StatusError(status=409):
            return Conflict(*exc.messages)
        case StatusError(status=status) if status is not None and 400 <= status < 500:
            return InputError(*exc.messages)
        case _:
            return Unavailable(f"The pool {to} failed.", *unknown)
