"""How far an import has come: a small file that is replaced as a whole."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from ccp.bulk.lines import Mark
from ccp.errors import ConfigurationError

_KIND: Final = "opnc-ccp import 1"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything before `mark` is stored or refused, and durably so.

    counts: what became of it. refused_octets: length of the report of refused lines at that time.
    """

    mark: Mark
    counts: dict[str, int]
    refused_octets: int

    def save(self, path: Path) -> None:
        octets = orjson.dumps({"kind": _KIND, **asdict(self)}, option=orjson.OPT_INDENT_2)
        replace_durably(path, octets)

    @classmethod
    def load(cls, path: Path) -> Checkpoint | None:
        """None where there is no file. Raises ConfigurationError for one that is no checkpoint."""
        try:
            found: Any = orjson.loads(path.read_bytes())
            if found["kind"] != _KIND:
                raise ValueError
            return cls(Mark(**found["mark"]), dict(found["counts"]), int(found["refused_octets"]))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as exc:
            raise ConfigurationError(f"{path} is no checkpoint of an import.") from exc


def replace_durably(path: Path, octets: bytes) -> None:
    """Afterwards the file has the new content, whatever happens; before that the old one."""
    beside = path.with_name(path.name + ".new")
    with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(octets)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """A new name is on disk when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
