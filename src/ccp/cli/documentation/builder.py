"""The process that builds the documentation site of a running pool: `python -m ccp.cli.documentation.builder FILE`.

FILE: the descriptor of the file that the workers share. Exit status 1: standard error says why there is no site.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from ccp.cli.documentation import site
from ccp.errors import ConfigurationError
from ccp.server.http.documentation_site import SharedSite, read_site


def build(shared: SharedSite) -> None:
    """Build the site and write it. Raises ConfigurationError, OSError and TimeoutExpired."""
    with TemporaryDirectory(prefix="ccp-docs-") as folder:
        directory = Path(folder) / "site"
        site.build(directory)
        shared.write(read_site(directory))


def main(descriptor: str) -> None:
    """Build at the lowest priority, so that the pool has the processors. SIGTERM and SIGINT remove temporary files."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    with contextlib.suppress(OSError):
        os.nice(19)
    try:
        build(SharedSite(int(descriptor)))
    except OSError as exc:
        text = exc.strerror or str(exc)
        sys.exit(f"{text}: {exc.filename}." if exc.filename else f"{text}. The environment variable TMPDIR names one.")
    except (ConfigurationError, subprocess.TimeoutExpired) as exc:
        sys.exit(str(exc))
    except KeyboardInterrupt:
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
