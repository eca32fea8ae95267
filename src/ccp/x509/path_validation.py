"""From a leaf to a trust anchor: the certificate path walk.

A small RFC 5280 clause 6 on top of `cryptography`, for the profiles of ISO 15118. It does without I/O and without a
clock, and it knows nothing of revocation: evidence about that is judged elsewhere, for the chain that comes out here.

    snapshot = TrustAnchors.build([(Role.V2G, root)], [(Role.V2G, sub_ca)], version=7)
    chain = snapshot.verify(leaf, intermediates, usage=Usage.CPS, at=at, profile=Profile.ISO2)

`_check_form` and its companions look at one certificate; `_Walk` searches for issuers and checks signatures last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import InitVar, dataclass
from datetime import datetime
from enum import Enum
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, SignatureAlgorithmOID

from ccp.errors import ChainError, ExpiredError, without_frames
from ccp.x509.certificates import Certificate


class Usage(Enum):
    """What a leaf is used for."""

    CPS = "CPS"
    CONTRACT = "contract"
    OEM_PROVISIONING = "OEM provisioning"


class Role(Enum):
    """What a trust anchor is trusted for."""

    V2G = "v2g"
    EMSP = "emsp"
    OEM = "oem"


class Profile(Enum):
    """Which edition's algorithms are allowed."""

    ISO2 = "ISO 15118-2"
    ISO20 = "ISO 15118-20"


# ISO 15118-2 clause 7.9.1, ISO 15118-20 clause 7.3. A contract chain may end in a root of the eMSP or in a V2G root.
_TRUSTED_FOR: Final[Mapping[Usage, tuple[Role, ...]]] = {
    Usage.CPS: (Role.V2G,),
    Usage.CONTRACT: (Role.EMSP, Role.V2G),
    Usage.OEM_PROVISIONING: (Role.OEM,),
}

# Whole AlgorithmIdentifiers of keys, so that explicit curve parameters never pass (RFC 5480 clause 2.1.1, RFC 8410).
_P256: Final = bytes.fromhex("301306072a8648ce3d020106082a8648ce3d030107")
_P521: Final = bytes.fromhex("301006072a8648ce3d020106052b81040023")
_ED448: Final = bytes.fromhex("300506032b6571")
_SIGNED_WITH: Final = {
    _P256: SignatureAlgorithmOID.ECDSA_WITH_SHA256,
    _P521: SignatureAlgorithmOID.ECDSA_WITH_SHA512,
    _ED448: SignatureAlgorithmOID.ED448,
}
# Senders of -20 messages in the field still use P-256; drop it from ISO20 when they have moved.
_KEYS: Final[Mapping[Profile, frozenset[bytes]]] = {
    Profile.ISO2: frozenset({_P256}),
    Profile.ISO20: frozenset({_P256, _P521, _ED448}),
}
_SIGNATURES: Final = {profile: frozenset(_SIGNED_WITH[key] for key in keys) for profile, keys in _KEYS.items()}

# The subject's DC tells the role where it is given. A leaf that names another role's DC is refused.
_DOMAIN: Final = {Usage.CPS: "CPS", Usage.CONTRACT: "MO", Usage.OEM_PROVISIONING: "OEM"}
_DOMAINS_OF_ROLES: Final = frozenset({"CPS", "MO", "OEM", "V2G", "CPO"})

_PROCESSED: Final = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    }
)
# Nobody here needs them, and a walk that does not process them must not pass them, critical or not.
_REFUSED: Final = {
    ExtensionOID.NAME_CONSTRAINTS: "name constraints",
    ExtensionOID.POLICY_CONSTRAINTS: "policy constraints",
    ExtensionOID.POLICY_MAPPINGS: "policy mappings",
    ExtensionOID.INHIBIT_ANY_POLICY: "inhibitAnyPolicy",
}

MAX_OFFERED: Final = 4  # The ISO-2 schema allows four sub-CA certificates.
MAX_USED: Final = 2  # ISO 15118-2 and -20 know Sub-CA 1 and Sub-CA 2, no more.
_MAX_ATTEMPTS: Final = 32  # A straight chain needs three; the rest is for roll-overs and cross-signing.
_MAX_SERIAL_BITS: Final = 20 * 8 - 1  # Twenty octets of a positive INTEGER (RFC 5280 clause 4.1.2.2).
_CACHE_SIZE: Final = 512  # Sub-CA 2 of the whole ecosystem, in the few orders in which their issuers are sent.
_LONGEST_REMEMBERED: Final = 1024  # Bytes of a sub-CA; the field has up to 800. In memory it may take 50 times as many.
_LEAVES: Final = 2048  # A vehicle that gets no contract yet asks again and again, and so does a test bench.

