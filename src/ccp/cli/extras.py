"""Libraries that an installation without all extras lacks."""

from __future__ import annotations

import sys


def is_missing_library(exc: ModuleNotFoundError) -> bool:
    """Whether the missing module belongs to another distribution, and not to this one or to the standard library."""
    package = (exc.name or "ccp").partition(".")[0]
    return package != "ccp" and package not in sys.stdlib_module_names
