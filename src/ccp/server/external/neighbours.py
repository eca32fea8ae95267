"""The neighbours that the pool asks for trust: Root Certificate Pool, Provisioning Certificate Pool, PKI service.

Their addresses are the operator's, so they may be private; their answers are judged like any others. The published
shapes contradict each other in places (OPNC 1.0: `subCa1Certificate` against `subCA1Certificate`, `rootType` required
but not described, wrappers that one document has and another leaves out), so answers are read tolerantly, and what
they say about a certificate counts for nothing beside the certificate itself.
"""

from __future__ import annotations

import binascii
import hashlib
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import orjson
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import SecretStr

from ccp import verify
from ccp.errors import ChainError, ConfigurationError, FieldError, Unavailable, UpstreamError
from ccp.ids import PCID, Fingerprint, Namespace
from ccp.schemas.common import encode_base64
from ccp.server.domain.contracts import SignedContract
from ccp.server.external.outbound import Answer, Outbound, OutboundError
from ccp.server.runtime.blocking_calls import BlockingCalls
from ccp.server.settings import Settings
from ccp.x509.certificates import Certificate
from ccp.x509.issuer_map import IssuerMap
from ccp.x509.parse_errors import parse_errors_as
from ccp.x509.path_validation import Role

_log = structlog.get_logger("ccp.server.external.neighbours")


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Those that are configured; None for those that are not."""

    roots: RootCertificatePool | None
    provisioning: ProvisioningCertificatePool | None
    pki: PKIService | None

    @classmethod
    def of(cls, config: Settings, outbound: Outbound) -> Neighbours:
        """Raises ConfigurationError."""
        if config.operator_cas and not config.pki_url:
            raise ConfigurationError("operator_cas needs pki_url: without it their certificates cannot be revoked.")
        if config.require_known_vehicle and not config.pcp_url:
            raise ConfigurationError("require_known_vehicle needs pcp_url: else no vehicle is known.")
        return cls(
            RootCertificatePool(outbound, config.rcp_url, config.rcp_token) if config.rcp_url else None,
            ProvisioningCertificatePool(outbound, config.pcp_url, config.pcp_token) if config.pcp_url else None,
            PKIService(outbound, config.pki_url, config.pki_token, config.operator_cas, REVOKE_SECONDS)
            if config.pki_url
            else None,
        )


class _Neighbour:
    """What calling each of them has in common."""

    name: str

    def __init__(self, outbound: Outbound, url: str, token: SecretStr | None = None) -> None:
        """url: without the slash at its end that some configurations have."""
        self._outbound = outbound
        self.url: Final = url.rstrip("/")
        self._token = token
        self._reading = BlockingCalls("reading of an answer", max_threads=2, timeout=60.0)

    async def _call(self, method: str, path: str, *, seconds: float, octets: int, body: bytes = b"") -> Answer:
        """One exchange, whatever its status. Raises UpstreamError when none came about."""
        headers = {"Accept": "application/json"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token.get_secret_value()}"
        if body:
            headers["Content-Type"] = "application/json"
        try:
            return await self._outbound.request(
                method,
                self.url + path,
                guarded=False,
                headers=headers,
                content=body,
                seconds=seconds,
                octets=octets,
            )
        except OutboundError as exc:
            raise UpstreamError(f"The {self.name} does not answer now; nothing was changed.") from exc


# --- Root Certificate Pool -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OfferedRoot:
    """A certificate that the Root Certificate Pool lists, and what the pool says it is for. Not verified."""

    certificate: Certificate
    roles: frozenset[Role]


@dataclass(frozen=True, slots=True)
class RootList:
    """One answer to "which roots are there". unusable: a sentence for every entry that says too little or nonsense.

    complete: every entry could at least be read as a certificate, so that what is not here is not in the pool.
    """

    source: str
    roots: tuple[OfferedRoot, ...]
    unusable: tuple[str, ...]
    complete: bool


class RootCertificatePool(_Neighbour):
    """OPNC GetRootCertificates."""

    name = "Root Certificate Pool"

    async def roots(self) -> RootList:
        """Everything that the pool lists, asked for by role. Raises UpstreamError.

        An entry's own words say what it is for; where it has none, that it was named when one role was asked for. A
        pool that does not know the filter names everything every time, and that says nothing: an entry without words
        that comes for all three roles is not used.
        """
        asked = {role: await self._entries(role) for role in Role}
        if not any(asked.values()):
            # A wrong address answers 404 too, and must not look like a pool that has withdrawn every root.
            raise UpstreamError("The Root Certificate Pool lists no root certificate at all; nothing was changed.")
        # Thousands of certificates are read in a thread; requests go on meanwhile.
        return await self._reading.run(self._listed, asked)

    def _listed(self, asked: Mapping[Role, Sequence[object]]) -> RootList:
        said: dict[Certificate, set[Role]] = {}
        listed: dict[Certificate, set[Role]] = {}
        unusable: dict[str, None] = {}
        complete = True
        for role, entries in asked.items():
            for entry in entries:
                try:
                    certificate = _certificate(_root_of(entry).get("caCertificate"))
                except ChainError as exc:
                    unusable[f"An entry ({_named(entry)}) holds no certificate: {exc}"] = None
                    complete = False
                    continue
                types = _types(_root_of(entry))
                listed.setdefault(certificate, set()).add(role)
                for word in types:
                    if word not in _ROLES and word not in _NOT_OURS:
                        unusable[f"Certificate {certificate.label} is for {word!r}, which is not known here."] = None
                if types:
                    said.setdefault(certificate, set()).update(_ROLES[word] for word in types if word in _ROLES)
        offered = []
        for certificate, roles in listed.items():
            if certificate not in said and len(roles) == len(Role):
                unusable[f"The pool does not say what certificate {certificate.label} is for."] = None
                roles = set()
            offered.append(OfferedRoot(certificate, frozenset(said.get(certificate, roles))))
        return RootList(self.url, tuple(offered), tuple(unusable), complete)

    async def _entries(self, role: Role) -> Sequence[object]:
        answer = await self._call(
            "GET", f"/rootcertificates?pkiType={role.value}", seconds=_ROOTS_SECONDS, octets=_ROOTS_OCTETS
        )
        if answer.status == 404:  # Published for "there is none".
            return ()
        if answer.status != 200:
            raise UpstreamError(f"The Root Certificate Pool answered {answer.status}; nothing was changed.")
        found = await self._reading.run(_json, answer, self.name)
        if isinstance(found, dict):
            found = _member(found, "rootCertificateCollection")
        if isinstance(found, dict):
            found = _member(found, "rootCertificates")
        if not isinstance(found, list):
            raise UpstreamError("The Root Certificate Pool's answer has no rootCertificateCollection.")
        return found


_ROOTS_SECONDS: Final = 30.0  # Nobody waits for it, and some pools assemble the list on request.
_ROOTS_OCTETS: Final = 1_048_576  # Some 500 roots; the whole ecosystem has fewer than a hundred.
_ROLES: Final = {"V2G": Role.V2G, "EMSP": Role.EMSP, "MO": Role.EMSP, "OEM": Role.OEM}
_NOT_OURS: Final = frozenset({"PE"})  # Private environments: nothing that this pool verifies ends in one.


def _root_of(entry: object) -> Mapping[str, Any]:
    """The members of an entry, which may stand in it directly or under a name of their own."""
    if not isinstance(entry, dict):
        return {}
    if "caCertificate" not in entry:
        for name in ("rootCertificate", "roootCertificate"):  # The second is how it is published.
            if isinstance(entry.get(name), dict):
                inner: Mapping[str, Any] = entry[name]
                return inner
    return entry


def _types(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """What an entry says that it is for, in upper case."""
    words: list[str] = []
    for name in ("rootTypeList", "rootType"):
        value = entry.get(name)
        words += [word for word in (value if isinstance(value, list) else [value]) if isinstance(word, str)]
    return tuple(dict.fromkeys(word.strip().upper()[:40] for word in words))


def _named(entry: object) -> str:
    members = _root_of(entry)
    for name in ("commonName", "rootCertificateId", "fingerprint"):
        if isinstance(members.get(name), str):
            return "".join(c if c.isprintable() else "?" for c in members[name][:64])
    return "without a name"


# --- Provisioning Certificate Pool -----------------------------------------------------------------------------------

DELIVERY_SECONDS: Final = 1.0
"""Of the five seconds that a vehicle waits; peers may need 1.5 more, and there is the way to the station."""
PUBLISH_SECONDS: Final = 3.0
"""A publisher waits longer than a vehicle, and a wrong key costs it the contract."""

# Long enough for a vehicle that asks again at once, and for the items of one visit. An event about the vehicle reaches
# one worker only, so this is also how long the others may hold a key that was replaced.
_KNOWN_SECONDS: Final = 60.0
_UNKNOWN_SECONDS: Final = 10.0  # A vehicle that was not known a moment ago may be just being registered.
_VEHICLES: Final = 2_000  # Chains of about 5 kB in memory; no worker delivers to more vehicles within a minute.
_FAILURES: Final = 3  # One lost connection says nothing, three in a row say that the pool is not there …
_PAUSE_SECONDS: Final = 10.0  # … and then vehicles do not wait for it until it had time to come back.
_CHAIN_OCTETS: Final = 65_536  # Three certificates of at most 800 octets, and what the pool says besides.


@dataclass(frozen=True, slots=True)
class ProvisioningChain:
    """What the Provisioning Certificate Pool holds for a vehicle. Not verified, except that it is this vehicle's.

    sub_cas: nearest to the vehicle first. namespace: the edition that the certificate is for.
    """

    certificate: Certificate
    sub_cas: tuple[Certificate, ...]
    namespace: Namespace

    def key_for(self, namespace: str) -> str | None:
        """The fingerprint of the vehicle's current key for that edition; None where this is not the one to know."""
        return key_fingerprint(self.certificate) if namespace == self.namespace else None


