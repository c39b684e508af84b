"""Memory, measured in a process of its own, where nothing else has been allocated or kept.

`in_fresh_process` runs a function of the library in a new interpreter; that function uses `Peak`.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ssmn.errors import BackendError, SSMNError

_START = """
import sys, types
package = types.ModuleType("ssmn.bench")  # without its __init__, which loads torch: its memory is not to be measured
package.__path__ = [sys.argv[1]]
sys.modules["ssmn.bench"] = package
from ssmn.bench.footprint import main
main(*sys.argv[2:])
"""
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def can_measure() -> str | None:
    """Why the peak of memory cannot be measured here, or None if it can (Linux)."""
    return None if os.access(_CLEAR, os.W_OK) else "the peak of resident memory is read from /proc, which Linux has"


def _kilobytes(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])


def available_bytes() -> int:
    """Memory that can still be had without swapping (on systems without /proc: all that there is)."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class Peak:
    """The most resident memory since it was made, and what there was then, in bytes."""

    def __init__(self) -> None:
        _CLEAR.write_text("5")  # sets the high-water mark to what is resident now
        self.before = _kilobytes("VmRSS:") * 1024

    @property
    def above(self) -> int:
        """The peak so far, above what there was."""
        return self.total - self.before

    @property
    def total(self) -> int:
        """The peak so far."""
        return _kilobytes("VmHWM:") * 1024


def in_fresh_process(function: str, threads: int, /, **settings: Any) -> dict[str, Any]:
    """Calls a function in a new interpreter and returns what it returns.

    Memory that is freed there goes back to the system at once (blocks above 64 KiB are mapped one by
    one), so that the peak is of what was alive.

    Args:
        function: "module:name"; takes and returns plain values.
        threads: Threads for torch and for the kernels.
        **settings: The function's.

    Raises:
        BackendError: The process failed; its last line of standard error is in the message.
    """
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": str(64 * 1024),
        "MALLOC_TRIM_THRESHOLD_": str(64 * 1024),
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    command = [sys.executable, "-c", _START, str(Path(__file__).parent), function, json.dumps(settings)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise BackendError(f"bench: {function} failed in a process of its own: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def main(function: str, settings: str) -> None:
    """What the new interpreter does."""
    module, name = function.split(":")
    try:
        print(json.dumps(getattr(importlib.import_module(module), name)(**json.loads(settings))))
    except SSMNError as error:
        sys.exit(str(error))
