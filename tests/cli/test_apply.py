"""ccp apply: what it shows, changes, refuses and records, with a database of its own."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ccp.server.access.client_secrets import hash_secret, matching_hash
from ccp.testing.pki import PKI
from tests.cli.run import COMMAND, CommandResult, ccp, ccp_error, ccp_ok, environment
from tests.databases import sql
from tests.server.declaration.files import (
    DECLARED,
    MOBILITY,
    PEER_SECRET,
    VARIABLES,
    prepare_files,
    recorded,
    rows,
    state,
)


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pkis: dict[str, PKI]) -> str:
    """An empty database, and DECLARED in `pool.toml`."""
    monkeypatch.chdir(tmp_path)
    ccp_ok("db", "upgrade")
    prepare_files(tmp_path, pkis["iso2"])
    declare(DECLARED)
    return f"sqlite:///{tmp_path / 'ccp.db'}"


def declare(text: str) -> None:
    Path("pool.toml").write_text(text)


def apply(*options: object, **variables: str) -> CommandResult:
    return ccp_ok("apply", "pool.toml", *options, env=VARIABLES | variables)


def applied(*options: object, **variables: str) -> dict[str, Any]:
    members: dict[str, Any] = json.loads(apply("--json", *options, **variables).out)
    return members


def summary(**counts: int) -> dict[str, int]:
    return {"add": 0, "change": 0, "remove": 0, "unchanged": 0, "undeclared": 0, **counts}


def refused(text: str, **variables: str) -> list[str]:
    """The problems of a declaration, which changes nothing."""
    declare(text)
    result = ccp("apply", "pool.toml", env=VARIABLES | variables)
    assert (result.status, result.out) == (1, "")
    return [line.removeprefix("ccp: ") for line in result.err.splitlines()]


def test_apply_adds_everything_once_and_a_second_run_changes_nothing(url: str) -> None:
    done = applied()
    assert done["summary"] == summary(add=7)
    assert sorted(done["client_secrets"]) == ["example-charging", "example-motors"]
    assert recorded(url) == ["anchor.added"] * 2 + ["party.added"] * 3 + ["peer.added"] * 2
    assert rows(url, "select client_id, enabled from party") == [
        ("example-charging", 1), ("example-motors", 0), ("mobility", 1),
    ]  # fmt: skip
    assert rows(url, "select party_id, dialect, client_id, secret, token from peer") == [
        ("pool-b", "opnc", "us", PEER_SECRET, None), ("pool-c", "opcp", None, None, PEER_SECRET),
    ]  # fmt: skip
    hashes = dict(rows(url, "select client_id, hash from party_secret"))
    assert matching_hash([hashes["mobility"]], MOBILITY)
    assert matching_hash([hashes["example-charging"]], done["client_secrets"]["example-charging"])
    before = state(url)
    again = applied()
    assert (again["summary"], again["changes"], again["client_secrets"]) == (summary(unchanged=7), [], {})
    assert applied("--prune", "--yes")["summary"] == summary(unchanged=7)
    assert state(url) == before
    assert ccp_ok("audit", "verify").status == 0


def test_apply_dry_run_changes_nothing_and_its_exit_status_says_whether_it_would(url: str) -> None:
    before = state(url)
    shown = ccp("apply", "pool.toml", "--dry-run", env=VARIABLES)
    assert (shown.status, state(url)) == (2, before)
    assert shown.lines[-1] == "7 to add, 0 to change, 0 to remove or disable, 0 unchanged."
    assert "+ party   mobility  Example Mobility" in shown.lines
    for secret in (MOBILITY, PEER_SECRET):
        assert secret not in shown.out
    apply()
    assert ccp("apply", "pool.toml", "--dry-run", env=VARIABLES).status == 0
    assert ccp("apply", "pool.toml", "--dry-run", env={"POOL_B_SECRET": "another"}).status == 2
    assert ccp("apply", "absent.toml", "--dry-run").status == 1


def test_apply_shows_old_and_new_values_and_of_secrets_only_that_they_changed(url: str) -> None:
    apply()
    declare(DECLARED.replace("DEEXA", "DEEXN").replace("//pool-b", "//new-b").replace("enabled = false", ""))
    shown = ccp("apply", "pool.toml", "--dry-run", env={"POOL_B_SECRET": "another-secret"})
    assert shown.lines == [
        "~ party   mobility  Example Mobility", "    provider_ids   DEEXA -> DEEXN",
        "~ party   example-motors  Example Motors", "    enabled        no -> yes",
        "~ peer    pool-b  https://new-b.example", "    base_url       https://pool-b.example -> https://new-b.example",
        "    secret         changed", "~ peer    pool-c  https://pool-c.example", "    secret         changed",
        "0 to add, 4 to change, 0 to remove or disable, 3 unchanged.",
    ]  # fmt: skip
    Path("secrets/mobility").write_text("a-new-secret-of-example-mobility")
    done = applied(POOL_B_SECRET="another-secret")
    assert [(change["id"], change["secret"]) for change in done["changes"]] == [
        ("mobility", "changed"), ("example-motors", None), ("pool-b", "changed"), ("pool-c", "changed"),
    ]  # fmt: skip
    assert recorded(url)[-8:] == [
        "party.added", "party.edited", "party.enabled", "peer.added", "peer.added", "peer.edited", "peer.edited",
        "secret.rotated",
    ]  # fmt: skip
    live = [digest for (digest,) in rows(url, "select hash from party_secret where client_id = 'mobility'")]
    assert matching_hash(live, MOBILITY)
    assert matching_hash(live, "a-new-secret-of-example-mobility")
    audited = "".join(map(str, rows(url, "select subject from audit")))
    assert not [text for text in ("another-secret", PEER_SECRET, MOBILITY, "argon2") if text in audited]
    assert applied(POOL_B_SECRET="another-secret")["changes"] == []


def test_apply_prune_removes_what_is_not_declared_after_a_confirmation(url: str, pkis: dict[str, PKI]) -> None:
    apply()
    root = Path("other.pem")
    root.write_bytes(pkis["iso20"].v2g_root.certificate.pem())
    ccp_ok("trust", "add", root, "--role", "v2g")
    declare(
        '[[party]]\nname = "Example Mobility"\nclient_id = "mobility"\nroles = ["emsp"]\nprovider_ids = ["DEEXA"]\n'
    )
    kept = applied()
    assert kept["summary"] == summary(change=1, undeclared=6)
    before = state(url)
    result = ccp("apply", "pool.toml", "--prune")
    assert (result.status, state(url)) == (1, before)
    assert result.err.splitlines()[-1] == (
        "ccp: Remove or disable 6 entries that pool.toml does not declare: this cannot be undone; confirm with --yes."
    )
    done = applied("--prune", "--yes")
    assert done["summary"] == summary(remove=6, unchanged=1)
    assert rows(url, "select client_id, enabled from party") == [
        ("example-charging", 0), ("example-motors", 0), ("mobility", 1),
    ]  # fmt: skip
    assert rows(url, "select party_id from peer") == rows(url, "select role from trust_anchor") == []
    assert {"party.disabled", "peer.removed", "anchor.removed"} <= set(recorded(url))
    assert applied("--prune", "--yes")["summary"] == summary(unchanged=1)


def test_apply_prune_keeps_anchors_of_a_root_certificate_pool(url: str) -> None:
    apply()
    sql(url, "update trust_anchor set source = 'https://rcp.example/opnc/v1/rcp'")
    declare(DECLARED.split("[[anchor]]")[0])
    assert applied("--prune", "--yes")["summary"] == summary(unchanged=5)
    declare(DECLARED)
    assert [change["members"] for change in applied()["changes"]] == [
        {"source": {"before": "https://rcp.example/opnc/v1/rcp", "after": "v2g.pem"}}
    ] * 2


def test_apply_prune_with_a_file_that_declares_nothing_is_refused(url: str) -> None:
    apply()
    declare("# cut\n")
    before = state(url)
    assert "declares nothing" in ccp_error("apply", "pool.toml", "--prune", "--yes")
    assert state(url) == before
    assert applied()["summary"] == summary(undeclared=6)  # A disabled party is what --prune would make of it.


def test_apply_writes_generated_secrets_to_a_new_private_file(url: str) -> None:
    done = applied("--secrets-file", "new-secrets")
    assert (done["client_secrets"], done["secrets_file"]) == ({}, "new-secrets")
    assert stat.S_IMODE(os.stat("new-secrets").st_mode) == 0o600
    written = dict(line.replace('"', "").split(" = ") for line in Path("new-secrets").read_text().splitlines())
    hashes = dict(rows(url, "select client_id, hash from party_secret"))
    assert sorted(written) == ["example-charging", "example-motors"]
    assert all(matching_hash([hashes[name]], secret) for name, secret in written.items())
    declare(DECLARED + '\n[[party]]\nname = "Late"\nroles = ["cpo"]\n')
    before = state(url)
    assert "exists" in ccp_error("apply", "pool.toml", "--secrets-file", "new-secrets", env=VARIABLES)
    assert state(url) == before
    assert len(Path("new-secrets").read_text().splitlines()) == 2


def test_apply_takes_the_hash_of_a_secret(url: str) -> None:
    digest = hash_secret("a-secret-that-only-the-partner-knows")
    declare(f'[[party]]\nname = "Hashed"\nroles = ["cpo"]\nsecret_hash = "{digest}"\n')
    assert applied()["client_secrets"] == {}
    assert rows(url, "select hash from party_secret") == [(digest,)]
    assert applied()["summary"] == summary(unchanged=1)
    other = hash_secret("another-secret-of-the-partner")
    declare(f'[[party]]\nname = "Hashed"\nroles = ["cpo"]\nsecret_hash = "{other}"\n')
    assert applied()["changes"][0]["secret"] == "changed"
    assert len(rows(url, "select hash from party_secret")) == 2


def test_apply_moves_ids_between_parties_in_any_order(url: str) -> None:
    entry = '[[party]]\nname = "{}"\nroles = ["emsp"]\nprovider_ids = ["{}"]\n'
    declare(entry.format("One", "DEONE") + entry.format("Two", "DETWO"))
    apply()
    declare(entry.format("One", "DETWO") + entry.format("Two", "DEONE"))
    assert applied()["summary"] == summary(change=2)
    assert rows(url, "select id, client_id from party_owns") == [("DEONE", "two"), ("DETWO", "one")]


def test_apply_finds_a_party_without_client_id_by_its_name(url: str) -> None:
    ccp_ok("party", "add", "By Name", "--role", "cpo", "--client-id", "other")
    declare('[[party]]\nname = "By Name"\nroles = ["cpo"]\noperator_ids = ["DEEXC"]\n')
    (change,) = applied()["changes"]
    assert (change["action"], change["id"]) == ("change", "other")


def test_apply_prints_the_present_state_as_a_declaration_that_changes_nothing(url: str) -> None:
    apply()
    ccp_ok("party", "add", 'Quotes "and" Ümlaut \U0001f600', "--role", "cps", "--all-providers", "--client-id", "odd")
    printed = ccp_ok("apply", "--print").out
    assert not [text for text in (MOBILITY, PEER_SECRET, "argon2") if text in printed]
    declare(printed)
    before = state(url)
    assert applied("--prune", "--yes")["summary"] == summary(unchanged=8)
    assert state(url) == before
    moved = {"CCP_DATABASE": "sqlite:///moved.db"}
    ccp_ok("db", "upgrade", env=moved)
    declare(printed.split("[[peer]]")[0] + "[[anchor]]" + printed.split("[[anchor]]")[1])
    ccp_ok("apply", "pool.toml", env=moved)
    assert ccp_ok("party", "list", "--json", env=moved).out == ccp_ok("party", "list", "--json").out
    assert "excludes" in ccp_error("apply", "--print", "--dry-run")
    assert ccp_error("apply") == "Give a file, or --print."


def test_apply_reads_standard_input(url: str) -> None:
    result = ccp_ok("apply", "-", "--json", stdin=DECLARED.encode(), env=VARIABLES)
    assert json.loads(result.out)["summary"] == summary(add=7)


def test_apply_says_every_problem_at_once_and_changes_nothing(url: str) -> None:
    ccp_ok("party", "add", "Owner", "--role", "emsp", "--provider-id", "NLOWN")
    before = state(url)
    found = refused(
        """
