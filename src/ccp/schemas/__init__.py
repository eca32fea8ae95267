"""The JSON of every API as pydantic models, one module per API, each in the API's own casing.

    from ccp.schemas.json_bodies import read_body
    from ccp.schemas.opnc import SignedContractData

    data = read_body(SignedContractData, body)      # body: bytes; raises FieldError, which names every wrong field
    print(data.emaid, data.pcid)

- `opnc`, `opcp`: the contract operations in both dialects
- `events`, `event_types`: webhooks, and the names of the events
- `common`: ids, routing headers, the error body
- `json_bodies`, `json_input`, `field_errors`, `suggestions`: strict reading of JSON, with errors in the API's sentences
- `timestamps`: RFC 3339
"""

__all__ = [
    "common",
    "event_types",
    "events",
    "field_errors",
    "json_bodies",
    "json_input",
    "opcp",
    "opnc",
    "suggestions",
    "timestamps",
]
