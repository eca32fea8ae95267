"""The file of rejected lines: JSON Lines with file, line number, EMAID and error messages."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Any

import orjson

from ccp.server.bulk.checkpoint import Checkpoint
from ccp.server.bulk.messages import RejectedLine
from ccp.server.runtime.private_files import create_private, reopen_private
from ccp.server.runtime.terminal_text import printable_json_bytes


class RejectedLinesReport:
    """Writes the file of rejected lines, or nothing.

    A resumed import continues where the checkpoint says that the file ended. The file names contracts, so its mode is
    0600, and it is not written through a symbolic link.
    """

    def __init__(self, path: Path | None, checkpoint: Checkpoint | None) -> None:
        """path: None writes nothing. checkpoint: of the run that is resumed. Raises ConfigurationError, OSError."""
        self._file: IO[bytes] | None = None
        self.name = None if path is None else str(path.absolute())
        if path is None:
            return
        resumed = checkpoint is not None and checkpoint.report == self.name
        length = checkpoint.report_bytes if checkpoint is not None and resumed else 0
        try:
            self._file = reopen_private(path)
        except FileNotFoundError:
            self._file = create_private(path)
            return
        os.fchmod(self._file.fileno(), 0o600)
        self._file.truncate(min(length, os.fstat(self._file.fileno()).st_size))
        self._file.seek(0, os.SEEK_END)

    def add(self, file: str, line: int, rejected: RejectedLine) -> None:
        """Write one line. Raises OSError."""
        if self._file is not None:
            members: dict[str, Any] = {"file": file, "line": line}
            if rejected.emaid is not None:
                members["emaid"] = rejected.emaid
            members["errorMessages"] = list(rejected.messages)
            if rejected.retryable:
                members["again"] = True
            self._file.write(printable_json_bytes(orjson.dumps(members, option=orjson.OPT_APPEND_NEWLINE)))

    def sync(self) -> int:
        """Make everything durable. Returns the length of the file in bytes. Raises OSError."""
        if self._file is None:
            return 0
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
