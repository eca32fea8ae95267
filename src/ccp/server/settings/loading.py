"""Loading of the settings from the file, the environment and the command line."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsError

from ccp.errors import ConfigurationError
from ccp.server.runtime.redacted_urls import hide_in_text
from ccp.server.settings import names as setting_names
from ccp.server.settings.audit import check_audit_stream
from ccp.server.settings.issuers import check_prefixes
from ccp.server.settings.model import Settings, settings_source
from ccp.server.settings.secret_files import SecretSources, file_forms, holds_secrets
from ccp.server.settings.services import PATHS, SERVICES, error_sentence, flatten_tables, variables

DEFAULT_FILE = Path("ccp.toml")
_MAX_FILE_BYTES: Final = 1 << 20  # Those with hundreds of trusted issuers have some 100 KiB.


def file_in_effect(path: Path | None = None) -> Path | None:
    """Return the given file, else that of `CCP_CONFIG`, else `ccp.toml` if it exists; None for no file."""
    if path is not None:
        return path
    if os.environ.get("CCP_CONFIG"):
        return Path(os.environ["CCP_CONFIG"])
    return DEFAULT_FILE if DEFAULT_FILE.exists() else None


def load(path: Path | None = None, **overrides: Any) -> Settings:
    """Load the settings from a file, the environment and the command line; the later source takes precedence.

    path: the file; default: see `file_in_effect`. overrides: options of the command line; None
    for an option that was not given. Relative paths in the file are relative to the file. Raises ConfigurationError.
    """
    named = file_in_effect(path)
    values: dict[str, Any] = {}
    if named is not None:
        try:
            values = flatten_tables(tomllib.loads(_read(named)))
        except OSError as exc:
            raise ConfigurationError(f"The configuration file {named} cannot be read: {exc.strerror}.") from exc
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
            raise ConfigurationError(f"The configuration file {named} is not TOML: {exc}.") from exc
        except RecursionError as exc:
            raise ConfigurationError(f"The configuration file {named} is nested too deeply.") from exc
        except ValueError as exc:
            raise ConfigurationError(f"The configuration file {named} is contradictory: {exc}") from exc
        anchor_paths(values, named.parent)
    fields = Settings.model_fields
    problems = setting_names.problems(fields, values, os.environ)
    known = setting_names.known_names(fields)
    options = {name: value for name, value in overrides.items() if value is not None}
    secrets = SecretSources(fields, dict(options), dict(variables()), values)
    problems += secrets.problems

    from_file = {name: values[name] for name in values.keys() & known}
    token = _SOURCES.set((secrets.values, from_file))
    try:
        settings = _Effective(**options)
    except SettingsError as exc:
        raise ConfigurationError(*problems, *_not_json(known)) from exc
    except ValidationError as exc:
        raise ConfigurationError(*problems, *map(hide_in_text, map(error_sentence, exc.errors()))) from None
    finally:
        _SOURCES.reset(token)
    if problems:
        raise ConfigurationError(*problems)
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise ConfigurationError("tls_cert and tls_key belong together.")
    if settings.tls_client_ca is not None and settings.tls_cert is None:
        raise ConfigurationError("tls_client_ca needs tls_cert and tls_key.")
    if (
        settings.certificate_bound_tokens
        and settings.tls_client_ca is None
        and settings.client_certificate_header is None
    ):
        raise ConfigurationError("certificate_bound_tokens needs tls_client_ca or client_certificate_header.")
    issuers = [entry.issuer for entry in settings.issuers]
    if len({*issuers, settings.public_url}) <= len(issuers):
        raise ConfigurationError("issuers: each needs a unique issuer that differs from base_url.")
    check_prefixes(settings.issuers)
    settings.note_secret_files(secrets.files, named if named is not None and holds_secrets(fields, values) else None)
    check_audit_stream(settings)
    return settings


_SOURCES: Final[ContextVar[tuple[dict[str, Any], dict[str, Any]]]] = ContextVar("sources")
"""Secrets and values of the file for the settings that are being made."""


class _Effective(Settings):
    """Settings of all sources. One class for all of them: pydantic keeps some 100 KiB of each class for ever."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        secrets, from_file = _SOURCES.get()
        given = super().settings_customise_sources(
            settings_cls, init_settings, env_settings, dotenv_settings, file_secret_settings
        )
        return settings_source(settings_cls, secrets), *given, settings_source(settings_cls, from_file)


def _read(file: Path) -> str:
    """The text of a configuration file. Raises OSError, UnicodeDecodeError; ConfigurationError if it is too big."""
    with file.open("rb") as content:
        data = content.read(_MAX_FILE_BYTES + 1)
    if len(data) > _MAX_FILE_BYTES:
        raise ConfigurationError(f"The configuration file {file} is too big (more than {_MAX_FILE_BYTES:,} bytes).")
    return data.decode()


def _not_json(known: Iterable[str]) -> Iterator[str]:
    """A sentence for each environment variable of a list or a table that is not JSON. It may be a secret: not shown."""
    source = EnvSettingsSource(Settings)
    for name in sorted(known):
        field = Settings.model_fields.get(name)
        text = next((value for key, value in os.environ.items() if key.lower() == f"ccp_{name}"), None)
        if field is None or text is None or not source.field_is_complex(field):
            continue
        try:
            json.loads(text)
        except ValueError:
            yield f'The environment variable CCP_{name.upper()} is not JSON; a list is written as ["…", "…"].'


def anchor_paths(values: dict[str, Any], folder: Path) -> None:
    """Make the relative paths of a file's values relative to its folder."""
    for entry in values["issuers"] if isinstance(values.get("issuers"), list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("jwks_file"), str):
            entry["jwks_file"] = folder / entry["jwks_file"]
    oidc = values.get("console_oidc")
    for name in ("ca", "client_secret_file"):
        if isinstance(oidc, dict) and isinstance(oidc.get(name), str):
            oidc[name] = folder / oidc[name]
    files = [f"{prefix}_{member}" for prefix in SERVICES for member in PATHS]
    files += file_forms(Settings.model_fields).values()
    files += [f"audit_stream_{member}" for member in ("file", "ca", "tls_cert", "tls_key")]
    for name in (
        "tls_cert",
        "tls_key",
        "tls_client_ca",
        "rate_limit_file",
        "secrets_key_file",
        "documentation_directory",
        *files,
    ):
        if isinstance(values.get(name), str):
            values[name] = folder / values[name]
    database = values.get("database")
    if isinstance(database, str) and database.startswith("sqlite:///"):
        values["database"] = f"sqlite:///{folder.resolve() / database.removeprefix('sqlite:///')}"