_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"
_VERIFIED: Final = object()
_Chain = tuple[Certificate, ...]


@dataclass(frozen=True, slots=True)
class VerifiedChain:
    """A path that holds, leaf first, trust anchor last. Only `TrustAnchors.verify` can make one."""

    certificates: tuple[Certificate, ...]
    usage: Usage
    at: datetime
    token: InitVar[object]

    def __post_init__(self, token: object) -> None:
        if token is not _VERIFIED:
            raise TypeError("A VerifiedChain is made by TrustAnchors.verify only.")

    @property
    def leaf(self) -> Certificate:
        return self.certificates[0]

    @property
    def root(self) -> Certificate:
        return self.certificates[-1]


class _Seen(NamedTuple):
    """A path that was found, leaf first. asked: what was offered with it, and for what. It holds between the times."""

    certificates: _Chain
    asked: tuple[_Chain, Usage, Profile]
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True)
class Anchor:
    """A certificate that is trusted by configuration, and for what."""

    certificate: Certificate
    roles: frozenset[Role]


class TrustAnchors:
    """An immutable snapshot of what is trusted; a new state of the trust store is a new object with a new version.

    An anchor that breaks the rules is refused each time a path ends in it. Chains that were found are remembered, and
    so are the last leaves of vehicles and provisioning services with their whole path.
    """

    def __init__(
        self, anchors: tuple[Anchor, ...], intermediates: tuple[tuple[Role, Certificate], ...], version: int
    ) -> None:
        """See `build`."""
        self.version: Final = version
        self.anchors: Final = anchors
        self._by_fingerprint: Final = {anchor.certificate.fingerprint: anchor for anchor in anchors}
        self._roots: Final = _indexed((role, anchor.certificate) for anchor in anchors for role in anchor.roles)
        self._known: Final = _indexed(intermediates)
        # What was offered is part of the key: an answer must not depend on what others sent before.
        self._chains: Final[dict[tuple[Certificate, _Chain, Usage, Profile], _Chain]] = {}
        self._read: Final[dict[bytes, Certificate]] = {}
        self._seen: Final[dict[bytes, _Seen]] = {}

    @classmethod
    def build(
        cls,
        anchors: Iterable[tuple[Role, Certificate]],
        intermediates: Iterable[tuple[Role, Certificate]] = (),
        version: int = 0,
    ) -> TrustAnchors:
        """One certificate may be an anchor of several roles. Known intermediates are not trusted by themselves."""
        roles: dict[Certificate, set[Role]] = {}
        for role, certificate in anchors:
            roles.setdefault(certificate, set()).add(role)
        return cls(
            tuple(Anchor(certificate, frozenset(of)) for certificate, of in roles.items()),
            tuple(dict.fromkeys(intermediates)),
            version,
        )

    def read(self, der: bytes) -> Certificate:
        """A sub-CA's certificate as a message brings it; the same few come again and again. Raises ChainError."""
        found = self._read.get(der)
        if found is None:
            found = Certificate.load(der)
            if len(der) <= _LONGEST_REMEMBERED:
                if len(self._read) >= _CACHE_SIZE:
                    self._read.clear()
                self._read[der] = found
        return found

    def leaf(self, der: bytes) -> Certificate:
        """A leaf as a message brings it: one whose path was found lately need not be read again. Raises ChainError."""
        seen = self._seen.get(der)
        return Certificate.load(der) if seen is None else seen.certificates[0]

    def find(self, fingerprint: str) -> Anchor | None:
        """fingerprint: SHA-256, lower-case hex."""
        return self._by_fingerprint.get(fingerprint)

    def of(self, role: Role) -> tuple[Certificate, ...]:
        """The anchors of one role, in the order they were given."""
        return tuple(anchor.certificate for anchor in self.anchors if role in anchor.roles)

    def verify(
        self,
        leaf: Certificate,
        intermediates: Sequence[Certificate],
        *,
        usage: Usage,
        at: datetime,
        profile: Profile,
    ) -> VerifiedChain:
        """Find a path from `leaf` to an anchor of its role in which everything holds at `at`.

        intermediates: what came with the leaf, in any order, at most four; the snapshot's own are used besides.
        at: aware. Every certificate, the anchor too, must be valid then (shell model).
        Raises ExpiredError when a certificate's time is over, ChainError for every other defect; the sentence names the
        certificate and the cause. Revocation is not looked at.
        Source: RFC 5280 clause 6.1; ISO 15118-2 annex F; ISO 15118-20 annex B.
        """
        if at.tzinfo is None:
            raise ValueError("at must be an aware datetime")
        if len(intermediates) > MAX_OFFERED:
            raise ChainError(
                f"Certificate {leaf.label} came with {len(intermediates)} intermediate certificates; four are allowed."
            )
        offered = tuple(intermediates)
        # 1. The very path that was found for this leaf before: only the time can have changed within a snapshot.
        seen = self._seen.get(leaf.der)
        asked = offered, usage, profile
        if seen and seen.asked == asked and seen.not_before <= at and at.replace(microsecond=0) <= seen.not_after:
            return VerifiedChain(seen.certificates, usage, at, _VERIFIED)
        # 2. The leaf by itself.
        _check_form(leaf, profile)
        _check_leaf(leaf, usage)
        _check_validity(leaf, at, usage)
        # 3. A chain that was found before, from the same intermediates.
        walk = _Walk(self._roots[usage], self._known[usage], offered, at, profile)
        for candidate in walk.candidates(leaf):
            upward = self._chains.get((candidate, offered, usage, profile))
            if upward and _still_holds(upward, leaf, at):
                break
        else:
            # 4. The search.
            upward = walk.issuers_of(leaf)
            if len(self._chains) >= _CACHE_SIZE:
                self._chains.clear()
            self._chains[upward[0], offered, usage, profile] = upward
        if usage is not Usage.CONTRACT:  # A contract certificate is published once; the others come again.
            self._remember((leaf, *upward), asked)
        return VerifiedChain((leaf, *upward), usage, at, _VERIFIED)

    def _remember(self, certificates: _Chain, asked: tuple[_Chain, Usage, Profile]) -> None:
        if len(self._seen) >= _LEAVES:
            del self._seen[next(iter(self._seen))]
        self._seen[certificates[0].der] = _Seen(
            certificates,
            asked,
            max(certificate.not_before for certificate in certificates),
            min(certificate.not_after for certificate in certificates),
        )


