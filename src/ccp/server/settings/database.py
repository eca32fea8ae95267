"""Settings of the database."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field


class DatabaseSettings(BaseModel):
    """The database and its connections."""

    database: str = Field(
        "sqlite:///ccp.db",
        description="Database URL: sqlite:///FILE, or postgresql://USER:PASSWORD@HOST:PORT,HOST:PORT/NAME.",
    )
    secrets_key_file: Path | None = Field(
        None,
        description="File with the keys that encrypt secrets in the database: Base64, one a line, the newest first.",
    )
    database_connections: Annotated[int, Field(ge=1, le=500)] = Field(
        10, description="Maximum number of connections of one worker to PostgreSQL."
    )
