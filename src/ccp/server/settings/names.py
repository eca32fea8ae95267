"""Refusal of settings that do not exist: a misspelt one would silently leave its default in effect.

Names are those of the file (`rate_limit_per_party`, `rcp_url`, table `[rcp]`) and of the environment
(`CCP_RATE_LIMIT_PER_PARTY`, in any case, as pydantic-settings reads them).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final

from pydantic.fields import FieldInfo

from ccp.schemas.suggestions import closest, quotable
from ccp.server.settings.secret_files import file_forms
from ccp.server.settings.services import SERVICES, ServiceSettings

_PREFIX: Final = "ccp_"
OTHER_VARIABLES: Final = frozenset({"CCP_CONFIG", "CCP_PEER_SECRET", "CCP_SUBSCRIPTION_SECRET"})
"""Environment variables with the prefix that are not settings."""


def known_names(fields: Mapping[str, FieldInfo]) -> frozenset[str]:
    """Return the flat names of all settings, without the file forms of secrets.

    fields: those of `Settings`, in which a service is one field.
    """
    members = {f"{prefix}_{member}" for prefix in SERVICES for member in ServiceSettings.model_fields}
    return frozenset(fields) - SERVICES.keys() | members


def problems(fields: Mapping[str, FieldInfo], given: Iterable[str], environment: Iterable[str]) -> list[str]:
    """Return a sentence for each name that is not a setting, with the nearest one.

    fields: those of `Settings`. given: flat names in the file. environment: names of environment variables.
    """
    known = known_names(fields) | frozenset(file_forms(fields).values())
    return [*_in_file(known, given), *_in_environment(known, environment)]


def _in_file(known: frozenset[str], given: Iterable[str]) -> Iterator[str]:
    for name in sorted(set(given) - known):
        yield f"{quotable(name)} is not a setting{_ending(_nearest(name, known))}"


def _in_environment(known: frozenset[str], environment: Iterable[str]) -> Iterator[str]:
    variables = {f"{_PREFIX}{name}".upper() for name in known} | OTHER_VARIABLES
    for name in sorted(environment):
        if name.lower().startswith(_PREFIX) and name.upper() not in variables:
            yield f"The environment variable {quotable(name)} is not a setting{_ending(_nearest(name, variables))}"


def _nearest(name: str, known: Collection[str]) -> str | None:
    """Return the nearest known name, if possible one that begins with the same word."""
    words = name.lower().removeprefix(_PREFIX).split("_")
    same = [each for each in known if each.lower().removeprefix(_PREFIX).split("_")[0] == words[0]]
    return closest(name, same) or closest(name, known)


def _ending(near: str | None) -> str:
    return f"; did you mean {near}?" if near else ". `ccp config --explain` lists all settings."
