"""Answers of a scripted peer with a contract, in both dialects."""

from __future__ import annotations

import base64
from typing import Any

from ccp import exi
from tests.scripted_server import Reply, json_reply
from tests.world import ISO2, SESSION, Contract

BASE = "/opnc/v1/ccp"


def item_of(contract: Contract, **members: Any) -> dict[str, Any]:
    data = exi.replace_header_fields(contract.message, session_id=SESSION)
    return {**contract.body, "certificateInstallationRes": base64.b64encode(data).decode(), **members}


def opnc(contract: Contract, **members: Any) -> Reply:
    return json_reply({"signedContractDataCollection": [item_of(contract, **members)]})


def opcp(contract: Contract) -> Reply:
    item = item_of(contract)
    message = {"certificateInstallationRes": item["certificateInstallationRes"], "emaid": item["emaid"], "metaData": ""}
    return json_reply({"CCPResponse": {"emaidContent": [{"messageDef": message}]}, "xsdMsgDefNamespace": ISO2})
