"""The demonstration of the Standard model on a part of its sensor, its page, and what it ships."""

from __future__ import annotations

import hashlib
import json
import lzma
from pathlib import Path

import numpy as np
import pytest
import torch

from ssmn import plots
from ssmn.cli import main
from ssmn.demo import standard
from ssmn.errors import FileError
from ssmn.series import Detector
from ssmn.stream import Stream
from test_demo import Links

ASSETS = Path(str(standard.ASSETS))
ROWS = 3_000


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "report"
    assert main(["demo", "standard", "--rows", str(ROWS), "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def numbers(report: Path) -> dict:
    return json.loads((report / "numbers.json").read_text())


def test_the_report_is_whole_and_asks_for_nothing_from_outside(report: Path) -> None:
    names = sorted(file.name for file in report.iterdir())
    assert names == [
        "1-anomalies.png", "2-prediction.png", "3-switch.png", "4-state.png", "index.html", "numbers.json"
    ]  # fmt: skip
    page = (report / "index.html").read_text(encoding="utf-8")
    links = Links(page)
    assert len(links.loaded) == 16
    assert all(link.startswith("data:image/png;base64,") for link in links.loaded)
    assert all(word not in page for word in ("<script", "@import", "url(", "http:", "https:", " nan"))
    assert len(links.alt) == 4
    assert f"ssmn demo standard --rows {ROWS}" in page


def test_the_detector_finds_what_is_labelled(numbers: dict) -> None:
    watched = numbers["watch"]
    assert watched["rows"] == ROWS
    assert len(watched["windows"]) == watched["windows_found"] == 1
    assert watched["pieces_identical"]
    assert watched["reloaded_identical"]
    assert watched["detector_bytes"] == watched["detector_bytes_early"]
    sensor = standard.Sensor.shipped(ROWS)
    times = np.array([row.time for row in sensor.read()], "datetime64[ns]")
    found = Detector().push(sensor.values(), times)
    (window,) = sensor.windows
    outside = found.flags & ((times < window[0]) | (times > window[1]))
    assert watched["flags_outside"] == outside.sum()
    assert len(watched["flags"]) == found.flags.sum()
    assert all(watched["scores"][row] >= watched["threshold"] for row in watched["flags"])


def test_a_fresh_model_learns_recovers_and_beats_a_frozen_one(numbers: dict) -> None:
    followed = numbers["follow"]
    stretches = {stretch["name"]: stretch for stretch in followed["stretches"]}
    assert sum(stretch["rows"] for stretch in followed["stretches"]) == ROWS - 1 - _lost(ROWS)
    assert stretches["until the end"]["learning"] < stretches["first hour"]["learning"] / 2
    assert stretches["until the end"]["learning"] < stretches["until the end"]["frozen"]
    assert stretches["the shifted reading itself"]["learning"] == pytest.approx(standard.SHIFT, abs=6)
    assert followed["recovery"]["last"] == 0
    assert 0 < followed["recovery"]["learning"] < 60
    assert followed["state_bytes_constant"]
    assert 0 in followed["zoom"]["rows"]


def _lost(rows: int) -> int:
    given = standard.Disturbed.of(np.zeros(rows))
    assert np.isnan(given.values[slice(*given.gap)]).all()
    assert 0.2 < np.isnan(given.values[slice(*given.lossy)]).mean() < 0.45
    assert (np.diff(np.nan_to_num(given.values, nan=0.0)[given.shift - 1 : given.shift + 1]) == standard.SHIFT).all()
    return int(np.isnan(given.values).sum())


def test_predictions_come_before_their_readings(numbers: dict) -> None:
    given = standard.Disturbed.of(standard.Sensor.shipped(ROWS).values())
    model = standard.predictor()
    row = given.shift
    told = torch.from_numpy(given.values).float()
    said = standard._predict(Stream(model), told[: row + 1])
    place = numbers["follow"]["zoom"]["rows"].index(0)
    assert numbers["follow"]["zoom"]["learning"][place] == pytest.approx(float(said[row - 1]), abs=1e-2)
    assert numbers["follow"]["zoom"]["truth"][place] == pytest.approx(float(told[row]), abs=1e-4)


def test_a_replaced_system_is_known_again(numbers: dict) -> None:
    switched = numbers["switch"]
    steps = switched["steps_to_know"]
    assert switched["switched_systems"] == switched["systems"]
    for name in ("ssmn_rls", "textbook"):
        assert steps[name]["fresh"] < steps[name]["switched"] <= 64
        assert switched["noise"] < switched["settled"][name] < 2 * switched["noise"]
        assert switched["switched"][name][0] > 1
    assert switched["settled"]["ssmn_delta"] > switched["settled"]["ssmn_rls"]


def test_a_state_is_a_value(numbers: dict) -> None:
    story = numbers["story"]
    assert story["reloaded_identical"]
    assert story["future_identical"]
    assert story["parent_unchanged"]
    assert story["original"] == story["reloaded"]
    before, after = slice(0, story["shift_after"]), story["shift_after"] + 20
    assert story["fork"][before] == story["original"][before]
    assert story["original"][after] - story["fork"][after] == pytest.approx(standard.SHIFT, abs=8)


def test_no_step_counts_as_known_before_five_in_a_row_are() -> None:
    low, high = standard.SETTLED / 2, standard.SETTLED * 2
    assert standard._first_below([high, low, low, high, low, low, low, low, low, high]) == 4
    assert standard._first_below([low, low, low, low, high, low]) is None


def test_what_is_shipped() -> None:
    record = json.loads((ASSETS / "machine-temperature.json").read_text(encoding="utf-8"))
    data = lzma.decompress((ASSETS / "machine-temperature.csv.xz").read_bytes())
    assert hashlib.sha256(data).hexdigest() == record["sha256"]
    assert "Permission is hereby granted" in (ASSETS / "machine-temperature.LICENSE.txt").read_text(encoding="utf-8")
    sensor = standard.Sensor.shipped()
    assert sensor.rows == record["rows"] == data.count(b"\n") - 1
    assert len(sensor.windows) == 4


def test_wrong_options_and_missing_files_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "standard", "--bytes", "30000"]) == 2
    assert "wanted --rows" in capsys.readouterr().err
    assert main(["demo", "text", "--rows", "3000"]) == 2
    assert "wanted --bytes" in capsys.readouterr().err
    with pytest.raises(FileError, match="1,999 rows are too few to show anything; wanted at least 2,000"):
        standard.Sensor.shipped(1_999)
    monkeypatch.setattr(standard, "ASSETS", tmp_path)
    with pytest.raises(FileError, match="lacks the shipped readings; install the package again"):
        standard.Sensor.shipped()


def test_an_interrupted_demonstration_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(standard, "follow", interrupt)
    assert main(["demo", "standard", "--rows", "2000", "--out", str(tmp_path / "report")]) == 130
    assert not list(tmp_path.iterdir())


def test_drawings_differ_by_look(numbers: dict) -> None:
    drawings = (
        (plots.watched, "watch"),
        (plots.followed, "follow"),
        (plots.switched, "switch"),
        (plots.futures, "story"),
    )
    for draw, part in drawings:
        wide, narrow = draw(numbers[part], plots.Look()), draw(numbers[part], plots.Look(dark=True, narrow=True))
        assert wide.get_figwidth() > narrow.get_figwidth()
        assert wide.get_facecolor() != narrow.get_facecolor()
