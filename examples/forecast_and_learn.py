"""A forecaster of a machine's cycle that is fitted once and then learns from every new row, without a refit.

Among the new rows the machine begins to run faster; the learning forecaster follows, the frozen one does not.
"""

import numpy as np

from ssmn.series import Forecaster, ForecasterConfig, Table


def pressure(hours: int, faster_from: int) -> Table:
    """A value per hour that rises and falls every 24 hours, and from the hour `faster_from` on every 19."""
    hour = np.arange(hours)
    phase = np.cumsum(np.where(hour < faster_from, 2 * np.pi / 24, 2 * np.pi / 19))
    values = 50 + 10 * np.exp(np.cos(phase)) + np.random.default_rng(0).standard_normal(hours)
    times = np.datetime64("2024-01-01", "ns") + hour * np.timedelta64(1, "h")
    return Table(("pressure",), values[:, None], times, hour + 1)


def main(hours: int = 2400) -> None:
    table = pressure(hours, faster_from=hours // 2)
    past, new = table[: hours // 3], table[hours // 3 :]
    forecaster = Forecaster(ForecasterConfig(horizon=24, contexts=(48, 96), steps=0, forget=0.995)).fit(past)
    print("chosen on validation:", forecaster.choice.context, "hours, freed of the", forecaster.choice.shift)

    for name, learn in (("frozen", False), ("learning", True)):
        result = forecaster.backtest(new, learn=learn)
        print(f"{name:10s} {result.windows} forecasts, mean absolute error {result.column_mae[0]:.3f}")

    forecaster.update(new)
    ahead = forecaster.predict()
    assert ahead.times is not None
    for hour in (0, 6, 12, 18):
        low, high = ahead.quantiles[hour, 0, [0, -1]]
        print(f"{str(ahead.times[hour])[:13]}h   {ahead.mean[hour, 0]:5.1f}   ({low:.1f} to {high:.1f})")


if __name__ == "__main__":
    main()
