"""Reference pages of the error codes: one for each, and a table of all."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from ccp.cli.documentation.markdown import code, table
from ccp.errors.codes import ErrorCode, Responsible

_WHO: Final = {
    Responsible.CALLER: "the caller, whose system sent the request",
    Responsible.EMSP: "the eMSP, the driver's provider",
    Responsible.CPO: "the CPO, the operator of the charging station",
    Responsible.OEM: "the OEM, the manufacturer of the car",
    Responsible.CPS: "the CPS, the provisioning service that signs for the eMSP",
    Responsible.OPERATOR: "the operator of this pool",
}


def error_pages() -> dict[str, str]:
    """The Markdown of each page by its path below reference/: error-codes.md, and errors/CODE.md for each."""
    rows = [
        [f"[{code(each)}](errors/{each}.md)", f"{each.status}", each.responsible, _first_sentence(each.meaning)]
        for each in sorted(ErrorCode)
    ]
    index = "\n".join(
        (
            "# Error codes\n",
            "Every refusal has a stable code: in the header `X-Error-Code` of the response and, as `code`, in the log. "
            "The sentences of the response say more about the single case; the code is for programs and for looking it "
            "up here. A vehicle's request that is refused gets status 200 with a negative message, and the code in the "
            "header.\n",
            table(["code", "status", "who has to act", "meaning"], rows),
        )
    )
    return {"error-codes.md": index, **{f"errors/{each}.md": _page(each) for each in ErrorCode}}


def _first_sentence(text: str) -> str:
    return text.partition(". ")[0].rstrip(".") + "."


def _page(each: ErrorCode) -> str:
    phrase = HTTPStatus(each.status).phrase
    return "\n".join(
        (
            f"# {each}\n",
            f"**Who has to act:** {_WHO[each.responsible]}  \n**HTTP status:** {each.status} {phrase}\n",
            f"## What it means\n\n{each.meaning}\n",
            f"## What to do\n\n{each.action}\n",
            "The sentences of the response say what is wrong in this case. Give the response's trace id to the pool's "
            "operator when you ask; `ccp why` explains a delivery by it. [All error codes](../error-codes.md)\n",
        )
    )
