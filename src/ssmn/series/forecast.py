"""Forecasts of many steps ahead that learn from every new row without a refit.

A forecast is a linear, plastic read-out of the window's normalised values and of what a small SSMN sums them up to.
The read-out is fitted in closed form and goes on learning by recursive least squares, a constant cost per row.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray

from ssmn.config import SSMNConfig
from ssmn.errors import FileError, RangeError, ShapeError, StateError
from ssmn.files import PathLike, read_file, write_file
from ssmn.models import SSMN
from ssmn.series.fitted import Errors, Fitted, Window, averaged, penalty_of, residual_quantiles
from ssmn.series.forecasts import Array, Backtest, Choice, Forecast, ForecasterConfig
from ssmn.series.readout import DelayedReadout, ridge
from ssmn.series.tables import Table, times_after
from ssmn.series.windows import (
    Moments,
    Regressors,
    Rows,
    Shift,
    WindowSpec,
    WindowTask,
    moments,
)
from ssmn.training.loop import CHECKPOINT_FILE, Progress, train
from ssmn.training.settings import OptimisationConfig, TrainConfig

ENOUGH_WINDOWS = 2_000
"""Windows from which on a network is trained unless `steps` says otherwise."""
NETWORK_AHEAD = 96
"""Rows ahead that the network is trained on at most: its summary serves every horizon."""
NETWORK_STEPS = 200
"""Optimizer steps of the network unless `steps` says otherwise."""
SUMMARY_RIDGES = (0.1, 1.0, 10.0)
"""Ridges of the network's summary that are tried."""
VALIDATION_SHARE = 0.2
"""Last share of the table that settings are chosen on, if no other rows are given."""

_FORMAT = "forecaster 1"


