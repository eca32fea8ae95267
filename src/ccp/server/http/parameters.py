"""Path and query parameters that the dialects share."""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

from fastapi import Path, Query

from ccp.ids import Namespace
from ccp.schemas.common import EMAIDField, FingerprintField, NamespaceField, PCIDField, SessionIDField

EMAIDPath: TypeAlias = Annotated[EMAIDField, Path(description="The contract.")]
PCIDPath: TypeAlias = Annotated[PCIDField, Path(description="The vehicle.")]
NamespaceQuery: TypeAlias = Annotated[
    NamespaceField, Query(alias="xsdMsgDefNamespace", description="The version of ISO 15118.")
]
RootQuery: TypeAlias = Annotated[
    FingerprintField | None,
    Query(alias="cpsV2GRootCertificateFingerprint", description="SHA-256 of the V2G root of the CPS chain."),
]
SessionQuery: TypeAlias = Annotated[
    SessionIDField,
    Query(alias="sessionID", description="Hexadecimal, at most eight bytes; inserted into the message."),
]

DEFAULT_NAMESPACE: Final = Namespace.ISO2
