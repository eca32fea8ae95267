"""The options of uvicorn, the same for one worker, for several workers and for tests."""

from __future__ import annotations

import ssl
from typing import Any

from ccp.server.http import protocol, tls
from ccp.server.settings import Settings


def uvicorn_options(config: Settings) -> dict[str, Any]:
    """Return keyword arguments for `uvicorn.Config`. Classes are named, because workers may be new processes."""
    options: dict[str, Any] = {
        "http": f"{protocol.__name__}:{protocol.Connection.__name__}",
        "loop": f"{tls.__name__}:{tls.Loop.__name__}",
        "ws": "none",
        "proxy_headers": False,
        "server_header": False,
        "access_log": False,
        "timeout_graceful_shutdown": 20,
    }
    if config.tls_cert is not None:
        options |= {
            "ssl_certfile": config.tls_cert,
            "ssl_keyfile": config.tls_key,
            "ssl_context_factory": tls.tls_context,
        }
    if config.tls_client_ca is not None:
        options |= {"ssl_ca_certs": config.tls_client_ca, "ssl_cert_reqs": ssl.CERT_REQUIRED}
    return options
