"""Waiting for background tasks of the pools in this process, so that a test waits no longer than they take."""

from __future__ import annotations

import pytest

from ccp.server.runtime.background import Supervised
from tests.waiting import wait_until


def wait_for_round(*tasks: str, servers: int = 1, failed: bool = False) -> None:
    """Wait until each of these background tasks has run a round that began after this call.

    servers: the number of running pools whose tasks have to do so. failed: wait for rounds that failed. Raises
    AssertionError after 20 seconds.
    """
    ended: dict[str, set[Supervised]] = {task: set() for task in tasks}
    run_round = Supervised._round

    async def counted(self: Supervised) -> float:
        delay = await run_round(self)
        if self.task.name in ended and bool(self._failures) is failed:
            ended[self.task.name].add(self)
        return delay

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Supervised, "_round", counted)
        wait_until(
            lambda: all(len(each) >= servers for each in ended.values()),
            describe=lambda: {task: f"{len(each)} of {servers} servers" for task, each in ended.items()},
        )


def wait_until_loaded(*snapshots: str, servers: int = 1) -> None:
    """Wait until the pools have loaded every change of these snapshots that other processes announced before."""
    wait_for_round("poll_changes", servers=servers)
    wait_for_round(*(f"refresh_{snapshot}" for snapshot in snapshots), servers=servers)
