"""All settings in one frozen object."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import PrivateAttr
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from ccp.server.runtime.redacted_urls import hide_credentials
from ccp.server.settings.access import AccessSettings
from ccp.server.settings.apis import APISettings
from ccp.server.settings.audit import AuditSettings
from ccp.server.settings.console import ConsoleSettings
from ccp.server.settings.contracts import ContractSettings
from ccp.server.settings.database import DatabaseSettings
from ccp.server.settings.events import EventSettings
from ccp.server.settings.external import ExternalSettings
from ccp.server.settings.logs import LogSettings
from ccp.server.settings.network import NetworkSettings
from ccp.server.settings.revocation import RevocationSettings
from ccp.server.settings.secret_files import file_forms
from ccp.server.settings.services import from_environment, group_by_service


class Settings(
    ConsoleSettings,
    AuditSettings,
    LogSettings,
    EventSettings,
    APISettings,
    ExternalSettings,
    RevocationSettings,
    ContractSettings,
    AccessSettings,
    DatabaseSettings,
    NetworkSettings,
    BaseSettings,
):
    """Every setting, its default and its meaning; `ccp config` prints the effective values.

    Fields are those of the bases, from the last one to the first.
    """

    model_config = SettingsConfigDict(env_prefix="CCP_", frozen=True, extra="forbid", hide_input_in_errors=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take values from arguments, then from the environment. Flat names of services become their members."""
        return (
            settings_source(settings_cls, init_settings()),
            settings_source(settings_cls, from_environment()),
            env_settings,
        )

    _secret_files: dict[str, Path] = PrivateAttr(default_factory=dict)
    _configuration_with_secrets: Path | None = PrivateAttr(default=None)

    def note_secret_files(self, files: Mapping[str, Path], configuration: Path | None) -> None:
        """Keep which files the secrets came from. configuration: the configuration file, if it contains a secret."""
        self._secret_files = dict(files)
        self._configuration_with_secrets = configuration

    @property
    def secret_files(self) -> dict[str, Path]:
        """Every file with a secret or a private key, by the name of its setting; the configuration file by its path."""
        found = dict(self._secret_files)
        if self._configuration_with_secrets is not None:
            found["settings"] = self._configuration_with_secrets
        own = ("tls_key", "audit_stream_tls_key", "secrets_key_file")
        found |= {name: path for name in own if (path := getattr(self, name)) is not None}
        if self.console_oidc is not None and self.console_oidc.client_secret_file is not None:
            found["console_oidc.client_secret_file"] = self.console_oidc.client_secret_file
        return found | {
            f"{prefix}_tls_key": service.tls_key
            for prefix, service in self.services.items()
            if service.tls_key is not None
        }

    @property
    def public_url(self) -> str:
        """base_url, or the URL of the address that the pool listens on."""
        return self.base_url or f"{'https' if self.tls_cert else 'http'}://{self.host}:{self.port}"

    def redacted(self) -> dict[str, Any]:
        """The values without secrets and without credentials in URLs, for display; with the files of secrets."""
        redacted: dict[str, Any] = _without_credentials(self.model_dump(mode="json"))
        forms = file_forms(type(self).model_fields)
        shown: dict[str, Any] = {}
        for name, value in redacted.items():
            shown[name] = value
            if (form := forms.get(name)) is not None:
                file = self._secret_files.get(form)
                shown[form] = None if file is None else str(file)
        return shown


def settings_source(settings_cls: type[BaseSettings], values: dict[str, Any]) -> PydanticBaseSettingsSource:
    """Return a source of flat names; those of a service become the members of its field."""
    return InitSettingsSource(settings_cls, group_by_service(values))


def _without_credentials(value: Any) -> Any:
    if isinstance(value, str):
        return hide_credentials(value)
    if isinstance(value, dict):
        return {_without_credentials(name): _without_credentials(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_without_credentials(member) for member in value]
    return value
