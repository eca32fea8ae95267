"""Probe of a peer: whether it answers and accepts the credentials of this pool. It stores nothing there."""

from __future__ import annotations

from httpcore import AsyncNetworkBackend

from ccp.client import AsyncClient, BadRequestError, ClientError, Routing
from ccp.errors import CCPError
from ccp.ids import Namespace
from ccp.server.external.egress import client_tls_context
from ccp.server.pool.peer_links import client_options
from ccp.server.storage.queries.peers import Peer


async def probe_peer(
    peer: Peer,
    timeout: float,  # noqa: ASYNC109  of the client
    backend: AsyncNetworkBackend,
) -> str | None:
    """Send a peer a malformed vehicle's request, which a pool that accepts our credentials refuses as malformed.

    timeout: seconds. backend: makes the connections. Returns why the peer does not work; None if it does.
    """
    try:
        client = AsyncClient(network_backend=backend, tls=client_tls_context(), **client_options(peer, timeout))  # type: ignore[arg-type]
    except (CCPError, ValueError) as exc:
        return str(exc)
    try:
        routing = Routing(to_type="ccp", to_id=peer.party_id)
        await client.deliver(b"\0", Namespace.ISO2, routing=routing, timeout=timeout)
    except BadRequestError:
        return None
    except ClientError as exc:
        return str(exc)
    finally:
        await client.close()
    return "It accepts a malformed vehicle's request, so it is probably no pool."
