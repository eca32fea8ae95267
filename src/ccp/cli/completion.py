"""Shell completion for a shell that is named: `ccp --show-completion zsh`.

Without a name typer detects the shell from the parent processes. It ignores a name, and would print the script of the
wrong shell. Drop this when typer accepts one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ccp.errors import ConfigurationError

_OPTIONS: Final = ("--install-completion", "--show-completion")
_SHELLS: Final = ("bash", "zsh", "fish", "powershell", "pwsh")


def completion(arguments: Sequence[str], program: str) -> str | None:
    """What to print for the arguments of the program, if they are one of the options and a shell; otherwise None.

    Raises ConfigurationError for a shell that is not known.
    """
    if len(arguments) != 2 or arguments[0] not in _OPTIONS:
        return None
    option, shell = arguments
    if shell not in _SHELLS:
        raise ConfigurationError(f"There is no completion for {shell}; the shells are {', '.join(_SHELLS)}.")
    from typer._completion_shared import get_completion_script, install

    variable = f"_{program.upper()}_COMPLETE"
    if option == "--show-completion":
        return get_completion_script(prog_name=program, complete_var=variable, shell=shell)
    _, path = install(shell=shell, prog_name=program, complete_var=variable)
    return f"Completion is installed in {path}; it takes effect in a new {shell}."