def check_root(certificate: Certificate) -> None:
    """Refuse a self-issued certificate that no chain of either edition could ever end in, whatever the time.

    Its form, its algorithms, that it is a CA's, and its own signature. Raises ChainError.
    """
    _check_form(certificate, Profile.ISO20)  # The algorithms of -20 include those of -2.
    _check_ca(certificate, ())
    if certificate.self_signature_failure is not None:
        raise ChainError(
            f"Certificate {certificate.label} names itself as its issuer, but its own signature does not hold."
        )


class _Walk:
    """One search. Depth and the number of candidates tried are bounded, so backtracking cannot explode."""

    def __init__(
        self,
        roots: Mapping[bytes, _Chain],
        known: Mapping[bytes, _Chain],
        offered: _Chain,
        at: datetime,
        profile: Profile,
    ) -> None:
        self._roots = roots
        self._known = known
        self._offered = offered
        self.at = at
        self.profile = profile
        self._attempts_left = _MAX_ATTEMPTS
        self._failure = (-1, ChainError())  # The error of the attempt that came furthest, and how far.

    def candidates(self, child: Certificate) -> _Chain:
        """Everything whose subject is the child's issuer: anchors first, then what was offered, then what is known."""
        name = child.canonical_issuer
        offered = [certificate for certificate in self._offered if certificate.canonical_subject == name]
        found = (*self._roots.get(name, ()), *offered, *self._known.get(name, ()))
        return found if len(found) < 2 else tuple(dict.fromkeys(found))

    def issuers_of(self, child: Certificate, below: _Chain = ()) -> _Chain:
        """The chain above `child`.

        below: the intermediates already in the path; the last of them is `child`, unless `child` is the leaf.
        Raises the error of the attempt that came furthest, the first of them if several came equally far.
        """
        depth = len(below)
        candidates = self.candidates(child)
        if not candidates:
            self._note(
                depth, ChainError(f"The issuer of certificate {child.label} is neither trusted, known nor sent.")
            )
        for issuer in candidates:
            if not self._attempts_left:
                break
            self._attempts_left -= 1
            try:
                return self._through(issuer, child, below)
            except ChainError as exc:
                self._note(depth, exc)
        raise self._failure[1]

    def _through(self, issuer: Certificate, child: Certificate, below: _Chain) -> _Chain:
        """The chain from `issuer` up, if `issuer` may stand there."""
        is_anchor = issuer in self._roots.get(issuer.canonical_subject, ())
        if not is_anchor and _is_root(issuer):
            raise ChainError(f"Certificate {issuer.label} is a root certificate that is not trusted for this usage.")
        if not is_anchor and len(below) == MAX_USED:
            raise ChainError(f"Certificate {issuer.label} would be the third intermediate; two are allowed.")
        _check_form(issuer, self.profile)
        _check_ca(issuer, below)
        _check_issued(child, issuer)
        _check_validity(issuer, self.at)
        if not is_anchor:
            return (issuer, *self.issuers_of(issuer, (*below, issuer)))
        if not _is_root(issuer):
            raise ChainError(f"Certificate {issuer.label} is trusted as a root but is not one.")
        _check_issued(issuer, issuer)  # Configuration vouches for a root; this notices one that was damaged on its way.
        return (issuer,)

    def _note(self, depth: int, failure: ChainError) -> None:
        if depth > self._failure[0]:
            self._failure = (depth, without_frames(failure))


