"""Allocator settings: large blocks are returned to the system from every thread."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import re, sys, threading
from ccp.server.runtime import allocator

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024

def work():
    for _ in range(3):
        block = bytearray(19 << 20)
        block[::4096] = b"x" * len(block[::4096])
        small.append(bytes(1000))
        del block

if sys.argv[1] == "configured":
    allocator.configure()
small = []
before = resident()
for _ in range(4):
    threads = [threading.Thread(target=work) for _ in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
print(resident() - before)
"""


def grown(how: str, **environment: str) -> float:
    """MiB that a process keeps after two threads at a time have used and freed blocks of 19 MiB."""
    command = [sys.executable, "-c", SCRIPT, how]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment})
    return float(done.stdout)


pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the settings are those of glibc")


def test_allocator_gives_large_blocks_back_to_the_system() -> None:
    assert grown("configured") < 8


def test_allocator_settings_of_the_environment_take_precedence() -> None:
    kept = grown("configured", MALLOC_MMAP_THRESHOLD_=str(32 << 20), MALLOC_TRIM_THRESHOLD_=str(64 << 20))
    assert kept > 15
    assert (
        grown("configured", GLIBC_TUNABLES="glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=67108864")
        > 15
    )
