"""The back ends of charging stations that speak OPCP, as far as a pool notices them.

Written after the sources of two open ones; requests are sent byte for byte over a plain socket, with the headers and
the retries that each of them has. `first` and `last` are called after the item that they hand on.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class NoAnswer(Exception):
    """The connection ended without an answer; one of the two does not survive this."""


def send(base_url: str, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Answer:
    """One request on a connection of its own."""
    parts = urlsplit(base_url)
    lines = [f"{method} {path} HTTP/1.1", f"Host: {parts.netloc}", *(f"{n}: {v}" for n, v in headers.items())]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    head = "\r\n".join([*lines, "Connection: close", "", ""]).encode()
    with socket.create_connection((parts.hostname or "", parts.port or 80), timeout=10) as connection:
        connection.sendall(head + body)
        received = b""
        while chunk := connection.recv(65_536):
            received += chunk
    if not received:
        raise NoAnswer
    top, _, rest = received.partition(b"\r\n\r\n")
    status, *fields = top.decode("latin-1").split("\r\n")
    named = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in fields)}
    return Answer(int(status.split()[1]), named, rest)


class Refused(Exception):
    """The back end tells the charging station that it failed."""


@dataclass
class First:
    """The one in Go: token by JSON without an audience, x-api-key, three tries at once, hands on the first item."""

    base_url: str
    client_id: str
    secret: str
    token: str | None = None
    sent: list[str] = field(default_factory=list)

    def fetch_token(self) -> str:
        body = json.dumps(
            {"grant_type": "client_credentials", "client_id": self.client_id, "client_secret": self.secret},
            separators=(",", ":"),
        ).encode()
        headers = {
            "User-Agent": "Go-http-client/1.1",
            "Content-Type": "application/json",
            "Accept-Encoding": "gzip",
        }
        self.sent.append("token")
        answer = send(self.base_url, "POST", "/oauth/token", headers, body)
        if answer.status != 200:
            raise Refused(answer.status)
        token_response = answer.json()
        assert isinstance(token_response["expires_in"], int)
        token: str = token_response["access_token"]
        return token

    def ask(self, request: str) -> str:
        """Three tries without a pause, each but the first with a new token. Only 200 counts."""
        body = {"certificateInstallationReq": request, "xsdMsgDefNamespace": "urn:iso:15118:2:2013:MsgDef"}
        encoded = json.dumps(body, separators=(",", ":")).encode()
        answer = None
        for attempt in range(3):
            if attempt or self.token is None:
                self.token = self.fetch_token()
            headers = {
                "User-Agent": "Go-http-client/1.1",
                "Authorization": f"Bearer {self.token}",
                "Content-Type": "application/json",
                "X-Api-Key": self.token,
                "Accept-Encoding": "gzip",
            }
            self.sent.append("deliver")
            answer = send(self.base_url, "POST", "/v1/ccp/signedContractData", headers, encoded)
            if answer.status == 200:
                break
        assert answer is not None
        if answer.status != 200:
            raise Refused(answer.status)
        content = answer.json()["CCPResponse"]["emaidContent"]
        if not content or not content[0]["messageDef"]["emaid"]:
            raise Refused("no emaid")
        message: str = content[0]["messageDef"]["certificateInstallationRes"]
        return message

    def roots(self) -> list[dict[str, str]]:
        """Any failure is tried once more with a new token. A single certificate that cannot be read fails them all."""
        self.token = self.token or self.fetch_token()
        headers = {
            "User-Agent": "Go-http-client/1.1",
            "Accept": "application/json",
            "Authorization": f"Bearer {self.token}",
            "X-Api-Key": self.token,
            "Accept-Encoding": "gzip",
        }
        answer = send(self.base_url, "GET", "/v1/root/rootCerts", headers)
        if answer.status != 200:
            raise Refused(answer.status)
        found: list[dict[str, str]] = answer.json()["RootCertificateCollection"]["rootCertificates"]
        return found


@dataclass
class Last:
    """The one in TypeScript: token by form with an audience, drops it at 401 or 403, hands on the last item."""

    base_url: str
    client_id: str
    secret: str
    token: str | None = None
    sent: list[str] = field(default_factory=list)

    # What its HTTP library adds to every request.
    ALWAYS = {  # noqa: RUF012
        "connection": "keep-alive",
        "accept-language": "*",
        "sec-fetch-mode": "cors",
        "user-agent": "node",
        "accept-encoding": "gzip, deflate",
    }

    def fetch_token(self) -> str:
        form = {
            "grant_type": "client_credentials",
            "client_id": self.client_id,
            "client_secret": self.secret,
            "audience": self.base_url,
        }
        headers = {"Content-Type": "application/x-www-form-urlencoded", "accept": "*/*", **self.ALWAYS}
        del headers["connection"]
        self.sent.append("token")
        answer = send(self.base_url, "POST", "/oauth/token", headers, urlencode(form).encode())
        if not 200 <= answer.status < 300 or not answer.json()["access_token"]:
            raise Refused(answer.status)
        # It keeps the token for so long, less a minute.
        assert answer.json()["expires_in"] - 60 > 0
        return f"Bearer {answer.json()['access_token']}"

    def request(self, method: str, path: str, body: bytes = b"") -> Answer:
        for attempt in range(2):
            self.token = self.token or self.fetch_token()
            headers = {"Accept": "application/json", "Authorization": self.token, **self.ALWAYS}
            del headers["connection"]
            if body:
                headers["Content-Type"] = "application/json"
            self.sent.append(method)
            answer = send(self.base_url, method, path, headers, body)
            if answer.status not in (401, 403) or attempt:
                break
            self.token = None
        if answer.status != 200:
            raise Refused(answer.status)
        return answer

    def ask(self, request: str, namespace: str = "urn:iso:15118:2:2013:MsgDef") -> str:
        body = {"certificateInstallationReq": request, "xsdMsgDefNamespace": namespace}
        encoded = json.dumps(body, separators=(",", ":")).encode()
        answer = self.request("POST", "/v1/ccp/signedContractData", encoded)
        message = None
        for content in answer.json()["CCPResponse"].get("emaidContent") or []:
            if content.get("messageDef", {}).get("certificateInstallationRes"):
                message = content["messageDef"]["certificateInstallationRes"]
        if message is None:
            raise Refused("no message")
        text: str = message
        return text

    def roots(self) -> list[dict[str, str]]:
        found: list[dict[str, str]] = self.request("GET", "/v1/root/rootCerts").json()["RootCertificateCollection"][
            "rootCertificates"
        ]
        return found
