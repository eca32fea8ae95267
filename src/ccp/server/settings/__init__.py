"""Settings, read once into one frozen object: from a file (`ccp.toml`), overridden by environment variables `CCP_…`.

Each module has the settings of one subject; `model` joins them, `loading` reads them, `names` finds misspelt ones.
"""

from ccp.server.settings.access import MAX_TOKEN_LIFETIME
from ccp.server.settings.apis import OPCPNoContractResponse
from ccp.server.settings.contracts import VehicleTrust
from ccp.server.settings.external import EnrolmentSubjects
from ccp.server.settings.loading import DEFAULT_FILE, file_in_effect, load
from ccp.server.settings.logs import LogIdentifiers, MetricsAccess
from ccp.server.settings.model import Settings
from ccp.server.settings.revocation import RevocationMode

__all__ = [
    "DEFAULT_FILE",
    "MAX_TOKEN_LIFETIME",
    "EnrolmentSubjects",
    "LogIdentifiers",
    "MetricsAccess",
    "OPCPNoContractResponse",
    "RevocationMode",
    "Settings",
    "VehicleTrust",
    "file_in_effect",
    "load",
]
