"""Error messages as partners receive them: the `errorMessages` of an error answer, the lines of an import report."""

from __future__ import annotations

from ccp.errors import CCPError, EXIError


def error_messages(error: CCPError) -> tuple[str, ...]:
    """Return the sentences for an error.

    An EXI error has the API's fixed sentence first, then the position and the reason.
    """
    if isinstance(error, EXIError):
        return ("EXI format is invalid!", f"{str(error)[0].upper()}{str(error)[1:]}.")
    return error.messages
