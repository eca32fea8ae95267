"""The first day of an operator, from the wheel to an upgrade, with the commands and the files of docs/install.md.

    python -m tests.end_to_end.first_day             # prints each step and the seconds it took
    python -m tests.end_to_end.first_day --write     # and puts them into docs/first-day.md

Everything is real: PostgreSQL with TLS, nginx with the shipped file, a pool with two processes under a user of its own,
a car that verifies and decrypts what it gets. Only the places of files and the ports differ from the documents, and
instead of systemd this program starts what the unit names. As root it creates a system user and removes it again.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import platform
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx

from ccp.client import TLS, Client, Credentials, Delivered
from ccp.testing.partners import Car, Provider, new_session_id
from ccp.testing.pki import PKI
from tests.cli.served_sandbox import free_port
from tests.databases import Server, sql, tables
from tests.deploy.proxies import Proxy, nginx
from tests.deploy.tools import DEPLOY, tool
from tests.end_to_end.operators_machine import ROOT, Load, Machine, NotPossible, run_command, service_user
from tests.server.access.tokens.client_certificates import CA, credential
from tests.server.storage.earlier_revisions import copy_into_revision, rows_of_all_tables
from tests.tls_files import PrivateCA

PAGE = ROOT / "docs" / "first-day.md"
TABLE = re.compile(r"(?<=<!-- steps -->\n).*?(?=<!-- /steps -->)", re.DOTALL)
EARLIER = "0010"
"""The schema revision from which the last step upgrades."""


SETTINGS = """\
host = "127.0.0.1"
port = {port}
workers = 2
base_url = "{url}"
client_certificate_header = "X-Client-Cert"
database = "{database}"
secrets_key_file = "{etc}/secrets.key"
"""

DECLARATION = """\
[[party]]
name = "Example CPS"
client_id = "example-cps"
roles = ["cps"]
all_providers = true

[[party]]
name = "Example CPO"
client_id = "example-cpo"
roles = ["cpo"]
operator_ids = ["DEEXC"]

[[party]]
name = "Example OEM"
client_id = "example-oem"
roles = ["oem"]
wmis = ["WEX"]

[[party]]
name = "Prometheus"
client_id = "prometheus"
roles = ["metrics"]

[[anchor]]
file = "anchors/v2g/root.pem"
roles = ["v2g"]

[[anchor]]
file = "anchors/emsp/root.pem"
roles = ["emsp"]

[[anchor]]
file = "anchors/oem"
roles = ["oem"]
"""


@dataclass
class Day:
    """What the steps share."""

    machine: Machine
    server: Server
    proxy: Proxy
    pki: PKI
    car: Car
    secrets: dict[str, str]

    def client(self, name: str) -> Client:
        """A partner's client, through nginx."""
        return Client(
            self.proxy.url,
            credentials=Credentials(name, self.secrets[name]),
            tls=TLS(ca_file=self.proxy.folder / "ca.pem"),
        )

    def is_served(self) -> None:
        """A car asks through its operator, and can use what it gets: it verifies the message and decrypts its key."""
        session = new_session_id()
        with self.client("example-cpo") as pool:
            result = pool.deliver(self.car.request(session), self.car.namespace)
        assert isinstance(result, Delivered), result
        self.car.install(result.message, session)


def run(root: Path, user: str | None, stack: ExitStack) -> Machine:
    """Do the whole day. Raises AssertionError at the first step that fails, NotPossible without what it needs."""
    machine = Machine(root, user)
    with machine.step("Install the wheel", "pip install 'opnc-ccp[server]' in a virtual environment"):
        machine.install()
    server = _postgres(machine, stack)
    proxy_folder, proxy_port = _certificate(root), free_port()
    _settings(machine, server, f"https://localhost:{proxy_port}")
    with machine.step("Make the schema", "ccp db upgrade"):
        machine.ccp("db", "upgrade")

    pki = PKI.generate()
    with machine.step("Declare parties and trust anchors", "ccp apply pool.toml"):
        secrets = _declare(machine, pki)
    with machine.step("Start the pool", "the command of deploy/systemd/ccp.service"):
        stack.callback(machine.stop)
        machine.start()
    with machine.step("Start nginx", "deploy/nginx/nginx.conf"):
        proxy = stack.enter_context(nginx(f"127.0.0.1:{machine.port}", proxy_folder, proxy_port))
    day = Day(machine, server, proxy, pki, Car.generate(pki, "WEX0DAY0000000001"), secrets)

    with machine.step("Serve a car", "PUT by a provisioning service, POST by an operator, through nginx"):
        with day.client("example-cps") as pool:
            signed = Provider(pki, "DEEXA").sign_contract(day.car)
            pool.publish(signed.message, emaid=signed.emaid, pcid=signed.pcid, namespace=signed.namespace)
        day.is_served()
    with machine.step("Examine the pool", "ccp doctor"):
        findings = json.loads(machine.ccp("doctor", "--json", accepted=(0, 1)))
        found = [each for check in findings["checks"] for each in check["findings"]]
        assert not [each for each in found if each["severity"] == "failure"], found
    with machine.step("Check metrics and alerts", "promtool check metrics, check rules, test rules"):
        _check_metrics(day)
    with machine.step("Renew the certificate under load", "nginx -s reload, systemctl reload ccp"):
        _renew_certificate(day)
    with machine.step("Rotate secrets", "ccp party rotate-secret, ccp keys rotate-storage"):
        _rotate_secrets(day)
    with machine.step("Back up, lose everything, restore", "pg_dump, pg_restore"):
        _restore(day)
    with machine.step(f"Upgrade a database of schema revision {EARLIER}", "ccp db upgrade"):
        _upgrade(day)
    return machine


