"""Requests made by schemathesis from an API description, sent to a running pool."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from schemathesis import engine
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events

from ccp.errors.codes import ErrorCode
from tests.server.http.api.answers import PATH_TOO_LONG
from tests.world import Pool

ANSWERS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
"""Checks of what is answered."""
CHECKS = (*ANSWERS, "negative_data_rejection")
"""Left out is positive_data_acceptance: a body is more than its schema says (Base64, EXI, signed), so that most data
that is valid to the schema is refused with 400; and the published default has nothing but 400 for unknown ids."""


def config(
    pool: Pool,
    party: str | None,
    examples: int,
    *,
    base: str = "",
    checks: Sequence[str] = CHECKS,
    known: Mapping[str, Sequence[str]] | None = None,
    places: Mapping[str, str] | None = None,
    facets: bool = True,
) -> SchemathesisConfig:
    """The configuration of a run.

    party: whose token the requests have; None: no token. examples: made up for each operation. base: path before those
    of the description. known: values by name. places: parameters and members that mostly have a known value, such as
    `path.emaid`, and the name of those values. facets: whether each facet of a schema is tried too.
    """
    return SchemathesisConfig.from_dict(
        {
            "base-url": pool.base_url + base,
            "seed": 20,
            "headers": {"Authorization": f"Bearer {pool.token(party)}"} if party else {},
            "generation": {"max-examples": examples, "deterministic": True, "no-shrink": True},
            "dictionaries": {name: {"values": list(values)} for name, values in (known or {}).items()},
            "parameters": {place: {"dictionary": name, "probability": 0.6} for place, name in (places or {}).items()},
            "checks": {"enabled": False, **{name: {"enabled": True} for name in checks}},
            "phases": {"stateful": {"enabled": False}, "coverage": {"enabled": facets}},
        }
    )


def run(schema: Any) -> tuple[Counter[tuple[str, int]], list[str]]:
    """Send the requests. Returns how many answers there were by operation and status, and what was wrong with them.

    Every answer of 400 and above has the members of errors; a refusal in OPCP has the negative message besides.
    """
    answers: Counter[tuple[str, int]] = Counter()
    failures: dict[str, str] = {}
    for event in engine.from_schema(schema).execute():
        if isinstance(event, events.NonFatalError):
            failures[f"{event.label}: {event.info.title}"] = str(event.value)
        elif isinstance(event, events.FatalError):
            raise event.exception
        elif isinstance(event, events.ScenarioFinished):
            for case_id, interaction in event.recorder.interactions.items():
                label = event.recorder.label
                if interaction.response is not None:
                    if interaction.response.status_code == PATH_TOO_LONG:
                        continue
                    answers[label, interaction.response.status_code] += 1
                    if interaction.response.status_code >= 400:
                        error = json.loads(interaction.response.content)
                        assert set(error) - {"CCPResponse"} == {"errorMessages", "traceId"}, label
                        (code,) = interaction.response.headers["x-error-code"]
                        assert ErrorCode(code), label
                for check in event.recorder.checks.get(case_id, []):
                    if check.failure_info is not None:
                        failure = check.failure_info.failure
                        failures[f"{label}: {failure.title}"] = f"{failure.message}\n{check.failure_info.code_sample}"
    return answers, [f"{title}\n{text}" for title, text in failures.items()]
