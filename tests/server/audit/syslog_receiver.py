"""A syslog receiver over TCP or TLS as a process: PORT, FILE, and the number of messages after which it dies (0: none).

It appends each message to the file as soon as it has read it, and closes a connection at its end.
"""

from __future__ import annotations

import os
import socket
import ssl
import sys

Stream = socket.socket | ssl.SSLSocket


def exactly(connection: Stream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        if not (part := connection.recv(count - len(data))):
            raise EOFError
        data += part
    return data


def message_of(connection: Stream) -> bytes:
    """One message, read no further than its end. Source: RFC 6587 clause 3.4.1."""
    digits = b""
    while (letter := exactly(connection, 1)) != b" ":
        digits += letter
    return exactly(connection, int(digits))


def main(port: int, file: str, dies_after: int) -> None:
    received = 0
    with socket.create_server(("127.0.0.1", port)) as listening, open(file, "ab", buffering=0) as out:
        print("ready", flush=True)
        while True:
            connection, _ = listening.accept()
            with connection:
                try:
                    while True:
                        out.write(message_of(connection) + b"\n")
                        received += 1
                        if received == dies_after:
                            os._exit(9)
                except (EOFError, OSError):
                    continue


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