def _postgres(machine: Machine, stack: ExitStack) -> Server:
    """PostgreSQL with TLS, as an operator's administrator provides it."""
    server = Server(durable=True)
    stack.callback(server.close)
    ca = PrivateCA(machine.etc, "database-ca")
    files = ca.issue("database")
    server.use_tls(files.cert.read_bytes(), files.key.read_bytes())
    files.key.unlink()
    ca.ca.chmod(0o644)
    with machine.step("Start PostgreSQL with TLS", "ssl = on, a role with a password (SCRAM)"):
        try:
            server.start()
        except AssertionError as exc:
            if "SSL is not supported by this build" in server.log:
                raise NotPossible("This PostgreSQL is built without TLS.") from exc
            raise
        sql(server.url("postgres"), "create database first_day owner careful template template0")
    return server


def _settings(machine: Machine, server: Server, url: str, database: str = "first_day") -> None:
    """Write ccp.toml, the key for secrets in the database, and the password file of PostgreSQL."""
    address = f"127.0.0.1:{server.port}"
    place = f"postgresql://careful@{address}/{database}?sslmode=verify-full&sslrootcert={machine.etc}/database-ca.pem"
    text = SETTINGS.format(port=machine.port, url=url, database=place, etc=machine.etc)
    machine.write(machine.settings, text)
    machine.write(machine.home / ".pgpass", f"{address}:*:careful:{Server.PASSWORD}\n", 0o600)
    keys = machine.etc / "secrets.key"
    if not keys.exists():
        machine.write(keys, _new_key() + "\n", 0o600)


def _new_key() -> str:
    return base64.b64encode(os.urandom(32)).decode()


def _certificate(root: Path) -> Path:
    """A folder for nginx, with a certificate and the CA that its clients trust."""
    folder = root / "nginx"
    folder.mkdir(mode=0o755)
    (folder / "ca.pem").write_bytes(CA.pem)
    _issue(folder, "first")
    return folder


def _issue(folder: Path, name: str) -> None:
    certificate, key = credential(name, CA).save(folder, name)
    certificate.rename(folder / "fullchain.pem")
    key.rename(folder / "privkey.pem")


def _declare(machine: Machine, pki: PKI) -> dict[str, str]:
    """Apply one file. Returns the generated secrets by client id. A second run changes nothing."""
    pki.save(machine.root / "pki")
    anchors = machine.etc / "anchors"
    for role, names in (("v2g", ["root"]), ("emsp", ["root"]), ("oem", ["root", "sub1", "sub2"])):
        (anchors / role).mkdir(parents=True)
        for name in names:
            shutil.copy(machine.root / "pki" / role / f"{name}.pem", anchors / role)
    for path in (anchors, *anchors.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    machine.write(machine.etc / "pool.toml", DECLARATION)
    shown = machine.ccp("apply", machine.etc / "pool.toml", "--dry-run", accepted=(2,))
    assert "Example CPO" in shown, shown
    applied = json.loads(machine.ccp("apply", machine.etc / "pool.toml", "--json"))
    machine.ccp("apply", machine.etc / "pool.toml", "--dry-run")
    secrets: dict[str, str] = applied["client_secrets"]
    return secrets


def _check_metrics(day: Day) -> None:
    """Read /metrics as Prometheus does, and let promtool check it and the shipped rules."""
    promtool, url = tool("promtool"), f"http://127.0.0.1:{day.machine.port}"
    form = {
        "grant_type": "client_credentials",
        "client_id": "prometheus",
        "client_secret": day.secrets["prometheus"],
    }
    with httpx.Client(base_url=day.proxy.url, verify=_trusting(day.proxy), timeout=10) as http:
        token = http.post("/oauth/token", data=form).json()["access_token"]
    answer = httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {token}"}, timeout=10)
    assert answer.status_code == 200, answer.text
    assert "ccp_requests_total" in answer.text
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=answer.text, capture_output=True, text=True, timeout=60, check=False
    )
    assert checked.returncode == 0, checked.stderr
    run_command(promtool, "check", "rules", DEPLOY / "prometheus" / "alerts.yml")
    run_command(promtool, "test", "rules", DEPLOY / "prometheus" / "alerts.test.yml")


