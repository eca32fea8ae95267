"""Reading the metrics of a running pool."""

from __future__ import annotations

import httpx
from prometheus_client.parser import text_string_to_metric_families

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
"""Values by name and labels."""


def parse_metrics(text: str) -> Samples:
    families = text_string_to_metric_families(text)
    return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}


def read_metrics(url: str) -> Samples:
    """The metrics at a base URL, over a new connection, so that any worker may answer."""
    answer = httpx.get(f"{url}/metrics", timeout=10)
    assert answer.status_code == 200, answer.text
    return parse_metrics(answer.text)


def sample(samples: Samples, name: str, **labels: str) -> float:
    """The value of the sample with exactly these labels; 0 if there is none."""
    return samples.get((name, frozenset(labels.items())), 0)


def total(samples: Samples, name: str, **labels: str) -> float:
    """The sum of all samples that have these labels, among others."""
    wanted = set(labels.items())
    return sum(value for (one, found), value in samples.items() if one == name and wanted <= found)
