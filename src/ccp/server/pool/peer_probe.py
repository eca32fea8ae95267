"""Probe of a peer: whether it answers and accepts the credentials of this pool. It stores nothing there.

`ccp peer test`, `ccp doctor` and the console call it.
"""

from __future__ import annotations

import ssl

from httpcore import AsyncNetworkBackend

from ccp.client import AsyncClient, BadRequestError, MalformedResponseError, Routing
from ccp.errors import CCPError, ConfigurationError
from ccp.ids import Namespace
from ccp.server.pool.peer_links import client_options
from ccp.server.storage.queries.peers import Peer


async def probe_peer(
    peer: Peer,
    timeout: float,  # noqa: ASYNC109  of the client
    tls: ssl.SSLContext,
    backend: AsyncNetworkBackend | None = None,
) -> None:
    """Send a peer a malformed vehicle request, which a pool that accepts our credentials refuses as malformed.

    timeout: seconds. tls: for https. backend: makes the connections; None for the client's own. Raises
    ConfigurationError if the peer cannot be called as registered, and ClientError if it does not work.
    """
    try:
        client = AsyncClient(network_backend=backend, tls=tls, **client_options(peer, timeout))  # type: ignore[arg-type]
    except (CCPError, ValueError) as exc:
        raise ConfigurationError(str(exc)) from exc
    try:
        routing = Routing(to_type="ccp", to_id=peer.party_id)
        await client.deliver(b"\0", Namespace.ISO2, routing=routing, timeout=timeout)
    except BadRequestError:
        return
    finally:
        await client.close()
    raise MalformedResponseError(f"{peer.party_id} accepts a malformed vehicle request; it is probably no pool.")
