"""Settings of the listener: addresses, TLS, proxies, limits of connections and bodies."""

from __future__ import annotations

import re
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, field_validator


class NetworkSettings(BaseModel):
    """The address that the pool listens on, TLS, trusted proxies, limits of connections."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8020, description="Port to listen on.")
    workers: Annotated[int, Field(ge=1, le=64)] = Field(1, description="Worker processes; one per core is recommended.")
    tls_cert: Path | None = Field(
        None,
        description="Certificate chain of the server, PEM. Without it the pool serves plain HTTP and belongs behind "
        "a proxy that terminates TLS. When the file changes, new connections get the new certificate "
        "within a few seconds; a file that cannot be used is logged, and the previous certificate stays.",
    )
    tls_key: Path | None = Field(None, description="Private key for `tls_cert`, PEM.")
    tls_client_ca: Path | None = Field(
        None,
        description="CA certificates for client certificates, PEM; every client then needs a certificate (mutual TLS).",
    )
    client_certificate_header: str | None = Field(
        None, description="Header in which a trusted proxy sends the client certificate: URL-encoded PEM, or RFC 9440."
    )
    trusted_proxies: tuple[str, ...] = Field(
        ("127.0.0.0/8", "::1/128"),
        description="Networks (CIDR) of proxies whose `X-Forwarded-For` and `client_certificate_header` are evaluated.",
    )
    base_url: str | None = Field(
        None,
        description="Public URL of the pool, `http(s)://host:port`; issuer and audience of its access tokens. "
        "Default: from `host` and `port`.",
    )
    max_body: Annotated[int, Field(ge=4096)] = Field(262_144, description="Maximum size of a request body, bytes.")
    read_timeout: Annotated[int, Field(ge=1)] = Field(
        20, description="Seconds for a client to send the request head, to send the body, and to read the response."
    )
    max_connections: Annotated[int, Field(ge=1)] = Field(
        1000,
        description="Maximum number of open connections of one worker, counted from accept, before TLS. `ccp serve` "
        "raises the soft limit of file descriptors accordingly; where the hard limit is too low, it "
        "accepts fewer connections and warns.",
    )
    max_connections_per_address: Annotated[int, Field(ge=1)] = Field(
        200,
        description="Maximum number of open connections of one worker from one address that is not a trusted proxy.",
    )
    drain_period: Annotated[float, Field(ge=0, le=300)] = Field(
        0, description="Seconds after SIGTERM during which the pool reports not ready but still accepts connections."
    )

    @field_validator("base_url")
    @classmethod
    def _normalise_base_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not re.fullmatch(r"https?://[^/?#\s]+[^?#\s]*", value):
            raise ValueError("must be an http or https address")
        return value.rstrip("/")

    @field_validator("trusted_proxies")
    @classmethod
    def _check_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            ip_network(text)
        return value
