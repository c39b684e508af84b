"""The structure of the package: who may import whom, and what `import ssmn` loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ssmn

PACKAGE = Path(ssmn.__file__).parent

ORDER = [
    "errors", "config", "files", "state", "native", "ops", "layers", "relatives", "models", "engine", "stream",
    "training", "generation", "streaming", "series", "interfaces", "probes", "plots", "live", "bench", "demo", "cli",
    "__main__",
]  # fmt: skip
"""A module imports only from those before it, and from its own folder."""


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full name of what is used from this package, for running and not only for types."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.startswith("ssmn."))
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: relative import; write the full name"
            if node.module == "ssmn":
                yield from ((node.lineno, f"ssmn.{alias.name}") for alias in node.names)
            elif (node.module or "").startswith("ssmn."):
                yield node.lineno, node.module or ""
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ssmn":
            yield node.lineno, f"ssmn.{node.attr}"
        else:
            yield from imported(node)


def breaches(module: str, source: str) -> list[str]:
    """What is wrong with the imports of `module` (a name of `ORDER`)."""
    found = []
    for line, name in imported(ast.parse(source)):
        target = name.split(".")[1]
        if target in ORDER and ORDER.index(target) > ORDER.index(module):
            found.append(f"line {line}: {module} imports {name}, which comes after it")
        elif target not in ORDER and not target.startswith("__"):
            found.append(f"line {line}: {name} is no module; import from the module that defines it")
    return found


def test_every_module_imports_only_from_those_before_it() -> None:
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts == ("__init__",):
            continue  # the lazy table of public names
        if parts[0] not in ORDER:
            wrong.append(f"{path}: {parts[0]} has no place in the order")
            continue
        wrong += [f"{path}: {breach}" for breach in breaches(parts[0], path.read_text(encoding="utf-8"))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("from ssmn.models import SSMN", "state imports ssmn.models, which comes after it"),
        ("def f():\n    import ssmn.cli.state", "line 2: state imports ssmn.cli.state"),
        ("from ssmn import ops", "state imports ssmn.ops"),
        ("import ssmn\nx = ssmn.ops.synaptic_memory(1)", "line 2: state imports ssmn.ops"),
        ("import ssmn\nx = ssmn.SSMN", "line 2: ssmn.SSMN is no module; import from the module"),
        ("from ssmn import SSMN", "ssmn.SSMN is no module"),
    ],
)
def test_breaches_are_seen(source: str, message: str) -> None:
    assert message in breaches("state", source)[0]


def test_what_may_be_imported() -> None:
    source = """
from typing import TYPE_CHECKING
import torch
import ssmn
from ssmn import __version__
from ssmn.files import read_file
if TYPE_CHECKING:
    from ssmn.models import SSMN
print(ssmn.__path__)
"""
    assert breaches("state", source) == []


@pytest.mark.parametrize("module", ["ssmn", "ssmn.errors", "ssmn.config", "ssmn.files", "ssmn.cli", "ssmn.cli.state"])
def test_light_modules_load_neither_torch_nor_an_extra(module: str) -> None:
    heavy = {"torch", "tokenizers", "matplotlib", "tensorboard", "transformers", "sklearn"}
    script = f"import sys, {module}; print(*sorted(set(sys.modules) & {heavy!r}))"
    path = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r}); {script}"
    run = subprocess.run([sys.executable, "-c", path], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""
