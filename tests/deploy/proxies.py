"""The shipped nginx and Caddy files, run as real proxies in front of a pool on loopback.

The folder of a proxy has to contain `fullchain.pem`, `privkey.pem`, and `ca.pem`, which its clients trust.
"""

from __future__ import annotations

import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.cli.served_sandbox import free_port
from tests.deploy.tools import DEPLOY, tool
from tests.server.access.tokens.client_certificates import Credential


@dataclass(frozen=True)
class Proxy:
    """A proxy that runs, and the files of the client certificate's owner."""

    url: str
    folder: Path

    def client(self, owner: Credential | None = None) -> httpx.Client:
        """An HTTPS client, with a client certificate if an owner is given."""
        context = ssl.create_default_context(cafile=str(self.folder / "ca.pem"))
        if owner is not None:
            context.load_cert_chain(*owner.save(self.folder, "client"))
        return httpx.Client(base_url=self.url, verify=context, timeout=10)


@contextmanager
def running(command: list[str], url: str, folder: Path, log: Path) -> Iterator[Proxy]:
    """Run a proxy until the block ends. url: where it listens. log: file for its output."""
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=folder, env={"HOME": str(folder)})
    proxy = Proxy(url, folder)
    try:
        deadline = time.monotonic() + 30
        with proxy.client() as http:
            while True:
                assert process.poll() is None, log.read_text()
                try:
                    if http.get("/health").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
        yield proxy
    finally:
        process.terminate()
        try:
            process.wait(20)
        finally:
            process.kill()
            process.wait()


@contextmanager
def nginx(upstream: str, folder: Path, port: int | None = None) -> Iterator[Proxy]:
    """Run deploy/nginx/nginx.conf; only its ports and its paths differ. upstream: host and port of the pool."""
    program, port = tool("nginx"), port or free_port()
    text = (DEPLOY / "nginx" / "nginx.conf").read_text("utf-8")
    replaced = {
        "server 127.0.0.1:8020;": f"server {upstream};",
        "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
        "/etc/ccp/tls/": f"{folder}/",
        "/var/log/nginx/": f"{folder}/",
        "/run/nginx.pid": f"{folder}/nginx.pid",
        "worker_processes auto;": "worker_processes 1; daemon off;",
        "worker_rlimit_nofile 65536;": "",
        "worker_connections 16384;": "worker_connections 512;",
    }
    for old, new in replaced.items():
        assert text.count(old) >= 1, old
        text = text.replace(old, new)
    places = "".join(
        f"{name}_temp_path {folder}/{name}; " for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(text.replace("http {", "http { " + places, 1))
    command = [program, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stderr
    with running(command, f"https://localhost:{port}", folder, folder / "error.log") as proxy:
        yield proxy


@contextmanager
def caddy(upstream: str, folder: Path) -> Iterator[Proxy]:
    """Run deploy/caddy/Caddyfile; its address differs, and it uses a given certificate instead of ACME."""
    program, port = tool("caddy"), free_port()
    text = (DEPLOY / "caddy" / "Caddyfile").read_text("utf-8")
    replaced = {
        "ccp.example.com {": f"https://localhost:{port} {{",
        "\ttls {": f"\ttls {folder}/fullchain.pem {folder}/privkey.pem {{",
        "127.0.0.1:8020": upstream,
    }
    for old, new in replaced.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (folder / "Caddyfile").write_text(
        "{\n\tadmin off\n\tdefault_bind 127.0.0.1\n\tauto_https disable_redirects\n}\n" + text
    )
    command = [program, "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]
    with running(command, f"https://localhost:{port}", folder, folder / "log") as proxy:
        yield proxy
