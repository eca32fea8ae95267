"""Questions to the store, written once for every engine.

A question is a generator: it yields a statement with its parameters, is sent the rows, and returns its answer. It does
no I/O and knows no engine; an engine drives it inside one transaction. Statements use `$1`, `$2`, …, as PostgreSQL
does.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")
Row: TypeAlias = tuple[Any, ...]
Statement: TypeAlias = tuple[str, Row]
Steps: TypeAlias = Generator[Statement, list[Row], T]
