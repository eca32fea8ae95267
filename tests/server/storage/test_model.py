"""Contract queries compared with a model in memory, for random sequences of writes."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.databases import Server
from tests.server.storage.contract_model import check_against_model
from tests.server.storage.made import new_database


def test_sqlite_agrees_with_the_model(tmp_path: Path) -> None:
    new_database(tmp_path)

    def new() -> str:
        for file in tmp_path.glob("used.db*"):
            file.unlink()
        shutil.copy(tmp_path / "ccp.db", tmp_path / "used.db")
        return f"sqlite:///{tmp_path / 'used.db'}"

    check_against_model(new, 30)


def test_postgres_agrees_with_the_model(postgres: Server) -> None:
    check_against_model(postgres.emptied, 10)
