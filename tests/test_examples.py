"""Every example runs, stays short, and shows what it says it shows."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
LONGEST = 80


def row(output: str, beginning: str) -> list[float]:
    """The numbers at the end of the line that begins so."""
    line = next(line for line in output.splitlines() if line.startswith(beginning))
    found: list[float] = []
    for word in reversed(line.removeprefix(beginning).split()):
        try:
            found.insert(0, float(word))
        except ValueError:
            break
    return found


def balance_from_positions(output: str) -> None:
    (memory,), (none,) = row(output, "steps upright, with memory"), row(output, "steps upright, without memory")
    assert memory > 1.5 * none


def engine(output: str) -> None:
    assert "position 70," in output
    assert "equal to the bit: True" in output
    assert "parent 70 trial 120" in output
    assert "positions [1, 0, 71]" in output


def follow_a_system(output: str) -> None:
    learning, frozen = row(output, "32 to 62")
    assert learning < frozen / 2


def fork_and_rollback(output: str) -> None:
    assert "position [500]" in output
    assert "then the second alone: [1001]" in output
    assert "saved and loaded: identical" in output
    assert "equal to the bit: True" in output


def learn_without_training(output: str) -> None:
    for steps in ("steps 100 to 298", "steps 350 to 598"):
        learning, frozen = row(output, steps)
        assert learning < 1.5 < frozen / 4


def forecast_and_learn(output: str) -> None:
    frozen, learning = row(output, "frozen"), row(output, "learning")
    assert learning[-1] < 0.9 * frozen[-1]
    assert output.count("   (") == 4


def memory_in_your_model(output: str) -> None:
    assert row(output, "pieces equal")[0] <= 1e-5
    assert "key projection: True" in output
    assert "read (2, 40, 1, 8) memory (2, 1, 8, 8)" in output


def packed_and_padded(output: str) -> None:
    assert "positions [5, 90, 33]" in output
    differences = [float(text) for text in re.findall(r"^(?:packed|padded|resets) (\S+)", output, re.MULTILINE)]
    assert len(differences) == 3
    assert max(differences) <= 1e-12


def train_on_a_stream(output: str) -> None:
    learning, frozen = row(output, "memory on"), row(output, "frozen")
    assert learning[1] < learning[0]
    assert frozen[1] == pytest.approx(frozen[0], rel=0.02)


def tune_the_memory(output: str) -> None:
    assert row(output, "long-term")[-1] > row(output, "as trained")[-1]
    assert "bit-identical: True" in output


def watch_sensors(output: str) -> None:
    flagged = [line.split()[1] for line in output.splitlines() if " score " in line]
    assert flagged[0] == "temperature" and "load" in flagged
    assert len(set(re.findall(r"([\d,]+) bytes of state", output))) == 1


def who_wrote_this(output: str) -> None:
    assert '"bicycle" after "boris"' in output.splitlines()[1]
    (difference,) = row(output, "sum of all contributions - read:")
    assert difference <= 1e-5
    old, new = (re.findall(rf'"{word}": written (\S+), left (\S+)', output)[0] for word in ("lamp", "bicycle"))
    assert float(old[0].rstrip(",")) > 0.9 and abs(float(old[1])) < 0.1 < 0.5 < float(new[1])


CASES: dict[Callable[[str], None], dict[str, Any]] = {
    balance_from_positions: {"steps": 20_000},
    engine: {"steps": 70},
    follow_a_system: {"steps": 40},
    fork_and_rollback: {},
    learn_without_training: {},
    forecast_and_learn: {"hours": 1500},
    memory_in_your_model: {},
    packed_and_padded: {},
    train_on_a_stream: {"steps": 60},
    tune_the_memory: {},
    watch_sensors: {},
    who_wrote_this: {"between": 60},
}
"""What to look for in the output of the example of the same name, and the settings that make it quick."""


def test_every_example_has_a_check() -> None:
    assert {check.__name__ for check in CASES} == {path.stem for path in EXAMPLES.glob("*.py")}


@pytest.mark.parametrize("check", CASES, ids=lambda check: check.__name__)
def test_example(check: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    path = EXAMPLES / f"{check.__name__}.py"
    if "gymnasium" in path.read_text(encoding="utf-8"):
        pytest.importorskip("gymnasium", reason='the extra "rl" is not installed')
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(**CASES[check])
    check(capsys.readouterr().out)
