"""The actor of commands, as the audit trail records it."""

from __future__ import annotations

import os


def command_actor() -> str:
    """`cli:` and the name of the operating system's user, independent of environment variables."""
    user = os.getuid()
    try:
        import pwd

        return f"cli:{pwd.getpwuid(user).pw_name}"
    except (ImportError, KeyError):
        return f"cli:{user}"