def _check_form(certificate: Certificate, profile: Profile) -> None:
    """What holds for every certificate of a path, the anchor included."""
    if certificate.x509.version is not x509.Version.v3:
        raise ChainError(f"Certificate {certificate.label} is not of X.509 version 3.")
    if certificate.serial_number <= 0 or certificate.serial_number.bit_length() > _MAX_SERIAL_BITS:
        raise ChainError(
            f"The serial number of certificate {certificate.label} is not a positive number of at most 20 octets."
        )
    if certificate.public_key_algorithm not in _KEYS[profile]:
        raise ChainError(f"The key of certificate {certificate.label} is not of a kind that {profile.value} allows.")
    if certificate.x509.signature_algorithm_oid not in _SIGNATURES[profile]:
        raise ChainError(
            f"Certificate {certificate.label} is signed with an algorithm that {profile.value} does not allow."
        )
    for oid, critical in certificate.listed_extensions:
        if oid in _REFUSED:
            raise ChainError(f"Certificate {certificate.label} has {_REFUSED[oid]}, which are not supported.")
        if critical and oid not in _PROCESSED:
            name = oid.dotted_string
            raise ChainError(
                f"Certificate {certificate.label} has the critical extension {name}, which is not supported."
            )


def _check_leaf(leaf: Certificate, usage: Usage) -> None:
    """That the leaf is one, and for this usage. Key usage is judged where present; a fifth of the field has none."""
    leaf.check_subject()
    leaf.public_key  # noqa: B018  it raises; nothing else here uses the key of a contract certificate
    basic = leaf.extension(x509.BasicConstraints)
    if basic is not None and basic.ca:
        raise ChainError(
            f"Certificate {leaf.label} is a CA certificate and cannot be used as {usage.value} certificate."
        )
    allowed = leaf.extension(x509.KeyUsage)
    # An Ed448 key cannot agree on keys (RFC 8410 clause 5); such a car has an X448 key beside it.
    agrees = usage is Usage.OEM_PROVISIONING and leaf.public_key_algorithm != _ED448
    if allowed is not None and (
        not allowed.digital_signature or allowed.key_cert_sign or (agrees and not allowed.key_agreement)
    ):
        raise ChainError(f"The key usage of certificate {leaf.label} does not fit a {usage.value} certificate.")
    purposes = leaf.extension(x509.ExtendedKeyUsage)
    if purposes is not None and ExtendedKeyUsageOID.OCSP_SIGNING in purposes:
        raise ChainError(f"Certificate {leaf.label} is for an OCSP responder, not a {usage.value} certificate.")
    domains = leaf.domain_components() & _DOMAINS_OF_ROLES
    if domains - {_DOMAIN[usage]} or (usage is Usage.CPS and not domains):
        given = ", ".join(sorted(domains)) or "none"
        raise ChainError(f"The domain component of certificate {leaf.label} ({given}) does not fit {usage.value}.")


