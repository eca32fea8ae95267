"""Check of an external service as configured: connection, token, and a first call that changes nothing there."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from ccp.client.untrusted_text import sentences
from ccp.errors import CCPError, ChainError, NotFound, Unavailable, UpstreamError
from ccp.ids import Namespace
from ccp.server.external.access_tokens import ClientCredentials, TokenError
from ccp.server.external.connection_check import TIMEOUT, CheckFailure, Step, check_connection, connection_failure
from ccp.server.external.egress import EgressBackend
from ccp.server.external.est import CASelection, ESTRefusal, ESTServer
from ccp.server.external.outbound import HttpResponse, OutboundError
from ccp.server.external.provisioning_pool import ProvisioningCertificatePool
from ccp.server.external.provisioning_service import CertificateProvisioningService, parse_chains
from ccp.server.external.root_pool import RootCertificatePool
from ccp.server.external.service_client import get_member, parse_json
from ccp.server.external.service_connection import ServiceConnection
from ccp.server.runtime.redacted_urls import hide_credentials
from ccp.x509.http_urls import origin_of
from ccp.x509.path_validation import TrustAnchors
from ccp.x509.profiles import AnchorRole, Profile, Usage

_MAX_BYTES: Final = 1_048_576
_UNKNOWN_PCID: Final = "ZZZ00000000000000"
"""A vehicle that no manufacturer has: ZZZ is a WMI that is not assigned."""


@dataclass(frozen=True, slots=True)
class ServiceCheck:
    """The result for one service.

    service: prefix of its settings. ms: milliseconds of the first call; None unless it succeeded. steps: in order; if
    one failed, it is the last one. advice: one sentence for a failure.
    """

    service: str
    name: str
    url: str
    dialect: str
    authentication: str
    ok: bool
    ms: float | None
    steps: tuple[Step, ...]
    advice: str | None


@dataclass(frozen=True, slots=True)
class _Context:
    connection: ServiceConnection
    prefix: str
    anchors: TrustAnchors | None
    now: datetime
    est_labels: Mapping[str, str]


_Call = Callable[[_Context], Coroutine[Any, Any, str]]


async def check_service(
    connection: ServiceConnection,
    prefix: str,
    backend: EgressBackend,
    anchors: TrustAnchors | None,
    now: datetime,
    est_labels: Mapping[str, str],
) -> ServiceCheck:
    """Check one service; raises nothing for its failures.

    prefix: of its settings. backend: of the connections. anchors: of this pool; None if they could not be read.
    est_labels: the CAs at the EST server, as in the settings.
    """
    steps: list[Step] = []
    milliseconds, advice = None, None
    try:
        steps += await check_connection(connection, prefix, backend)
        steps.append(await _check_token(connection, prefix))
        began = time.monotonic()
        detail = await _CALLS[prefix](_Context(connection, prefix, anchors, now, est_labels))
        milliseconds = round((time.monotonic() - began) * 1000, 1)
        steps.append(Step("call", True, detail))
    except CheckFailure as exc:
        steps.append(exc.step)
        advice = exc.advice
    except CCPError as exc:  # One service must not hide what the others said.
        steps.append(Step("call", False, str(exc)))
        advice = f"Check {prefix}_url and {prefix}_dialect, and ask the service's operator."
    settings = connection.settings
    return ServiceCheck(
        prefix,
        connection.name,
        hide_credentials(connection.url),
        settings.dialect.value,
        settings.authentication,
        advice is None,
        milliseconds,
        tuple(steps),
        advice,
    )


async def _check_token(connection: ServiceConnection, prefix: str) -> Step:
    began = time.monotonic()
    try:
        token = await connection.tokens.get()
    except TokenError as exc:
        cause = exc.__cause__
        if connection.settings.token_url is None:
            advice = f"Check {prefix}_token_file: the pool has to be able to read it."
        elif isinstance(cause, OutboundError):
            _, host, port = origin_of(connection.settings.token_url)
            failure = connection_failure(cause, prefix, f"{host}:{port}", bool(connection.tls.cert))
            advice = f"Check {prefix}_token_url and the way to it: {failure.step.detail}"
        else:
            advice = f"Check {prefix}_client_id, its secret, {prefix}_audience and {prefix}_scope with the issuer."
        raise CheckFailure("token", str(cause or exc), advice) from exc
    if token is None:
        return Step("token", True, "none is configured")
    if not isinstance(connection.tokens, ClientCredentials):
        return Step("token", True, "as configured; whether it is valid shows in the call")
    took = (time.monotonic() - began) * 1000
    return Step("token", True, f"granted in {took:.0f} ms, valid for {connection.tokens.lifetime:.0f} s")


async def _send(context: _Context, path: str, accepted: tuple[int, ...] = (200,)) -> HttpResponse:
    """Send a GET. Raises CheckFailure for a status that is not accepted."""
    try:
        response = await context.connection.request(
            "GET", path, headers={"Accept": "application/json"}, timeout=2 * TIMEOUT, max_bytes=_MAX_BYTES
        )
    except OutboundError as exc:
        raise _not_answered(context, exc) from exc
    except TokenError as exc:
        advice = f"Check the credentials of {context.prefix}: the token was refused, and there is no other one."
        raise CheckFailure("call", str(exc.__cause__ or exc), advice) from exc
    if response.status not in accepted:
        raise _refused(context, path, response)
    return response


def _not_answered(context: _Context, exc: OutboundError) -> CheckFailure:
    _, host, port = origin_of(context.connection.url)
    failure = connection_failure(exc, context.prefix, f"{host}:{port}", bool(context.connection.tls.cert))
    return CheckFailure("call", failure.step.detail, failure.advice)


def _refused(context: _Context, path: str, response: HttpResponse) -> CheckFailure:
    status, prefix = response.status, context.prefix
    reasons = sentences(get_member(_json(response), "errorMessages"))
    detail = f"GET {path} answered {status}{': ' + ' '.join(reasons) if reasons else '.'}"
    if status == 401:
        return CheckFailure("call", detail, f"Check the credentials of {prefix}: the service does not accept them.")
    if status == 403:
        advice = "Ask the service's operator to permit this operation; the credentials are accepted, but not for it."
        return CheckFailure("call", detail, advice)
    if status == 429 or status >= 500:
        return CheckFailure("call", detail, "Ask the service's operator; the service cannot answer now.")
    dialect = context.connection.settings.dialect.value
    advice = f"Check {prefix}_url and {prefix}_dialect (now {dialect}); the service does not know the path."
    return CheckFailure("call", detail, advice)


def _json(response: HttpResponse) -> object:
    try:
        return parse_json(response, "service")
    except UpstreamError:
        return None


def _unreadable(context: _Context, exc: CCPError) -> CheckFailure:
    advice = f"Check {context.prefix}_url and {context.prefix}_dialect; the answer is not one of such a service."
    return CheckFailure("call", str(exc), advice)


async def _call_root_pool(context: _Context) -> str:
    pool = RootCertificatePool(context.connection)
    await _send(context, pool.paths[0], (200, 404) if len(pool.paths) > 1 else (200,))
    try:
        found = await pool.list_roots()
    except UpstreamError as exc:
        raise _unreadable(context, exc) from exc
    counts = Counter(role for root in found.roots for role in root.roles)
    by_role = ", ".join(f"{role.value} {counts[role]}" for role in AnchorRole)
    unusable = f"; {len(found.unusable)} entries cannot be used" if found.unusable else ""
    return f"GET {pool.paths[0]}: {len(found.roots)} roots ({by_role}){unusable}"


async def _call_provisioning_pool(context: _Context) -> str:
    path = ProvisioningCertificatePool(context.connection).lookup_path(_UNKNOWN_PCID)
    response = await _send(context, path, (200, 404, 410))
    # A wrong address answers 404 too, but not with the published body.
    if response.status != 200 and get_member(_json(response), "errorMessages") is None:
        raise _refused(context, path, response)
    return f"GET {path}: {response.status}, as for a vehicle that is not known"


async def _call_pki_service(context: _Context) -> str:
    path = "/pki/revokeCertificate"
    response = await _send(context, path, (200, 400, 404, 405, 501))
    return f"GET {path}: {response.status}; the published API has nothing to read, so only a revocation tests the rest"


async def _call_est_server(context: _Context) -> str:
    server, found = ESTServer(context.connection), []
    for name, label in context.est_labels.items():
        try:
            certificates = await server.ca_certificates(CASelection(label), "ccp neighbour test")
        except (UpstreamError, Unavailable) as exc:
            if isinstance(exc.__cause__, OutboundError):
                raise _not_answered(context, exc.__cause__) from exc
            advice = f"Check {context.prefix}_url and the credentials of {context.prefix}."
            raise CheckFailure("call", str(exc), advice) from exc
        except (NotFound, ESTRefusal) as exc:
            advice = f"Check {context.prefix}_url, {context.prefix}_dialect and the label of {name} in est_labels."
            raise CheckFailure("call", str(exc), advice) from exc
        found.append(f"{name}: {len(certificates)} certificates of {certificates[0].display_name}")
    return f"cacerts: {'; '.join(found) or 'no CA is configured in est_labels'}"


async def _call_provisioning_service(context: _Context) -> str:
    path = CertificateProvisioningService(context.connection).path
    response = await _send(context, path)
    try:
        chains = parse_chains(response)
    except UpstreamError as exc:
        raise _unreadable(context, exc) from exc
    counted = f"GET {path}: {len(chains)} certificates"
    if context.anchors is None:
        return f"{counted}; not verified, because the trust anchors of this pool could not be read"
    problems = []
    for chain in chains:
        try:
            context.anchors.verify(
                chain.certificate,
                chain.sub_cas,
                usage=Usage.CPS,
                now=context.now,
                profile=Profile.ISO2 if chain.namespace is Namespace.ISO2 else Profile.ISO20,
            )
        except ChainError as exc:
            problems.append(str(exc))
    if chains and len(problems) == len(chains):
        advice = "Add the V2G root of the service with `ccp trust add`; publications that it signs are refused."
        raise CheckFailure("call", f"{counted}, none of them verifies here: {problems[0]}", advice)
    return f"{counted}, {len(chains) - len(problems)} of them verify under the V2G roots of this pool"


_CALLS: Final[Mapping[str, _Call]] = {
    "rcp": _call_root_pool,
    "pcp": _call_provisioning_pool,
    "pki": _call_pki_service,
    "est": _call_est_server,
    "cps": _call_provisioning_service,
}
