"""Tables of the settings in docs/settings.md and docs/console.md, written from the settings themselves.

`python -m ccp.cli.documentation.settings_tables docs` brings the documents up to date; `make docs` runs it. A
description is Markdown with links that are relative to docs/; the meaning of a setting stands nowhere else.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ccp.cli.documentation.markdown import code, one_line, table
from ccp.server.settings import Settings
from ccp.server.settings.access import AccessSettings
from ccp.server.settings.apis import APISettings
from ccp.server.settings.audit import AuditSettings
from ccp.server.settings.console import ConsoleOIDCSettings, ConsoleSettings
from ccp.server.settings.contracts import ContractSettings
from ccp.server.settings.database import DatabaseSettings
from ccp.server.settings.events import EventSettings
from ccp.server.settings.external import ExternalSettings
from ccp.server.settings.issuers import IssuerSettings
from ccp.server.settings.logs import LogSettings
from ccp.server.settings.network import NetworkSettings
from ccp.server.settings.revocation import RevocationSettings
from ccp.server.settings.services import SERVICES, ServiceSettings

DOCUMENTS: Final = ("settings.md", "console.md")
"""Documents below docs/ with generated parts."""

_SUBJECTS: Final[Mapping[str, type[BaseModel]]] = {
    "Network and TLS": NetworkSettings,
    "Database": DatabaseSettings,
    "Access tokens and rate limits": AccessSettings,
    "Contracts and delivery": ContractSettings,
    "Revocation": RevocationSettings,
    "Other systems": ExternalSettings,
    "Peers, APIs and documentation": APISettings,
    "Events to partners": EventSettings,
    "Log, metrics and refusals": LogSettings,
    "Audit stream": AuditSettings,
    "Console": ConsoleSettings,
}
_PART: Final = re.compile(r"(<!-- generated: ([a-z]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def update(text: str) -> str:
    """Return a document with its generated parts up to date."""
    parts = {
        "settings": "\n".join(f"### {title}\n\n{_settings(model)}" for title, model in _SUBJECTS.items()),
        "services": _members(ServiceSettings),
        "issuers": _members(IssuerSettings),
        "oidc": _members(ConsoleOIDCSettings),
    }
    return _PART.sub(lambda found: f"{found[1]}\n{parts[found[2]]}\n{found[3]}", text)


def _settings(model: type[BaseModel]) -> str:
    described = Settings.model_fields
    return table(["setting", "default", "meaning"], _rows({name: described[name] for name in model.model_fields}))


def _members(model: type[BaseModel]) -> str:
    return table(["member", "default", "meaning"], _rows(model.model_fields))


def _rows(fields: Mapping[str, FieldInfo]) -> Iterator[list[str]]:
    for name, field in fields.items():
        shown = f"{name}_…" if name in SERVICES else name
        yield [code(shown), _default(field), one_line(field.description or "")]


def _default(field: FieldInfo) -> str:
    """The default as the file has it; nothing for a setting without one."""
    is_empty = field.is_required() or field.default is None or field.default in ((), {})
    return "" if is_empty else code(_toml(field.default))


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_quoted(name)} = {_quoted(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_quoted, value)) + "]"
    return _text(value)


def _quoted(value: Any) -> str:
    text = _text(value)
    return text if isinstance(value, int | float) else json.dumps(text)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value.value if isinstance(value, Enum) else value)


def main(folder: str) -> None:
    """Bring the documents of a folder up to date."""
    for name in DOCUMENTS:
        path = Path(folder) / name
        path.write_text(update(path.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