def _trusting(proxy: Proxy) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(proxy.folder / "ca.pem"))


def _renew_certificate(day: Day) -> None:
    """Replace the certificate of nginx and reload both, while cars ask: each of them gets its contract."""

    def serial() -> str:
        address = (day.proxy.url.removeprefix("https://").rpartition(":")[0], int(day.proxy.url.rpartition(":")[2]))
        return ssl.get_server_certificate(address)

    before = serial()
    load = Load(
        day.proxy.url,
        day.car,
        Credentials("example-cpo", day.secrets["example-cpo"]),
        day.proxy.folder / "ca.pem",
    )
    with load:
        load.wait_for(20)
        _issue(day.proxy.folder, "renewed")
        run_command(tool("nginx"), "-p", day.proxy.folder, "-c", day.proxy.folder / "nginx.conf", "-s", "reload")
        load.wait_for(40)
        day.machine.reload()
        load.wait_for(60)
        deadline = time.monotonic() + 30
        while serial() == before:
            assert time.monotonic() < deadline, "nginx still shows the old certificate"
            time.sleep(0.1)
        load.wait_for(20)
    assert not load.failures, load.failures[:5]


def _rotate_secrets(day: Day) -> None:
    """A new secret for a party; a new key for the secrets in the database."""
    machine = day.machine
    rotated = json.loads(machine.ccp("party", "rotate-secret", "example-cpo", "--json"))
    day.secrets["example-cpo"] = rotated["client_secret"]
    keys = machine.etc / "secrets.key"
    machine.write(keys, f"{_new_key()}\n{keys.read_text()}", 0o600)
    machine.reload()
    machine.ccp("keys", "rotate-storage")
    day.is_served()


def _restore(day: Day) -> None:
    """Dump the database, drop it, restore it, and serve the same car."""
    server, machine = day.server, day.machine
    dump = server.own_folder("dumps") / "pool.dump"
    server.run("pg_dump", "--format=custom", f"--file={dump}", f"--dbname={server.url('first_day')}")
    machine.stop()
    sql(server.url("first_day"), "drop schema public cascade")
    sql(server.url("first_day"), "create schema public authorization careful")
    server.run("pg_restore", "--exit-on-error", f"--dbname={server.url('first_day')}", dump)
    machine.start()
    day.is_served()


def _upgrade(day: Day) -> None:
    """Serve the same car from a database of an earlier schema revision with the same data."""
    server, machine = day.server, day.machine
    rows = rows_of_all_tables(server.url("first_day"))
    machine.stop()
    sql(server.url("postgres"), "create database earlier owner ccp template template0")
    copy_into_revision(server.url("earlier"), EARLIER, rows)
    for table in tables(server.url("earlier")):
        sql(server.url("earlier"), f"alter table {table} owner to careful")
    sql(server.url("earlier"), "alter schema public owner to careful")
    _settings(machine, server, day.proxy.url, "earlier")
    status = machine.ccp("db", "status", accepted=(0, 1))
    assert EARLIER in status, status
    machine.ccp("db", "upgrade")
    machine.start()
    day.is_served()


def written(machine: Machine) -> str:
    """The table of docs/first-day.md."""
    lines = ["| step | how | seconds |", "|---|---|---|"]
    lines += [f"| {step.name} | {step.how} | {step.seconds:.1f} |" for step in machine.steps]
    whole = sum(step.seconds for step in machine.steps)
    lines.append(f"| **together** | {len(machine.steps)} steps | **{whole:.0f}** |")
    place = f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}"
    return "\n".join(lines) + f"\n\nMeasured on {time.strftime('%Y-%m-%d')}: {place}.\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="Do the first day of an operator.")
    parser.add_argument("--write", action="store_true", help="write the steps into docs/first-day.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ccp-first-day-") as folder, ExitStack() as stack:
        root = Path(folder)
        root.chmod(0o755)
        user = stack.enter_context(service_user(root / "home"))
        machine = run(root, user, stack)
    if options.write:
        PAGE.write_text(TABLE.sub(lambda _: written(machine), PAGE.read_text("utf-8")), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