def _check_ca(issuer: Certificate, below: _Chain) -> None:
    """That `issuer` may issue certificates with these intermediates between it and the leaf."""
    basic = issuer.extension(x509.BasicConstraints)
    if basic is None or not basic.ca:
        raise ChainError(f"Certificate {issuer.label} is used as an issuer but is not a CA certificate.")
    allowed = issuer.extension(x509.KeyUsage)
    if allowed is None or not allowed.key_cert_sign:
        raise ChainError(f"Certificate {issuer.label} is used as an issuer but lacks the key usage keyCertSign.")
    if basic.path_length is not None:
        counted = [one for one in below if not one.is_self_issued]  # RFC 5280 clause 4.2.1.9
        if len(counted) > basic.path_length:
            raise ChainError(f"The path length of CA certificate {issuer.label} is exceeded.")


def _is_root(certificate: Certificate) -> bool:
    """Whether it names itself as its issuer, and itself as the issuer's key as far as identifiers tell."""
    return certificate.is_self_issued and certificate.authority_mismatch(certificate) is None


def _check_issued(child: Certificate, issuer: Certificate) -> None:
    """What the authority key identifier names, then name and signature."""
    mismatch = child.authority_mismatch(issuer)
    if mismatch == "key identifier":
        raise ChainError(f"The authority key identifier of certificate {child.label} is not that of {issuer.label}.")
    if mismatch is not None:
        raise ChainError(
            f"The authority key identifier of certificate {child.label} names a certificate of its issuer with another "
            f"{mismatch} than {issuer.label}."
        )
    if child.x509.signature_algorithm_oid != _SIGNED_WITH.get(issuer.public_key_algorithm):
        raise ChainError(
            f"The signature of certificate {child.label} does not fit the key of its issuer {issuer.label}."
        )
    if child is issuer:
        if child.self_signature_failure is not None:
            raise ChainError(child.self_signature_failure)
    else:
        child.check_signature(issuer)


def _still_holds(upward: _Chain, leaf: Certificate, at: datetime) -> bool:
    """What depends on the request, checked again. When it fails, the search says why or finds another way."""
    try:
        for certificate in upward:
            _check_validity(certificate, at)
        _check_issued(leaf, upward[0])
    except ChainError:
        return False
    return True


def _check_validity(certificate: Certificate, at: datetime, usage: Usage | None = None) -> None:
    """usage: given for the leaf only."""
    if at < certificate.not_before:
        raise ChainError(f"Certificate {certificate.label} is not valid before {certificate.not_before:{_TIME}}.")
    # notAfter is the last valid second as a whole, so fractions of it still count.
    if at.replace(microsecond=0) > certificate.not_after:
        if usage is Usage.CONTRACT:
            raise ExpiredError("The validUntil date of contract certificate is in the past.")
        raise ExpiredError(f"Certificate {certificate.label} expired at {certificate.not_after:{_TIME}}.")


def _indexed(certificates: Iterable[tuple[Role, Certificate]]) -> dict[Usage, dict[bytes, _Chain]]:
    """What counts for each usage, by subject."""
    of: dict[Role, list[Certificate]] = {}
    for role, certificate in certificates:
        of.setdefault(role, []).append(certificate)
    return {
        usage: _by_subject([certificate for role in roles for certificate in of.get(role, ())])
        for usage, roles in _TRUSTED_FOR.items()
    }


def _by_subject(certificates: Iterable[Certificate]) -> dict[bytes, _Chain]:
    """By canonical name. What has none is never found, so no path ends in it."""
    index: dict[bytes, _Chain] = {}
    for certificate in certificates:
        try:
            name = certificate.canonical_subject
        except ChainError:
            continue
        same = index.get(name, ())
        if certificate not in same:
            index[name] = (*same, certificate)
    # Which of several reasons is told must not depend on the order in which somebody configured them.
    return {name: tuple(sorted(same, key=lambda one: one.fingerprint)) for name, same in index.items()}
