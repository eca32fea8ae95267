"""Compare the processor time of POST, PUT and import with that of an earlier revision, in one run.

    python bench/compare.py REVISION [--rounds 7] [--seconds 3] [--contracts 1600] [--only post put import]

Both revisions use the packages of this environment. Each has a process that runs its own copy of this file with
its own `src` and `bench/rig`, publishes contracts into its own SQLite file, and serves them with one worker. They take
turns within each round, and each round yields one ratio, so a machine whose speed drifts does not matter. The table has
CPU of the server for each request (median of the rounds), the median of the ratios, and the ratio of the lowest values,
which a busy machine disturbs least. Exit status 1 when a median ratio is above --limit.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
OPERATIONS: Final = ("post", "post-again", "put", "import")


class Side:
    """A measured revision: a child process that runs `serve_side` and reads one command per line."""

    def __init__(self, tree: Path, contracts: int, stack: ExitStack) -> None:
        command = [sys.executable, str(tree / "bench" / "compare.py"), "--side", str(tree)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tree / "src"), str(tree / "bench")))}
        self._process = stack.enter_context(
            subprocess.Popen(
                [*command, "--contracts", str(contracts)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
        )
        stack.callback(self._end)
        self._answer()

    def measure(self, operation: str, seconds: float) -> float:
        """CPU seconds per request, or per line of an import."""
        assert self._process.stdin is not None
        print(json.dumps([operation, seconds]), file=self._process.stdin, flush=True)
        return float(self._answer())

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("A revision could not be measured; its own message stands above.")
        return json.loads(line)

    def _end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def serve_side(tree: Path, contracts: int) -> None:
    """Publish, serve, and answer commands from standard input until it ends. Imports come from the revision itself."""
    import ccp

    if not Path(ccp.__file__).is_relative_to(tree):
        raise SystemExit(f"ccp was imported from {Path(ccp.__file__).parent}, not from {tree}.")
    import uvloop

    import bulk
    from ccp.server import logging, settings
    from ccp.server.storage.engine import schema
    from request import token_of
    from rig import load, processes, world

    processes.end_in_order()
    with tempfile.TemporaryDirectory(prefix="ccp-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        config = folder / "ccp.toml"
        config.write_text(f'base_url = "{world.BASE_URL}"\n')
        database = f"sqlite:///{folder / 'ccp.db'}"
        schema.upgrade(database)
        loaded = settings.load(config, database=database)
        logging.configure(loaded.model_copy(update={"log_level": "error"}))
        made = world.build(datetime.now(UTC).replace(microsecond=0), {"iso2": contracts})
        uvloop.run(world.fill(loaded, made))
        server = stack.enter_context(processes.serving(config, database, 1, folder / "server.log"))
        tokens = {
            key: token_of(f"http://127.0.0.1:{server.port}/oauth/token", member.party.client_id, member.secret)
            for key, member in made.members.items()
        }
        operations = world.operations(made, tokens)
        loads = load.Loads(folder)
        imports = 0
        print(json.dumps("ready"), flush=True)
        for line in sys.stdin:
            operation, seconds = json.loads(line)
            if operation == "import":
                imports += 1
                prepared, fleet = bulk.make(folder / f"sandbox-{imports}", 2000)
                cost = asyncio.run(bulk.imported(prepared, fleet, 2))[2]
            else:
                before = server.cpu()
                seen = loads.closed(operations[operation], server.port, 16, seconds)
                cost = (server.cpu() - before) / seen.requests
            print(json.dumps(cost), flush=True)


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """The files of a revision, in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="ccp-compare-") as name:
        archive = subprocess.run(
            ["git", "archive", revision, "src", "bench", "tests"], cwd=ROOT, capture_output=True, check=True
        )
        subprocess.run(["tar", "-x", "-C", name], input=archive.stdout, check=True)
        yield Path(name).resolve()


def main() -> int:
    options = argparse.ArgumentParser(description="Compare the cost of operations with an earlier revision.")
    options.add_argument("revision", nargs="?")
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--seconds", type=float, default=3)
    options.add_argument("--contracts", type=int, default=1600)
    options.add_argument("--limit", type=float, default=1.03)
    options.add_argument("--only", nargs="+", choices=OPERATIONS, default=OPERATIONS)
    options.add_argument("--side", type=Path, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.side is not None:
        serve_side(given.side, given.contracts)
        return 0
    if given.revision is None:
        options.error("which revision to compare with?")
    with checked_out(given.revision) as tree, ExitStack() as stack:
        before, now = Side(tree, given.contracts, stack), Side(ROOT, given.contracts, stack)
        worst = 0.0
        print(f"{'':12}{given.revision:>12}{'here':>12}{'ratio':>9}{'of lowest':>11}   ratios of {given.rounds} rounds")
        for operation in given.only:
            pairs = []
            for number in range(given.rounds + 1):
                # The first in a round changes, so that neither always follows the other.
                order = (before, now) if number % 2 else (now, before)
                found = {side: side.measure(operation, given.seconds) for side in order}
                if number:  # The first round warms caches.
                    pairs.append((found[before], found[now]))
            ratios = sorted(after / earlier for earlier, after in pairs)
            ratio = statistics.median(ratios)
            worst = max(worst, ratio)
            first, second = (statistics.median(pair[place] for pair in pairs) * 1e6 for place in (0, 1))
            lowest = min(after for _, after in pairs) / min(earlier for earlier, _ in pairs)
            spread = f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
            print(f"{operation:12}{first:9.0f} µs{second:9.0f} µs{ratio:9.3f}{lowest:11.3f}   {spread}", flush=True)
    return int(worst > given.limit)


if __name__ == "__main__":
    sys.exit(main())
