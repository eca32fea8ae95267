"""Certificate path validation: from a leaf to a trust anchor.

RFC 5280 clause 6 for the profiles of ISO 15118, on top of `cryptography`, whose own verifier refuses certificates that
the field uses. No I/O and no clock. Revocation is checked elsewhere, for the chain that is found here.

    anchors = TrustAnchors.build([(AnchorRole.V2G, root)], [(AnchorRole.V2G, sub_ca)], version=7)
    chain = anchors.verify(leaf, intermediates, usage=Usage.CPS, now=now, profile=Profile.ISO2)

`certificate_checks` checks single certificates; `_PathBuilder` searches for issuers and checks signatures last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import InitVar, dataclass
from datetime import datetime
from typing import Final, NamedTuple

from ccp.errors import ChainError, strip_tracebacks
from ccp.x509.certificate_checks import check_ca, check_issued, check_leaf, check_profile, check_validity, is_root
from ccp.x509.certificates import Certificate
from ccp.x509.profiles import TRUSTED_FOR, AnchorRole, Profile, Usage

MAX_INTERMEDIATES_SENT: Final = 4  # The schema of ISO 15118-2 allows four sub-CA certificates.
MAX_INTERMEDIATES_USED: Final = 2  # ISO 15118-2 and -20 define Sub-CA 1 and Sub-CA 2.
_MAX_ISSUERS_TRIED: Final = 32  # A plain chain needs three; the rest is for key roll-over and cross-signing.
_MAX_CACHED: Final = 512  # Every Sub-CA 2 of the ecosystem, in the few orders in which their issuers are sent.
_MAX_CACHED_BYTES: Final = 1024  # Of a sub-CA; the field has up to 800. In memory it may take 50 times as many.
_MAX_CACHED_LEAVES: Final = 2048  # A vehicle without a contract repeats its request, and so does a test bench.

_CONSTRUCTION_TOKEN: Final = object()
_Chain = tuple[Certificate, ...]


@dataclass(frozen=True, slots=True)
class VerifiedChain:
    """A valid path, leaf first, trust anchor last. Only `TrustAnchors.verify` can create one.

    verified_at: the time for which it was validated.
    """

    certificates: tuple[Certificate, ...]
    usage: Usage
    verified_at: datetime
    token: InitVar[object]

    def __post_init__(self, token: object) -> None:
        if token is not _CONSTRUCTION_TOKEN:
            raise TypeError("Only TrustAnchors.verify creates a VerifiedChain.")

    @property
    def leaf(self) -> Certificate:
        """The end-entity certificate."""
        return self.certificates[0]

    @property
    def root(self) -> Certificate:
        """The trust anchor."""
        return self.certificates[-1]


class _CachedPath(NamedTuple):
    """A path that was found, leaf first. context: what it was found for. It is valid from not_before to not_after."""

    certificates: _Chain
    context: tuple[_Chain, Usage, Profile]
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True)
class TrustAnchor:
    """A certificate that is trusted by configuration, and what for."""

    certificate: Certificate
    roles: frozenset[AnchorRole]


class TrustAnchors:
    """An immutable snapshot of the trust store. A changed trust store is a new object with a new version.

    An anchor that breaks the profile is refused each time a path ends in it. Two caches belong to the snapshot: chains
    above leaves, and complete paths of the latest vehicles and provisioning services.
    """

    def __init__(
        self, anchors: tuple[TrustAnchor, ...], intermediates: tuple[tuple[AnchorRole, Certificate], ...], version: int
    ) -> None:
        """See `build`."""
        self.version: Final = version
        self.anchors: Final = anchors
        self.intermediates: Final = intermediates
        self._by_fingerprint: Final = {anchor.certificate.fingerprint: anchor for anchor in anchors}
        self._roots: Final = _indexed((role, anchor.certificate) for anchor in anchors for role in anchor.roles)
        self._known: Final = _indexed(intermediates)
        # The intermediates that were sent are part of the key: a result must not depend on what other senders sent.
        self._chain_cache: Final[dict[tuple[Certificate, _Chain, Usage, Profile], _Chain]] = {}
        self._intermediate_cache: Final[dict[bytes, Certificate]] = {}
        self._leaf_cache: Final[dict[bytes, _CachedPath]] = {}

    @classmethod
    def build(
        cls,
        anchors: Iterable[tuple[AnchorRole, Certificate]],
        intermediates: Iterable[tuple[AnchorRole, Certificate]] = (),
        version: int = 0,
    ) -> TrustAnchors:
        """Build a snapshot.

        A certificate may be an anchor of several roles. intermediates: known sub-CAs, which help to build paths and are
        not trusted by themselves.
        """
        roles: dict[Certificate, set[AnchorRole]] = {}
        for role, certificate in anchors:
            roles.setdefault(certificate, set()).add(role)
        return cls(
            tuple(TrustAnchor(certificate, frozenset(of)) for certificate, of in roles.items()),
            tuple(dict.fromkeys(intermediates)),
            version,
        )

    def load_intermediate(self, der: bytes) -> Certificate:
        """Read a sub-CA certificate of a message, or take it from a cache. Raises ChainError."""
        found = self._intermediate_cache.get(der)
        if found is None:
            found = Certificate.load(der)
            if len(der) <= _MAX_CACHED_BYTES:
                if len(self._intermediate_cache) >= _MAX_CACHED:
                    self._intermediate_cache.clear()
                self._intermediate_cache[der] = found
        return found

    def load_leaf(self, der: bytes) -> Certificate:
        """Read a leaf certificate of a message, or take it from the cache of paths. Raises ChainError."""
        cached = self._leaf_cache.get(der)
        return Certificate.load(der) if cached is None else cached.certificates[0]

    def by_fingerprint(self, fingerprint: str) -> TrustAnchor | None:
        """The anchor with a fingerprint (SHA-256, lower-case hexadecimal)."""
        return self._by_fingerprint.get(fingerprint)

    def by_role(self, role: AnchorRole) -> tuple[Certificate, ...]:
        """The anchors of one role, in the order of `build`."""
        return tuple(anchor.certificate for anchor in self.anchors if role in anchor.roles)

    def verify(
        self,
        leaf: Certificate,
        intermediates: Sequence[Certificate],
        *,
        usage: Usage,
        now: datetime,
        profile: Profile,
    ) -> VerifiedChain:
        """Find a valid path from a leaf to an anchor that is trusted for a usage.

        intermediates: the sub-CA certificates that were sent with the leaf, in any order, at most four; known ones of
        the snapshot are used as well.
        now: aware. Every certificate, the anchor included, must be valid at that time (shell model).
        Raises ExpiredError when a certificate has expired, ChainError for every other defect; the sentence names the
        certificate and the cause. Revocation is not checked.
        Source: RFC 5280 clause 6.1; ISO 15118-2 annex F; ISO 15118-20 annex B.
        """
        if now.tzinfo is None:
            raise ValueError("now must be an aware datetime")
        if len(intermediates) > MAX_INTERMEDIATES_SENT:
            raise ChainError(
                f"Certificate {leaf.display_name} came with {len(intermediates)} intermediate certificates; "
                "four are allowed."
            )
        sent = tuple(intermediates)
        # 1. A cached path of this leaf in the same context: within a snapshot only the time can invalidate it.
        cached = self._leaf_cache.get(leaf.der)
        context = sent, usage, profile
        if (
            cached
            and cached.context == context
            and cached.not_before <= now
            and now.replace(microsecond=0) <= cached.not_after
        ):
            return VerifiedChain(cached.certificates, usage, now, _CONSTRUCTION_TOKEN)
        # 2. The leaf.
        check_profile(leaf, profile)
        check_leaf(leaf, usage)
        check_validity(leaf, now, usage)
        # 3. A cached chain above the leaf, found with the same intermediates.
        builder = _PathBuilder(self._roots[usage], self._known[usage], sent, now, profile)
        for candidate in builder.candidate_issuers(leaf):
            above = self._chain_cache.get((candidate, sent, usage, profile))
            if above and _still_valid(above, leaf, now):
                break
        else:
            # 4. The search.
            above = builder.build_path(leaf)
            if len(self._chain_cache) >= _MAX_CACHED:
                self._chain_cache.clear()
            self._chain_cache[above[0], sent, usage, profile] = above
        if usage is not Usage.CONTRACT:  # A contract certificate is published once; other leaves come again.
            self._cache_path((leaf, *above), context)
        return VerifiedChain((leaf, *above), usage, now, _CONSTRUCTION_TOKEN)

    def _cache_path(self, certificates: _Chain, context: tuple[_Chain, Usage, Profile]) -> None:
        if len(self._leaf_cache) >= _MAX_CACHED_LEAVES:
            del self._leaf_cache[next(iter(self._leaf_cache))]
        self._leaf_cache[certificates[0].der] = _CachedPath(
            certificates,
            context,
            max(certificate.not_before for certificate in certificates),
            min(certificate.not_after for certificate in certificates),
        )


class _PathBuilder:
    """One path search. Depth and number of candidates are bounded, so backtracking cannot explode."""

    def __init__(
        self,
        roots: Mapping[bytes, _Chain],
        known: Mapping[bytes, _Chain],
        sent: _Chain,
        now: datetime,
        profile: Profile,
    ) -> None:
        self._roots = roots
        self._known = known
        self._sent = sent
        self._now = now
        self._profile = profile
        self._attempts_left = _MAX_ISSUERS_TRIED
        self._failure = (-1, ChainError())  # Depth and error of the deepest attempt.

    def candidate_issuers(self, child: Certificate) -> _Chain:
        """Certificates whose subject is the child's issuer: anchors first, then sent, then known ones."""
        name = child.canonical_issuer
        sent = [certificate for certificate in self._sent if certificate.canonical_subject == name]
        found = (*self._roots.get(name, ()), *sent, *self._known.get(name, ()))
        return found if len(found) < 2 else tuple(dict.fromkeys(found))

    def build_path(self, child: Certificate, below: _Chain = ()) -> _Chain:
        """Return the chain above `child`.

        below: the intermediates already in the path, `child` last; empty if `child` is the leaf.
        Raises the error of the deepest attempt, the first of them if several reached the same depth.
        """
        depth = len(below)
        candidates = self.candidate_issuers(child)
        if not candidates:
            self._remember_failure(
                depth, ChainError(f"The issuer of certificate {child.display_name} is neither trusted, known nor sent.")
            )
        for issuer in candidates:
            if not self._attempts_left:
                break
            self._attempts_left -= 1
            try:
                return self._try_issuer(issuer, child, below)
            except ChainError as exc:
                self._remember_failure(depth, exc)
        raise self._failure[1]

    def _try_issuer(self, issuer: Certificate, child: Certificate, below: _Chain) -> _Chain:
        """Return the chain from `issuer` up to an anchor. Raises ChainError."""
        is_anchor = issuer in self._roots.get(issuer.canonical_subject, ())
        if not is_anchor and is_root(issuer):
            raise ChainError(
                f"Certificate {issuer.display_name} is a root certificate that is not trusted for this usage."
            )
        if not is_anchor and len(below) == MAX_INTERMEDIATES_USED:
            raise ChainError(f"Certificate {issuer.display_name} would be the third intermediate; two are allowed.")
        check_profile(issuer, self._profile)
        check_ca(issuer, below)
        check_issued(child, issuer)
        check_validity(issuer, self._now)
        if not is_anchor:
            return (issuer, *self.build_path(issuer, (*below, issuer)))
        if not is_root(issuer):
            raise ChainError(f"Certificate {issuer.display_name} is trusted as a root but is not one.")
        check_issued(issuer, issuer)  # Trust comes from configuration; this detects a damaged file.
        return (issuer,)

    def _remember_failure(self, depth: int, failure: ChainError) -> None:
        if depth > self._failure[0]:
            self._failure = (depth, strip_tracebacks(failure))


