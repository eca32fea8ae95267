"""What tells an absent package index from a package that cannot be built or installed."""

from __future__ import annotations

import re
from typing import Final

import pytest

_ABSENT: Final = re.compile(
    r"No matching distribution found for \S+|Could not find a version[^\n]*|HTTP error \d+[^\n]*"
    r"|\w*(?:Timeout|Connection|Proxy)Error\b[^\n]*|build-requirements-\w+\.txt'\] returned non-zero exit status"
)
"""Messages of pip; the last one is of build, which does not repeat what pip says."""


def skip_or_fail(output: str) -> None:
    """Skip the test if the output of pip or build names a package that the index did not give; otherwise fail it."""
    if found := _ABSENT.search(output):
        pytest.skip(f"The package index does not give a package: {found[0][:300]}")
    pytest.fail(output)
