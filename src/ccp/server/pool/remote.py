"""A remote pool: requests that are addressed to another pool are forwarded to it.

A `RemotePool` has the methods of `Pool`, except the vehicle's, and returns the same types. This pool authorises the
caller exactly as for itself. The other pool then authorises this pool by its registration there. A request is sent
once, and the receiving pool does not forward it again.
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
from ccp.errors.codes import ErrorCode
from ccp.exi.base64_text import message_bytes
from ccp.ids import EMAID, PCID, Fingerprint, Namespace
from ccp.server.domain.authorization import ROLE_TABLE, Operation, Subject, authorise
from ccp.server.domain.contracts import SignedContract
from ccp.server.domain.parties import Caller, Party, PartyRole
from ccp.server.external.pki_service import RevocationReason
from ccp.server.pool.delivery import DeliveredContract
from ccp.server.pool.peer_limits import bounded_retry_after
from ccp.server.pool.peers import Peers, Sender
from ccp.verify.report import CheckList

T = TypeVar("T")

_UNNAMED_SENDER: Final[Sender] = (None, None)
_EPOCH: Final = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class RemoteContract:
    """Contract data from another pool, with the attribute names of `SignedContract`.

    created_at: an artificial time, since pools do not transmit it; contracts come newest first, and it reflects that
    order only. root_fingerprint: None, and root_dn: empty, if the pool does not transmit them.
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
    """The operations of another pool, on behalf of a caller.

    Besides the errors that a method names, it raises the other pool's own error with its sentences (InputError,
    NotAuthorised, NotFound, Conflict, UpstreamError, Unavailable); Unavailable if the pool does not answer or fails;
    UpstreamError if the pool rejects this pool's credentials, or if its answer does not verify here.
    """

    def __init__(self, peers: Peers, party_id: str, sender: Sender = _UNNAMED_SENDER) -> None:
        """sender: from the request's OPNC headers, already checked against the caller."""
        self._peers = peers
        self._party_id = party_id
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
        now: datetime,
        began: datetime | None = None,
    ) -> None:
        """Forward a publication as EXI; the other pool makes every check. message: EXI or XML, in Base64.

        Raises NotAuthorised, EXIError.
        """
        response = message_bytes(message, allow_xml=True)

        async def send(client: AsyncClient, routing: Routing) -> None:
            await client.publish(
                response, emaid=emaid, pcid=pcid, namespace=namespace, root=root, metadata=metadata, routing=routing
            )

        await self._call(caller, Operation.PUBLISH, emaid, send, changes=True)

    async def dry_run(
        self,
        caller: Caller,
        *,
        emaid: EMAID,
        pcid: PCID,
        namespace: Namespace,
        message: str,
        root: Fingerprint | None,
        now: datetime,
        began: datetime | None = None,
    ) -> tuple[CheckList, tuple[str, ...]]:
        """Raises FieldError: a pool that does not know the parameter dryRun would store the contract."""
        authorise(caller.party, Operation.PUBLISH, emaid)
        raise FieldError("dryRun : is for the pool that is called; a dry run is not passed on")

    async def withdraw(
        self,
        caller: Caller,
        emaid: EMAID,
        now: datetime,
        *,
        revoke: bool = True,
        reason: RevocationReason = RevocationReason.CESSATION_OF_OPERATION,
    ) -> None:
        """Forward a withdrawal. Raises NotAuthorised."""

        async def send(client: AsyncClient, routing: Routing) -> None:
            await client.withdraw(emaid, revoke=revoke, reason=reason.value, routing=routing)

        await self._call(caller, Operation.WITHDRAW, emaid, send, changes=True)

    async def set_default(self, caller: Caller, emaid: EMAID, pcid: PCID, now: datetime) -> None:
        """Forward the choice of a default contract. Raises NotAuthorised."""

        async def send(client: AsyncClient, routing: Routing) -> None:
            await client.set_default(emaid, pcid, routing=routing)

        await self._call(caller, Operation.SET_DEFAULT, pcid, send, changes=True)

    async def contract_data_by_emaid(
        self, caller: Caller, emaid: EMAID, namespace: Namespace, root: Fingerprint | None, now: datetime
    ) -> list[tuple[RemoteContract, str | None]]:
        """The variants of a contract; see `ContractData.by_emaid`. Raises NotAuthorised."""

        async def send(client: AsyncClient, routing: Routing) -> list[ContractState]:
            found = await client.contracts_of_emaid(emaid, namespace=namespace, root=root, routing=routing)
            return _check_answer(
                found,
                namespace,
                # Not every dialect transmits the root.
                lambda state: state.emaid == emaid and (not root or state.root in (None, root)),
            )

        found = await self._call(caller, Operation.GET_CONTRACT_DATA_BY_EMAID, emaid, send)
        return list(zip(_remote_contracts(found), (state.undeliverable for state in found), strict=True))

    async def contract_data_by_pcid(self, caller: Caller, pcid: PCID, namespace: Namespace) -> list[RemoteContract]:
        """The contracts of a vehicle; see `ContractData.by_pcid`. Raises NotAuthorised."""

        async def send(client: AsyncClient, routing: Routing) -> list[ContractState]:
            found = await client.contracts_of_pcid(pcid, namespace=namespace, routing=routing)
            return _check_answer(found, namespace, lambda state: state.pcid == pcid)

        return _remote_contracts(await self._call(caller, Operation.GET_CONTRACT_DATA_BY_PCID, pcid, send))

    async def signed_contract_data(
        self,
        caller: Caller,
        emaid: EMAID,
        pcid: PCID,
        *,
        session_id: bytes,
        namespace: Namespace,
        root: Fingerprint | None,
        now: datetime,
        notify: bool = True,
    ) -> list[DeliveredContract]:
        """Response messages of a contract; see `ContractData.signed`. They are verified here like a delivery.

        notify: unused; the other pool gets a GET in any case. Raises NotAuthorised.
        """

        async def send(client: AsyncClient, routing: Routing) -> list[SignedContract]:
            found = await client.signed_contracts(
                emaid, pcid, session_id=session_id, namespace=namespace, root=root, routing=routing
            )
            if not found or any(item.namespace is not namespace or item.emaid != emaid for item in found):
                raise MismatchError("The answer is not of the contract and edition that were asked for.")
            return [
                await self._peers.verify_contract(item, namespace, pcid, now, session_id=session_id or None, root=root)
                for item in found
            ]

        found = await self._call(caller, Operation.GET_SIGNED_CONTRACT_DATA, pcid, send)
        return [DeliveredContract(contract, contract.response) for contract in found]

    async def _call(
        self,
        caller: Caller,
        operation: Operation,
        subject: Subject,
        send: Callable[[AsyncClient, Routing], Awaitable[T]],
        *,
        changes: bool = False,
    ) -> T:
        """Authorise the caller, forward a request, and translate errors. changes: whether the request changes data."""
        authorise(caller.party, operation, subject)
        sender, to = _complete_sender(caller.party, operation, subject, self._sender), self._party_id
        try:
            return await self._peers.call(to, caller, sender, operation.value, send)
        except ClientError as exc:
            raise _translate_error(exc, to, changes) from exc
        except (MismatchError, EXIError) as exc:
            raise Unavailable(f"The pool {to} answered something else than it was asked.") from exc
        except VerificationError as exc:
            raise UpstreamError(f"What the pool {to} has does not hold here.", *exc.messages) from exc


