"""The published descriptions of OPCP 1.0, without their mistakes.

They lie beside the repository and are not part of it. `MISTAKES` lists everything in them that cannot be meant, each
with a sentence; nothing else is changed before a pool is held against them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PUBLISHED = Path(__file__).resolve().parents[2] / "shared/opcp-spec"
CCP, RCP, WEBHOOKS = "ccp.v1.json", "rcp.v1.json", "webhooks.v1.json"

requires_description = pytest.mark.skipif(
    not PUBLISHED.exists(), reason=f"the published descriptions of OPCP are not at {PUBLISHED}"
)

_FINGERPRINT = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_ROOT = {
    "type": "string",
    "anyOf": [
        {"pattern": "^[0-9a-fA-F]{64}$"},
        {"pattern": r"^[0-9a-fA-F]{8}\-([0-9a-fA-F]{4}\-){3}[0-9a-fA-F]{12}$"},
    ],
}
_FINGERPRINT_NAME = "cpsV2GRootCertificateFingerprint"

JSON = dict[str, Any]


@dataclass(frozen=True)
class Mistake:
    """A mistake of a description. file: its name. sentence: what is wrong. mend: changes the description."""

    file: str
    sentence: str
    mend: Callable[[JSON], None]


def _objects(value: Any) -> Iterator[JSON]:
    """Every JSON object in a value."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for member in value:
            yield from _objects(member)


def _fingerprint_parameters(description: JSON) -> None:
    for found in _objects(description):
        if found.get("name") == _FINGERPRINT_NAME:
            found["schema"] = _ROOT
    body = description["components"]["schemas"]["SignedContractDataRequest"]["properties"]
    body[_FINGERPRINT_NAME] = _ROOT


def _fingerprint_members(description: JSON) -> None:
    for name in ("GetSignedContractDataResponse", "ProvideContractDataResponse"):
        for found in _objects(description["components"]["schemas"][name]):
            if _FINGERPRINT_NAME in found.get("properties", {}):
                found["properties"][_FINGERPRINT_NAME] = _FINGERPRINT


def _exchanged_patterns(description: JSON) -> None:
    contracts = description["components"]["schemas"]["LookupContractResponse"]["properties"]["XMLContracts"]
    members = contracts["items"]["properties"]
    members["cpsRootCertificateDN"]["pattern"] = members[_FINGERPRINT_NAME]["pattern"]
    members[_FINGERPRINT_NAME] = _FINGERPRINT


def _not_found(description: JSON) -> None:
    answer = description["paths"]["/v1/ccp/signedContractData"]["post"]["responses"]["404"]
    del answer["content"]["application/json"]["schema"]["required"]


def _one_path_twice(description: JSON) -> None:
    by_pcid = description["paths"].pop("/v1/ccp/signedContractData/{pcid}")
    by_emaid = description["paths"].pop("/v1/ccp/signedContractData/{emaid}")
    for item, method in ((by_pcid, "get"), (by_emaid, "delete")):
        for parameter in item["parameters"]:
            parameter["name"] = "id"
        item[method]["parameters"] = [*item["parameters"], *item[method].get("parameters", ())]
    description["paths"]["/v1/ccp/signedContractData/{id}"] = {"get": by_pcid["get"], "delete": by_emaid["delete"]}


def _statuses(path: str, method: str, *statuses: str) -> Callable[[JSON], None]:
    def mend(description: JSON) -> None:
        schema = {"$ref": "#/components/schemas/Error"}
        responses = description["paths"][path][method]["responses"]
        for status in statuses:
            assert status not in responses
            responses[status] = {"description": "Error", "content": {"application/json": {"schema": schema}}}

    return mend


def _lengths(description: JSON) -> None:
    for found in _objects(description["components"]["schemas"]):
        for name in ("contractCertificate", "caCertificate"):
            if isinstance(found.get(name), dict):
                found[name].pop("maxLength", None)


def _one_member(description: JSON) -> None:
    del description["components"]["schemas"]["RootCertV2"]["maxProperties"]


def _body_of_get(description: JSON) -> None:
    del description["paths"]["/v1/root/ctl"]["get"]["requestBody"]


MISTAKES = (
    Mistake(CCP, "A fingerprint (SHA-256) in a request has the pattern of a UUID.", _fingerprint_parameters),
    Mistake(CCP, "A fingerprint (SHA-256) in a response has the pattern of a UUID.", _fingerprint_members),
    Mistake(
        CCP,
        "In the list of contracts a root's fingerprint has the pattern of a name, and its name that of a UUID.",
        _exchanged_patterns,
    ),
    Mistake(CCP, "The 404 of POST requires CCPResponse, which one of its two own examples does not have.", _not_found),
    Mistake(
        CCP,
        "GET signedContractData/{pcid} has no answer but 200.",
        _statuses("/v1/ccp/signedContractData/{pcid}", "get", "400", "401", "403", "404"),
    ),
    Mistake(CCP, "signedContractData/{emaid} and signedContractData/{pcid} are one path to OpenAPI.", _one_path_twice),
    Mistake(CCP, "A certificate of the size that ISO 15118-2 allows is longer than 800 characters.", _lengths),
    Mistake(RCP, "A certificate of the size that ISO 15118-2 allows is longer than 800 characters.", _lengths),
    Mistake(RCP, "A root has at most one member, two of which are required.", _one_member),
    Mistake(RCP, "GET root/ctl has a body, of which the description says that it is not defined.", _body_of_get),
    Mistake(
        RCP,
        "GET root/ctl needs a token and has no answer for a caller without one.",
        _statuses("/v1/root/ctl", "get", "400", "401", "403"),
    ),
)


def published(file: str) -> JSON:
    """A description as it is published, except that references to other files are resolved."""
    description: JSON = json.loads((PUBLISHED / file).read_text("utf-8"))
    for found in _objects(description):
        reference = found.get("$ref", "")
        if reference.startswith("./"):
            other, _, pointer = reference[2:].partition("#/")
            target: Any = json.loads((PUBLISHED / other).read_text("utf-8"))
            for step in pointer.split("/"):
                target = target[step]
            found.clear()
            found.update(target)
    return description


def mended(file: str) -> JSON:
    """A description without its mistakes."""
    description = published(file)
    for mistake in MISTAKES:
        if mistake.file == file:
            mistake.mend(description)
    return description