[[party]]
name = "Bad"
roles = ["emps"]
provider = ["DEEXA"]
[[party]]
name = "No Provider"
roles = ["emsp"]
[[party]]
name = "\u0420\u0430y"
roles = ["cpo"]
[[party]]
name = "Same"
roles = ["cpo"]
[[party]]
name = "same"
roles = ["cpo"]
[[party]]
name = "Weak"
roles = ["cpo"]
secret_env = "WEAK"
[[party]]
name = "Slow"
roles = ["cpo"]
secret_hash = "$argon2id$v=19$m=999999,t=9,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
[[peer]]
party_id = "pool-b"
base_url = "pool-b.example"
secret_file = "absent"
[[peer]]
party_id = "pool-d"
base_url = 7
[[anchor]]
file = "nothing.pem"
roles = ["v2g"]
[[anchor]]
roles = ["v2g"]
pem = "x"
[[anchors]]
""",
        WEAK="short",
    )
    assert state(url) == before
    assert [line.split(":")[0] for line in found] == [
        "anchors", "party 1 (line 2, Bad)", "party 1 (line 2, Bad)", 'party 2 (line 6, "No Provider")',
        'party 3 (line 9, "\\u0420\\u0430y")', "party 6 (line 18, Weak)", "party 7 (line 22, Slow)",
        "peer 1 (line 26, pool-b)", "peer 2 (line 30, pool-d)", "anchor 1 (line 33)", "anchor 2 (line 36)",
        "party 4 (line 12, Same)", "party 5 (line 15, same)",
    ]  # fmt: skip
    assert found[0] == "anchors: is nothing that can be declared; did you mean anchor?"
    assert "short" not in "".join(found)


def test_apply_refuses_ids_and_names_of_registered_parties(url: str) -> None:
    ccp_ok("party", "add", "Owner", "--role", "emsp", "--provider-id", "NLOWN", "--client-id", "first")
    before = state(url)
    entry = '[[party]]\nname = "{}"\nroles = ["emsp"]\nprovider_ids = ["{}"]\n'
    assert refused(entry.format("Thief", "NLOWN") + entry.format("OWNER", "DEEXA")) == [
        "party 1 (line 1, Thief): the provider id NLOWN belongs to Owner",
        "party 2 (line 5, OWNER): the name OWNER is taken by Owner (first)",
    ]
    twice = entry.format("One", "DEEXA") + entry.format("Two", "DEEXA")
    assert refused(twice) == [
        "party 1 (line 1, One): the provider id DEEXA belongs to Two",
        "party 2 (line 5, Two): the provider id DEEXA belongs to One",
    ]
    peer = '[[peer]]\nparty_id = "{}"\nbase_url = "https://b.example"\nsecret_env = "POOL_B_SECRET"\n'
    assert "more than once" in refused(peer.format("Pool-B") + peer.format("pool-b"))[0]
    assert refused('[[peer]]\nparty_id = "pool-b"\nbase_url = "https://b.example"\n') == [
        "peer 1 (line 1, pool-b): secret : a new peer needs secret_file or secret_env"
    ]
    assert state(url) == before


@pytest.mark.parametrize(
    "text",
    [
        b"party = 7", b"[party]\nname = 'x'", b"party = ['x']", b"\xff\xfe", b"[[party]", b"x = " + b"[" * 100_000,
        b"x = 1" + b"0" * 10_000, b"[[party]]\nname = 1979-05-27\nroles = {}", b"[[anchor]]\nroles = ['v2g']\nfile='/'",
        b"[[party]]\nname = 'x'\nroles = ['cpo']\nsecret_file = '/dev/zero'",
        b"[[party]]\nname = 'x'\nroles = ['cpo']\nsecret_file = '.'",
        b"[[party]]\nname = 'x'\nroles = ['cpo']\nclient_id = '../x'",
        b"[[party]]\nname = 'x'\nroles = ['cpo']\nclient_id = 'pool'",
        b"[[party]]\nname = 'x'\nroles = ['cpo']\nsecret_hash = '$argon2i$v=19$m=8,t=1,p=1$AAAAAAAAAAA$AAAA'",
        b"[[peer]]\nparty_id = 'pcp'\nbase_url='https://b.example'\nsecret_env = 'POOL_B_SECRET'",
        b"[[peer]]\nparty_id = 'x'\nbase_url='https://u:p@b.example'\nsecret_env = 'POOL_B_SECRET'",
        b"[[peer]]\nparty_id = 'x'\nbase_url='https://b.example'\nsecret_env = 'NOT_SET'",
        b"#" * 4_194_305,
    ],
    ids=range(18),
)  # fmt: skip
def test_apply_refuses_hostile_files_with_a_sentence(url: str, text: bytes) -> None:
    before = state(url)
    Path("pool.toml").write_bytes(text)
    result = ccp("apply", "pool.toml", env=VARIABLES)
    assert (result.status, result.out, state(url)) == (1, "", before)
    assert all(line.startswith("ccp: ") and len(line) < 500 for line in result.err.splitlines())


def test_apply_compares_tables_of_external_services_with_the_settings(url: str) -> None:
    Path("ccp.toml").write_text('[rcp]\nurl = "https://rcp.example/"\ntoken_file = "secrets/mobility"\n')
    declare(DECLARED + '\n[rcp]\nurl = "https://rcp.example"\ntoken_file = "secrets/mobility"\n')
    assert applied()["summary"] == summary(add=7)
    assert refused(
        '[rcp]\nurl = "https://other.example"\ntoken = "x"\naudiense = 1\n[pcp]\nurl = "https://pcp.example"'
    ) == [
        "[rcp]: url : differs from the settings; change ccp.toml, and restart the pool",
        "[rcp]: token : a secret does not belong here; name its file in ccp.toml",
        "[rcp]: audiense : is no setting of an external service; did you mean audience?",
        "[pcp]: the settings have no Provisioning Certificate Pool; set it in ccp.toml, and restart the pool",
    ]


CRASH = """
import os, signal
from ccp.server.declaration import applying
step = getattr(applying.{module}, "{name}")
def crash(*arguments, **options):
    yield from step(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)
