"""ccp exi: decodes messages to JSON and encodes them."""

from __future__ import annotations

import base64
import json
import sys
from enum import StrEnum
from typing import Annotated, Any

import typer

from ccp import exi
from ccp.cli.inputs import exi_bytes, read_input
from ccp.cli.output import print_json, print_line
from ccp.errors import ChainError, EXIError
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
    file: Annotated[str, typer.Argument(help="Message as EXI, Base64, hex or a JSON body of the API; - for stdin.")],
    full: Annotated[
        bool, typer.Option("--full", help="Print complete certificates, so that `ccp exi encode` can read the output.")
    ] = False,
) -> None:
    """Print a message as JSON. Certificates are summarised unless --full is given."""
    shown = exi.to_json(exi.decode(exi_bytes(read_input(file))))
    print_json(shown if full else _summarised(shown))


@app.command()
def encode(
    file: Annotated[str, typer.Argument(help="Output of `ccp exi decode --full`; - for standard input.")],
    form: Annotated[Form, typer.Option("--to", help="Output format.")] = Form.BASE64,
) -> None:
    """Encode a message from JSON."""
    try:
        described = json.loads(read_input(file))
        summarised = _is_summarised(described)
    except (ValueError, RecursionError) as exc:
        raise EXIError("a text that is not JSON") from exc
    if summarised:
        raise EXIError("summarised certificates, which cannot be written back; print the message with --full")
    data = exi.encode(exi.from_json(described))
    if form is Form.BINARY:
        sys.stdout.buffer.write(data)
    elif form is Form.HEX:
        print_line(data.hex())
    else:
        print_line(base64.b64encode(data).decode())


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
