"""Look the installed packages up in the advisory database that pip-audit asks. Exit status 1 if one is vulnerable.

A package index that is a mirror may know no advisories. Then nothing was audited, and that is said; it fails nothing,
because the next run on a machine that reaches the database catches up.
"""

from __future__ import annotations

import json
import subprocess
import sys


def main() -> int:
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off", "--skip-editable"]
    done = subprocess.run([*command, "--timeout", "20"], capture_output=True, text=True, check=False)  # noqa: S603
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        print(f"SKIPPED: no advisory database could be asked ({reason[:200]}).")
        return 0
    found = [(one["name"], one["version"], flaw) for one in packages for flaw in one.get("vulns", ())]
    for name, version, flaw in found:
        print(f"{name} {version}: {flaw['id']}, fixed in {', '.join(flaw['fix_versions']) or 'no release yet'}")
    known = sum("skip_reason" not in one for one in packages)
    if not known:
        print(f"SKIPPED: the advisory database knows none of {len(packages)} packages (an index without advisories).")
    else:
        print(f"{known} of {len(packages)} packages looked up, {len(found)} advisories.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
