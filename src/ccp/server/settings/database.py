"""Settings of the database."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field


class DatabaseSettings(BaseModel):
    """The database and its connections."""

    database: str = Field(
        "sqlite:///ccp.db",
        description="Database URL: `sqlite:///FILE`, relative to the configuration file, or "
        "`postgresql://USER@HOST/NAME`. With several hosts, `HOST1:PORT1,HOST2:PORT2`, the "
        "pool uses the one that accepts writes. TLS: `?sslmode=verify-full` verifies the server's "
        "certificate and name against the system's CAs, with `&sslrootcert=FILE` only against those of "
        "that PEM file; see [PostgreSQL](database.md#tls).",
    )
    secrets_key_file: Path | None = Field(
        None,
        description="File with the keys that encrypt the secrets in the database: 32 bytes in Base64, one key a "
        "line, the newest first. Default: they are not encrypted.",
    )
    database_connections: Annotated[int, Field(ge=1, le=500)] = Field(
        10,
        description="Maximum number of connections of one worker to PostgreSQL; writes use up to three quarters of "
        "them, lists and counts up to an eighth.",
    )
