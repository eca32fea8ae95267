"""Reference pages of the error codes: one for each, and a table of all."""

from __future__ import annotations

from http import HTTPStatus

from ccp.cli.documentation.markdown import code, table
from ccp.errors.codes import ErrorCode


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
            table(["", ""], [["Status", f"{each.status} {phrase}"], ["Who has to act", each.responsible]]),
            f"## What it means\n\n{each.meaning}\n",
            f"## What to do\n\n{each.action}\n",
            "The response's `errorMessages` say what is wrong in this case; give its `traceId` to the pool's operator "
            "when you ask. [All error codes](../error-codes.md)\n",
        )
    )
