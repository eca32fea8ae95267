"""Examination of the configuration: where each value comes from, and as much of a broken one as can be used.

For diagnosis: unlike `load`, nothing is raised. A setting that is invalid has its default.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource

from ccp.errors import ConfigurationError
from ccp.server.settings.loading import anchor_paths, file_in_effect, load
from ccp.server.settings.model import Settings
from ccp.server.settings.names import known_names
from ccp.server.settings.secret_files import SecretSources, file_forms
from ccp.server.settings.services import SERVICES, flatten_tables, group_by_service


class Source(StrEnum):
    """Where the value of a setting comes from. The later one of the first three takes precedence over the file."""

    DEFAULT = "default"
    FILE = "file"
    ENVIRONMENT = "environment"
    COMMAND_LINE = "command line"


@dataclass(frozen=True, slots=True)
class SettingValue:
    """A setting by its flat name, such as `rcp_url`. value: as `ccp config` shows it, without secrets."""

    name: str
    value: Any
    source: Source


@dataclass(frozen=True, slots=True)
class Examination:
    """settings: what can be used. problems: the sentences that `load` raises. file: in effect; None for none.

    named: the names that are set somewhere, with their source; all others have their default.
    """

    settings: Settings
    problems: tuple[str, ...]
    file: Path | None
    named: Mapping[str, Source]

    def values(self) -> list[SettingValue]:
        """Every setting, in the order of the model. A service that is not configured has no entries."""
        found = []
        for name, value in self.settings.redacted().items():
            members = {f"{name}_{key}": inner for key, inner in (value or {}).items()} if name in SERVICES else None
            for flat, each in ({name: value} if members is None else members).items():
                found.append(SettingValue(flat, each, self.named.get(flat, Source.DEFAULT)))
        return found


def examine(path: Path | None = None, **overrides: Any) -> Examination:
    """Examine the configuration that `load` reads with the same arguments."""
    forms = file_forms(Settings.model_fields)
    known = known_names(Settings.model_fields) | frozenset(forms.values())
    named = file_in_effect(path)
    in_file = {name: value for name, value in _file_values(named).items() if name in known}
    in_environment = {name: os.environ[variable] for name, variable in _variables(known).items()}
    given = {name: value for name, value in overrides.items() if value is not None}
    sources = {
        **dict.fromkeys(in_file, Source.FILE),
        **dict.fromkeys(in_environment, Source.ENVIRONMENT),
        **dict.fromkeys(given, Source.COMMAND_LINE),
    }
    sources |= {name: sources[form] for name, form in forms.items() if form in sources and name not in sources}
    try:
        return Examination(load(path, **overrides), (), named, sources)
    except ConfigurationError as exc:
        problems = exc.messages
    variables = _parsed(in_environment)
    secrets = SecretSources(Settings.model_fields, given, variables, in_file)
    usable = _usable({**in_file, **variables, **given, **secrets.values})
    return Examination(usable, tuple(problems), named, sources)


def _file_values(named: Path | None) -> dict[str, Any]:
    if named is None:
        return {}
    try:
        values = tomllib.loads(named.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    with suppress(ValueError):  # A setting that is given twice; the flat one counts here.
        values = flatten_tables(values)
    anchor_paths(values, named.parent)
    return values


def _variables(known: frozenset[str]) -> dict[str, str]:
    """Names of the environment variables that are settings, by setting. Those of a service count only with a value."""
    found = {}
    for variable, value in os.environ.items():
        name = variable.lower().removeprefix("ccp_")
        if variable.lower().startswith("ccp_") and name in known:
            of_service = name.partition("_")[0] in SERVICES and name not in Settings.model_fields
            if value or not of_service:
                found[name] = variable
    return found


def _parsed(environment: Mapping[str, str]) -> dict[str, Any]:
    """Values of the environment; those of lists and tables are JSON, as pydantic-settings reads them."""
    source = EnvSettingsSource(Settings)
    parsed: dict[str, Any] = {}
    for name, text in environment.items():
        field = Settings.model_fields.get(name)
        if field is not None and name not in SERVICES and source.field_is_complex(field):
            with suppress(ValueError):
                parsed[name] = json.loads(text)
        else:
            parsed[name] = text
    return parsed


class _Given(Settings):
    """Settings from arguments alone."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def _usable(values: dict[str, Any]) -> Settings:
    """Drop what is invalid, until the rest is valid."""
    while values:
        try:
            return _Given(**group_by_service(values))
        except ValidationError as exc:
            refused = {name for error in exc.errors() for name in _names(error, values)}
            values = {name: value for name, value in values.items() if name not in refused} if refused else {}
    return _Given()


def _names(error: ErrorDetails, values: Mapping[str, Any]) -> set[str]:
    """The flat names that an error is about: of a service, the member that is invalid, or all of them."""
    place = list(map(str, error["loc"]))
    if not place:
        return set(values)
    flat = "_".join(place[:2])
    if place[0] in SERVICES and flat not in values:
        return {name for name in values if name.partition("_")[0] == place[0] and name not in Settings.model_fields}
    return {flat} if place[0] in SERVICES else {place[0]}
