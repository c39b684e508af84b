"""Numbers about the machine and the library: what runs here, and whether it is right."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ssmn import ops
from ssmn.config import Backend


def resident_bytes() -> int:
    """Memory of this process that is in RAM now (on systems without /proc: the most it has been)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")


def machine() -> dict[str, Any]:
    """What a measurement depends on: processor, cores, threads, versions, and the commit of the source tree.

    Example:
        >>> from ssmn.probes import machine
        >>> machine()["threads"] >= 1
        True
    """
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _commit(),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the tree that the library runs from, "+" if it was changed since; None for an installed copy."""
    package = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        top = Path(git("rev-parse", "--show-toplevel"))
        if top / "src" / "ssmn" != package:
            return None
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD")[:12] + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


@dataclass(frozen=True)
class Check:
    """One comparison of a backend with the reference, on random input."""

    operation: str
    backend: str
    difference: float
    """Largest |difference|, divided by max(1, largest |reference|)."""
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the difference is a number within the tolerance."""
        return self.difference <= self.tolerance


def check_backend(backend: Backend, *, tolerance: float = 1e-4, seed: int = 0) -> list[Check]:
    """Compares a backend with the reference: outputs, final states and gradients of both operations.

    Args:
        backend: The backend to try.
        tolerance: Largest difference, relative to max(1, largest |reference|).
        seed: Of the random input.

    Returns:
        One check for each operation.

    Raises:
        BackendError: The backend cannot run here.

    Example:
        >>> from ssmn.probes import check_backend
        >>> all(check.passed for check in check_backend("chunked"))
        True
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    unit = torch.nn.functional.normalize
    memory_inputs = {
        "q": unit(draw(2, 150, 3, 16), dim=-1),
        "k": unit(draw(2, 150, 3, 16), dim=-1),
        "v": draw(2, 150, 3, 24),
        "eta": draw(2, 150, 3).sigmoid(),
        "log_decay": -draw(2, 150, 3).exp() * 0.05,
        "initial_state": draw(2, 3, 16, 24),
    }
    window_inputs = {"q": draw(2, 150, 4, 16), "k": draw(2, 150, 2, 16), "v": draw(2, 150, 2, 16)}

    def run(operation: Any, inputs: dict[str, torch.Tensor], name: str, **options: Any) -> list[torch.Tensor]:
        leaves = {key: value.clone().requires_grad_() for key, value in inputs.items()}
        output, final = operation(**leaves, output_final_state=True, backend=name, **options)
        finals = [final] if isinstance(final, torch.Tensor) else [final.keys, final.values]
        (output.square().sum() + sum(part.square().sum() for part in finals)).backward()
        gradients = [leaf.grad for leaf in leaves.values() if leaf.grad is not None]
        return [*(part.detach() for part in (output, *finals)), *gradients]

    checks = []
    for operation, inputs, options in (
        (ops.synaptic_memory, memory_inputs, {"rule": "delta"}),
        (ops.window_attention, window_inputs, {"window_size": 37, "rope_theta": 10_000.0}),
    ):
        wanted = run(operation, inputs, "reference", **options)
        came = run(operation, inputs, backend, **options)
        difference = max(
            float((a - b).abs().max() / b.abs().max().clamp(min=1.0)) for a, b in zip(came, wanted, strict=True)
        )
        checks.append(Check(operation.__name__, backend, difference, tolerance))
    return checks