def _still_valid(above: _Chain, leaf: Certificate, now: datetime) -> bool:
    """Check again what depends on the request. If it fails, the search reports why or finds another path."""
    try:
        for certificate in above:
            check_validity(certificate, now)
        check_issued(leaf, above[0])
    except ChainError:
        return False
    return True


def _indexed(certificates: Iterable[tuple[AnchorRole, Certificate]]) -> dict[Usage, dict[bytes, _Chain]]:
    """Certificates by usage and canonical subject."""
    by_role: dict[AnchorRole, list[Certificate]] = {}
    for role, certificate in certificates:
        by_role.setdefault(role, []).append(certificate)
    return {
        usage: _by_subject([certificate for role in roles for certificate in by_role.get(role, ())])
        for usage, roles in TRUSTED_FOR.items()
    }


def _by_subject(certificates: Iterable[Certificate]) -> dict[bytes, _Chain]:
    """Certificates by canonical subject. One whose subject cannot be read is left out, so no path ends in it."""
    index: dict[bytes, _Chain] = {}
    for certificate in certificates:
        try:
            name = certificate.canonical_subject
        except ChainError:
            continue
        same = index.get(name, ())
        if certificate not in same:
            index[name] = (*same, certificate)
    # Sorted, so that the reported error does not depend on the order of configuration.
    return {name: tuple(sorted(same, key=lambda certificate: certificate.fingerprint)) for name, same in index.items()}
