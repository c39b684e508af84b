"""`ssmn doctor`: what would run here, why the rest would not, and what to type about it."""

from __future__ import annotations

import json
import os
import re
from importlib import metadata
from typing import Annotated, Any

import typer

from ssmn.config import Backend

DISTRIBUTION = "sparse-stream"
CORE = ("torch", "numpy", "tokenizers", "rich", "typer")
GOOD, BAD = "[green]✓[/]", "[yellow]✗[/]"


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON in place of tables.")] = False,
) -> None:
    """Say what would run here, and why the rest would not.

    Prints versions, the machine, the native library, which backend `auto` takes for each dtype and
    why others are refused, the extras, and a small comparison of the backends with the reference.

    \b
    Example:
        ssmn doctor
        ssmn doctor --json > doctor.json
    """
    report = examine()
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        _print(report)


def examine() -> dict[str, Any]:
    """Everything that `ssmn doctor` prints, as plain values."""
    import torch

    from ssmn import native, ops, probes

    status = native.status()
    dtypes = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        probe = torch.zeros(1, dtype=dtype)
        dtypes[str(dtype).removeprefix("torch.")] = {
            "auto": ops.choose_backend("doctor", "auto", probe),
            "refused": {name: why for name, why in ops.backend_status(probe).items() if why is not None},
        }
    tested: tuple[Backend, ...] = ("chunked", "native") if status.available else ("chunked",)
    return {
        "versions": {"ssmn": _version(DISTRIBUTION), **{name: _version(name) for name in CORE}},
        "machine": probes.machine(),
        "native": {
            "available": status.available,
            "reason": status.reason,
            "path": None if status.path is None else str(status.path),
            "version": status.version,
            "instruction_set": status.instruction_set,
            "compiler": status.compiler,
            "kernels": status.kernels,
            "runnable": list(status.runnable),
        },
        "SSMN_KERNELS": os.environ.get(native.KERNELS_VARIABLE),
        "SSMN_BACKEND": os.environ.get("SSMN_BACKEND"),
        "backends": dtypes,
        "extras": _extras(),
        "self_test": [
            {"operation": c.operation, "backend": c.backend, "difference": c.difference, "passed": c.passed}
            for name in tested
            for c in probes.check_backend(name)
        ],
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _extras() -> dict[str, dict[str, str | None]]:
    """For each extra the packages that it names, with the version that is installed."""
    try:
        requirements = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return {}
    extras: dict[str, dict[str, str | None]] = {}
    for requirement in requirements:
        name = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", requirement)
        if name and extra and name[0] != DISTRIBUTION:
            extras.setdefault(extra[1], {})[name[0]] = _version(name[0])
    return extras


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()

    def show(title: str, rows: list[tuple[str, ...]]) -> None:
        table = Table(
            title=title, title_justify="left", title_style="bold", show_header=False, box=None, padding=(0, 2)
        )
        for row in rows:
            table.add_row(*row)
        console.print(table, "")

    machine, native = report["machine"], report["native"]
    show("Versions", [(name, version or f"{BAD} not installed") for name, version in report["versions"].items()])
    show(
        "Machine",
        [
            ("processor", f"{machine['processor']}, {machine['cores']} cores; torch uses {machine['threads']} threads"),
            ("memory", f"{machine['memory_bytes'] / 2**30:.1f} GiB"),
            ("system", f"{machine['system']}, Python {machine['python']}"),
        ],
    )
    if native["available"]:
        asked = report["SSMN_KERNELS"]
        if not asked:
            choice = "the best of them; SSMN_KERNELS=name would force another"
        elif asked == native["kernels"]:
            choice = f"forced by SSMN_KERNELS={asked}"
        else:
            choice = f"{BAD} SSMN_KERNELS={asked} is not one of them and was not used"
        show(
            "Native library",
            [
                (GOOD, f"{native['version']}, {native['instruction_set']}, {native['compiler']}"),
                ("", str(native["path"])),
                ("", f"kernels that run here: {', '.join(native['runnable'])}"),
                ("", f"in use: {native['kernels']} ({choice})"),
            ],
        )
    else:
        way_out = f"pip install --force-reinstall --no-deps --no-binary {DISTRIBUTION} {DISTRIBUTION}"
        show(
            "Native library",
            [
                (BAD, f"not in use: {native['reason']}"),
                ("", "everything runs on the chunked PyTorch path; slower, with the same results"),
                ("", f"with a C++ compiler installed (such as g++), in a clone: make setup; else: {way_out}"),
            ],
        )
    forced = f" (SSMN_BACKEND={report['SSMN_BACKEND']})" if report["SSMN_BACKEND"] else ""
    show(
        f"Backends: what auto takes{forced}",
        [
            (dtype, choice["auto"], "; ".join(f"{name} refused: {why}" for name, why in choice["refused"].items()))
            for dtype, choice in report["backends"].items()
        ],
    )
    show("Extras", [_extra_row(name, packages) for name, packages in report["extras"].items()])
    show(
        "Self-test against the reference",
        [
            (
                GOOD if test["passed"] else BAD,
                f"{test['backend']} {test['operation']}",
                f"difference {test['difference']:.1e}",
            )
            for test in report["self_test"]
        ],
    )


def _extra_row(name: str, packages: dict[str, str | None]) -> tuple[str, ...]:
    missing = [package for package, version in packages.items() if version is None]
    if not missing:
        return GOOD, name, ""
    return BAD, name, f"without {', '.join(missing)}: pip install '{DISTRIBUTION}\\[{name}]'"