class Forecaster:
    """Forecasts the next H rows of a table, with quantiles, and learns from each new row at a constant cost.

    The columns to forecast are standardised and treated as series of one kind, which share all weights. A window of
    L rows is freed of its mean (or last value); a linear read-out maps what is left, and the summary that a small
    SSMN over its patches gives, to all H rows. The read-out is a ridge in closed form (of this form are the linear
    models of Zeng et al., 2023, and Li et al., 2023, with reversible normalisation of Kim et al., 2022); `update`
    continues it by recursive least squares, each step ahead from the moment its truth is known. Context, shift, ridge
    and whether the network helps are chosen on validation rows.

    Args:
        config: The settings.

    Example:
        >>> import numpy as np
        >>> from ssmn.series import Forecaster, ForecasterConfig
        >>> wave = np.sin(np.arange(300) * 2 * np.pi / 12)[:, None]
        >>> forecaster = Forecaster(ForecasterConfig(horizon=6, contexts=(24,))).fit(wave[:240])
        >>> forecaster.update(wave[240:290])
        50
        >>> bool(np.abs(forecaster.predict().mean - wave[290:296]).max() < 0.01)
        True
    """

    def __init__(self, config: ForecasterConfig | None = None) -> None:
        self.config = config or ForecasterConfig()
        self._fitted: Fitted | None = None

    # Fitting

    def fit(
        self,
        table: Table | Array,
        validation: Table | Array | None = None,
        *,
        folder: PathLike | None = None,
        on_step: Callable[[Progress], bool | None] | None = None,
    ) -> Self:
        """Chooses the settings, fits the read-out, and trains the network if there is one.

        Args:
            table: The rows, equally far apart (gaps are filled with NaN); a `Table`, or numbers [N, C].
            validation: The rows that follow, to choose settings on; the weights do not learn from them. None = the
                last fifth of `table`, which then is learned from too.
            folder: Where the network's training keeps its checkpoint; a stopped training goes on from there.
            on_step: Called after each step of the training; if it returns True, it stops.

        Returns:
            Itself; the last rows read are those that `predict` goes on from.

        Raises:
            RangeError: There are too few rows, or no column to forecast.
            FileError: Times do not rise.
            KeyboardInterrupt: The training was stopped; with a `folder`, the same call goes on.
        """
        config = self.config
        table = _as_table(table, None)
        names = self._columns(table)
        given = table.regular()
        boundary = len(given)
        if validation is not None:
            given = _joined(given, _as_table(validation, table.names)).regular()
        else:
            boundary -= max(config.horizon, round(VALIDATION_SHARE * boundary))
        contexts = self._contexts(len(given), boundary)
        fitted_rows = given.values[: boundary if validation is not None else len(given)]
        fitted = Fitted.prepare(config, names, given, fitted_rows)
        rows = fitted.rows(given.values, given.times)
        choice, best = self._choose(rows, boundary, contexts, folder, on_step)
        fitted.choice = choice
        fitted.regressors = best.make
        self._finish(fitted, rows, given, boundary, best, refit=validation is None)
        self._fitted = fitted
        return self

    def _contexts(self, count: int, boundary: int) -> list[int]:
        """Those of the configuration that `count` rows allow."""
        horizon = self.config.horizon
        room = boundary - horizon + 1 - max(8, horizon // 4)
        contexts = sorted({length for length in self.config.contexts if length <= room})
        if not contexts or count - boundary < horizon:
            shortest = min(self.config.contexts)
            wanted = math.ceil((shortest + horizon + max(8, horizon // 4)) / (1 - VALIDATION_SHARE)) + horizon
            raise RangeError(
                f"fit: {count} rows; wanted about {wanted} at least for horizon={horizon} and contexts from "
                f"{shortest} on: lower one of them."
            )
        return contexts

    def _choose(
        self,
        rows: Rows,
        boundary: int,
        contexts: list[int],
        folder: PathLike | None,
        on_step: Callable[[Progress], bool | None] | None,
    ) -> tuple[Choice, _Candidate]:
        """Context and shift without the network, then the network."""
        config = self.config
        candidates = [self._candidate(rows, boundary, length, config.shifts[0]) for length in contexts]
        best = min(candidates, key=lambda candidate: candidate.error)
        others = [self._candidate(rows, boundary, best.spec.context, shift) for shift in config.shifts[1:]]
        linear = best = min([best, *others], key=lambda candidate: candidate.error)
        if config.average and len(candidates) > 1:
            linear = self._averaged(rows, boundary, linear, candidates)
        network_error = None
        network = self._network(rows, boundary, linear.spec, folder, on_step)
        if network is not None:
            read = self._candidate(rows, boundary, linear.spec.context, linear.spec.shift, network)
            network_error = read.error
            best = min([linear, read], key=lambda candidate: candidate.error)
        else:
            best = linear
        choice = Choice(
            best.spec.context, best.spec.shift, best.ridge, best.summary_ridge, best.error, linear.error, network_error,
            None if best.shorter is None else best.shorter.spec.context,
        )  # fmt: skip
        return choice, best

    def _averaged(self, rows: Rows, boundary: int, best: _Candidate, candidates: list[_Candidate]) -> _Candidate:
        """The best context averaged with the second best, or the best one alone if that is better."""
        others = [candidate for candidate in candidates if candidate.spec.context != best.spec.context]
        second = min(others, key=lambda candidate: candidate.error)
        if second.spec.shift != best.spec.shift:
            second = self._candidate(rows, boundary, second.spec.context, best.spec.shift)
        shorter, longer = sorted((best, second), key=lambda candidate: candidate.spec.context)
        both = dataclasses.replace(longer, shorter=shorter)
        if len(longer.penalty) - len(shorter.penalty) != longer.spec.context - shorter.spec.context:
            return best  # a window too short for all rows of the further inputs
        both = dataclasses.replace(both, error=longer.checked.error(both.weights()))
        return min([best, both], key=lambda candidate: candidate.error)

    def _candidate(
        self, rows: Rows, boundary: int, context: int, shift: Shift, network: SSMN | None = None
    ) -> _Candidate:
        """The best ridge for a context and a shift."""
        config = self.config
        given = len(config.future)
        spec = WindowSpec(
            context=context,
            horizon=config.horizon,
            shift=shift,
            ahead=tuple(range(given)),
            first=tuple(range(given, rows.future.shape[1])),
        )
        make = Regressors(spec, network, config.patch)
        learned = moments(make, rows, context, boundary)
        checked = moments(make, rows, max(boundary, context), len(rows.values))
        if not learned.windows or not checked.windows:
            raise RangeError("fit: no window has all its values known; wanted fewer gaps, or a shorter horizon.")
        widths = make.widths(rows)
        found = [
            _Candidate(make, spec, learned, checked, value, summary, penalty, checked.error(weights))
            for value in config.ridges
            for summary in (SUMMARY_RIDGES if network is not None else (None,))
            for penalty in [penalty_of(learned.moment, widths, value, summary)]
            for weights in [ridge(learned.moment, learned.cross, penalty)]
        ]
        return min(found, key=lambda candidate: candidate.error)

    def _network(
        self,
        rows: Rows,
        boundary: int,
        spec: WindowSpec,
        folder: PathLike | None,
        on_step: Callable[[Progress], bool | None] | None,
    ) -> SSMN | None:
        """The trained network, or None if there is to be none."""
        config, patch = self.config, self.config.patch
        ahead = min(config.horizon, NETWORK_AHEAD)
        count = (boundary - spec.context - ahead + 1) * rows.values.shape[1]
        steps = config.steps
        if steps is None:
            steps = NETWORK_STEPS if count >= ENOUGH_WINDOWS else 0
        if not steps or not config.hidden_dim or spec.context < patch or count < 1:
            return None
        context = spec.context // patch * patch
        task = WindowTask.of(rows, 0, boundary, context=context, patch=patch, ahead=ahead, shift=spec.shift)
        model = {
            "hidden_dim": config.hidden_dim,
            "num_layers": len(config.layer_types),
            "layer_types": list(config.layer_types),
            "num_heads": 2,
            "window_size": context // patch,
            "ffn_dim": 2 * config.hidden_dim,
        }
        optimisation = OptimisationConfig(
            steps=steps,
            batch_size=64,
            learning_rate=config.learning_rate,
            warmup_steps=min(20, steps),
            weight_decay=0.1,
            tensorboard=False,
        )
        settings = TrainConfig(seed=config.seed, task=task, model=model, train=optimisation)
        with tempfile.TemporaryDirectory() as scratch:
            place = Path(folder or scratch)
            resume = (place / CHECKPOINT_FILE).exists()
            result = train(settings, place, resume=resume, on_step=on_step)
        if result.interrupted:
            raise KeyboardInterrupt
        return cast(SSMN, result.model).eval()

    def _finish(
        self, fitted: Fitted, rows: Rows, given: Table, boundary: int, best: _Candidate, *, refit: bool
    ) -> None:
        """Weights, intervals, and the last rows, whose truths are still to come."""
        horizon = self.config.horizon
        fitted.offsets = residual_quantiles(best.make, rows, boundary, best.weights(), self.config.quantiles)
        if refit:
            best = best.refit(rows, boundary)
        covariance = np.linalg.inv(best.learned.moment + np.diag(best.penalty))
        fitted.readout = DelayedReadout(best.weights(), covariance, len(fitted.names), self.config.forget)
        kept = best.spec.context + horizon
        fitted.recent = given[max(0, len(given) - kept) :]
        if not self.config.future:
            recent = fitted.rows(fitted.recent.values, fitted.recent.times)
            begin = max(best.spec.context, len(fitted.recent) - horizon + 1)
            for _, features, shift, scale in fitted.windows(recent, begin, len(fitted.recent) + 1):
                fitted.readout.observe(features, shift, scale)

    def _columns(self, table: Table) -> tuple[str, ...]:
        """Names of the columns to forecast."""
        config = self.config
        for name in (*(config.targets or ()), *config.exogenous, *config.future):
            table.column(name)
        names = config.targets or tuple(
            name for name in table.names if name not in config.exogenous and name not in config.future
        )
        if not names:
            raise RangeError("fit: there is no column to forecast; wanted at least one beside exogenous and future.")
        if config.calendar and table.times is None:
            raise RangeError("fit: calendar=True needs times, but the table has none; leave it out.")
        return names

    # What has been fitted

    @property
    def choice(self) -> Choice:
        """What validation chose."""
        return self._need().choice

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that are forecast."""
        return self._need().names

    @property
    def network(self) -> SSMN | None:
        """The network that sums windows up, or None if there is none or it did not help."""
        return self._need().regressors.network

    @property
    def season(self) -> int:
        """Rows of the season that the times suggest; 1 if none."""
        return self._need().season

    @property
    def recent(self) -> Table:
        """The last rows read, as far as forecasts and learning need them."""
        return self._need().recent

    def _need(self) -> Fitted:
        if self._fitted is None:
            raise StateError("Forecaster: it has not been fitted; call fit or load first.")
        return self._fitted

    # Forecasting and learning

    def predict(self, after: Table | Array | None = None, *, future: Table | Array | None = None) -> Forecast:
        """The H rows that follow the last one read.

        Args:
            after: Forecasts what follows these rows instead (at least `choice.context` of them), and learns nothing.
            future: [H, len(config.future)], the columns known ahead, if there are any.

        Raises:
            RangeError: Too few rows; `future` is missing, or there is none to be given.
            ShapeError: `future` does not fit.
        """
        fitted, config = self._need(), self.config
        recent = fitted.recent if after is None else _as_table(after, fitted.recent.names).regular()
        context = fitted.choice.context
        if len(recent) < context:
            raise RangeError(f"predict: {len(recent)} rows; wanted at least the context, {context}.")
        rows = fitted.rows(recent.values, recent.times, self._future(future))
        (window,) = fitted.windows(rows, len(recent), len(recent) + 1)
        mean, quantiles = fitted.forecast(*window[1:])
        times = None if recent.times is None else times_after(recent.times, config.horizon)
        return Forecast(fitted.names, times, mean, quantiles, config.quantiles)

    def _future(self, future: Table | Array | None) -> Array | None:
        config = self.config
        if not config.future:
            if future is not None:
                raise RangeError("predict: future is given, but config.future names no column; leave it out.")
            return None
        if future is None:
            raise RangeError(f"predict: future is missing; wanted {', '.join(config.future)} of the next rows.")
        values = future.select(config.future).values if isinstance(future, Table) else np.asarray(future, np.float64)
        wanted = (config.horizon, len(config.future))
        if values.shape != wanted or not np.isfinite(values).all():
            raise ShapeError(f"predict: future has shape {list(values.shape)}; wanted {list(wanted)}, finite numbers.")
        return values

    def update(self, table: Table | Array) -> int:
        """Reads new rows and learns from them, at a constant cost per row and without a refit.

        Every forecast made before learns from the rows as far as they are its truth; the intervals adapt too.

        Args:
            table: The rows that follow the last ones read.

        Returns:
            Rows read (a gap in the times counts as rows of NaN).

        Raises:
            FileError: Times do not go on from the last ones.
            ShapeError: Other columns.
        """
        fitted = self._need()
        before = len(fitted.recent)
        joined = _joined(fitted.recent, _as_table(table, fitted.recent.names)).regular()
        for _ in self._walk(fitted, joined, before):
            pass
        kept = fitted.choice.context + self.config.horizon
        fitted.recent = joined[max(0, len(joined) - kept) :]
        return len(joined) - before

    def _walk(self, fitted: Fitted, joined: Table, before: int) -> Iterator[Window]:
        """Learns from the rows from `before` on; yields each window before the row that follows it is read."""
        rows, readout = fitted.rows(joined.values, joined.times), fitted.readout
        if self.config.future:
            yield from self._walk_late(fitted, rows, before)
            return
        windows = fitted.windows(rows, before, len(joined) + 1)
        window = next(windows)
        for row in range(before, len(joined)):
            yield window
            fitted.adapt(*readout.learn(rows.values[row]))
            window = next(windows)
            readout.observe(*window[1:])

    def _walk_late(self, fitted: Fitted, rows: Rows, before: int) -> Iterator[Window]:
        """With inputs known ahead: a window is complete, and learned from as a whole, once its last truth is there."""
        horizon, end = self.config.horizon, len(rows.values)
        first = max(fitted.choice.context, before - horizon + 1)
        shown, learned = (fitted.windows(rows, begin, end - horizon + 1) for begin in (before, first))
        for row in range(before, end):
            if row <= end - horizon:
                yield next(shown)
            if row + 1 - horizon >= first:
                origin, features, shift, scale = next(learned)
                targets = rows.values[origin : origin + horizon].T - shift[:, None]
                errors = fitted.readout.learn_whole(features, targets).T
                fitted.adapt(errors, np.broadcast_to(scale, errors.shape))

    def backtest(
        self,
        table: Table | Array,
        *,
        learn: bool = False,
        stride: int = 1,
        on_step: Callable[[int, int], None] = lambda done, total: None,
    ) -> Backtest:
        """Forecasts from every origin in the rows that follow the last ones read; the forecaster stays as it is.

        The first window ends just before the rows, and the last is the last one whose truths are all there.

        Args:
            table: The rows.
            learn: Learns from each row after it was forecast, as `update` does; False = frozen.
            stride: Rows from one origin to the next.
            on_step: Called with (origins done, origins in all).

        Raises:
            RangeError: Fewer rows than the horizon.
            FileError, ShapeError: As in `update`.
        """
        fitted, horizon = self._need(), self.config.horizon
        if learn:
            fitted = fitted.copy()
        before = len(fitted.recent)
        joined = _joined(fitted.recent, _as_table(table, fitted.recent.names)).regular()
        total = len(joined) - before - horizon + 1
        if total < 1 or stride < 1:
            raise RangeError(
                f"backtest: {len(joined) - before} rows, stride={stride}; wanted at least horizon={horizon} rows and a "
                "stride of at least 1."
            )
        rows = fitted.rows(joined.values, joined.times)
        sums = Errors(fitted, horizon)
        end = before + total
        windows = self._walk(fitted, joined, before) if learn else fitted.windows(rows, before, end)
        for origin, features, shift, scale in windows:
            if origin < end and (origin - before) % stride == 0:
                sums.add(fitted, features, shift, scale, rows.values[origin : origin + horizon])
                on_step(sums.windows, -(-total // stride))
        return sums.result(self.config.quantiles)

    # Files

    def save(self, path: PathLike) -> None:
        """Writes everything into one checked safetensors file: settings, weights, what was learned, the last rows.

        Raises:
            StateError: It has not been fitted.
            FileError: The file cannot be written.
        """
        fitted = self._need()
        network = fitted.regressors.network
        header = {
            "kind": "checkpoint",
            "task": _FORMAT,
            "settings": json.loads(json.dumps(dataclasses.asdict(self.config))),
            "choice": dataclasses.asdict(fitted.choice),
            "targets": list(fitted.names),
            "columns": list(fitted.recent.names),
            "time_name": fitted.recent.time_name,
            "season": fitted.season,
            "step": None if fitted.step is None else int(fitted.step.astype(np.int64)),
            "network": None if network is None else network.config.to_dict(),
        }
        recent = fitted.recent
        tensors: dict[str, NDArray[Any]] = {
            "centre": fitted.centre, "deviation": fitted.deviation, "naive": fitted.naive, "offsets": fitted.offsets,
            "recent.values": recent.values, "recent.lines": recent.lines,
        }  # fmt: skip
        if recent.times is not None:
            tensors["recent.times"] = recent.times.astype("datetime64[ns]").astype(np.int64)
        tensors |= {f"readout.{name}": array for name, array in fitted.readout.arrays().items()}
        if network is not None:
            tensors |= {f"network.{name}": value.numpy() for name, value in network.state_dict().items()}
        write_file(path, tensors, header)

    @classmethod
    def load(cls, path: PathLike) -> Self:
        """Reads what `save` wrote; nothing in the file is executed.

        Raises:
            FileError: The file is missing, damaged, or holds something else.
        """
        arrays, header = read_file(path, kind="checkpoint")
        if header.get("task") != _FORMAT:
            raise FileError(
                f"{path}: holds no forecaster; wanted a file that Forecaster.save or `ssmn forecast` wrote."
            )
        made = cls(ForecasterConfig(**header["settings"]))
        choice = Choice(**header["choice"])
        network = None
        if header["network"] is not None:
            network = SSMN(SSMNConfig.from_dict(header["network"])).eval()
            network.load_state_dict(
                {name: torch.from_numpy(a.copy()) for name, a in _under("network.", arrays).items()}
            )
        times = arrays["recent.times"].view("datetime64[ns]") if "recent.times" in arrays else None
        recent = Table(
            tuple(header["columns"]), arrays["recent.values"], times, arrays["recent.lines"], header["time_name"]
        )
        step = None if header["step"] is None else np.timedelta64(header["step"], "ns")
        config = made.config
        fitted = Fitted(
            config, tuple(header["targets"]), recent.names, arrays["centre"], arrays["deviation"], arrays["naive"],
            header["season"], step,
        )  # fmt: skip
        fitted.choice, fitted.recent = choice, recent
        known = fitted.rows(recent.values, recent.times).future.shape[1]
        given = len(config.future)
        spec = WindowSpec(
            context=choice.context, horizon=config.horizon, shift=choice.shift,
            ahead=tuple(range(given)), first=tuple(range(given, known)),
        )  # fmt: skip
        fitted.regressors = Regressors(spec, network, config.patch)
        fitted.offsets = np.array(arrays["offsets"])
        fitted.readout = DelayedReadout.from_arrays(_under("readout.", arrays), config.forget)
        made._fitted = fitted
        return made


@dataclass(frozen=True, eq=False)
class _Candidate:
    """Settings, the sums they are fitted and checked on, and their error."""

    make: Regressors
    spec: WindowSpec
    learned: Moments
    checked: Moments
    ridge: float
    summary_ridge: float | None
    penalty: Array
    error: float
    shorter: _Candidate | None = None
    """A shorter context, freed of the same, whose forecasts are averaged with this one's."""

    def weights(self) -> Array:
        """[F, H]."""
        weights = ridge(self.learned.moment, self.learned.cross, self.penalty)
        if self.shorter is None:
            return weights
        return averaged(weights, self.shorter.weights(), self.spec.context, self.spec.shift)

    def refit(self, rows: Rows, boundary: int) -> _Candidate:
        """The same settings on all rows, those that they were chosen on included."""
        learned, first = self.learned + self.checked, max(self.spec.context, boundary - self.spec.horizon + 1)
        if first < boundary:
            learned = learned + moments(self.make, rows, first, boundary + self.spec.horizon - 1)
        shorter = None if self.shorter is None else self.shorter.refit(rows, boundary)
        return dataclasses.replace(self, learned=learned, shorter=shorter)


def _as_table(data: Table | Array, names: tuple[str, ...] | None) -> Table:
    """A table; numbers [N, C] become one without times."""
    if not isinstance(data, Table):
        values = np.asarray(data, np.float64)
        if values.ndim != 2 or not values.shape[1]:
            raise ShapeError(f"Forecaster: the rows have shape {list(values.shape)}; wanted [rows, columns].")
        if np.isinf(values).any():
            raise RangeError("Forecaster: a value is infinite; wanted finite numbers, or NaN for what is unknown.")
        made = names or tuple(str(number) for number in range(1, values.shape[1] + 1))
        if len(made) != values.shape[1]:
            raise ShapeError(f"Forecaster: {values.shape[1]} columns; wanted {len(made)}: {', '.join(made)}.")
        return Table(made, values, None, np.arange(1, len(values) + 1))
    if names is not None and data.names != names:
        missing = [name for name in names if name not in data.names]
        if missing:
            raise ShapeError(f"Forecaster: the rows have no column {missing[0]!r}; wanted {', '.join(names)}.")
        data = data.select(names)
    return data


def _joined(before: Table, after: Table) -> Table:
    """The rows of one table after those of another; their times, if both have them."""
    times = None
    if before.times is not None:
        if after.times is None:
            if len(before) < 2:
                raise FileError("Forecaster: the new rows have no times, but those before had.")
            after = dataclasses.replace(after, times=times_after(before.times, len(after)))
        assert after.times is not None
        times = np.concatenate([before.times, after.times])
    return dataclasses.replace(
        before,
        values=np.concatenate([before.values, after.values]),
        times=times,
        lines=np.concatenate([before.lines, after.lines]),
    )


def _under(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