applying.{module}.{name} = crash
from ccp.cli import main
main()
"""


@pytest.mark.parametrize(
    ("module", "name"), [("parties", "insert"), ("peers", "add"), ("anchors", "add_by_operator"), ("audit", "record")]
)
def test_apply_killed_between_steps_leaves_nothing_half(url: str, module: str, name: str) -> None:
    before = state(url)
    killed = subprocess.run(
        [sys.executable, "-c", CRASH.format(module=module, name=name), "apply", "pool.toml"],
        env=environment(**VARIABLES), capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert killed.returncode == -9, killed.stderr
    assert state(url) == before
    assert applied()["summary"] == summary(add=7)


def test_apply_twice_at_once_adds_everything_once(url: str) -> None:
    running = [
        subprocess.Popen(
            [*COMMAND, "apply", "pool.toml", "--json"], env=environment(**VARIABLES), stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    outcomes = [json.loads(process.communicate(timeout=120)[0]) for process in running]
    assert sorted(outcome["summary"]["add"] for outcome in outcomes) == [0, 0, 7]
    assert recorded(url) == ["anchor.added"] * 2 + ["party.added"] * 3 + ["peer.added"] * 2
    (winner,) = [outcome for outcome in outcomes if outcome["summary"]["add"]]
    hashes = dict(rows(url, "select client_id, hash from party_secret"))
    assert all(matching_hash([hashes[name]], secret) for name, secret in winner["client_secrets"].items())
    assert [outcome["client_secrets"] for outcome in outcomes if outcome is not winner] == [{}, {}]
