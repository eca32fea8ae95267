"""Webhooks that the previous release stored, after an upgrade of the schema."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic import command

from ccp.server.domain.subscriptions import PreviousSecret, SignatureFormat, Webhook
from ccp.server.events.secret_rotation import rotated
from ccp.server.storage.engine import schema
from ccp.server.storage.queries import webhooks
from tests.server.events.receiver import webhook
from tests.server.storage.made import read, sql, write

BEFORE = "0013"
NOW = datetime(2026, 11, 29, tzinfo=UTC)


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without a schema."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ccp.db'}"
    made: str = request.getfixturevalue("postgres").database(empty=True)
    return made


def test_webhooks_keep_their_secrets_in_an_upgrade(empty: str) -> None:
    command.upgrade(schema.migrations(empty), BEFORE)
    stored = webhook("https://hooks.example/a", created_at=NOW, updated_at=NOW)
    sql(
        empty,
        "insert into webhook (id, client_id, url, description, events, wmis, provider_ids, metadata, api_version, "
        "enabled, secret, created_at, updated_at) values (?, 'oem', ?, '', ?, '[]', '[]', '{}', 'v1', ?, ?, ?, ?)",
        *(stored.id, stored.url, json.dumps(stored.events), True, stored.secret),
        *(int(NOW.timestamp() * 1e6), int(NOW.timestamp() * 1e6)),
    )
    schema.upgrade(empty)
    found = read(empty, webhooks.find(stored.id))
    assert found == stored
    assert (found.signature_format, found.previous_secrets) == (SignatureFormat.SHA256, ())

    after: Webhook = rotated(found, 60, 3600, NOW)
    write(empty, webhooks.put(after))
    assert read(empty, webhooks.find(stored.id)) == after
    assert after.previous_secrets == (PreviousSecret(stored.secret, NOW + timedelta(seconds=60)),)
    schema.downgrade(empty, BEFORE)
    schema.upgrade(empty)
    assert read(empty, webhooks.find(stored.id)).valid_secrets(NOW) == (after.secret,)
