"""ccp import: checks, stored rows and events, refusals, and interruption."""

from __future__ import annotations

import base64
import gzip
import json
import os
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ccp import exi
from ccp.server.bulk.checkpoint import default_path
from ccp.server.storage.engine import schema
from ccp.testing.pki import PKI, StatusURLs
from tests.cli.run import COMMAND, ccp_error, environment
from tests.server.bulk.fleet import Database, body, database, expired, jsonl, line, new_emaid, new_pcid
from tests.server.bulk.imports import counts, imported, reports, users_of
from tests.server.storage.made import broken_invariants, sql
from tests.world import AT, Pool


@pytest.fixture
def empty(tmp_path: Path, pkis: dict[str, PKI]) -> Database:
    return database(tmp_path / "pool", pkis)


# --- The same as PUT -------------------------------------------------------------------------------------------------


def test_import_leaves_the_same_rows_and_events_as_put(
    tmp_path: Path, pool: Pool, empty: Database, pkis: dict[str, PKI]
) -> None:
    """New contracts, a second variant, a replaced variant, a second contract of a vehicle, and one that moves."""
    first, second, third = (new_emaid() for _ in range(3))
    car, other = new_pcid(), new_pcid()
    bodies = [
        body(pkis["iso2"], first, car, metaData="one"),
        body(pkis["iso20"], first, car),
        body(pkis["iso2"], second, car),
        body(pkis["iso2"], first, car, metaData="two"),
        body(pkis["other_iso2"], third, other),
        body(pkis["iso2"], second, other),
        body(pkis["ed448"]),
    ]
    for each in bodies:
        assert pool.cps.put("/signedcontractdata", json=each).status_code == 201
    file = tmp_path / "fleet.jsonl"
    file.write_bytes(jsonl(*bodies))
    assert counts(imported(empty, file)) == {"created": 4, "updated": 2, "moved": 1}

    served = Database(pool.settings.database, tmp_path)
    emaids = {each["emaid"] for each in bodies}
    by_put = [row for row in served.contracts() if row[1] in emaids]
    assert empty.contracts() == by_put
    assert Counter(empty.events()) == Counter(row for row in served.events() if row[1] in emaids)
    assert broken_invariants(empty.url) == []


def refusals(pkis: dict[str, PKI]) -> dict[str, bytes]:
    """Lines that PUT refuses, one for each stage of its checks."""
    good = body(pkis["iso2"])
    message = good["certificateInstallationRes"]
    return {
        "no JSON": b"{\n",
        "no object": b"[]\n",
        "fields": line({**good, "emaid": "?", "pcid": "short"}),
        "Base64": line({**good, "certificateInstallationRes": "****"}),
        "EXI": line({**good, "certificateInstallationRes": "AAAA"}),
        "another EMAID": line({**good, "emaid": str(new_emaid())}),
        "another root": line({**good, "cpsV2GRootCertificateFingerprint": "0" * 64}),
        "untrusted": line(body(pkis["stranger"])),
        "expired": line(expired(pkis["iso2"])),
        "key material": line(
            {**good, "certificateInstallationRes": message[:-60] + _other(message[-60]) + message[-59:]}
        ),
        "too long": line({**good, "metaData": "x" * 300_000}),
    }


def _other(character: str) -> str:
    return "B" if character == "A" else "A"


def test_import_refuses_with_the_same_messages_as_put(
    tmp_path: Path, pool: Pool, empty: Database, pkis: dict[str, PKI]
) -> None:
    lines = refusals(pkis)
    file, report = tmp_path / "fleet.jsonl", tmp_path / "refused.jsonl"
    good = body(pkis["iso2"])
    file.write_bytes(b"".join(lines.values()) + b"\n" + line(good))
    assert counts(imported(empty, file, "--refused", report, status=1)) == {"created": 1, "refused": len(lines)}
    found = reports(report)
    assert [each["line"] for each in found] == list(range(1, len(lines) + 1))
    for name, each in zip(lines, found, strict=True):
        answer = pool.cps.put(
            "/signedcontractdata", content=lines[name].strip(), headers={"Content-Type": "application/json"}
        )
        assert answer.status_code in (400, 413), name
        sentence, expected = each["errorMessages"], answer.json()["errorMessages"]
        if name == "untrusted":
            # Which of several roots with the name of the stranger's is told of depends on which there are, and other
            # tests add some to the pool.
            assert all('"V2G Root CA SIM"' in one for one in (sentence[0], expected[0])), (sentence, expected)
            sentence, expected = sentence[1:], expected[1:]
        assert sentence == expected, name
        assert each["file"] == str(file)
    assert found[list(lines).index("untrusted")]["emaid"].startswith("DEEXAB")
    assert "emaid" not in found[0]
    assert empty.emaids() == {good["emaid"]}


