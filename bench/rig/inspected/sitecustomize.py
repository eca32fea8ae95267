"""Loaded by the interpreter of every process of a server that `rig.inspection` starts: it answers questions there.

A thread waits at a Unix socket, named by the process, and answers one line of JSON for each connection. It lets a copy
of the process (fork) find the answer: looking through all objects takes as much memory as they have, and the memory of
the process is what is measured.
"""

import contextlib
import os
import sys
import threading


def _listen(folder):
    import socket

    listening = socket.socket(socket.AF_UNIX)
    listening.bind(os.path.join(folder, f"{os.getpid()}.sock"))
    listening.listen(4)
    while True:
        connection, _ = listening.accept()
        with connection:
            copy = os.fork()
            if copy == 0:
                _answer(connection)
            os.waitpid(copy, 0)


def _answer(connection):
    """Runs in the copy, and ends it."""
    with contextlib.suppress(BaseException):
        import json

        from rig import containers

        connection.sendall(json.dumps(containers.sizes()).encode())
    os._exit(0)


_folder = os.environ.get("OPNC_CCP_INSPECTED")
if _folder and "-m" not in sys.orig_argv[1:3]:
    threading.Thread(target=_listen, args=(_folder,), daemon=True).start()
