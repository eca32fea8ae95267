"""Names that write to a terminal: in certificates, client ids, parties of an older release, peers and partners."""

from __future__ import annotations

import ast
import io
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from ccp import cli
from ccp.server import logging
from ccp.server.audit.actor import command_actor
from ccp.server.domain.parties import Party, PartyRole
from ccp.server.runtime.terminal_text import is_visible, printable, printable_json
from ccp.server.settings import Settings
from ccp.server.storage.queries import audit as queries
from ccp.server.storage.queries import parties, peers
from ccp.server.storage.queries.audit import Action, Entry
from ccp.server.storage.queries.peers import Peer
from ccp.server.trust.anchors import add_anchor, trusted_certificate
from ccp.x509.certificates import Certificate
from ccp.x509.profiles import AnchorRole as TrustRole
from tests.cli.run import CommandResult, ccp
from tests.server.storage.made import AT, new_database, sql, write

# Clear screen by C0 and by C1, DEL, overrides and isolates, marks, zero width, separators, selectors, fillers, markup.
HOSTILE = "x\x1b[2J\x9b31m\x7f\u202egnp.exe\u2066\u2069\u200e\u200f\u061c\u200b\u2028\u2029\ufe0f\u3164\u0085[red]y"
BIDI_AND_CONTROLS = {*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0)), *HOSTILE} - set("x[2J31mgnp.exe]redy\n")


def shows_itself(text: str) -> bool:
    return not BIDI_AND_CONTROLS & set(text)