def test_import_of_xml_stores_the_signed_exi(tmp_path: Path, empty: Database, pkis: dict[str, PKI]) -> None:
    bodies = [body(pkis["iso2"]), body(pkis["iso20"]), body(pkis["iso2"]), body(pkis["iso2"])]
    messages = {each["emaid"]: base64.b64decode(each["certificateInstallationRes"]) for each in bodies}
    for each in bodies[:3]:
        document = exi.to_xml(exi.decode(messages[each["emaid"]]))
        each["certificateInstallationRes"] = base64.b64encode(document).decode()
    for each in bodies[2:]:
        each["signedContractDataXML"] = each.pop("certificateInstallationRes")
    file, report = tmp_path / "fleet.jsonl", tmp_path / "refused.jsonl"
    both = {**bodies[0], "signedContractDataXML": bodies[0]["certificateInstallationRes"]}
    wrong = {**bodies[0], "certificateInstallationRes": base64.b64encode(b"<x/>").decode()}
    file.write_bytes(jsonl(*bodies, both, wrong))
    assert counts(imported(empty, file, "--refused", report, status=1)) == {"created": 4, "refused": 2}
    stored = sql(empty.url, "select emaid, response from contract")
    assert {row[0]: bytes(row[1]) for row in stored} == messages
    first, second = (each["errorMessages"] for each in reports(report))
    assert first == ["signedContractDataXML : must not be given together with certificateInstallationRes"]
    assert second[1].startswith("The element x is none of the messages V2G_Message")


def test_import_as_a_party_has_its_authorization(tmp_path: Path, empty: Database, pkis: dict[str, PKI]) -> None:
    own, foreign = body(pkis["iso2"]), body(pkis["iso2"], new_emaid("NLEXB"))
    file, report = tmp_path / "fleet.jsonl", tmp_path / "refused.jsonl"
    file.write_bytes(jsonl(own, foreign))
    imported(empty, file, "--as", "small_cps", "--refused", report, status=1)
    assert empty.emaids() == {own["emaid"]}
    (refused,) = reports(report)
    assert refused["emaid"] == foreign["emaid"]
    assert imported(empty, file, "--as", "cpo", status=1)["refused"] == 2
    assert "unknown" in ccp_error("import", file, "--as", "unknown", env=empty.env)


def test_import_line_with_unknown_status_is_retryable(tmp_path: Path, pkis: dict[str, PKI]) -> None:
    """The address is of this machine and not allowed, so no connection is made; PUT answers 503 likewise."""
    pki = PKI.generate(AT, algorithm="P-256", status_urls=lambda name: StatusURLs(crl="http://127.0.0.1:9/crl"))
    target = database(tmp_path / "pool", {**pkis, "iso2": pki})
    file, report = tmp_path / "fleet.jsonl", tmp_path / "refused.jsonl"
    file.write_bytes(jsonl(body(pki)))
    assert counts(imported(target, file, "--refused", report, status=1)) == {"refused": 1}
    (refused,) = reports(report)
    assert refused["again"] is True
    assert target.emaids() == set()


# --- Where lines come from -------------------------------------------------------------------------------------------


