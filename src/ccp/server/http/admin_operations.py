"""What the routes of the admin API have in common: how an operation is described, conditional changes, the actor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, TypeAlias

from fastapi import APIRouter, Depends, Header, Request
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from ccp.server.access.admin_changes import Precondition
from ccp.server.domain.actor import Actor
from ccp.server.domain.authorization import AdminOperation
from ccp.server.domain.parties import Caller
from ccp.server.http import preconditions
from ccp.server.http.request_context import Handler
from ccp.server.http.responses import body_description, error_descriptions

BASE: Final = "/admin/v1"


class RequestBody(BaseModel):
    """Base of request bodies. A member may be absent, but not null."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def fields(self) -> dict[str, Any]:
        """The members that were given."""
        return self.model_dump(exclude_unset=True)


def describe(
    api: APIRouter,
    method: str,
    path: str,
    operation: AdminOperation,
    answer: type[BaseModel],
    body: type[BaseModel] | None = None,
    status: int = 200,
    *,
    tagged: str | None = None,
    needs_body: bool = True,
) -> Callable[[Handler], Handler]:
    """Return the decorator that adds an operation to a router.

    tagged: what the response's ETag is of; None without one. needs_body: whether the body is required.
    """
    one = "{" in path  # An operation on one entry.
    failures = [401, 403, 500, 503]
    failures += [412] if one and method != "GET" else []
    failures += [404] if one else []
    failures += [] if operation in (AdminOperation.GET_ROLES, AdminOperation.GET_EXPIRY) else [400]
    failures += [413, 415] if body else []
    tag = {"ETag": {"description": f"Entity tag of the {tagged} as GET shows it.", "schema": {"type": "string"}}}
    return api.api_route(
        BASE + path,
        methods=[method],
        name=operation.value,
        operation_id=operation.value,
        summary=operation.value,
        response_class=Response,
        status_code=status,
        responses={
            status: {"model": answer, **({"headers": tag} if tagged else {})},
            **error_descriptions(sorted(failures)),
        },
        openapi_extra=body_description(body, required=needs_body) if body else None,
    )


_IfMatch: TypeAlias = Annotated[
    str | None, Header(alias="If-Match", description="ETag that the entry must have; * or no header: any.")
]


def if_match(noun: str) -> Any:
    """Return the dependency that evaluates If-Match. noun: what the entry is.

    It comes after the caller in a signature, so that the caller is authenticated before the header is evaluated.
    """

    def precondition(request: Request, declared: _IfMatch = None) -> Precondition:
        return preconditions.if_match(request.headers.getlist("if-match"), noun)

    return Depends(precondition)


def actor_of(caller: Caller) -> Actor:
    """The caller as the one who makes a change."""
    return Actor(caller.party.client_id, caller.trace_id, caller.kid)
