"""PKIs whose certificates have what the field's have: names of many attribute types, alternative names, policies,
addresses of responders and lists.

    pki = rich_pki(at, "P-521", full=True)
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, NameOID

from ccp.testing.pki import (
    CPS,
    PKI,
    ROOT,
    SUB_CA1,
    SUB_CA2,
    V2G_ROOT,
    Algorithm,
    Credential,
    StatusURLs,
    Template,
    build_certificate,
    generate_key,
)

_POLICY = x509.ObjectIdentifier("1.3.6.1.4.1.99999.1")
NOWHERE = "http://127.0.0.1:9"
Extensions = tuple[tuple[x509.ExtensionType, bool], ...]


def rich_name(cn: str, domain_component: str | None, full: bool) -> x509.Name:
    """Several attribute types and string types. full: one set has two attributes, and there are rare types."""
    kinds = [(NameOID.COUNTRY_NAME, "DE"), (NameOID.ORGANIZATION_NAME, "Example"), (NameOID.COMMON_NAME, cn)]
    if full:
        kinds += [
            (NameOID.STATE_OR_PROVINCE_NAME, "Nîmes"),
            (NameOID.LOCALITY_NAME, "Example"),
            (NameOID.ORGANIZATIONAL_UNIT_NAME, "Ladesäulen"),
            (NameOID.SERIAL_NUMBER, "4711"),
            (NameOID.EMAIL_ADDRESS, "pki@example.org"),
        ]
    if domain_component is not None:
        kinds.append((NameOID.DOMAIN_COMPONENT, domain_component))
    parts = [x509.RelativeDistinguishedName([x509.NameAttribute(oid, value)]) for oid, value in kinds]
    if full:
        unique = x509.NameAttribute(NameOID.X500_UNIQUE_IDENTIFIER, b"\x00\x01", x509.name._ASN1Type.BitString)
        parts.append(x509.RelativeDistinguishedName([unique, x509.NameAttribute(NameOID.TITLE, "Dr.")]))
    return x509.Name(parts)


def rich_extensions(full: bool, url: str = NOWHERE) -> Extensions:
    """full: every kind that cryptography reads; otherwise what fits into the 800 bytes of ISO 15118-2."""
    name = x509.DirectoryName(rich_name("List", None, full=False))
    responder = x509.AccessDescription(AuthorityInformationAccessOID.OCSP, x509.UniformResourceIdentifier(url))
    issuers = x509.AccessDescription(AuthorityInformationAccessOID.CA_ISSUERS, name)
    place = [x509.UniformResourceIdentifier(url + "/a.crl"), *([name] if full else [])]
    points = [x509.DistributionPoint(place, None, None, None)]
    policy = x509.PolicyInformation(_POLICY, None)
    names: list[x509.GeneralName] = [x509.DNSName("a.example")]
    if not full:
        return (
            (x509.AuthorityInformationAccess([responder]), False),
            (x509.CRLDistributionPoints(points), False),
            (x509.CertificatePolicies([policy]), False),
            (x509.SubjectAlternativeName(names), False),
        )
    notice = x509.UserNotice(x509.NoticeReference("Example", [1, 2]), "Example text")
    names += [
        name,
        x509.IPAddress(ipaddress.ip_address("192.0.2.1")),
        x509.RFC822Name("a@example.org"),
        x509.OtherName(x509.ObjectIdentifier("1.2.3"), b"\x0c\x01a"),
        x509.RegisteredID(x509.ObjectIdentifier("1.2.3")),
    ]
    reasons = frozenset([x509.ReasonFlags.key_compromise])
    return (
        (x509.AuthorityInformationAccess([responder, issuers]), False),
        (x509.CRLDistributionPoints(points), False),
        (x509.FreshestCRL([x509.DistributionPoint([name], None, reasons, [name])]), False),
        (
            x509.CertificatePolicies(
                [x509.PolicyInformation(policy.policy_identifier, ["http://pki.example/cps", notice])]
            ),
            False,
        ),
        (x509.SubjectAlternativeName(names), False),
        (x509.IssuerAlternativeName([x509.UniformResourceIdentifier(url)]), False),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False),
        (x509.TLSFeature([x509.TLSFeatureType.status_request]), False),
    )


@dataclass(frozen=True)
class RichAddresses(StatusURLs):
    """What a CA puts into what it issues: all of the extensions."""

    full: bool = False
    url: str = NOWHERE

    def extensions(self) -> Extensions:
        return rich_extensions(self.full, self.url)


def rich_pki(at: datetime, algorithm: Algorithm = "P-256", *, full: bool = False, url: str = NOWHERE) -> PKI:
    """As `PKI.generate`, in everything but names and extensions. full: with all there is; too long for ISO 15118-2.

    url: of the responder; the list's ends in /a.crl.
    """
    named = RichAddresses(full=full, url=url)

    def issued(cn: str, template: Template, issuer: Credential | None = None, dc: str | None = None) -> Credential:
        key = generate_key(algorithm)
        certificate = build_certificate(
            key.public_key(),
            subject=rich_name(cn, dc, full),
            issuer=issuer and issuer.certificate,
            signer=key if issuer is None else issuer.key,
            template=replace(template, extra=(*template.extra, *named.extensions())),
            valid=(at - timedelta(days=1), at + template.lifetime),
        )
        is_below_root = issuer is not None and issuer.certificate.is_self_issued
        sub_cas = () if issuer is None or is_below_root else (issuer.certificate, *issuer.sub_cas)
        return Credential(certificate, key, sub_cas, status_urls=named)

    v2g, emsp, oem = issued("V2G Root", V2G_ROOT, dc="V2G"), issued("eMSP Root", ROOT), issued("OEM Root", ROOT)
    kinds = ("CPS", "eMSP", "OEM")
    cps1, emsp1, oem1 = (issued(f"{k} Sub1", SUB_CA1, above) for k, above in zip(kinds, (v2g, emsp, oem), strict=True))
    below = zip(kinds, (cps1, emsp1, oem1), strict=True)
    cps2, emsp2, oem2 = (issued(f"{k} Sub2", SUB_CA2, above) for k, above in below)
    return PKI(v2g, cps1, cps2, issued("CPS", CPS, cps2, "CPS"), emsp, emsp1, emsp2, oem, oem1, oem2)
