"""A served sandbox with TLS that tests reload, and clients that must not notice."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.cli.run import COMMAND, ccp_ok, environment
from tests.cli.served_sandbox import BASE, Sandbox, free_port, own_certificate
from tests.deploy.tools import DEPLOY
from tests.waiting import wait_until

UNIT = DEPLOY / "systemd" / "ccp.service"
ANY_CERTIFICATE = ssl.create_default_context()
ANY_CERTIFICATE.check_hostname, ANY_CERTIFICATE.verify_mode = False, ssl.CERT_NONE


class Running:
    """A served sandbox with TLS, its settings file and its log."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.folder, self.port, self.workers = folder, free_port(), workers
        ccp_ok("sandbox", folder / "pool", "--port", self.port, "--store")
        self.sandbox = Sandbox(folder / "pool")
        self.config = folder / "pool" / "ccp.toml"
        self.made = self.config.read_text().replace(f"http://127.0.0.1:{self.port}", f"https://127.0.0.1:{self.port}")
        self.cert, self.key = own_certificate(folder)
        self.options: dict[str, Any] = {}
        self.process: subprocess.Popen[bytes]

    def configure(self, **values: Any) -> None:
        lines = {"tls_cert": str(self.cert), "tls_key": str(self.key), "log_level": "info", **values}
        text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in lines.items())
        beside = self.config.with_suffix(".new")
        beside.write_text(text + self.made)
        os.replace(beside, self.config)

    @contextmanager
    def serving(self) -> Iterator[None]:
        with (self.folder / "log").open("wb") as log:
            command = [*COMMAND, "serve", "--config", str(self.config), "--workers", str(self.workers)]
            self.process = subprocess.Popen(command, stderr=log, stdout=log, env=environment(CCP_LOG_FORMAT="json"))
        try:
            wait_until(self.answers, timeout=40, describe=(self.folder / "log").read_text)
            if self.workers > 1:
                wait_until(lambda: len(self.logged("worker ready")) == self.workers)
            yield
            self.process.send_signal(signal.SIGTERM)
            assert self.process.wait(30) in (0, -signal.SIGTERM)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()

    def answers(self) -> bool:
        assert self.process.poll() is None
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5):
                return True
        except OSError:
            return False

    def reload(self) -> None:
        """As `systemctl reload` does."""
        (command,) = re.findall(r"^ExecReload=(.*)$", UNIT.read_text("utf-8"), re.MULTILINE)
        subprocess.run(command.replace("$MAINPID", str(self.process.pid)).split(), check=True)

    def logged(self, event: str) -> list[dict[str, Any]]:
        lines = (self.folder / "log").read_text().splitlines(keepends=True)
        found = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]
        return [line for line in found if line["event"] == event]

    def token(self) -> dict[str, str]:
        party = next(party for party in self.sandbox.credentials["parties"] if party["role"] == "cpo")
        form = {name: party[name] for name in ("client_id", "client_secret")}
        url = f"https://127.0.0.1:{self.port}/oauth/token"
        answer = httpx.post(url, data={"grant_type": "client_credentials", **form}, verify=ANY_CERTIFICATE)
        return {"Authorization": f"Bearer {answer.json()['access_token']}", "Content-Type": "application/json"}

    def presented(self) -> bytes | None:
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=5) as plain,
            ANY_CERTIFICATE.wrap_socket(plain) as connection,
        ):
            return connection.getpeercert(binary_form=True)

    def connection(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=10, context=ANY_CERTIFICATE)


@dataclass
class Load:
    """Clients that deliver contracts without a pause, each on one connection that must stay open."""

    running: Running
    clients: int = 4
    answered: int = 0
    failures: list[str] = field(default_factory=list)

    def __enter__(self) -> Load:
        self._stop = threading.Event()
        headers, body = self.running.token(), json.dumps(self.running.sandbox.samples("request")[0])
        self._threads = [threading.Thread(target=self._ask, args=(headers, body)) for _ in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, headers: dict[str, str], body: str) -> None:
        connection = self.running.connection()
        connection.connect()
        first = connection.sock
        while not self._stop.is_set():
            try:
                connection.request("POST", f"{BASE}/signedcontractdata", body, headers)
                answer = connection.getresponse()
                text = answer.read()
            except (OSError, http.client.HTTPException) as exc:
                self.failures.append(repr(exc))
                return
            if answer.status != 200 or b"temporary" in text:
                self.failures.append(f"{answer.status} {text[:200]!r}")
            if connection.sock is not first:
                self.failures.append("the connection was closed")
                return
            self.answered += 1
        connection.close()
