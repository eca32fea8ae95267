"""Which webhook may begin deliveries next, while an overloaded worker has little time for them.

Webhooks that ask while there is no time wait in the order in which they asked. So one that always has something to send
keeps no other waiting for longer than all others take.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

_DELAY: Final = 0.05  # Between two looks for time, seconds.


class TurnTaking:
    """One for each dispatcher."""

    def __init__(self, has_time: Callable[[], bool]) -> None:
        """has_time: whether deliveries may be begun now; true once for each time that they are."""
        self._has_time = has_time
        self._waiting: dict[str, asyncio.Event] = {}
        self._granted: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None

    def may_begin(self, webhook_id: str, wake: asyncio.Event) -> bool:
        """Whether deliveries to a webhook may be begun. If not, `wake` is set when they may, and it is asked again."""
        if webhook_id in self._granted:
            self._granted.discard(webhook_id)
            return True
        if not self._waiting and self._has_time():
            return True
        self._waiting.setdefault(webhook_id, wake)
        self._look_later()
        return False

    def forget(self, webhook_id: str) -> None:
        self._waiting.pop(webhook_id, None)
        self._granted.discard(webhook_id)

    def close(self) -> None:
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _look_later(self) -> None:
        if self._timer is None and self._waiting:
            self._timer = asyncio.get_running_loop().call_later(_DELAY, self._look)

    def _look(self) -> None:
        self._timer = None
        while self._waiting and self._has_time():
            webhook_id, wake = next(iter(self._waiting.items()))
            del self._waiting[webhook_id]
            self._granted.add(webhook_id)
            wake.set()
        self._look_later()
