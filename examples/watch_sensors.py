"""Watch two sensors as their rows arrive: score, flag and learn from each row; save, and go on from the file."""

import tempfile
from pathlib import Path

import numpy as np

from ssmn.series import Detector


def readings(days: int) -> tuple[np.ndarray, np.ndarray]:
    """Temperature and load, a row every ten minutes, with one event of each kind in the last days."""
    draw = np.random.default_rng(0)
    times = np.datetime64("2024-05-06T00:00") + np.arange(days * 144) * np.timedelta64(10, "m")
    row = np.arange(len(times))
    hour = row % 144 / 6
    weekday = row // 144 % 7 < 5
    temperature = 20 + 3 * np.sin((hour - 9) * np.pi / 12) + 0.3 * draw.standard_normal(len(times))
    load = 5 + 40 * (weekday & (hour >= 8) & (hour < 18)) + 2 * draw.standard_normal(len(times))
    temperature[(days - 6) * 144 + 30] += 9  # a spike
    load[(days - 4) * 144 + 18 : (days - 4) * 144 + 30] += 35  # work at night
    temperature[(days - 2) * 144 + 60 :] -= 4  # the sensor has shifted
    return times, np.stack([temperature, load], axis=1)


def main(days: int = 42) -> None:
    names = ("temperature", "load")
    times, rows = readings(days)
    begin = (days - 7) * 144

    detector = Detector(columns=2)
    first = detector.push(rows[:begin], times[:begin])
    print(f"{detector.rows:,} rows, {first.flags.sum()} flags, {detector.nbytes:,} bytes of state")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sensors.safetensors"
        detector.save(path)
        detector = Detector.load(path)

    for time, row in zip(times[begin:], rows[begin:], strict=True):
        found = detector.step(row, time)
        if found.flag:
            values = ", ".join(f"{name} {value:.1f}" for name, value in zip(names, row, strict=True))
            print(f"{time}  {names[found.column]:<12} score {found.score:.2f}  ({values})")
    print(f"{detector.rows:,} rows, {detector.nbytes:,} bytes of state")


if __name__ == "__main__":
    main()
