"""The frame of the quality benchmark: runs that depend on others, resumption, refusals, tables."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Generator, Mapping
from pathlib import Path

import pytest

from ssmn.bench import quality, report
from ssmn.bench.quality.frame import Options, Part, Result, Run, Stopped, Workplace, finished, work
from ssmn.bench.report import Table
from ssmn.errors import FileError, RangeError

MEASURED = Path(__file__).parents[1] / "experiments" / "quality"


class Toy:
    """A part whose second run depends on the result of the first."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.base = 3
        self.part = Part("toy", "A toy.", self.runs, self.measure, self.tables)

    def runs(self, options: Options) -> Generator[Run, Result | None, None]:
        for seed in range(options.seeds):
            result = yield Run(f"first-{seed}", {"base": self.base, "sizes": (1, 2)})
            if result is not None:
                yield Run(f"second-{seed}", {"value": result["value"] + seed})

    def measure(self, run: Run, place: Workplace) -> Result | None:
        if place.on_step(1, 1, run.name):
            return None
        assert place.folder.is_dir()
        self.done.append(run.name)
        return {"value": 2 * run.settings.get("base", run.settings.get("value"))}

    def tables(self, runs: Mapping[str, Result]) -> list[Table]:
        return [Table("toys", ["run", "value"], [[n, str(r["results"]["value"])] for n, r in runs.items()], texts=1)]


def test_a_run_may_depend_on_another_and_a_second_call_does_nothing(tmp_path: Path) -> None:
    toy, options = Toy(), Options(tmp_path, seeds=2)
    assert work(toy.part, options)
    assert toy.done == ["first-0", "second-0", "first-1", "second-1"]
    found = finished(toy.part, tmp_path)
    assert {name: run["results"]["value"] for name, run in found.items()} == {
        "first-0": 6, "second-0": 12, "first-1": 6, "second-1": 14,
    }  # fmt: skip
    assert found["first-0"]["settings"] == {"base": 3, "sizes": [1, 2]}
    assert {"machine", "date", "seconds"} <= found["first-0"].keys()
    assert work(toy.part, options)
    assert len(toy.done) == 4
    assert "| second-1 | 14 |" in report.markdown_table(toy.part.tables(found)[0])


def test_left_out_runs_and_their_followers_are_done_later(tmp_path: Path) -> None:
    toy, options = Toy(), Options(tmp_path, seeds=2)
    assert not work(toy.part, options, only=["*-1"])
    assert toy.done == ["first-1", "second-1"]
    assert work(toy.part, options)
    assert toy.done == ["first-1", "second-1", "first-0", "second-0"]


def test_it_stops_when_the_time_is_up(tmp_path: Path) -> None:
    toy = Toy()
    with pytest.raises(Stopped):
        work(toy.part, Options(tmp_path), until=0.0)
    assert not toy.done
    assert not finished(toy.part, tmp_path)


def test_other_settings_and_damaged_files_are_refused(tmp_path: Path) -> None:
    toy, options = Toy(), Options(tmp_path, seeds=1)
    work(toy.part, options)
    toy.base = 4
    with pytest.raises(RangeError, match=r"first-0\.json was measured with other settings \(base\); use another --out"):
        work(toy.part, options)
    (tmp_path / "toy" / "first-0.json").write_text("{")
    with pytest.raises(FileError, match="is not the file of a run"):
        work(toy.part, options)


def test_the_benchmark_runs_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy, begun = Toy(), []
    monkeypatch.setitem(quality.PARTS, "toy", toy.part)
    results = quality.measure_quality(
        ["toy"], out=str(tmp_path), seeds=1, on_run=lambda part, run: begun.append((part, run))
    )
    assert begun == [("toy", "first-0"), ("toy", "second-0")]
    assert results["complete"]
    assert [table.title for table in quality.tables(json.loads(json.dumps(results)))] == ["toys"]
    assert not quality.measure_quality(["toy"], out=str(tmp_path / "x"), minutes=0)["complete"]
    assert quality.measure_quality(["toy"], out=str(tmp_path), report_only=True)["parts"] == results["parts"]
    with pytest.raises(RangeError, match="part='toys'; wanted one of"):
        quality.measure_quality(["toys"])
    with pytest.raises(RangeError, match="seeds=0; wanted at least 1"):
        quality.measure_quality(["toy"], seeds=0)


def test_ctrl_c_ends_the_whole_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy()

    def interrupt(run: Run, place: Workplace) -> Result | None:
        raise KeyboardInterrupt

    monkeypatch.setitem(quality.PARTS, "toy", Part("toy", "", toy.runs, interrupt, toy.tables))
    assert quality.measure_quality(["toy"], out=str(tmp_path)) == {"parts": {"toy": {}}, "complete": False}


@pytest.mark.parametrize("part", [part for part in quality.PARTS if (MEASURED / part).is_dir()])
def test_every_row_of_a_table_is_named_by_its_first_columns(part: str) -> None:
    runs = finished(quality.PARTS[part], MEASURED)
    assert runs
    for table in quality.PARTS[part].tables(runs):
        names = [tuple(row[: table.texts]) for row in table.rows]
        assert len(set(names)) == len(names) > 0, table.title
        for piece in report.fitting(table, 78):
            assert len(set(piece.head[table.texts :])) == len(piece.head) - table.texts, table.title


def test_the_report_is_legible_at_eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    command = [sys.executable, "-m", "ssmn", "bench", "family", "--report", "--out", str(MEASURED)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8").stdout
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    heads = [line.split() for line in shown.splitlines() if line.startswith("  memory ")]
    tables = sum(line.startswith("Equal ") for line in shown.splitlines())
    assert len(heads) > tables > 0
    assert sum("copy" in head for head in heads) == tables
    assert "where each run's file names its machine and commit" in " ".join(shown.split())