def _complete_sender(party: Party, operation: Operation, subject: Subject, sender: Sender) -> Sender:
    """Complete the sender of a request by the role and the id that authorise the request."""
    rules = ROLE_TABLE[operation]
    role = next(role for role in rules if role in party.roles and rules[role].allows(party, subject))
    kind, name = sender
    if name is None and role is PartyRole.EMSP and isinstance(subject, EMAID):
        name = subject.provider
    elif name is None and role is PartyRole.OEM and isinstance(subject, PCID):
        name = subject.wmi
    return kind or _PARTY_TYPES.get(role), name


_PARTY_TYPES: Final[dict[str, PartyType]] = {kind: kind for kind in get_args(PartyType)}


def _check_answer(
    found: Iterable[ContractState], namespace: Namespace, matches: Callable[[ContractState], bool]
) -> list[ContractState]:
    """Return the contracts of an answer if it has any and all of them match the request. Raises MismatchError."""
    states = list(found)
    if not states or not all(state.namespace is namespace and matches(state) for state in states):
        raise MismatchError("The answer is not of the contracts that were asked for.")
    return states


def _remote_contracts(found: Iterable[ContractState]) -> list[RemoteContract]:
    return [
        RemoteContract(
            state.emaid,
            state.pcid,
            state.namespace,
            state.certificate,
            state.is_default,
            state.valid_from,
            state.valid_to,
            _EPOCH - timedelta(microseconds=place),
            state.root,
            state.root_dn or "",
        )
        for place, state in enumerate(found)
    ]


def _translate_error(exc: ClientError, to: str, changes: bool) -> CCPError:
    """The error that the caller gets. changes: whether the request changes data, so that its outcome may be unknown."""
    unknown = ("Whether it has done what was asked is not known; it may be asked again.",) if changes else ()
    match exc:
        case NoResponseError(outcome_unknown=True):
            return Unavailable(f"The pool {to} did not answer.", *unknown, code=ErrorCode.POOL_UNAVAILABLE)
        case NoResponseError():
            return Unavailable(f"The pool {to} cannot be reached.", code=ErrorCode.POOL_UNAVAILABLE)
        case TokenRefusedError() | NotAuthenticatedError():
            return UpstreamError(f"The pool {to} does not take this pool's credentials.")
        case NotAuthorisedError():
            return NotAuthorised(*exc.messages)
        case NotFoundError():
            return NotFound(*exc.messages)
        case TooManyRequestsError(retry_after=after):
            # The rate limit of this pool there, not that of the caller here.
            return Unavailable(f"The pool {to} is asked too often just now.", retry_after=bounded_retry_after(after))
        case UnavailableError(retry_after=after) if exc.trace_id is not None:
            return Unavailable(*exc.messages, retry_after=bounded_retry_after(after))
        case UpstreamFailedError() if exc.trace_id is not None:
            return UpstreamError(*exc.messages)
        case StatusError(status=409):
            return Conflict(*exc.messages)
        case StatusError(status=status) if status is not None and 400 <= status < 500:
            return InputError(*exc.messages)
        case _:
            return Unavailable(f"The pool {to} failed.", *unknown, code=ErrorCode.POOL_UNAVAILABLE)
