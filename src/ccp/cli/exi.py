"""ccp exi: decodes messages to JSON and XML, and encodes them."""

from __future__ import annotations

import base64
import json
import sys
from enum import StrEnum
from typing import Annotated, Any

import typer

from ccp import exi
from ccp.cli.inputs import read_input
from ccp.cli.output import print_exactly, print_json, print_line
from ccp.errors import ChainError, EXIError
from ccp.exi.base64_text import looks_like_xml
from ccp.exi.message_input import exi_bytes
from ccp.schemas.timestamps import rfc3339

app = typer.Typer(no_args_is_help=True)

_CERTIFICATES = ("Certificate", "OEMProvisioningCert")


class Form(StrEnum):
    """Output formats of `ccp exi encode`."""

    BINARY = "binary"
    BASE64 = "base64"
    HEX = "hex"


@app.command()
def decode(
    file: Annotated[str, typer.Argument(help="Message as EXI, XML, Base64, hex or a JSON body; - for stdin.")],
    full: Annotated[
        bool, typer.Option("--full", help="Print complete certificates, so that `ccp exi encode` can read the output.")
    ] = False,
    xml: Annotated[bool, typer.Option("--xml", help="Print XML, which `ccp exi encode` can read.")] = False,
) -> None:
    """Print a message as JSON or XML. Certificates are summarised in JSON unless --full is given."""
    message = exi.decode(exi_bytes(read_input(file)))
    if xml:
        # Character references change nothing, and no character of a message can control a terminal.
        text = exi.to_xml(message, pretty=True).decode("utf-8").replace("\x7f", "&#127;")
        print_exactly(text.encode("ascii", "xmlcharrefreplace").decode("ascii"))
        return
    shown = exi.to_json(message)
    print_json(shown if full else _summarised(shown))


@app.command()
def encode(
    file: Annotated[
        str, typer.Argument(help="XML document, or output of `ccp exi decode --full`; - for standard input.")
    ],
    form: Annotated[Form, typer.Option("--to", help="Output format.")] = Form.BASE64,
) -> None:
    """Encode a message from XML or JSON."""
    content = read_input(file)
    data = exi.encode(exi.from_xml(content) if looks_like_xml(content) else _from_json(content))
    if form is Form.BINARY:
        sys.stdout.buffer.write(data)
    elif form is Form.HEX:
        print_line(data.hex())
    else:
        print_line(base64.b64encode(data).decode())


def _from_json(content: bytes) -> exi.Message:
    """Read the output of `ccp exi decode --full`. Raises EXIError."""
    try:
        described = json.loads(content)
        summarised = _is_summarised(described)
    except (ValueError, RecursionError) as exc:
        raise EXIError("a text that is neither XML nor JSON") from exc
    if summarised:
        raise EXIError("summarised certificates, which cannot be written back; print the message with --full")
    return exi.from_json(described)


def _summarised(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _summarised(member, key) for key, member in value.items()}
    if isinstance(value, list):
        return [_summarised(member, name) for member in value]
    if name in _CERTIFICATES and isinstance(value, str):
        return _summary(value)
    return value


def _is_summarised(value: Any) -> bool:
    if isinstance(value, dict):
        return "fingerprint" in value or any(map(_is_summarised, value.values()))
    return isinstance(value, list) and any(map(_is_summarised, value))


def _summary(text: str) -> Any:
    from ccp.x509.certificates import Certificate  # Imported here: it takes as long as the rest of these commands.

    try:
        certificate = Certificate.load(base64.b64decode(text))
        issuer = certificate.issuer_dn
    except ChainError:
        return text
    return {
        "subject": certificate.subject_dn,
        "issuer": issuer,
        "notBefore": rfc3339(certificate.not_before),
        "notAfter": rfc3339(certificate.not_after),
        "fingerprint": certificate.fingerprint,
    }
