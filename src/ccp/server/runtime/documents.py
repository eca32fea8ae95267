"""Addresses of the project's documents, for messages: a path in a checkout, a URL in an installation."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Final

_DISTRIBUTION: Final = "opnc-ccp"
_LABEL: Final = "Documentation"
_CHECKOUT: Final = Path(__file__).resolve().parents[4] / "docs"


def documentation() -> str:
    """The address of the documents, without a slash at its end. The wheel has none of them, but their URL."""
    if _CHECKOUT.is_dir():
        return "docs"
    try:
        urls = metadata(_DISTRIBUTION).get_all("Project-URL") or []
    except PackageNotFoundError:
        return "docs"
    found: dict[str, str] = dict(url.split(", ", 1) for url in urls if ", " in url)
    return found.get(_LABEL, "docs").rstrip("/")


def document(name: str) -> str:
    """The address of a document, such as "operations.md"."""
    return f"{documentation()}/{name}"
