"""Declarations for tests, and what a database holds after them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ccp.testing.pki import PKI
from tests.databases import sql

TABLES = ("party", "party_owns", "party_secret", "peer", "trust_anchor", "audit", "subscription", "outbox")

DECLARED = """
[[party]]
name = "Example Mobility"
client_id = "mobility"
roles = ["emsp", "cps"]
provider_ids = ["DEEXA"]
secret_file = "secrets/mobility"

[[party]]
name = "Example Charging"
roles = ["cpo"]
operator_ids = ["DE*EXC"]

[[party]]
name = "Example Motors"
roles = ["oem"]
wmis = ["WEX"]
enabled = false

[[peer]]
party_id = "pool-b"
base_url = "https://pool-b.example"
client_id = "us"
secret_env = "POOL_B_SECRET"
provider_ids = ["NLEXB"]

[[peer]]
party_id = "pool-c"
base_url = "https://pool-c.example"
dialect = "opcp"
secret_env = "POOL_B_SECRET"

[[anchor]]
file = "roots"
roles = ["v2g", "emsp"]
"""
MOBILITY = "a-secret-of-example-mobility"
PEER_SECRET = "a-secret-of-pool-b"
VARIABLES = {"POOL_B_SECRET": PEER_SECRET}


def prepare_files(folder: Path, pki: PKI) -> None:
    """The files that DECLARED names."""
    (folder / "secrets").mkdir()
    (folder / "secrets" / "mobility").write_text(f"{MOBILITY}\n")
    (folder / "roots").mkdir()
    (folder / "roots" / "v2g.pem").write_bytes(pki.v2g_root.certificate.pem())


def state(url: str, *tables: str) -> str:
    """A digest of everything that a refused declaration must leave as it is."""
    rows = [sorted(map(repr, sql(url, f"select * from {table}"))) for table in tables or TABLES]
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def recorded(url: str) -> list[str]:
    """The recorded actions, sorted."""
    return sorted(action for (action,) in sql(url, "select action from audit"))


def rows(url: str, statement: str) -> list[tuple[Any, ...]]:
    return sorted(map(tuple, sql(url, statement)))