def certificate_named(name: str) -> Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name, _validate=False)])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(7).not_valid_before(AT).not_valid_after(AT + timedelta(days=4000))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=2), critical=True)
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    builder = builder.add_extension(usage, critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return Certificate.load(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """A database in which everything that can have a name has a hostile one; the option that names it."""
    folder = tmp_path_factory.mktemp("hostile")
    url = new_database(folder)
    (folder / "ccp.toml").write_text(f'database = "{url}"\nlog_level = "error"\n')
    party = Party("hostile", HOSTILE, frozenset({PartyRole.CPO}))
    peer = Peer(HOSTILE, "https://peer.example", "opnc", HOSTILE, "secret", None, HOSTILE, None, frozenset())
    entry = Entry(AT, HOSTILE, Action.ACCESS_REFUSED, {"claimed": HOSTILE, "cause": [HOSTILE]}, HOSTILE, HOSTILE)
    write(
        url,
        parties.insert(party, "hash", AT),
        add_anchor(trusted_certificate(certificate_named(HOSTILE), TrustRole.V2G, HOSTILE, AT), command_actor(), AT),
        peers.add(peer, AT),
        queries.record(entry),
    )
    webhook = ["w" + HOSTILE, "hostile", "https://hooks.example/?a=" + HOSTILE]
    columns = [row[1] for row in sql(url, "select * from pragma_table_info('webhook')")]
    values = dict.fromkeys(columns, "[]") | dict(zip(("id", "client_id", "url"), webhook, strict=True))
    for name in ("created_at", "updated_at"):
        values[name] = 0  # type: ignore[assignment]
    if "enabled" in columns:
        values["enabled"] = True  # type: ignore[assignment]
    marks = ", ".join("?" * len(columns))
    sql(url, f"insert into webhook ({', '.join(columns)}) values ({marks})", *(values[name] for name in columns))
    return "--config", folder / "ccp.toml"


LISTINGS = [
    ("audit", "list"), ("audit", "verify"), ("party", "list"), ("party", "show", "hostile"), ("peer", "list"),
    ("trust", "list"), ("webhook", "list"), ("events", "list"), ("keys", "list"), ("party", "show", HOSTILE + "?"),
    ("events", "show", HOSTILE), ("trust", "remove", "--yes", HOSTILE), ("peer", "test", HOSTILE + "?"),
    ("audit", "list", "--since", HOSTILE), ("verify", "--at", HOSTILE, "-"), ("import", "/" + HOSTILE),
    ("events", "replay", "--endpoint", HOSTILE), ("keys", "revoke", "--yes", HOSTILE), ("exi", "decode", "/" + HOSTILE),
]  # fmt: skip


@pytest.mark.parametrize("form", [(), ("--json",)])
@pytest.mark.parametrize("command", LISTINGS, ids=lambda command: " ".join(command[:2]))
def test_commands_escape_names_for_the_terminal(
    hostile: tuple[object, ...], command: tuple[str, ...], form: tuple[str, ...]
) -> None:
    if command[0] == "exi":
        hostile = ()
    done: CommandResult = ccp(*command, *form, *hostile)
    assert shows_itself(done.out), done.out
    assert shows_itself(done.err.replace("│", "")), done.err
    assert "Traceback" not in done.err


NAMING = [("audit", "list"), ("party", "list"), ("peer", "list"), ("trust", "list"), ("webhook", "list")]


@pytest.mark.parametrize("command", [*NAMING, ("party", "show", "hostile")], ids=lambda command: " ".join(command[:2]))
def test_terminal_escapes_of_names_are_complete(hostile: tuple[object, ...], command: tuple[str, ...]) -> None:
    done = ccp(*command, *hostile)
    assert done.status == 0, done.err
    assert r"x\x1b[2J\x9b31m\x7f\u202egnp.exe\u2066\u2069\u200e\u200f\u061c\u200b" in done.out
    assert r"\u2028\u2029\ufe0f\u3164\x85[red]y" in done.out
    found = json.dumps(json.loads(ccp(*command, "--json", *hostile).out))
    assert json.dumps(HOSTILE)[1:-1] in found, "programs get the name as it is"


def test_commands_print_only_through_the_escaping_module() -> None:
    """`print`, `typer.echo` and a console of its own would go around it. Progress bars hold numbers only."""
    allowed = {
        ("output.py", "typer.echo"),
        ("bulk.py", "Console"),
        ("output.py", "Console"),
        ("output.py", "console.print"),
    }
    found = set()
    for file in Path(cli.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                if name in ("print", "typer.echo", "typer.secho", "click.echo", "console.print", "Console") or (
                    name.endswith((".stdout.write", ".stderr.write"))
                ):
                    found.add((file.name, name))
    assert found <= allowed


# --- The log ---------------------------------------------------------------------------------------------------------


def logged(log_format: str, monkeypatch: pytest.MonkeyPatch, **members: Any) -> str:
    out = io.StringIO()
    monkeypatch.setattr("sys.stderr", out)
    before = structlog.get_config()
    try:
        logging.configure(Settings(log_format=log_format, log_level="info"))
        structlog.get_logger("test").bind().error("peer asked", **members)
    finally:
        structlog.configure(**before)
    return out.getvalue()


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_terminal_control_characters_are_escaped_in_log_events(
    log_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = {"peer": HOSTILE, "reasons": {HOSTILE: 1}, "said": [HOSTILE, f"a\n{HOSTILE}"], "address": "\ud800"}
    text = logged(log_format, monkeypatch, **members)
    if log_format == "json":
        assert shows_itself(text.removesuffix("\n"))
        assert orjson.loads(text)["event"] == "peer asked"
    else:
        assert text.count("\n") == 1
        own = {"\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[35m", "\x1b[36m"}
        for code in own:  # The renderer's own colours.
            text = text.replace(code, "")
        assert shows_itself(text.removesuffix("\n")), text


def test_terminal_lines_of_a_log_traceback_are_never_events(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        raise ValueError(f"bad\n2026-03-01 [info] all is well {HOSTILE}")
    except ValueError as exc:
        text = logged("console", monkeypatch, exc_info=exc)
    lines = text.splitlines()
    assert any(line.startswith("    2026-03-01 [info] all is well") for line in lines)
    assert not any(line.startswith("2026-03-01 [info] all is well") for line in lines)


# --- Characters ------------------------------------------------------------------------------------------------------


def test_terminal_escapes_cover_every_invisible_character() -> None:
    invisible = [
        *range(0x20), 0x7F, *range(0x80, 0xA0), 0xAD, 0x34F, 0x61C, 0x115F, 0x1160, 0x17B4, 0x180E,
        *range(0x200B, 0x2010),
        *range(0x2028, 0x202F), *range(0x2060, 0x2070), 0x2800, 0x3164, 0xFE0F, 0xFEFF, 0xFFA0, 0xFFF9, 0xD800, 0xDFFF,
        0xE0001, 0xE0041, 0xE0100, 0x1D173,
    ]  # fmt: skip
    assert not any(is_visible(chr(point)) for point in invisible)
    for point in invisible:
        assert printable(chr(point)).isascii()
        shown = printable_json(json.dumps([chr(point)], ensure_ascii=False))
        assert shown.isascii()
        assert json.loads(shown) == [chr(point)]
    for text in ("Škoda Ørsted", "東京", "🚗", "a b", "Ελλάς", "한국", "\\ [x] \"'"):
        assert printable(text) == printable_json(text) == text
