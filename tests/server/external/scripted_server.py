"""Other names of `tests.scripted_server`, until the tests that are being written use its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.scripted_server import CLOSE as DROP  # noqa: F401
from tests.scripted_server import HANG, NOT_HTTP, Received, Reply, Script, Scripted, run  # noqa: F401
from tests.scripted_server import error as refusal  # noqa: F401
from tests.scripted_server import json_reply as json_answer  # noqa: F401
from tests.scripted_server import nowhere as unused_url  # noqa: F401
from tests.server.external.calls import connection, with_outbound  # noqa: F401

Call = Received
Answers = Script


class _Answers:
    def __init__(self, server: Scripted) -> None:
        self._server = server

    def __setitem__(self, path: str, script: Script) -> None:
        self._server.on(path, script)


class ScriptedServer(Scripted):
    @property
    def answers(self) -> _Answers:
        return _Answers(self)

    @property
    def calls(self) -> list[Received]:
        return self.received


@contextmanager
def scripted_server() -> Iterator[ScriptedServer]:
    with run(ScriptedServer) as server:
        yield server
