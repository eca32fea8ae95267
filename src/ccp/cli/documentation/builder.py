"""The process that builds the documentation site of a running pool: `python -m ccp.cli.documentation.builder FILE`.

FILE: the descriptor of the file that the workers share. Exit status 1: standard error says why there is no site.
"""

from __future__ import annotations

import contextlib
import os
import shutil
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


def _reason(exc: OSError) -> str:
    """One line. A copied folder has an error for each file, of which the first one is shown."""
    if isinstance(exc, shutil.Error) and isinstance(exc.args[0], list):
        text = str(exc.args[0][0][2])
    else:
        text = f"{exc.strerror or exc}: {exc.filename}" if exc.filename else str(exc.strerror or exc)
    return f"{text.rstrip('.')}. The environment variable TMPDIR names the directory for temporary files."


def main(descriptor: str) -> None:
    """Build at the lowest priority, so that the pool has the processors. SIGTERM and SIGINT remove temporary files."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    with contextlib.suppress(OSError):
        os.nice(19)
    try:
        build(SharedSite(int(descriptor)))
    except OSError as exc:
        sys.exit(_reason(exc))
    except (ConfigurationError, subprocess.TimeoutExpired) as exc:
        sys.exit(str(exc))
    except KeyboardInterrupt:
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
