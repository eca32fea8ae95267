"""Random chains for the comparison with OpenSSL. The seed determines the structure, not the keys."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from ccp.testing.pki import ROOT, SUB_CA1, SUB_CA2, Credential, build_root, subject_name
from ccp.x509.certificates import Certificate
from ccp.x509.path_validation import TrustAnchors
from ccp.x509.profiles import Usage
from tests.x509.made import (
    AT,
    DAY,
    LEAVES,
    ROLES,
    added,
    content,
    der,
    forge,
    respelled,
    tampered,
    tlv,
    without,
)

Edit = Callable[[Any], object]
_LEVELS = ("root", "sub1", "sub2", "leaf")


@dataclass(frozen=True)
class RandomChain:
    number: int
    wounds: tuple[str, ...]
    root: Certificate
    leaf: Certificate
    offered: tuple[Certificate, ...]
    usage: Usage
    at: datetime

    def anchors(self) -> TrustAnchors:
        return TrustAnchors.build([(ROLES[self.usage], self.root)])


def random_chains(count: int, seed: int) -> Iterator[RandomChain]:
    source = random.Random(seed)
    for number in range(count):
        yield _one(number, source)


def _one(number: int, source: random.Random) -> RandomChain:
    usage = source.choice(list(Usage))
    levels: list[str] = source.choice([[*_LEVELS], [*_LEVELS], [*_LEVELS], ["root", "sub2", "leaf"], ["root", "leaf"]])
    templates = {"root": ROOT, "sub1": SUB_CA1, "sub2": SUB_CA2, "leaf": LEAVES[usage]}
    names = {level: level.capitalize() for level in levels} | {"leaf": "DEABCC00000001"}
    times = {level: (AT - source.randrange(1, 900) * DAY, AT + source.randrange(1, 900) * DAY) for level in levels}
    edits: dict[str, list[Edit]] = {level: [] for level in levels}
    stranger = build_root("Root", now=AT)
    wounds = []
    broken_signatures: set[str] = set()
    named: dict[str, str] = {}
    for _ in range(source.choice([0, 0, 1, 1, 1, 2, 3])):
        level = source.choice(levels)
        wound = source.choice(_WOUNDS)
        wounds.append(f"{wound} {level}")
        template = templates[level]
        if wound == "over":
            times[level] = (AT - 9 * DAY, AT - source.randrange(1, 9 * 86400) * timedelta(seconds=1))
        elif wound == "to come":
            times[level] = (AT + source.randrange(1, 9 * 86400) * timedelta(seconds=1), AT + 10 * DAY)
        elif wound == "ca flipped":
            templates[level] = replace(template, ca=not template.ca, path_length=None)
        elif wound == "path length":
            templates[level] = replace(template, path_length=source.choice([None, 0, 0, 1]) if template.ca else None)
        elif wound == "key usage":
            bits = ["digital_signature", "key_cert_sign", "crl_sign", "key_agreement", "content_commitment"]
            templates[level] = replace(template, key_usage=frozenset(source.sample(bits, source.randrange(4))))
        elif wound == "name":
            names[level] = source.choice(["Root", "Sub1", "Sub2", "DEABCC00000001"])
        elif wound in _EXTRAS:
            templates[level] = replace(template, extra=(_EXTRAS[wound],))
        elif wound in ("stranger", "tampered"):
            broken_signatures.add(f"{wound} {level}")
        elif wound == "issuer and serial":
            named[level] = source.choice(["right", "right", "serial", "issuer", "respelled"])
        else:
            edits[level].append(_EDITS[wound])
    made: dict[str, Credential] = {}
    signers = {}
    issuers: dict[str, Certificate] = {}
    parent: Credential | None = None
    for level in levels:
        template = templates[level]
        if parent is None:
            made[level] = build_root(names[level], now=AT, template=template, valid=times[level])
        else:
            made[level] = parent.issue(names[level], template, now=AT, valid=times[level])
        signers[level] = (parent or made[level]).key
        issuers[level] = (parent or made[level]).certificate
        parent = made[level]
    for level in levels:
        certificate, signer = made[level].certificate, signers[level]
        if f"stranger {level}" in broken_signatures and level != "root":
            signer = stranger.key
            certificate = forge(certificate, signer)
        for edit in edits[level]:
            certificate = forge(certificate, signer, edit)
        if level in named:
            certificate = forge(certificate, signer, _names_authority(issuers[level], named[level]))
        if f"tampered {level}" in broken_signatures and level != "root":
            certificate = tampered(certificate)
        made[level] = replace(made[level], certificate=certificate)
    offered = [made[level].certificate for level in levels[1:-1]]
    if source.random() < 0.15:
        offered.append(stranger.certificate)
    if source.random() < 0.1 and offered:
        wounds.append("one sub-CA missing")
        offered.pop(source.randrange(len(offered)))
    source.shuffle(offered)
    if source.random() < 0.05:
        wounds.append("another root")
        made["root"] = stranger
    at = AT + source.randrange(-86400, 86400) * timedelta(seconds=1)
    return RandomChain(
        number, tuple(wounds), made["root"].certificate, made["leaf"].certificate, tuple(offered), usage, at
    )


def _version_1(tbs: Any) -> None:
    tbs.version, tbs.extensions = 0, None


def _no_identifiers(tbs: Any) -> None:
    if tbs.extensions:
        without(tbs, ExtensionOID.AUTHORITY_KEY_IDENTIFIER)
        without(tbs, ExtensionOID.SUBJECT_KEY_IDENTIFIER)


def _other_authority(tbs: Any) -> None:
    if tbs.extensions:
        without(tbs, ExtensionOID.AUTHORITY_KEY_IDENTIFIER)
        added(tbs, ExtensionOID.AUTHORITY_KEY_IDENTIFIER, bytes.fromhex("300a80080102030405060708"))


def _other_issuer(tbs: Any) -> None:
    tbs.issuer = tbs.subject


def _names_authority(issuer: Certificate, how: str) -> Edit:
    """AuthorityKeyIdentifier with the issuer's issuer and serial number, or not quite these."""
    name, serial = issuer.issuer_name, issuer.serial_number + (how == "serial")
    if how == "issuer":
        name = subject_name("Another").public_bytes()[2:]
    elif how == "respelled":
        name = respelled(name)
    number = serial.to_bytes(serial.bit_length() // 8 + 1, "big", signed=True)
    value = der(0x30, der(0xA1, der(0xA4, der(0x30, name))) + der(0x82, number))

    def edit(tbs: Any) -> None:
        if tbs.extensions:
            without(tbs, ExtensionOID.AUTHORITY_KEY_IDENTIFIER)
            added(tbs, ExtensionOID.AUTHORITY_KEY_IDENTIFIER, value)

    return edit


def _issuer_respelled(tbs: Any) -> None:
    tbs.issuer = tlv(0x30, respelled(content(tbs.issuer)))


def _subject_respelled(tbs: Any) -> None:
    tbs.subject = tlv(0x30, respelled(content(tbs.subject)))


def _issuer_with_a_bit_string(tbs: Any) -> None:
    value = der(0x03, b"\0Root")
    tbs.issuer = tlv(0x30, der(0x31, der(0x30, bytes.fromhex("0603550403") + value)))


def _subject_with_an_integer(tbs: Any) -> None:
    odd = der(0x31, der(0x30, bytes.fromhex("060355040b") + der(0x02, b"\x07")))
    tbs.subject = tlv(0x30, content(tbs.subject) + odd)


def _twice(tbs: Any) -> None:
    if tbs.extensions:
        tbs.extensions = [*tbs.extensions, tbs.extensions[-1]]


_EDITS: dict[str, Edit] = {
    "version 1": _version_1,
    "no key identifiers": _no_identifiers,
    "other authority key": _other_authority,
    "issuer is subject": _other_issuer,
    "extension twice": _twice,
    "issuer respelled": _issuer_respelled,
    "subject respelled": _subject_respelled,
    "issuer with a BIT STRING": _issuer_with_a_bit_string,
    "subject with an INTEGER": _subject_with_an_integer,
    "unknown critical": lambda tbs: (
        added(tbs, x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00", True) if tbs.extensions else 0
    ),
    "unknown": lambda tbs: added(tbs, x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00") if tbs.extensions else 0,
}
_EXTRAS: dict[str, tuple[x509.ExtensionType, bool]] = {
    "name constraints": (x509.NameConstraints([x509.DirectoryName(subject_name("x"))], None), True),
    "policy constraints": (x509.PolicyConstraints(0, None), True),
    "inhibitAnyPolicy": (x509.InhibitAnyPolicy(0), True),
    "purpose": (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
    "responder": (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING]), False),
    "policies": (x509.CertificatePolicies([x509.PolicyInformation(x509.ObjectIdentifier("1.2.3.5"), None)]), False),
}
_WOUNDS = (
    "over",
    "to come",
    "ca flipped",
    "path length",
    "path length",
    "key usage",
    "key usage",
    "name",
    "stranger",
    "tampered",
    "issuer and serial",
    "issuer and serial",
    *_EDITS,
    *_EXTRAS,
)
