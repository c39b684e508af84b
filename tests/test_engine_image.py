"""A saved model stepped by a program in C: the same numbers as from Python, and damage is refused."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from engines import CONFIGS, inputs_of, model_of, steps
from ssmn import native
from ssmn.engine import Engine

ROOT = Path(__file__).parents[1]
COMPILER = shutil.which("cc")

pytestmark = [
    pytest.mark.skipif(not native.status().available, reason=native.status().reason),
    pytest.mark.skipif(COMPILER is None, reason="there is no C compiler"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`examples/engine.c`, built as its first comment says, with every warning an error."""
    library = native.status().path
    assert COMPILER is not None and library is not None
    out = tmp_path_factory.mktemp("c") / "engine"
    flags = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I", str(ROOT / "csrc" / "include")]
    link = ["-L", str(library.parent), "-lssmn", f"-Wl,-rpath,{library.parent}"]
    subprocess.run([COMPILER, *flags, str(ROOT / "examples" / "engine.c"), *link, "-o", str(out)], check=True)
    return out


def run(program: Path, image: Path, rows: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, image], input=rows, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["delta", "erase-sinks", "text-encoder-chat", "text-output-memory"])
@pytest.mark.parametrize("dtype", ["float32", "int4"])
def test_a_program_in_c_steps_to_the_bit(name: str, dtype: str, program: Path, tmp_path: Path) -> None:
    model = model_of(CONFIGS[name])
    xs = inputs_of(CONFIGS[name], 70, 1)[:, 0]
    engine = Engine(model, dtype, threads=2)  # type: ignore[arg-type]
    engine.step(xs[0])  # an image is the model, not its streams
    engine.save_image(tmp_path / "model.image")
    np.savetxt(tmp_path / "rows", xs, fmt="%d" if xs.ndim == 1 else "%.9g")
    done = run(program, tmp_path / "model.image", (tmp_path / "rows").read_text())
    assert done.returncode == 0, done.stderr
    ys = steps(Engine(model, dtype), xs)  # type: ignore[arg-type]
    answers = np.loadtxt(done.stdout.splitlines(), np.float32, ndmin=2)
    np.testing.assert_array_equal(answers, ys if xs.ndim == 2 else ys.argmax(1)[:, np.newaxis])


def test_a_bad_image_is_refused(program: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.image"
    Engine(model_of(CONFIGS["delta"])).save_image(path)
    whole = path.read_bytes()
    header, interface, middle = 72, 32, len(whole) // 2
    for spoilt, words in (
        (b"", "cut short"),
        (whole[:middle], "cut short"),
        (b"safetens" + whole[8:], "no image"),
        (whole.replace(b"0.1.0", b"0.0.9", 1), "another version"),
        (whole[:interface] + bytes([whole[interface] ^ 1]) + whole[interface + 1 :], "another version"),
        (whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :], "damaged"),
        (whole[: header + 3 * 8] + bytes([whole[header + 3 * 8] ^ 1]) + whole[header + 3 * 8 + 1 :], "damaged"),
    ):
        path.write_bytes(spoilt)
        done = run(program, path)
        assert done.returncode == 1 and words in done.stderr
    assert run(program, tmp_path / "nowhere").stderr == "engine: the image cannot be opened\n"
