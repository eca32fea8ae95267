"""Every error type of pydantic has a sentence of the API; no text of pydantic reaches a caller."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated, Any, Literal, get_args

import pytest
from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError
from pydantic_core import PydanticKnownError, core_schema

from ccp.errors import FieldError
from ccp.schemas import field_errors
from ccp.schemas.events import PostEndpointReq, PutEndpointUpdateReq
from ccp.schemas.field_errors import field_error
from ccp.schemas.json_bodies import read_body
from ccp.schemas.opnc import GetSignedContractDataReq, SignedContractData
from ccp.server.http.routes import admin


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Inner(BaseModel):
    pcid: str


class Everything(BaseModel):
    """A member for each kind of value that the bodies of the API have."""

    model_config = ConfigDict(extra="forbid")

    text: Annotated[str, Field(min_length=1, max_length=3, pattern="^[a-z]*$")] = "a"
    longer: Annotated[str, Field(min_length=2)] = "aa"
    clean: Annotated[str, Field(pattern="^[^\\x00]*$")] = ""
    maybe: str | None = None
    names: Annotated[list[str], Field(min_length=1, max_length=2)] = Field(default_factory=lambda: ["a"])
    choice: Literal["on", "off"] = "on"
    colour: Colour = Colour.RED
    colours: list[Colour] = Field(default_factory=list)
    flag: StrictBool = False
    lax: bool = False
    number: Annotated[int, Field(ge=1, le=9)] = 1
    strict: Annotated[int, Field(strict=True, gt=1, lt=9)] = 2
    inner: Inner = Inner(pcid="x")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"text": None}, "text : must not be null"),
        ({"text": 5}, "text : must be a string"),
        ({"text": ""}, "text : must not be empty"),
        ({"text": "abcd"}, "text : must have at most 3 characters"),
        ({"text": "A"}, 'text : must match "^[a-z]*$"'),
        ({"longer": "a"}, "longer : must have at least 2 characters"),
        ({"clean": "a\0"}, "clean : must not contain U+0000"),
        ({"maybe": []}, "maybe : must be a string"),
        ({"names": "a"}, "names : must be an array"),
        ({"names": None}, "names : must not be null"),
        ({"names": []}, "names : must not be empty"),
        ({"names": ["a"] * 3}, "names : must have at most 2 items"),
        ({"names": ["a", None]}, "names.1 : must not be null"),
        ({"names": ["a", {}]}, "names.1 : must be a string"),
        ({"choice": "none"}, "choice : must be 'on' or 'off'"),
        ({"choice": 1}, "choice : must be 'on' or 'off'"),
        ({"colour": "green"}, "colour : must be 'red' or 'blue'"),
        ({"colour": None}, "colour : must not be null"),
        ({"colours": ["red", "green"]}, "colours.1 : must be 'red' or 'blue'"),
        ({"flag": 1}, "flag : must be true or false"),
        ({"flag": "true"}, "flag : must be true or false"),
        ({"lax": "maybe"}, "lax : must be true or false"),
        ({"lax": []}, "lax : must be true or false"),
        ({"number": "x"}, "number : must be an integer"),
        ({"number": 1.5}, "number : must be an integer"),
        ({"number": []}, "number : must be an integer"),
        ({"number": "9" * 5000}, "number : must be an integer of fewer digits"),
        ({"number": 0}, "number : must be at least 1"),
        ({"number": 10}, "number : must be at most 9"),
        ({"strict": "2"}, "strict : must be an integer"),
        ({"strict": 1}, "strict : must be greater than 1"),
        ({"strict": 9}, "strict : must be less than 9"),
        ({"inner": []}, "inner : must be an object"),
        ({"inner": None}, "inner : must not be null"),
        ({"inner": {}}, "inner.pcid : is missing"),
        ({"inner": {"PCID": "x", "vin": 1}}, "inner.pcid : is missing (given: PCID, vin)"),
        ({"number_": 1}, "number_ : unknown member, did you mean number?"),
        ({"other": 1}, "other : unknown member"),
        ({"\x1b[31m": 1}, '"\\u001b[31m" : unknown member'),
        ({"x" * 100: 1}, f"{'x' * 40}… : unknown member"),
    ],
)
def test_sentence_for_each_kind_of_wrong_value(members: dict[str, Any], message: str) -> None:
    with pytest.raises(FieldError) as caught:
        read_body(Everything, json.dumps(members).encode())
    assert caught.value.messages == (message,)


def test_sentence_for_every_error_type_of_pydantic() -> None:
    known = get_args(core_schema.ErrorType)
    assert len(known) > 90
    context = dict.fromkeys(("min_length", "max_length", "gt", "ge", "lt", "le", "actual_length"), 1)
    context |= {"pattern": "^a$", "expected": "'a'", "field_type": "List"}
    for kind in known:
        problem: Any = {"type": kind, "loc": ("a",), "msg": "Input should be Pydantic's own", "ctx": context}
        message = field_errors.sentence(problem)
        assert message.startswith("a : ")
        assert "Input" not in message
        assert "own" not in message.replace("unknown", "")
    # Each kind in the table is one that there is.
    for kind in field_errors._PREDICATES:
        assert kind in known
    assert PydanticKnownError("missing").type == "missing"


MODELS = (
    *(SignedContractData, GetSignedContractDataReq, PostEndpointReq, PutEndpointUpdateReq),
    *admin.BODIES,
)
VALUES: tuple[Any, ...] = (
    None,
    5,
    -1,
    1.5,
    True,
    "",
    "x" * 20_000,
    "\0",
    [],
    [None],
    [5],
    [[]],
    {},
    {"a": None},
    2**70,
)


@pytest.mark.parametrize("model", MODELS)
def test_sentence_for_every_member_of_every_body(model: type[BaseModel]) -> None:
    refused = 0
    for name in model.model_fields:
        for value in VALUES:
            try:
                read_body(model, json.dumps({name: value}).encode())
            except FieldError as exc:
                refused += 1
                for message in exc.messages:
                    assert not message.endswith(field_errors._DEFAULT), (name, value)
                    for word in ("Input", "String", "should", "Extra", "validation", "Field", "Value"):
                        assert word not in message, (name, value, message)
    assert refused > len(model.model_fields)


def test_sentence_for_an_error_of_the_whole_body() -> None:
    with pytest.raises(ValidationError) as caught:
        Everything.model_validate_json(b"[]")
    assert field_error(caught.value.errors()).messages == ("The body is not a JSON object.",)
