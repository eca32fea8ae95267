"""A program: an application with a constant response, under the pool's uvicorn and protocol.

python bench/rig/constant.py FILE PORT WORKERS
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from ccp.cli import startup, workers
from ccp.server.access.client_address import TrustedProxies
from ccp.server.http.connection_limits import ConnectionRegistry
from ccp.server.http.protocol import STATE
from ccp.server.http.uvicorn_options import uvicorn_options
from ccp.server.settings import Settings


def create() -> Any:
    body = Path(os.environ["OPNC_CCP_BENCH_ANSWER"]).read_bytes()
    headers = [(b"content-length", str(len(body)).encode()), (b"content-type", b"application/json")]
    config = Settings()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            scope["state"][STATE] = ConnectionRegistry(config, TrustedProxies(config.trusted_proxies))
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return application


def main() -> None:
    file, port, count = sys.argv[1:]
    os.environ["OPNC_CCP_BENCH_ANSWER"] = file
    arguments = uvicorn_options(Settings()) | {"host": "127.0.0.1", "port": int(port), "workers": int(count)}
    workers.run("constant:create", startup.bind("127.0.0.1", int(port)), factory=True, log_level="warning", **arguments)


if __name__ == "__main__":
    main()
