"""ccp demo and ccp sandbox: a pool with simulated partners."""

from __future__ import annotations

import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from ccp.cli.output import JsonOption, console, print_json, print_line, print_styled

_PORT: Final = 8020


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(demo)
    app.command()(sandbox)


def demo() -> None:
    """Run the complete flow over HTTP: a simulated vehicle gets, verifies and decrypts a contract, in both editions."""
    from ccp.server.sandbox.demo import run

    def print_step(edition: str, text: str, result: str, elapsed: float) -> None:
        print_styled(("✓", "green"), (f" {edition:12} {text:62} {result:44} {elapsed * 1000:7.1f} ms", ""))

    began = time.perf_counter()
    story = run(print_step)
    print_line("")
    print_styled(
        (f"{story.steps} steps in {time.perf_counter() - began:.1f} s.", "bold"),
        (f" Installed: {', '.join(story.installed)}.", ""),
    )


def _default_port() -> int:
    """Return the usual port, or a free one if a server listens on the usual one."""
    try:
        socket.create_connection(("127.0.0.1", _PORT), timeout=1).close()
    except OSError:
        return _PORT
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free: int = probe.getsockname()[1]
        return free


def sandbox(
    directory: Annotated[Path, typer.Argument(help="A new or empty directory.")],
    port: Annotated[
        int | None, typer.Option(help="Port of the sandbox's pool. Default: 8020, or a free one if it is in use.")
    ] = None,
    store: Annotated[
        bool, typer.Option("--store/--no-store", help="Whether to publish the sample contracts in the pool.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Create a test PKI, parties with credentials, sample vehicles and contracts, and a configuration."""
    from ccp.server.sandbox.setup import create, first_steps

    base_url = f"http://127.0.0.1:{_default_port() if port is None else port}"
    with console().status("Creating keys and certificates …"):
        world = create(directory, base_url, datetime.now(UTC), store_samples=store)
    if as_json:
        files = {"config": str(directory / "ccp.toml"), "credentials": str(directory / "credentials.json")}
        print_json({"directory": str(directory), "base_url": base_url, **files})
        return
    for line in f"""The sandbox is in {directory}. Start its pool:

  ccp serve --config {directory}/ccp.toml

{first_steps(world, base_url)}
The credentials of all parties are in {directory}/credentials.json. Get a token, and send a vehicle's request:

  TOKEN=$(curl -s {base_url}/oauth/token -d grant_type=client_credentials -d client_id=example-cpo \\
    -d client_secret=SECRET | python3 -c 'import json,sys; print(json.load(sys.stdin)["access_token"])')
  curl -s {base_url}/opnc/v1/ccp/signedcontractdata -H "Authorization: Bearer $TOKEN" \\
    -H 'Content-Type: application/json' -d @{directory}/samples/iso2/request_WEX0SANDBOX000001.json""".split("\n"):
        print_line(line)
