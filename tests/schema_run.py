"""Requests made by schemathesis from an API description, sent to a running pool."""

from __future__ import annotations

from collections import Counter
from typing import Any

from schemathesis import engine
from schemathesis.engine import events

from tests.server.http.api.answers import PATH_TOO_LONG

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
)
"""Left out is positive_data_acceptance: a body is more than its schema says (Base64, EXI, signed), so that most data
that is valid to the schema is refused with 400; and the published default has nothing but 400 for unknown ids."""


def run(schema: Any) -> tuple[Counter[tuple[str, int]], list[str]]:
    """Send the requests. Returns how many answers there were by operation and status, and what was wrong with them."""
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
                for check in event.recorder.checks.get(case_id, []):
                    if check.failure_info is not None:
                        failure = check.failure_info.failure
                        failures[f"{label}: {failure.title}"] = f"{failure.message}\n{check.failure_info.code_sample}"
    return answers, [f"{title}\n{text}" for title, text in failures.items()]
