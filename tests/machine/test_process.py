"""Process-wide settings, each in a process of its own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from flashar_cli.machine import process
if sys.argv[1] == "keep":
    process.keep_freed_memory()
for _ in range(9):
    bytearray(64 * 2**20)  # zeroed, so touched
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_freed_memory_is_used_again() -> None:
    def faults(how: str) -> int:
        command = [sys.executable, "-c", FAULTS, how]
        # Make has the C library keep freed memory whatever the process says.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        return int(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)

    block = 64 * 2**20 // 4096  # faults of one, if pages are not huge
    assert faults("keep") < faults("return") - block
