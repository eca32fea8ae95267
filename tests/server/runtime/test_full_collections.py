"""Full garbage collections pause the event loop: their cost does not grow with the number of partners."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.server.storage.made import new_database
from tests.server.storage.party_data import add_parties

SERVED = """
import asyncio, gc, json
from ccp.server import app
from ccp.server.events import Subscribers
from ccp.server.domain.parties import Party
from ccp.server.domain.subscriptions import Webhook

def seen():
    gc.collect()
    return [sum(isinstance(each, kind) for each in gc.get_objects()) for kind in (Party, Webhook)]

async def run():
    served = app.create_app()
    async with served.router.lifespan_context(served):
        found = [seen()]
        subscribers = next(each for each in kept if isinstance(each, Subscribers))
        subscribers._feed._numbers = None  # As after a long absence: everything is read again.
        await subscribers.refresh()
        print(json.dumps([*found, seen(), len(subscribers._cache.known)]))

kept, made = [], Subscribers.__init__
Subscribers.__init__ = lambda self, *args: (kept.append(self), made(self, *args))[1]
asyncio.run(run())
"""


def test_full_collections_do_not_go_through_partners(tmp_path: Path) -> None:
    url = new_database(tmp_path)
    add_parties(url, 30)
    (tmp_path / "ccp.toml").write_text(
        f'database = "{url}"\nbase_url = "https://ccp.example.com"\nevent_dispatch = false\n'
    )
    done = subprocess.run(
        [sys.executable, "-c", SERVED],
        env={**os.environ, "CCP_CONFIG": str(tmp_path / "ccp.toml")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    at_start, after_reload, webhooks = json.loads(done.stdout)
    assert webhooks == 32
    assert at_start == [0, 0]
    assert after_reload == [0, 0]
