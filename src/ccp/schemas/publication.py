"""The body of a publication that carries its message under the name of either dialect."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from ccp.schemas.field_errors import MISSING_MEMBER
from ccp.schemas.opnc import SignedContractData

_RES: Final = "certificateInstallationRes"
_XML: Final = "signedContractDataXML"


class SignedContractDataOrXML(SignedContractData):
    """As `SignedContractData`, with the message in `certificateInstallationRes` or in `signedContractDataXML`.

    The second is the name that OPCP 1.0 publishes. Exactly one of them is there, with EXI or XML in Base64.
    """

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": [_RES]}, {"required": [_XML]}]})

    certificateInstallationRes: Annotated[str, Field(min_length=1)] = ""
    signedContractDataXML: Annotated[str, Field(min_length=1)] | None = Field(None, validate_default=True)

    @field_validator(_XML)
    @classmethod
    def _exactly_one(cls, value: str | None, info: ValidationInfo) -> str | None:
        other = info.data.get(_RES)  # None if it is invalid, which is an error of its own.
        if value is None and other == "":
            raise PydanticCustomError(MISSING_MEMBER, f"{_RES} : is missing, and so is {_XML}")
        if value is not None and other != "":
            raise PydanticCustomError("field", f"{_XML} : must not be given together with {_RES}")
        return value

    @property
    def message(self) -> str:
        """The message, EXI or XML, in Base64."""
        return self.signedContractDataXML or self.certificateInstallationRes