def test_import_reads_a_folder_in_the_order_of_file_names(
    tmp_path: Path, empty: Database, pkis: dict[str, PKI]
) -> None:
    folder = tmp_path / "fleet"
    folder.mkdir()
    emaid, car = new_emaid(), new_pcid()
    a, b, c = (body(pkis["iso2"], emaid, car, metaData=text) for text in "abc")
    (folder / "1.jsonl").write_bytes(b"\r\n" + line(a).replace(b"\n", b"\r\n") + line(body(pkis["iso2"])).rstrip())
    (folder / "2.jsonl.gz").write_bytes(gzip.compress(line(b)))
    (folder / "3.json").write_text(json.dumps(c, indent=2))
    (folder / "4.txt").write_text("not this")
    report = folder / "refused.jsonl"
    for _ in range(2):
        imported(empty, folder, "--refused", report)
    assert sql(empty.url, "select metadata from contract where emaid = ?", str(emaid)) == [("c",)]
    assert len(empty.emaids()) == 2
    assert not list(empty.folder.glob("*.checkpoint")) + list(tmp_path.glob("*.checkpoint"))


@pytest.mark.parametrize("packed", [False, True])
def test_import_reads_standard_input_plain_or_gzip(
    tmp_path: Path, empty: Database, pkis: dict[str, PKI], packed: bool
) -> None:
    data = jsonl(body(pkis["iso2"]), body(pkis["iso20"]))
    given = gzip.compress(data) if packed else data
    done = subprocess.run(
        [*COMMAND, "import", "-", "--workers", "1"],
        input=given, env=environment(**empty.env), capture_output=True, timeout=60, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == b"", "no bar where there is no terminal"
    assert done.stdout.startswith(b"2 lines: 2 created, ")
    assert len(empty.emaids()) == 2


def test_import_of_truncated_input_stores_the_lines_before(
    tmp_path: Path, empty: Database, pkis: dict[str, PKI]
) -> None:
    file = tmp_path / "fleet.jsonl.gz"
    file.write_bytes(gzip.compress(jsonl(*(body(pkis["iso2"]) for _ in range(40))))[:-500])
    assert ccp_error("import", file, env=empty.env).startswith(f"{file} cannot be read after line ")
    assert len(empty.emaids()) == 32
    assert "There is no file or directory" in ccp_error("import", tmp_path / "none", env=empty.env)


def test_import_memory_is_bounded_by_the_line_limit(tmp_path: Path, empty: Database, pkis: dict[str, PKI]) -> None:
    """A line of 60 MB without an end is skipped in pieces."""
    file = tmp_path / "fleet.jsonl"
    with file.open("wb") as stream:
        for _ in range(60):
            stream.write(b"x" * 1_000_000)
        stream.write(b"\n" + line(body(pkis["iso2"])))
    code = (
        "import resource, sys; from ccp.cli import main\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: main()\n"
        "finally: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)\n"
    )
    peaks = []
    for source in (tmp_path / "small.jsonl", file):
        if source != file:
            source.write_bytes(line(body(pkis["iso2"])))
        done = subprocess.run(
            [COMMAND[0], "-c", code, "import", source, "--workers", "1"],
            env=environment(**empty.env), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        peaks.append(int(done.stderr.splitlines()[-1]))
    assert peaks[1] - peaks[0] < 20_000, "KiB"
    assert len(empty.emaids()) == 2


# --- Again, and defaults ---------------------------------------------------------------------------------------------


def test_import_of_unchanged_contracts_causes_no_event(tmp_path: Path, empty: Database, pkis: dict[str, PKI]) -> None:
    bodies = [body(pkis["iso2"], metaData="m"), body(pkis["iso20"])]
    file = tmp_path / "fleet.jsonl"
    file.write_bytes(jsonl(*bodies))
    imported(empty, file)
    before = sql(empty.url, "select * from contract"), empty.events(), sql(empty.url, "select * from vehicle")
    assert counts(imported(empty, file)) == {"unchanged": 2}
    assert before == (sql(empty.url, "select * from contract"), empty.events(), sql(empty.url, "select * from vehicle"))
    file.write_bytes(jsonl({**bodies[0], "metaData": "n"}, bodies[1]))
    assert counts(imported(empty, file)) == {"updated": 1, "unchanged": 1}


def test_import_uses_the_exported_default_if_there_is_none(
    tmp_path: Path, empty: Database, pkis: dict[str, PKI]
) -> None:
    def default_of(car: str) -> Any:
        return sql(empty.url, "select default_emaid from vehicle where pcid = ?", car)[0][0]

    pki = pkis["iso2"]
    chosen, none, plain = new_pcid(), new_pcid(), new_pcid()
    first, second, third, fourth, fifth, sixth = (new_emaid() for _ in range(6))
    file = tmp_path / "fleet.jsonl"
    file.write_bytes(
        jsonl(
            body(pki, first, chosen, defaultContract=False),
            body(pki, second, chosen, defaultContract=True),
            body(pki, third, none, defaultContract=False),
            body(pki, fourth, plain),
            body(pki, fifth, plain),
        )
    )
    imported(empty, file)
    assert (default_of(chosen), default_of(none), default_of(plain)) == (second, None, fourth)
    # A manufacturer's choice is kept.
    file.write_bytes(
        jsonl(
            body(pki, first, chosen, defaultContract=True),
            body(pki, second, chosen, defaultContract=False),
            body(pki, sixth, none, defaultContract=True),
        )
    )
    imported(empty, file)
    assert (default_of(chosen), default_of(none)) == (second, sixth)
    assert broken_invariants(empty.url) == []
    report = tmp_path / "refused.jsonl"
    file.write_bytes(jsonl(body(pki, defaultContract="yes")))
    imported(empty, file, "--refused", report, status=1)
    assert reports(report)[0]["errorMessages"] == ["defaultContract : must be true or false"]


def test_import_keeps_the_order_for_an_emaid_and_a_vehicle(
    tmp_path: Path, empty: Database, pkis: dict[str, PKI]
) -> None:
    """The last line of an EMAID wins, the first of a vehicle is its default, whichever worker checks them."""
    pki = pkis["iso2"]
    emaid, cars = new_emaid(), [new_pcid(), new_pcid()]
    moving = [body(pki, emaid, car) for car in cars]
    bodies = [moving[number % 2] for number in range(101)]
    contracts = [body(pki, pcid=new_pcid()) for _ in range(3)]
    crowd = [body(pki, pcid=contracts[0]["pcid"]) for _ in range(60)]
    file = tmp_path / "fleet.jsonl"
    file.write_bytes(
        jsonl(*(each for pair in zip(bodies, [contracts[0], *crowd, *bodies], strict=False) for each in pair))
    )
    limits = {"CCP_MAX_CONTRACTS_PER_VEHICLE": "99", "CCP_MAX_CONTRACTS_PER_VEHICLE_AND_PROVIDER": "99"}
    imported(empty, file, more=limits)
    assert sql(empty.url, "select pcid from contract where emaid = ?", str(emaid))[0][0] in cars
    vehicle = "select default_emaid from vehicle where pcid = ?"
    assert sql(empty.url, vehicle, contracts[0]["pcid"]) == [(contracts[0]["emaid"],)]
    times = sql(empty.url, "select emaid from contract where pcid = ? order by created_at", contracts[0]["pcid"])
    assert [row[0] for row in times] == [contracts[0]["emaid"], *(each["emaid"] for each in crowd)]
    assert broken_invariants(empty.url) == []


# --- Stopped and gone on ---------------------------------------------------------------------------------------------


def stopped(target: Database, file: Path, report: Path, number: signal.Signals, after: int) -> int:
    """Run an import in a separate process and stop it after a number of contracts. Returns its exit status."""
    before = len(target.emaids())
    process = subprocess.Popen(
        [*COMMAND, "import", str(file), "--refused", str(report), "--workers", "1"],
        env=environment(**target.env), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        with closing(sqlite3.connect(schema.sqlite_file(target.url), timeout=5)) as connection:
            while connection.execute("select count(*) from contract").fetchone()[0] < before + after:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.005)
        if number is signal.SIGINT:
            os.killpg(process.pid, number)  # As a terminal does.
        else:
            process.send_signal(number)
        return process.wait(30)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def fleet(pkis: dict[str, PKI]) -> list[bytes]:
    """Lines of which every fiftieth is refused."""
    pki = pkis["iso2"]
    return [line({"emaid": "?"}) if number % 50 == 49 else line(body(pki)) for number in range(500)]


# How, and once how many more contracts are stored.
@pytest.mark.parametrize(
    "ways", [((signal.SIGINT, 1), (signal.SIGTERM, 1)), ((signal.SIGKILL, 1), (signal.SIGKILL, 200))]
)
def test_import_resumes_after_being_stopped_at_any_time(
    tmp_path: Path, empty: Database, fleet: list[bytes], ways: tuple[tuple[signal.Signals, int], ...]
) -> None:
    file, report = tmp_path / "fleet.jsonl", tmp_path / "refused.jsonl"
    file.write_bytes(b"".join(fleet))
    checkpoint = default_path(str(file), empty.url)
    for how, after in ways:
        status = stopped(empty, file, report, how, after)
        assert status == (-how if how is signal.SIGKILL else 130)
        if how is not signal.SIGKILL:
            # In order: everything that was stored is noted, and everything noted is stored.
            noted = json.loads(checkpoint.read_text())
            assert noted["counts"]["created"] == len(empty.emaids())
            assert noted["counts"].get("refused", 0) == len(reports(report))
            assert sum(noted["counts"].values()) == noted["offset"]["lines"]
    summary = imported(empty, file, "--refused", report, status=1)
    assert summary["lines"] == len(fleet)
    assert len(empty.emaids()) == len(fleet) - len(fleet) // 50
    assert [each["line"] for each in reports(report)] == list(range(50, 501, 50)), "each once"
    assert all(kind == "oem.contract.created" for kind, *_ in empty.events())
    assert len(empty.events()) == len(empty.emaids()), "no event twice"
    assert not checkpoint.exists()
    assert broken_invariants(empty.url) == []


def test_import_refuses_a_checkpoint_of_another_input(tmp_path: Path, empty: Database, fleet: list[bytes]) -> None:
    file, report = tmp_path / "fleet.jsonl", tmp_path / "refused.jsonl"
    file.write_bytes(b"".join(fleet))
    stopped(empty, file, report, signal.SIGINT, 30)
    before = empty.emaids()
    file.write_bytes(b"".join(fleet[1:]))
    assert ccp_error("import", file, env=empty.env).startswith(f"The checkpoint is of another input than {file}: ")
    default_path(str(file), empty.url).write_text("{}")
    assert "is no checkpoint" in ccp_error("import", file, env=empty.env)
    assert empty.emaids() == before


def test_import_ends_with_an_error_if_a_worker_is_killed(tmp_path: Path, empty: Database, fleet: list[bytes]) -> None:
    file = tmp_path / "fleet.jsonl"
    file.write_bytes(b"".join(fleet))
    process = subprocess.Popen(
        [*COMMAND, "import", str(file), "--workers", "1"],
        env=environment(**empty.env), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not empty.emaids():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        (worker,) = set(users_of(empty.folder)) - {process.pid, os.getpid()}
        os.kill(worker, signal.SIGKILL)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 1
    sentence = "A worker process of the import has ended; the log says why, or the system's log where it was killed."
    assert err == f"ccp: {sentence}\n"
    assert counts(imported(empty, file, status=1))["refused"] == len(fleet) // 50
    assert len(empty.events()) == len(empty.emaids()) == len(fleet) - len(fleet) // 50


def test_import_workers_end_when_the_import_is_killed(tmp_path: Path, empty: Database, fleet: list[bytes]) -> None:
    file, report = tmp_path / "fleet.jsonl", tmp_path / "refused.jsonl"
    file.write_bytes(b"".join(fleet))
    stopped(empty, file, report, signal.SIGKILL, 1)
    deadline = time.monotonic() + 30
    while set(users_of(empty.folder)) - {os.getpid()}:
        assert time.monotonic() < deadline
        time.sleep(0.05)
