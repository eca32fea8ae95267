"""Validates decoded messages against the XML schemas in the PyPI package iso15118 (see `tests.exi.judge`).

EXIficient decodes a message to XML; libxml2 validates that. The schemas stay where the package has them.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.exi import judge as judging

_XSD = "http://www.w3.org/2001/XMLSchema"
_FILES = {"iso2": "iso15118_2/V2G_CI_MsgDef.xsd", "iso20": "iso15118_20/V2G_CI_CommonMessages.xsd"}
_NAMESPACES = {"iso2": judging.ISO2, "iso20": judging.ISO20}


def _folder() -> Path:
    return judging.folder() / "iso15118" / "shared" / "schemas"


def skip_where_absent() -> None:
    if reason := judging.missing():
        pytest.skip(reason)
    pytest.importorskip("lxml", reason="lxml, which validates against XML schemas, is not installed")
    if not all((_folder() / name).is_file() for name in _FILES.values()):
        pytest.skip(f"the XML schemas are not in {_folder()}")


@cache
def _schema(edition: str) -> Any:
    from lxml import etree

    tree = etree.parse(_folder() / _FILES[edition])
    if edition == "iso20":
        # The package's file uses the signature's schema and imports it in another file only.
        signature = {"namespace": judging.XMLDSIG, "schemaLocation": "../xmldsig-core-schema.xsd"}
        tree.getroot().insert(0, etree.Element(f"{{{_XSD}}}import", signature))
    return etree.XMLSchema(tree)


def violations(edition: str, message: bytes) -> list[str]:
    """What the schema of an edition ("iso2" or "iso20") has against a message (EXI)."""
    return problems(edition, judging.judge().xml(message, _NAMESPACES[edition]).encode())


def problems(edition: str, document: bytes) -> list[str]:
    """What the schema of an edition has against a message (XML)."""
    from lxml import etree

    schema = _schema(edition)
    return [] if schema.validate(etree.fromstring(document)) else [str(entry) for entry in schema.error_log]
