"""Where the pool is and how callers authenticate, for the OpenAPI description. Source: OpenAPI 3.1, Security Scheme."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final

from ccp.server.domain.authorization import role_table
from ccp.server.domain.parties import PartyRole
from ccp.server.http.routes import oauth

OAUTH2: Final = "oauth2"
BEARER: Final = "bearer"

_ROLES: Final = {
    PartyRole.EMSP: "contracts of one's own provider ids",
    PartyRole.CPO: "requests of vehicles",
    PartyRole.OEM: "vehicles of one's own WMIs",
    PartyRole.CPS: "publishing for the providers that one signs for",
    PartyRole.CCP: "requests that another pool passes on",
    PartyRole.ADMIN: "the register of parties, and what the pool counts",
}


def describe(described: dict[str, Any], public_url: str, opcp_tag: str) -> None:
    """Add the server, the security schemes, and to each operation the roles one of which it is for.

    opcp_tag: what operation ids of that dialect begin with. An operation that says itself what it needs is left as it
    is.
    """
    described["servers"] = [{"url": public_url}]
    described["components"]["securitySchemes"] = {
        OAUTH2: {
            "type": "oauth2",
            "description": "Client credentials of a registered party. A scope is one of its roles; all without.",
            "flows": {
                "clientCredentials": {
                    "tokenUrl": public_url + oauth.PATH,
                    "scopes": {role.value: words for role, words in _ROLES.items()},
                }
            },
        },
        BEARER: {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "JWT",
            "description": "An access token of the pool, or of an issuer that it trusts.",
        },
    }
    roles: defaultdict[str, list[str]] = defaultdict(list)
    for operation, role, _ in role_table():
        roles[operation.value].append(role.value)
    for item in described["paths"].values():
        for operation in item.values():
            allowed = roles[operation["operationId"].removeprefix(opcp_tag)]
            operation.setdefault("security", [*({OAUTH2: [role]} for role in allowed), {BEARER: []}])