class ProvisioningCertificatePool(_Neighbour):
    """OPNC GetProvisioningCertificateByPCID, remembered for a little while."""

    name = "Provisioning Certificate Pool"

    def __init__(
        self,
        outbound: Outbound,
        url: str,
        token: SecretStr | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """clock: seconds, from any start."""
        super().__init__(outbound, url, token)
        self._clock = clock
        self._known: dict[PCID, tuple[float, ProvisioningChain | None]] = {}
        self._failures = 0
        self._paused_until = 0.0

    async def chain_of(
        self, pcid: PCID, *, seconds: float = DELIVERY_SECONDS, fresh: bool = False
    ) -> ProvisioningChain | None:
        """The vehicle's chain, or None when the pool knows none or cannot be asked now. Raises nothing.

        fresh: do not take what is remembered. A caller that is about to refuse something for what was remembered asks
        again like this; publishing always does.
        """
        now = self._clock()
        known = self._known.get(pcid)
        if known is not None and now < known[0] and not fresh:
            return known[1]
        if now < self._paused_until:
            return None
        try:
            return await self.ask(pcid, seconds=seconds)
        except UpstreamError as exc:
            _log.warning("provisioning certificate pool failed", reason=str(exc), cause=str(exc.__cause__ or ""))
            return None

    async def ask(self, pcid: PCID, *, seconds: float = PUBLISH_SECONDS) -> ProvisioningChain | None:
        """The vehicle's chain as the pool has it now, or None when it says nothing about the vehicle.

        Raises UpstreamError when the pool does not answer or its answer is nonsense.
        """
        return (await self._ask(pcid, seconds))[1]

    async def chain_to_publish_for(self, pcid: PCID, *, required: bool) -> ProvisioningChain | None:
        """The vehicle's chain as the pool has it now, for a contract that is about to be stored.

        required: the pool has to know the vehicle. Raises FieldError where it does not, Unavailable where it cannot be
        asked now or refuses to answer; without `required` nothing, and None where no chain is known.
        """
        if not required:
            return await self.chain_of(pcid, seconds=PUBLISH_SECONDS, fresh=True)
        unavailable = "The Provisioning Certificate Pool cannot be asked for the vehicle now; publish again later."
        if self._clock() < self._paused_until:
            raise Unavailable(unavailable, retry_after=math.ceil(self._paused_until - self._clock()))
        try:
            status, chain = await self._ask(pcid, PUBLISH_SECONDS)
        except UpstreamError as exc:
            _log.warning("provisioning certificate pool failed", reason=str(exc), cause=str(exc.__cause__ or ""))
            raise Unavailable(unavailable) from exc
        if status in (404, 410):
            raise FieldError("pcid : is not known to the Provisioning Certificate Pool")
        if chain is None:
            raise Unavailable(unavailable)
        return chain

    async def _ask(self, pcid: PCID, seconds: float) -> tuple[int, ProvisioningChain | None]:
        """The HTTP status, and the chain where it is 200. Raises UpstreamError."""
        try:
            answer = await self._call("GET", f"/provisioningcertificates/{pcid}", seconds=seconds, octets=_CHAIN_OCTETS)
            if answer.status >= 500 or answer.status < 200:
                raise UpstreamError(f"The Provisioning Certificate Pool answered {answer.status}.")
            chain = _provisioning_chain(_json(answer, self.name), pcid) if answer.status == 200 else None
        except UpstreamError:
            self._failures += 1
            if self._failures >= _FAILURES:
                self._paused_until = self._clock() + _PAUSE_SECONDS
            raise
        if answer.status not in (200, 404, 410):
            _log.warning("provisioning certificate pool refuses", status=answer.status)
        self._failures, self._paused_until = 0, 0.0
        self._remember(pcid, chain)
        return answer.status, chain

    def forget(self, pcid: PCID) -> None:
        """What is remembered of a vehicle is no longer true."""
        self._known.pop(pcid, None)

    def _remember(self, pcid: PCID, chain: ProvisioningChain | None) -> None:
        now = self._clock()
        self._known.pop(pcid, None)
        if len(self._known) >= _VEHICLES:
            self._known = {key: entry for key, entry in self._known.items() if now < entry[0]}
            for key in list(self._known)[: max(0, len(self._known) - _VEHICLES + 1)]:  # The oldest come first.
                del self._known[key]
        self._known[pcid] = (now + (_UNKNOWN_SECONDS if chain is None else _KNOWN_SECONDS), chain)


def key_fingerprint(certificate: Certificate) -> str:
    """What tells one key of a vehicle from another: SHA-256 over the SubjectPublicKeyInfo (DER), hexadecimal.

    A vehicle with an Ed448 key has an X448 key beside it, which contracts are encrypted for; then the hash goes on over
    that one's SubjectPublicKeyInfo. Raises ChainError.
    """
    with parse_errors_as(lambda: ChainError(f"The public key of certificate {certificate.label} cannot be read.")):
        digest = hashlib.sha256(certificate.public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
        for extension in certificate.extensions:
            if extension.oid == _ALTERNATIVE_KEY and isinstance(extension.value, x509.UnrecognizedExtension):
                digest.update(extension.value.value)
        return digest.hexdigest()


_ALTERNATIVE_KEY: Final = x509.ObjectIdentifier("2.5.29.72")  # ITU-T X.509 (10/2019) clause 9.8.2.


def _provisioning_chain(found: object, pcid: PCID) -> ProvisioningChain:
    """Raises UpstreamError."""
    data = _nested(found, "provisioningCertificate")
    members = _nested(data, "provisioningCertificateChain")
    try:
        certificate = _certificate(_member(members, "certificate"))
        sub_cas = tuple(
            _certificate(text)
            for name in ("subCa2Certificate", "subCa1Certificate")
            if (text := _member(members, name)) is not None
        )
        if verify.pcid_of(certificate) != pcid:
            raise ChainError("The provisioning certificate is another vehicle's.")
        key_fingerprint(certificate)  # So that nobody finds out later that the key cannot be read.
        return ProvisioningChain(certificate, sub_cas, _edition(_member(data, "xsdMsgDefNamespace"), certificate))
    except ChainError as exc:
        raise UpstreamError("The Provisioning Certificate Pool's answer holds no usable certificate.") from exc


def _edition(said: object, certificate: Certificate) -> Namespace:
    """The edition that the pool names, else the only one that a key of this kind can receive contracts in."""
    if isinstance(said, str):
        try:
            return Namespace.parse(said)
        except FieldError:
            pass
    key = certificate.public_key
    p256 = isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1)
    return Namespace.ISO2 if p256 else Namespace.ISO20


# --- PKI service -----------------------------------------------------------------------------------------------------


class RevocationReason(StrEnum):
    """Why a contract certificate is revoked. Source: OPNC API 1.0, revokeCertificateReq."""

    PRIVILEGE_WITHDRAWN = "privilegeWithdrawn"
    AFFILIATION_CHANGED = "affiliationChanged"
    SUPERSEDED = "superseded"
    UNSPECIFIED = "unspecified"
    KEY_COMPROMISE = "keyCompromise"
    AA_COMPROMISE = "aACompromise"
    CESSATION_OF_OPERATION = "cessationOfOperation"

    @classmethod
    def parse(cls, text: str | None) -> RevocationReason:
        """The reason in a header, cessationOfOperation where none is given. Raises FieldError."""
        if text is None:
            return cls.CESSATION_OF_OPERATION
        try:
            return cls(text)
        except ValueError as exc:
            raise FieldError(f"{REASON_HEADER} : must be one of {', '.join(cls)}") from exc


REASON_HEADER: Final = "X-Revocation-Reason"
REVOKE_SECONDS: Final = 10.0
"""A CA may have to ask an HSM and publish; the eMSP that deletes waits for it."""
_REVOKE_OCTETS: Final = 65_536  # The published answer has no body; errors are a few sentences.
# An answer that was lost on its way leaves the eMSP with a 502 and a certificate that is revoked. When it deletes once
# more, the PKI refuses with words like these, and then what was asked for is so. The published API has no code for it.
_ALREADY: Final = re.compile(r"\balready (been )?revoked\b", re.IGNORECASE)


class PKIService(_Neighbour):
    """OPNC RevokeCert. Its address ends in /pki, and the published path below it starts with /pki once more."""

    name = "PKI service"

    def __init__(
        self,
        outbound: Outbound,
        url: str,
        token: SecretStr | None = None,
        operator_cas: Iterable[str] = (),
        seconds: float = REVOKE_SECONDS,
    ) -> None:
        """operator_cas: fingerprints. seconds: for one revocation. Raises ConfigurationError."""
        super().__init__(outbound, url, token)
        self._seconds = seconds
        try:
            fingerprints = [Fingerprint.parse(text, "operator_cas") for text in operator_cas]
            self.operator_cas: Final = IssuerMap(dict.fromkeys(fingerprints, True))
        except FieldError as exc:
            raise ConfigurationError(*exc.messages) from exc

    async def revoke_issued(self, variants: Iterable[SignedContract], reason: RevocationReason) -> list[Certificate]:
        """Revoke the contract certificates of these variants that an operator CA issued; returns those.

        Raises UpstreamError at the first that cannot be revoked; Unavailable where it is not known which CA a
        fingerprint in `operator_cas` means, and it may be the one that issued.
        """
        issued = {}
        for contract in variants:
            if is_operators(contract, self.operator_cas):
                issued[contract.certificate] = Certificate.load(contract.certificate)
            elif self.operator_cas.unresolved:
                raise Unavailable(
                    "The pool does not know yet which CA a fingerprint in its configuration means, so it cannot tell "
                    "whether the contract certificate has to be revoked; nothing was deleted."
                )
        for certificate in issued:
            await self.revoke(certificate, reason)
        return list(issued.values())

    async def revoke(self, certificate: bytes, reason: RevocationReason) -> None:
        """Revoke a certificate. It is never tried twice: the service does not say that it is safe to.

        certificate: DER. Raises UpstreamError unless the service said that it is revoked.
        """
        body = orjson.dumps({"certificate": encode_base64(certificate), "revocationReason": reason.value})
        answer = await self._call(
            "POST", "/pki/revokeCertificate", seconds=self._seconds, octets=_REVOKE_OCTETS, body=body
        )
        said = _said(answer)
        if answer.status in (400, 409) and any(_ALREADY.search(sentence) for sentence in said):
            return
        if answer.status not in (200, 204) or said:
            _log.warning("revocation refused", status=answer.status, said=[sentence[:200] for sentence in said])
            raise UpstreamError(
                f"The PKI service did not revoke the contract certificate (status {answer.status}); "
                "nothing was deleted."
            )
        kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
        if answer.body and kind == "text/html":  # A login page or a proxy's: somebody else answered.
            raise UpstreamError("The PKI service's answer is not one of a PKI service; nothing was deleted.")
        if answer.body and kind == "application/json":
            _json(answer, self.name)


def is_operators(contract: SignedContract, operator_cas: IssuerMap[bool]) -> bool:
    """Whether one of these CAs issued the contract certificate, as far as they are known. Pure.

    The issuer is sought among the sub-CA certificates of the stored response and has to have signed the certificate; a
    name alone says nothing. A stored response was read and verified when it was published.
    """
    if not operator_cas:
        return False
    response = verify.read_response(contract.response, contract.namespace)
    leaf = Certificate.load(response.contract_certificate)
    for der in response.contract_sub_certificates:
        issuer = Certificate.load(der)
        if operator_cas.of(issuer):
            try:
                leaf.check_signature(issuer)
            except ChainError:
                continue
            return True
    return False


def _said(answer: Answer) -> list[str]:
    """The sentences of an error answer, none if it is not one."""
    try:
        found = orjson.loads(answer.body)
    except orjson.JSONDecodeError:
        return []
    messages = _member(found, "errorMessages")
    return [str(message) for message in messages] if isinstance(messages, list) else []


# --- Reading what they send ------------------------------------------------------------------------------------------


def _json(answer: Answer, name: str) -> object:
    """Raises UpstreamError."""
    try:
        return orjson.loads(answer.body)
    except orjson.JSONDecodeError as exc:
        raise UpstreamError(f"The {name}'s answer is not JSON.") from exc


def _member(members: object, name: str) -> Any:
    """A member by its name, written in any case."""
    if not isinstance(members, dict):
        return None
    return next((value for key, value in members.items() if key.lower() == name.lower()), None)


def _nested(members: object, name: str) -> object:
    """The object under a name, or the object itself where the wrapper was left out."""
    inner = _member(members, name)
    return inner if isinstance(inner, dict) else members


_MOST_TEXT: Final = 16_384  # A certificate of this ecosystem has 800 octets, of any other at most a few thousand.


def _certificate(text: object) -> Certificate:
    """A certificate from JSON: DER in Base64 as published, or PEM, or PEM in Base64. Raises ChainError."""
    if not isinstance(text, str) or not text or len(text) > _MOST_TEXT:
        raise ChainError("There is no certificate.")
    octets = text.encode("utf-8", "replace")
    if b"-----BEGIN" not in octets:
        packed = b"".join(octets.split())
        try:
            octets = binascii.a2b_base64(packed.rstrip(b"=") + b"=" * (-len(packed.rstrip(b"=")) % 4), strict_mode=True)
        except ValueError as exc:
            raise ChainError("It is not Base64.") from exc
    return Certificate.load_pem(octets)[0] if b"-----BEGIN" in octets else Certificate.load(octets)
