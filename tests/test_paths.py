"""The kernels' paths: each that runs here, in a process of its own, against the float64 reference."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ssmn import native
from ssmn.errors import BackendError

ROOT = Path(__file__).parents[1]
PATHS = native.status().runnable

needs_library = pytest.mark.skipif(not native.status().available, reason=native.status().reason)

AGREES = """
import json, sys, torch
from ssmn import native, ops

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)


def draw(*shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def run(operation, inputs, backend, dtype, cotangents, **options):
    leaves = {name: x.detach().to(dtype, copy=True).requires_grad_() for name, x in inputs.items()}
    output, final = operation(**leaves, output_final_state=True, backend=backend, **options)
    finals = [final] if isinstance(final, torch.Tensor) else [final.keys, final.values]
    results = [output, *finals]
    loss = sum((x * c.to(x.dtype)).sum() for x, c in zip(results, cotangents, strict=True))
    loss.backward()
    return [*(x.detach() for x in results), *(leaf.grad for leaf in leaves.values())]


def difference(operation, inputs, cotangents, **options):
    wanted = run(operation, inputs, "reference", torch.float64, cotangents, **options)
    came = run(operation, inputs, "native", torch.float32, cotangents, **options)
    pairs = zip(came, wanted, strict=True)
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1.0)) for a, b in pairs)


T, worst = 2 * native.CHUNK + 21, {}
unit = torch.nn.functional.normalize
memory = {
    "q": unit(draw(2, T, 3, 10), dim=-1),
    "k": unit(draw(2, T, 3, 10), dim=-1),
    "v": draw(2, T, 3, 19),
    "eta": draw(2, T, 3).sigmoid(),
    "log_decay": -draw(2, T, 3).exp() * 0.05,
    "initial_state": draw(2, 3, 10, 19),
}
for rule in ("hebbian", "delta"):
    worst[rule] = difference(ops.synaptic_memory, memory, [draw(2, T, 3, 19), draw(2, 3, 10, 19)], rule=rule)
window = {"q": draw(2, T, 4, 18), "k": draw(2, T, 2, 18), "v": draw(2, T, 2, 18), "sinks": draw(4)}
ring = (2, 36, 2, 18)
worst["window"] = difference(
    ops.window_attention, window, [draw(2, T, 4, 18), draw(*ring), draw(*ring)], window_size=37, rope_theta=10_000.0
)
print(json.dumps({"kernels": native.status().kernels, "worst": worst}))
"""


def python(*arguments: str, kernels: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, native.KERNELS_VARIABLE: kernels}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=True, cwd=ROOT / "tests"
    )


@needs_library
@pytest.mark.parametrize("path", PATHS)
def test_every_path_agrees_with_the_reference(path: str) -> None:
    found = json.loads(python("-W", "error", "-c", AGREES, kernels=path).stdout)
    assert found["kernels"] == path
    assert set(found["worst"]) == {"hebbian", "delta", "window"}
    assert max(found["worst"].values()) < 2e-5, found


@needs_library
@pytest.mark.parametrize("path", PATHS[-1:])
def test_the_doctor_shows_the_kernels_in_use(path: str) -> None:
    report = json.loads(python("-m", "ssmn", "doctor", "--json", kernels=path).stdout)
    assert report["native"]["kernels"] == report["SSMN_KERNELS"] == path
    assert tuple(report["native"]["runnable"]) == PATHS
    text = " ".join(python("-m", "ssmn", "doctor", kernels=path).stdout.split())
    assert f"kernels that run here: {', '.join(PATHS)}" in text
    assert f"in use: {path} (forced by SSMN_KERNELS={path})" in text


@needs_library
def test_the_best_path_comes_first_and_is_taken() -> None:
    found = python("-c", "from ssmn import native; print(native.status().kernels)", kernels="")
    assert found.stdout.strip() == PATHS[0]
    assert "portable" in PATHS


@needs_library
def test_an_unknown_path_warns_names_the_others_and_is_not_used() -> None:
    script = "from ssmn import native; print(native.status().kernels)"
    found = python("-c", script, kernels="avx1024")
    assert found.stdout.strip() == PATHS[0]
    assert f"SSMN_KERNELS=avx1024 is not one of those that run here ({', '.join(PATHS)})" in found.stderr
    text = " ".join(python("-W", "ignore", "-m", "ssmn", "doctor", kernels="avx1024").stdout.split())
    assert "SSMN_KERNELS=avx1024 is not one of them and was not used" in text


@needs_library
def test_use_kernels_changes_the_path_and_back() -> None:
    before = native.status().kernels
    try:
        for path in PATHS:
            native.use_kernels(path)
            assert native.status().kernels == path
        with pytest.raises(BackendError, match=r"native: kernels 'neon9' do not run here; wanted one of .*portable"):
            native.use_kernels("neon9")
        assert native.status().kernels == PATHS[-1]
    finally:
        native.use_kernels(None)
    assert native.status().kernels == before


def test_kernels_cannot_be_chosen_without_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_loaded", lambda: (None, native.NativeStatus(False, "no compiled library")))
    with pytest.raises(BackendError, match="native: no compiled library"):
        native.use_kernels("portable")


def test_no_path_defines_a_weak_symbol() -> None:
    """The linker would take one path's copy for all, and run instructions that the machine may not have."""
    if shutil.which("nm") is None or platform.system() != "Linux":
        pytest.skip("nm is not installed (or this is not Linux)")
    folders = [ROOT / "build" / "editable", ROOT / "build"]
    objects = next((found for folder in folders if (found := path_objects(folder))), [])
    if not objects:
        pytest.skip("no object files of a build in build/ (make setup leaves them in build/editable)")
    names = {path.parents[2].name for path in objects}
    assert "ssmn_portable.dir" in names
    out = subprocess.run(["nm", "-C", *map(str, objects)], capture_output=True, text=True, check=True).stdout
    symbols = re.findall(r"^[0-9a-f]{8,} (\w) (.+)$", out, re.MULTILINE)
    assert "T" in {kind for kind, _ in symbols}
    # A reference to the exceptions' personality is data and the same in all.
    weak = [name for kind, name in symbols if kind in "WwVvu" and not name.startswith("DW.ref.")]
    assert weak == []


def path_objects(folder: Path) -> list[Path]:
    """The object files of the kernels that are built once per path."""
    return sorted(folder.glob("CMakeFiles/ssmn_*.dir/csrc/kernels/*.o"))


@pytest.mark.parametrize("used_before", [False, True])
def test_a_forked_child_has_threads_of_its_own(used_before: bool) -> None:
    """OpenMP's threads, which the kernels borrow, stay behind at a fork; waiting for them would be for ever."""
    program = f"""
import os, torch
from ssmn import ops
torch.set_num_threads(2)
x = torch.randn(1, 400, 2, 32)  # small enough that torch itself takes one thread
attend = lambda: ops.window_attention(x, x, x, window_size=64, backend="native")[0]
torch.randn(600, 600) @ torch.randn(600, 600)  # starts OpenMP's threads
wanted = attend() if {used_before} else None
child = os.fork()
if child == 0:
    got = attend()
    os._exit(0 if wanted is None or torch.equal(got, wanted) else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0
