"""Random messages of the four types, determined by a seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from ccp.exi import Message, bits, iso2, iso20, xmldsig

_PLAIN = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 ,=.-_:/#+<&\"'"
_RICH = _PLAIN + "äöüßéñ€漢字😀\t\n\U0010ffff"
_ALGORITHMS = (
    "http://www.w3.org/TR/canonical-exi/",
    "http://www.w3.org/2001/04/xmlenc#sha256",
    "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha512",
    "urn:iso:std:iso:15118:-20:Security:xmldsig#Ed448",
)


class Maker:
    """judge: keep to what the jar and its JSON can do, see `test_judge`."""

    def __init__(self, seed: int, *, judge: bool = False) -> None:
        self.rng = random.Random(seed)
        self.judge = judge

    def encoded(self, most: int) -> bytes:
        least = 1 if self.judge else 0
        return self.rng.randbytes(self.rng.choice((least, 1, self.rng.randint(least, most), most)))

    def text(self, most: int) -> str:
        count = self.rng.randint(1 if self.judge else 0, min(most, self.rng.choice((3, 20, 150))))
        # White space at the ends and between words is XML's to keep or drop, so the judge's texts have none.
        letters = _RICH if self.rng.random() < 0.2 else _PLAIN
        made = "".join(self.rng.choices(letters, k=count))
        return "".join(made.split()) or "x" if self.judge else made

    def id(self) -> str:
        return f"id{self.rng.randint(0, 99)}"

    def maybe(self, make: Callable[[], Any], chance: float = 0.5) -> Any:
        return make() if self.rng.random() < chance else None

    def some(self, make: Callable[[], Any], most: int) -> tuple[Any, ...]:
        return tuple(make() for _ in range(self.rng.choice((1, self.rng.randint(1, most), most))))

    def transform(self) -> xmldsig.Transform:
        xpath = () if self.rng.random() < 0.7 else self.some(lambda: self.text(50), bits.MAX_XPATHS)
        return xmldsig.Transform(self.rng.choice(_ALGORITHMS), xpath)

    def reference(self) -> xmldsig.Reference:
        return xmldsig.Reference(
            self.maybe(self.id),
            self.maybe(lambda: self.text(20)),
            self.maybe(lambda: "#" + self.id(), 0.8),
            self.maybe(lambda: self.some(self.transform, bits.MAX_TRANSFORMS), 0.8),
            xmldsig.DigestMethod(self.rng.choice(_ALGORITHMS)),
            self.encoded(64),
        )

    def signed_info(self) -> xmldsig.SignedInfo:
        return xmldsig.SignedInfo(
            self.maybe(self.id, 0.3),
            xmldsig.CanonicalizationMethod(self.rng.choice(_ALGORITHMS)),
            xmldsig.SignatureMethod(
                self.rng.choice(_ALGORITHMS),
                self.maybe(lambda: self.rng.randint(-1000, 1000), 0.2),
            ),
            self.some(self.reference, 8),
        )

    def signature(self) -> xmldsig.Signature:
        value = xmldsig.SignatureValue(self.maybe(self.id, 0.3), self.encoded(132))
        return xmldsig.Signature(self.maybe(self.id, 0.3), self.signed_info(), value)

    def roots(self, most: int = 20) -> tuple[iso2.X509IssuerSerial, ...]:
        def serial() -> int:
            magnitude = self.rng.getrandbits(self.rng.choice((1, 7, 8, 63, 64, 65, 160, 320)))
            return -magnitude if self.rng.random() < 0.2 else magnitude

        return self.some(lambda: iso2.X509IssuerSerial(self.text(100), serial()), most)

    def iso2_header(self) -> iso2.Header:
        def notification() -> iso2.Notification:
            return iso2.Notification(self.rng.choice(iso2.FAULT_CODES), self.maybe(lambda: self.text(64)))

        return iso2.Header(self.encoded(8), self.maybe(notification, 0.3), self.maybe(self.signature))

    def iso2_req_body(self) -> iso2.CertificateInstallationReq:
        # The jar writes and expects another end of a list of exactly 20 roots; `test_judge` has a case of its own for
        # it.
        return iso2.CertificateInstallationReq(self.id(), self.encoded(800), self.roots(19 if self.judge else 20))

    def iso2_req(self) -> iso2.V2G_Message:
        return iso2.V2G_Message(self.iso2_header(), self.iso2_req_body())

    def iso2_chain(self) -> iso2.CertificateChain:
        subs = self.maybe(lambda: self.some(lambda: self.encoded(800), 4), 0.7)
        return iso2.CertificateChain(self.maybe(self.id), self.encoded(800), subs)

    def iso2_emaid(self) -> iso2.EMAID:
        return iso2.EMAID(self.id(), self.text(15))

    def iso2_res(self) -> iso2.V2G_Message:
        body = iso2.CertificateInstallationRes(
            self.rng.choice(iso2.RESPONSE_CODES),
            self.iso2_chain(),
            self.iso2_chain(),
            iso2.ContractSignatureEncryptedPrivateKey(self.id(), self.encoded(48)),
            iso2.DHpublickey(self.id(), self.encoded(65)),
            self.iso2_emaid(),
        )
        return iso2.V2G_Message(self.iso2_header(), body)

    def iso20_header(self) -> iso20.Header:
        # The jar's JSON has no unsigned 64 bits.
        time = self.rng.getrandbits(self.rng.choice((1, 7, 32, 63, 63 if self.judge else 64)))
        return iso20.Header(self.encoded(8), time, self.maybe(self.signature))

    def iso20_subs(self) -> tuple[bytes, ...]:
        return self.some(lambda: self.encoded(1600), 3)

    def iso20_oem_chain(self) -> iso20.OEMProvisioningCertificateChain:
        return iso20.OEMProvisioningCertificateChain(self.id(), self.encoded(1600), self.maybe(self.iso20_subs))

    def iso20_req(self) -> iso20.CertificateInstallationReq:
        return iso20.CertificateInstallationReq(
            self.iso20_header(),
            self.iso20_oem_chain(),
            self.roots(),
            self.rng.randint(0, 255),
            self.maybe(lambda: self.some(lambda: self.text(255), 8)),
        )

    def iso20_signed(self) -> iso20.SignedInstallationData:
        keys: list[bytes | None] = [None, None, None]
        which = self.rng.randrange(3)
        keys[which] = self.encoded((94, 84, 206)[which])
        return iso20.SignedInstallationData(
            self.id(),
            iso20.CertificateChain(self.encoded(1600), self.iso20_subs()),
            self.rng.choice(iso20.CURVES),
            self.encoded(133),
            *keys,
        )

    def iso20_res(self) -> iso20.CertificateInstallationRes:
        return iso20.CertificateInstallationRes(
            self.iso20_header(),
            self.rng.choice(iso20.RESPONSE_CODES),
            self.rng.choice(iso20.PROCESSING),
            iso20.CertificateChain(self.encoded(1600), self.maybe(self.iso20_subs)),
            self.iso20_signed(),
            self.rng.randint(0, 255),
        )


KINDS = ("iso2_req", "iso2_res", "iso20_req", "iso20_res")


def messages(kind: str, count: int, seed: int = 1, *, judge: bool = False) -> list[Message]:
    """kind: one of KINDS."""
    maker = Maker(seed, judge=judge)
    return [getattr(maker, kind)() for _ in range(count)]
