"""Secrets in files: every setting with a secret has a second form, its name with `_file`, that names a file instead.

The settings are found by their type, `SecretStr`; `database` is one of them, because a database URL may contain a
password. A file is read when the settings are loaded, except for those of external services (`pcp_token_file`): these
are fields of their own, which the start of the pool checks, and the client reads them again when they change. systemd
credentials and container secrets are such files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, get_args

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from ccp.server.runtime.redacted_urls import hide_credentials
from ccp.server.runtime.secret_files import SecretFileError, is_readable_by_others, read_secret_line
from ccp.server.settings.services import SERVICES, ServiceSettings

_ALSO: Final = frozenset({"database"})
"""Settings of another type that may contain a secret."""


def secret_names(fields: Mapping[str, FieldInfo]) -> list[str]:
    """Flat names of the settings with a secret, those of services too. fields: those of `Settings`."""
    own = [name for name, field in fields.items() if name in _ALSO or _is_secret(field.annotation)]
    return own + [f"{prefix}_{member}" for prefix in SERVICES for member in _service_members()]


def file_forms(fields: Mapping[str, FieldInfo]) -> dict[str, str]:
    """Name of the second form of each secret setting that no field declares."""
    return {name: f"{name}_file" for name in secret_names(fields) if name in fields}


def _service_members() -> list[str]:
    return [name for name, field in ServiceSettings.model_fields.items() if _is_secret(field.annotation)]


def _is_secret(annotation: Any) -> bool:
    return annotation is SecretStr or any(map(_is_secret, get_args(annotation)))


class SecretSources:
    """Which source gives each secret, and in which form. A source that gives either form hides those below it.

    problems: a sentence for each secret that has no usable value. values: secrets that were read from files. files:
    the file of each secret that is in one, by the name of the setting that names the file.
    """

    def __init__(self, fields: Mapping[str, FieldInfo], *sources: dict[str, Any]) -> None:
        """sources: values by flat name, the one with precedence first. Hidden names are removed from all of them."""
        self.problems: list[str] = []
        self.values: dict[str, str] = {}
        self.files: dict[str, Path] = {}
        derived = file_forms(fields)
        for name in secret_names(fields):
            forms = (name, f"{name}_file")
            given = [source for source in sources if not source.keys().isdisjoint(forms)]
            for lower in given[1:]:
                for form in forms:
                    lower.pop(form, None)
            if not given or forms[1] not in given[0]:
                continue
            if name not in derived:
                self.files[forms[1]] = Path(str(given[0][forms[1]]))
                continue
            file = given[0].pop(forms[1])
            if name in given[0]:
                self.problems.append(f"{name} and {forms[1]} contradict each other; give one of them.")
            elif not isinstance(file, str | Path) or not str(file):
                self.problems.append(f"{forms[1]} must be the path of a file.")
            else:
                self._read(name, forms[1], Path(file))

    def _read(self, name: str, form: str, file: Path) -> None:
        self.files[form] = file
        try:
            self.values[name] = read_secret_line(file)
        except SecretFileError as exc:
            self.problems.append(f"{form}: {file} {exc}.")


def holds_secrets(fields: Mapping[str, FieldInfo], values: Mapping[str, Any]) -> bool:
    """Whether the values of a configuration file contain a secret. values: by flat name."""
    oidc = values.get("console_oidc")
    return (isinstance(oidc, Mapping) and "client_secret" in oidc) or any(
        name in values and (name not in _ALSO or hide_credentials(str(values[name])) != values[name])
        for name in secret_names(fields)
    )


def readable_by_others(files: Mapping[str, Path]) -> Iterator[str]:
    """A sentence for each file with a secret that every user of the machine may read. files: by setting."""
    for name, file in files.items():
        if is_readable_by_others(file):
            yield f"{name}: every user of this machine may read {file}, which holds a secret; chmod o= restricts it."
