"""A small public key infrastructure for tests, the sandbox and the demo.

    pki = PKI.generate(now, edition="iso20")
    contract = pki.contract("DESIMC00000001", now=now)
    car = pki.vehicle("WP0SIM00000000001", now=now)

It imitates the PKIs in production: three levels of CA, key identifiers of eight bytes, random serial numbers of sixteen
bytes, and the key usages that real issuers set. The keys are for tests: files contain them without a password.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal, cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP521R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey, Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.x448 import X448PrivateKey, X448PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ccp.errors import KeyMaterialError
from ccp.x509.certificates import Certificate
from ccp.x509.path_validation import TrustAnchors
from ccp.x509.profiles import AnchorRole

Algorithm = Literal["P-256", "P-521", "Ed448"]
Edition = Literal["iso2", "iso20"]
SigningKey = EllipticCurvePrivateKey | Ed448PrivateKey
PublicKey = EllipticCurvePublicKey | Ed448PublicKey

# subjectAltPublicKeyInfo, ITU-T X.509 (10/2019) clause 9.8.2; its value is a SubjectPublicKeyInfo.
SUBJECT_ALT_PUBLIC_KEY_INFO: Final = x509.ObjectIdentifier("2.5.29.72")

# BasicConstraints with an encoded default, which DER forbids. Many end-entity certificates in production carry it. Add
# it to a template's `extra` to imitate them.
EXPLICIT_FALSE: Final = x509.UnrecognizedExtension(x509.oid.ExtensionOID.BASIC_CONSTRAINTS, bytes.fromhex("3003010100"))

# Validity starts this much before `now`: clocks in test setups differ, and a late one would reject a new certificate.
_HEAD_START: Final = timedelta(days=1)
_YEAR: Final = timedelta(days=365)


@dataclass(frozen=True, slots=True)
class Template:
    """Profile of one kind of certificate.

    path_length: for a CA only. domain_component: DC of the subject, None for a subject without DC. key_usage: names of
    `x509.KeyUsage` arguments; empty for a certificate without the extension. extra: further extensions, and whether
    each is critical.
    """

    lifetime: timedelta
    ca: bool = False
    path_length: int | None = None
    key_usage: frozenset[str] = frozenset()
    domain_component: str | None = None
    extra: tuple[tuple[x509.ExtensionType, bool], ...] = ()


_CA_USAGE: Final = frozenset({"key_cert_sign", "crl_sign"})
# In the shell model every certificate of a path must be valid when the path is verified, so issuers live longer.
ROOT: Final = Template(40 * _YEAR, ca=True, key_usage=_CA_USAGE)
V2G_ROOT: Final = Template(40 * _YEAR, ca=True, key_usage=_CA_USAGE, domain_component="V2G")
SUB_CA1: Final = Template(35 * _YEAR, ca=True, path_length=1, key_usage=_CA_USAGE)
SUB_CA2: Final = Template(32 * _YEAR, ca=True, path_length=0, key_usage=_CA_USAGE)
CPS: Final = Template(4 * _YEAR, key_usage=frozenset({"digital_signature"}), domain_component="CPS")
CONTRACT: Final = Template(
    2 * _YEAR,
    key_usage=frozenset({"digital_signature", "content_commitment", "key_encipherment", "key_agreement"}),
)
OEM_PROVISIONING: Final = Template(
    30 * _YEAR, key_usage=frozenset({"digital_signature", "key_agreement"}), domain_component="OEM"
)

# A delegated OCSP responder (RFC 6960 clause 4.2.2.2). With id-pkix-ocsp-nocheck its own revocation is not checked.
OCSP_RESPONDER: Final = Template(
    _YEAR,
    key_usage=frozenset({"digital_signature"}),
    extra=((x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING]), False), (x509.OCSPNoCheck(), False)),
)

_KEY_USAGES: Final = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
    *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)


@dataclass(frozen=True, slots=True)
class StatusURLs:
    """Addresses of a CA's OCSP responder and CRL, which the certificates that it issues contain; none by default."""

    ocsp: str | None = None
    crl: str | None = None

    def extensions(self) -> tuple[tuple[x509.ExtensionType, bool], ...]:
        """Return the extensions of an issued certificate, and whether each is critical."""
        found: list[tuple[x509.ExtensionType, bool]] = []
        if self.ocsp is not None:
            access = x509.AccessDescription(
                x509.oid.AuthorityInformationAccessOID.OCSP, x509.UniformResourceIdentifier(self.ocsp)
            )
            found.append((x509.AuthorityInformationAccess([access]), False))
        if self.crl is not None:
            names = [x509.UniformResourceIdentifier(self.crl)]
            found.append((x509.CRLDistributionPoints([x509.DistributionPoint(names, None, None, None)]), False))
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Credential:
    """A certificate and its private key. The credential of a CA also issues certificates.

    sub_cas: the issuers between this certificate and the root, nearest first, as a message carries them.
    agreement_key: the X448 key beside an Ed448 key, None if the certificate's own key serves for key agreement.
    status_urls: written into the certificates that it issues; `save` leaves them out.
    """

    certificate: Certificate
    key: SigningKey
    sub_cas: tuple[Certificate, ...] = ()
    agreement_key: X448PrivateKey | None = None
    status_urls: StatusURLs = StatusURLs()

    def issue(
        self,
        cn: str,
        template: Template,
        *,
        now: datetime,
        algorithm: Algorithm | None = None,
        agreement_key: X448PrivateKey | None = None,
        valid: tuple[datetime, datetime] | None = None,
    ) -> Credential:
        """Issue a certificate for a new key.

        algorithm: of the new key, by default the issuer's. agreement_key: its public key becomes the alternative
        subject public key. valid: validity period, by default the template's lifetime from `now`.
        """
        key = generate_key(algorithm or algorithm_of(self.key))
        certificate = build_certificate(
            key.public_key(),
            subject=subject_name(cn, template.domain_component),
            issuer=self.certificate,
            signer=self.key,
            template=replace(template, extra=(*template.extra, *self.status_urls.extensions())),
            agreement_key=agreement_key,
            valid=valid or (now - _HEAD_START, now + template.lifetime),
        )
        is_root = self.certificate.subject_name == self.certificate.issuer_name
        sub_cas = () if is_root else (self.certificate, *self.sub_cas)
        return Credential(certificate, key, sub_cas, agreement_key)

    def save(self, directory: Path, name: str) -> None:
        """Write `name.pem` (this certificate, then `sub_cas`), `name.key.pem` and, for an X448 key, `name.x448.pem`."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{name}.pem").write_bytes(b"".join(one.pem() for one in (self.certificate, *self.sub_cas)))
        _write_key(directory / f"{name}.key.pem", self.key)
        if self.agreement_key is not None:
            _write_key(directory / f"{name}.x448.pem", self.agreement_key)

    @classmethod
    def load(cls, directory: Path, name: str) -> Credential:
        """Read the files that `save` wrote. Raises OSError, ChainError or ValueError."""
        certificate, *sub_cas = Certificate.load_pem((directory / f"{name}.pem").read_bytes())
        key = load_pem_private_key((directory / f"{name}.key.pem").read_bytes(), password=None)
        beside = directory / f"{name}.x448.pem"
        agreement = load_pem_private_key(beside.read_bytes(), password=None) if beside.exists() else None
        if not isinstance(key, EllipticCurvePrivateKey | Ed448PrivateKey):
            raise ValueError(f"{name}.key.pem holds neither an EC nor an Ed448 key")
        if agreement is not None and not isinstance(agreement, X448PrivateKey):
            raise ValueError(f"{name}.x448.pem holds no X448 key")
        return cls(certificate, key, tuple(sub_cas), agreement)


@dataclass(frozen=True, slots=True)
class PKI:
    """The three PKIs of Plug & Charge: V2G with the CPS, eMSP, and OEM."""

    v2g_root: Credential
    cps_sub1: Credential
    cps_sub2: Credential
    cps: Credential
    emsp_root: Credential
    emsp_sub1: Credential
    emsp_sub2: Credential
    oem_root: Credential
    oem_sub1: Credential
    oem_sub2: Credential

    @classmethod
    def generate(
        cls,
        now: datetime | None = None,
        *,
        edition: Edition = "iso2",
        algorithm: Algorithm | None = None,
        status_urls: Callable[[str], StatusURLs] = lambda name: StatusURLs(),
    ) -> PKI:
        """Generate three roots with two levels of sub-CA each, and one CPS.

        now: start of their validity (aware), the current time by default. edition: P-256 keys for "iso2", P-521 keys
        for "iso20"; algorithm: takes precedence over it. status_urls: given the common name of a CA, the addresses in
        the certificates that it issues.
        """
        now = now or datetime.now(UTC)
        algorithm = algorithm or ("P-256" if edition == "iso2" else "P-521")

        def ca(credential: Credential) -> Credential:
            return replace(credential, status_urls=status_urls(credential.certificate.subject_cn))

        v2g_root = ca(build_root("V2G Root CA SIM", now=now, algorithm=algorithm, template=V2G_ROOT))
        cps_sub1 = ca(v2g_root.issue("CPS Sub1 CA SIM", SUB_CA1, now=now))
        cps_sub2 = ca(cps_sub1.issue("CPS Sub2 CA SIM", SUB_CA2, now=now))
        emsp_root = ca(build_root("eMSP Root CA SIM", now=now, algorithm=algorithm))
        emsp_sub1 = ca(emsp_root.issue("eMSP Sub1 CA SIM", SUB_CA1, now=now))
        oem_root = ca(build_root("OEM Root CA SIM", now=now, algorithm=algorithm))
        oem_sub1 = ca(oem_root.issue("OEM Sub1 CA SIM", SUB_CA1, now=now))
        return cls(
            v2g_root=v2g_root,
            cps_sub1=cps_sub1,
            cps_sub2=cps_sub2,
            cps=cps_sub2.issue("CPS SIM", CPS, now=now),
            emsp_root=emsp_root,
            emsp_sub1=emsp_sub1,
            emsp_sub2=ca(emsp_sub1.issue("eMSP Sub2 CA SIM", SUB_CA2, now=now)),
            oem_root=oem_root,
            oem_sub1=oem_sub1,
            oem_sub2=ca(oem_sub1.issue("OEM Sub2 CA SIM", SUB_CA2, now=now)),
        )

    def contract(self, emaid: str, *, now: datetime, valid: tuple[datetime, datetime] | None = None) -> Credential:
        """Issue a contract certificate whose CN is the EMAID."""
        return self.emsp_sub2.issue(emaid, CONTRACT, now=now, valid=valid)

    def vehicle(self, pcid: str, *, now: datetime, valid: tuple[datetime, datetime] | None = None) -> Credential:
        """Issue an OEM provisioning certificate whose CN is the PCID.

        Ed448 has no key agreement, so such a car also gets an X448 key (ISO 15118-20, from [V2G20-2491] on).
        """
        if not isinstance(self.oem_sub2.key, Ed448PrivateKey):
            return self.oem_sub2.issue(pcid, OEM_PROVISIONING, now=now, valid=valid)
        signing_only = Template(
            OEM_PROVISIONING.lifetime, key_usage=frozenset({"digital_signature"}), domain_component="OEM"
        )
        return self.oem_sub2.issue(pcid, signing_only, now=now, valid=valid, agreement_key=X448PrivateKey.generate())

    def anchors(self, version: int = 0) -> TrustAnchors:
        """Return the anchors that a pool trusts.

        The OEM's sub-CAs are among them because an ISO 15118-2 car sends its end-entity certificate alone.
        """
        trusted = self.trust_list()
        roots = [entry for entry in trusted if entry[1].subject_name == entry[1].issuer_name]
        return TrustAnchors.build(roots, [entry for entry in trusted if entry not in roots], version)

    def trust_list(self) -> list[tuple[AnchorRole, Certificate]]:
        """Return the certificates to add to a pool's trust list: the three roots and the OEM's sub-CAs."""
        return [
            (AnchorRole.V2G, self.v2g_root.certificate),
            (AnchorRole.EMSP, self.emsp_root.certificate),
            (AnchorRole.OEM, self.oem_root.certificate),
            (AnchorRole.OEM, self.oem_sub1.certificate),
            (AnchorRole.OEM, self.oem_sub2.certificate),
        ]

    def save(self, directory: Path) -> None:
        """Write all certificates and keys as PEM: `v2g/root.pem`, `v2g/root.key.pem`, … Keys get file mode 0600."""
        for field, place in _LAYOUT.items():
            credential: Credential = getattr(self, field)
            credential.save(directory / place[0], place[1])

    @classmethod
    def load(cls, directory: Path) -> PKI:
        """Read the files that `save` wrote. Raises OSError, ChainError or ValueError."""
        return cls(**{field: Credential.load(directory / place[0], place[1]) for field, place in _LAYOUT.items()})


_LAYOUT: Final = {
    "v2g_root": ("v2g", "root"),
    "cps_sub1": ("v2g", "sub1"),
    "cps_sub2": ("v2g", "sub2"),
    "cps": ("v2g", "cps"),
    "emsp_root": ("emsp", "root"),
    "emsp_sub1": ("emsp", "sub1"),
    "emsp_sub2": ("emsp", "sub2"),
    "oem_root": ("oem", "root"),
    "oem_sub1": ("oem", "sub1"),
    "oem_sub2": ("oem", "sub2"),
}


def build_root(
    cn: str,
    *,
    now: datetime,
    algorithm: Algorithm = "P-256",
    template: Template = ROOT,
    valid: tuple[datetime, datetime] | None = None,
) -> Credential:
    """Generate a self-signed CA."""
    key = generate_key(algorithm)
    certificate = build_certificate(
        key.public_key(),
        subject=subject_name(cn, template.domain_component),
        issuer=None,
        signer=key,
        template=template,
        valid=valid or (now - _HEAD_START, now + template.lifetime),
    )
    return Credential(certificate, key)


def build_certificate(
    public_key: PublicKey,
    *,
    subject: x509.Name,
    issuer: Certificate | None,
    signer: SigningKey,
    template: Template,
    valid: tuple[datetime, datetime],
    agreement_key: X448PrivateKey | None = None,
) -> Certificate:
    """Build and sign a certificate. issuer: None for a self-signed one. valid: start and end, aware."""
    own_identifier = key_identifier(public_key)
    issuer_identifier = key_identifier(signer.public_key()) if issuer is None else issuer.key_identifier
    extensions: list[tuple[x509.ExtensionType, bool]] = [(x509.SubjectKeyIdentifier(own_identifier), False)]
    if issuer_identifier is not None:
        extensions.append((x509.AuthorityKeyIdentifier(issuer_identifier, None, None), False))
    if template.ca:
        extensions.append((x509.BasicConstraints(ca=True, path_length=template.path_length), True))
    if template.key_usage:
        extensions.append((x509.KeyUsage(**{name: name in template.key_usage for name in _KEY_USAGES}), True))
    if agreement_key is not None:
        spki = agreement_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        extensions.append((x509.UnrecognizedExtension(SUBJECT_ALT_PUBLIC_KEY_INFO, spki), False))
    builder = x509.CertificateBuilder(
        issuer_name=subject if issuer is None else issuer.x509.subject,
        subject_name=subject,
        public_key=public_key,
        # RFC 5280 allows twenty bytes; the halving keeps the sign bit zero, so that sixteen bytes suffice.
        serial_number=1 + int.from_bytes(secrets.token_bytes(16), "big") // 2,
        not_valid_before=valid[0],
        not_valid_after=valid[1],
    )
    for extension, critical in (*extensions, *template.extra):
        builder = builder.add_extension(extension, critical)
    signed = builder.sign(signer, signature_hash(signer))
    return Certificate.load(signed.public_bytes(Encoding.DER))


def subject_name(cn: str, domain_component: str | None = None) -> x509.Name:
    """Build a subject as short as those in production: ISO 15118-2 limits a certificate to 800 bytes."""
    attributes = [
        x509.NameAttribute(NameOID.COUNTRY_NAME, "DE"),
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "opnc-ccp simulator"),
        x509.NameAttribute(NameOID.COMMON_NAME, cn),
    ]
    if domain_component is not None:
        attributes.append(x509.NameAttribute(NameOID.DOMAIN_COMPONENT, domain_component))
    return x509.Name(attributes)


def generate_key(algorithm: Algorithm) -> SigningKey:
    """Generate a private key for signatures."""
    if algorithm == "Ed448":
        return Ed448PrivateKey.generate()
    return generate_private_key(SECP256R1() if algorithm == "P-256" else SECP521R1())


def algorithm_of(key: SigningKey) -> Algorithm:
    """Return the algorithm of a private key."""
    if isinstance(key, Ed448PrivateKey):
        return "Ed448"
    return "P-256" if key.curve.name == "secp256r1" else "P-521"


def key_identifier(public_key: PublicKey) -> bytes:
    """Return eight bytes by the second method of RFC 5280 clause 4.2.1.2. Receivers treat them as opaque."""
    if isinstance(public_key, Ed448PublicKey):
        data = public_key.public_bytes_raw()
    else:
        data = public_key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    digest = hashlib.sha1(data, usedforsecurity=False).digest()[-8:]
    return bytes((0x40 | digest[0] & 0x0F,)) + digest[1:]


def agreement_public_key(certificate: Certificate) -> EllipticCurvePublicKey | X448PublicKey:
    """Return the static key for key agreement of a provisioning certificate: the alternative key if it has one.

    Raises ChainError or KeyMaterialError.
    """
    try:
        extension = certificate.extensions.get_extension_for_oid(SUBJECT_ALT_PUBLIC_KEY_INFO)
    except x509.ExtensionNotFound:
        key: object = certificate.public_key
    else:
        try:
            key = load_der_public_key(cast(x509.UnrecognizedExtension, extension.value).value)
        except ValueError as exc:
            raise KeyMaterialError(
                f"The alternative key of certificate {certificate.display_name} cannot be read."
            ) from exc
    if not isinstance(key, EllipticCurvePublicKey | X448PublicKey):
        raise KeyMaterialError(f"Certificate {certificate.display_name} has no key for key agreement.")
    return key


def signature_hash(signer: SigningKey) -> hashes.SHA256 | hashes.SHA512 | None:
    """Return the hash that a CA with this key signs with: None for Ed448, which hashes the message itself."""
    if isinstance(signer, Ed448PrivateKey):
        return None
    return hashes.SHA256() if signer.curve.name == "secp256r1" else hashes.SHA512()


def _write_key(path: Path, key: SigningKey | X448PrivateKey) -> None:
    # The mode is set at creation; a later chmod would leave a moment in which others can read the file.
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
