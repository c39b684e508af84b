"""The wheel: with a compiler it has the kernels, and without one it still installs, runs, and says why it has none."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import ssmn

ROOT = Path(__file__).parents[1]

USE = """
import sys, torch, ssmn
from ssmn import native
assert ssmn.__path__ == [sys.argv[1]], ssmn.__path__
x = torch.nn.functional.normalize(torch.randn(1, 70, 2, 4), dim=-1)
gates = dict(eta=torch.full((1, 70, 2), 0.5), log_decay=torch.zeros(1, 70, 2))
o, _ = ssmn.ops.synaptic_memory(x, x, x, **gates)
assert torch.isfinite(o).all()
print(native.status().reason)
"""


def build_wheel(folder: Path, **environment: str) -> Path:
    arguments = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder)]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, str(ROOT)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


def use_wheel(wheel: Path, folder: Path) -> str:
    """Runs an operation from the unpacked wheel, ahead of the installed package; returns the kernels' status."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    # -S leaves out the editable install's import hook, so that the packages' folder has to be named.
    packages = [str(folder), *(path for path in sys.path if path.endswith("site-packages"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(packages)}
    command = [sys.executable, "-S", "-c", USE, str(folder / "ssmn")]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_without_a_compiler_the_wheel_is_pure_and_says_why(tmp_path):
    wheel = build_wheel(tmp_path, CXX="/bin/false", CC="/bin/false")
    assert wheel.name == f"sparse_stream-{ssmn.__version__}-py3-none-any.whl"
    assert "C++ build failed" in use_wheel(wheel, tmp_path / "unpacked")


@pytest.mark.slow
def test_with_a_compiler_the_wheel_has_the_kernels_for_every_python(tmp_path):
    wheel = build_wheel(tmp_path)
    assert wheel.name.startswith(f"sparse_stream-{ssmn.__version__}-py3-none-")
    assert not wheel.name.endswith("-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"ssmn/py.typed", "ssmn/_lib/ssmn.h", "ssmn/demo/assets/model/model.safetensors"} <= names
    assert {name.split("/")[0] for name in names} == {"ssmn", f"sparse_stream-{ssmn.__version__}.dist-info"}
    assert use_wheel(wheel, tmp_path / "unpacked").startswith(f"version {ssmn.__version__}, ")


def test_the_archive_of_sources_has_no_library_of_this_machine(tmp_path: Path) -> None:
    sources = ("pyproject.toml", "README.md", "LICENSE", ".gitignore", "src/ssmn/__init__.py", "src/ssmn/py.typed")
    built = ("src/ssmn/_lib/libssmn.so", "src/ssmn/__pycache__/cli.cpython-311.pyc", "runs/model/train.toml")
    for name in (*sources, *built):
        path = tmp_path / "clone" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((ROOT / name).read_bytes() if name in sources else b"of this machine")
    code = "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path / "clone", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with tarfile.open(tmp_path / f"sparse_stream-{ssmn.__version__}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names == {*sources, "PKG-INFO"}


def test_importing_the_package_loads_neither_torch_nor_an_extra():
    code = "import sys, ssmn; print(sorted({'torch', 'numpy', 'matplotlib', 'tensorboard'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_every_public_name_can_be_reached():
    for name in ssmn.__all__:
        assert getattr(ssmn, name) is not None
        assert name in dir(ssmn)
    with pytest.raises(AttributeError, match="no attribute 'Sttream'"):
        _ = ssmn.Sttream  # type: ignore[attr-defined]
