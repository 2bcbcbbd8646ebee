"""`--nproc N`: the same command line in N processes of this machine, told apart as `torchrun` does it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from flashar_cli.cli import output
from flashar_cli.machine import memory

# Once one process has failed, the others often fail by themselves; those that don't are asked to save and leave, and
# at last they are killed.
OWN_END_S, SAVE_S = 3.0, 60.0
POLL_S = 0.1
PROCESS_BYTES = 300 * 2**20  # what Python and PyTorch alone take


def launch(nproc: int | None) -> None:
    """Runs this command line in ``nproc`` processes and exits with their exit code. Returns where this process does the
    work: without ``--nproc``, or as one of them. SIGTERM is passed on, Ctrl-C reaches all of them by itself.
    """
    if nproc is None or "RANK" in os.environ:
        return
    memory.require_memory(f"--nproc {nproc}", nproc * PROCESS_BYTES)
    with tempfile.TemporaryDirectory(prefix="flashar-") as logs:
        processes = _start(nproc, Path(logs))
        signal.signal(signal.SIGTERM, lambda number, frame: _signal(processes, signal.SIGTERM))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        failed = _first_failure(processes)
        if failed is not None and failed > 0 and processes[0].returncode in (0, None, -signal.SIGTERM):
            output.note((Path(logs) / str(failed)).read_text(encoding="utf-8", errors="replace").rstrip())
        code = 0 if failed is None else processes[failed].returncode
    if code < 0:
        output.error(
            f"process {failed} of {nproc} was ended by signal {-code} ({signal.Signals(-code).name}); "
            "run the same command again to go on"
        )
        code = 128 - code
    sys.exit(code)


def _start(nproc: int, logs: Path) -> list[subprocess.Popen[bytes]]:
    """Starts all. Only the first writes to this terminal; the output of the others is kept in case they fail."""
    shared = {
        **os.environ,
        "WORLD_SIZE": str(nproc),
        "LOCAL_WORLD_SIZE": str(nproc),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }
    shared.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc)))
    command = [sys.executable, "-m", "flashar_cli", *sys.argv[1:]]
    processes = []
    for rank in range(nproc):
        environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        if rank == 0:
            processes.append(subprocess.Popen(command, env=environment))
            continue
        with open(logs / str(rank), "wb") as log:
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    return processes


def _first_failure(processes: list[subprocess.Popen[bytes]]) -> int | None:
    """Waits for all; the rank that first ended with another exit code than 0, None where none did."""
    failed, failed_at, asked = None, 0.0, False
    while None in [process.poll() for process in processes]:
        if failed is None:
            failed = _failure(processes)
            failed_at = time.monotonic()
        elif not asked and time.monotonic() > failed_at + OWN_END_S:
            _signal(processes, signal.SIGTERM)
            asked = True
        elif time.monotonic() > failed_at + OWN_END_S + SAVE_S:
            _signal(processes, signal.SIGKILL)
        time.sleep(POLL_S)
    return _failure(processes) if failed is None else failed


def _failure(processes: list[subprocess.Popen[bytes]]) -> int | None:
    """The rank that failed; of several, one that a signal ended, as the others fail because they miss it."""
    codes = {rank: process.returncode for rank, process in enumerate(processes) if process.returncode}
    return min(codes, key=lambda rank: (codes[rank] > 0, rank), default=None)


def _signal(processes: list[subprocess.Popen[bytes]], number: int) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
