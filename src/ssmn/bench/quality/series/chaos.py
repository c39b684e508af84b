"""Chaotic series, forecast by their own forecasts: how long until the course is lost.

The Mackey-Glass equation with delays of 17 and 30, and the Lorenz system with all three coordinates seen or only the
first. A model reads the true rows up to a start, then runs free: each forecast is its next input. Its valid time is
that until the error, divided by the series' deviation, first exceeds `THRESHOLD`, in Lyapunov times.

All models are random or fixed features of at most `UNITS` numbers and a read-out by ridge regression in float64, keep
at most `UNITS` numbers between steps, and are tuned by as many random settings on the same validation starts:

- an echo-state network with weights of reservoirpy (Jaeger and Haas, 2004);
- an SSMN with random weights that reads the last rows at each step; its last hidden vector is read out;
- the feed-forward layer of its blocks alone, SwiGLU with random weights, on the last rows, without normalisation;
- products of the last rows (next-generation reservoir computing; Gauthier et al., 2021).
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ssmn.bench.quality.frame import Options, Part, Result, Run, Workplace
from ssmn.bench.report import Table
from ssmn.config import SSMNConfig
from ssmn.errors import MissingExtraError
from ssmn.models import SSMN

Array = NDArray[np.float64]
Setting = Mapping[str, Any]

UNITS = 300
"""Numbers kept between steps, and features that are read out, at most."""
THRESHOLD = 0.4
"""Error, in deviations of the series, at which a forecast is lost."""
LIMIT = 20
"""Lyapunov times after which a free run is ended."""
STARTS = 20
"""Free runs for validation, and as many others for the test."""
ROWS = 4000
"""Rows of the training part."""
WASHOUT = 300
"""First rows of it that are read but not fitted."""
SETTINGS = 30
"""Random settings that are tried for each model on each series."""


@dataclass(frozen=True)
class System:
    """A chaotic system.

    Attributes:
        step: Time from one row to the next.
        exponent: Largest Lyapunov exponent per unit of time.
        generate: From a seed and a number of rows to [rows, columns].
    """

    step: float
    exponent: float
    generate: Callable[[int, int], Array]

    @property
    def lyapunov_rows(self) -> float:
        """Rows in a Lyapunov time."""
        return 1 / (self.exponent * self.step)


def mackey_glass(delay: int, start: Iterable[float], rows: int) -> Array:
    """ẋ = 0.2 x(t − delay) / (1 + x(t − delay)¹⁰) − 0.1 x, by RK4 with steps of 0.1, ten per row.

    Args:
        delay: In units of time, which are rows.
        start: Values of the 10 · delay + 1 steps up to now, oldest first.
        rows: How many follow.

    Returns:
        [10 · rows], all steps.
    """
    size, back = 0.1, delay * 10
    course = list(start)

    def gain(x: float) -> float:
        return 0.2 * x / (1 + x**10)

    for _ in range(rows * 10):
        now = len(course) - 1
        x = course[now]
        old = now - back
        first, last = gain(course[old]), gain(course[old + 1])
        before = course[old - 1] if old else course[0]
        # cubic interpolation half-way between two known steps
        middle = gain((9 * (course[old] + course[old + 1]) - before - course[old + 2]) / 16)
        k1 = first - 0.1 * x
        k2 = middle - 0.1 * (x + size / 2 * k1)
        k3 = middle - 0.1 * (x + size / 2 * k2)
        k4 = last - 0.1 * (x + size * k3)
        course.append(x + size / 6 * (k1 + 2 * k2 + 2 * k3 + k4))
    return np.array(course[back + 1 :])


def lorenz(start: tuple[float, float, float], rows: int) -> Array:
    """The Lorenz system (σ = 10, ρ = 28, β = 8/3), by RK4 with four steps per row of 0.02.

    Returns:
        [rows, 3].
    """
    size = 0.005
    x, y, z = start
    course = []

    def slope(x: float, y: float, z: float) -> tuple[float, float, float]:
        return 10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z

    for _ in range(rows * 4):
        a1, b1, c1 = slope(x, y, z)
        a2, b2, c2 = slope(x + size / 2 * a1, y + size / 2 * b1, z + size / 2 * c1)
        a3, b3, c3 = slope(x + size / 2 * a2, y + size / 2 * b2, z + size / 2 * c2)
        a4, b4, c4 = slope(x + size * a3, y + size * b3, z + size * c3)
        x += size / 6 * (a1 + 2 * a2 + 2 * a3 + a4)
        y += size / 6 * (b1 + 2 * b2 + 2 * b3 + b4)
        z += size / 6 * (c1 + 2 * c2 + 2 * c3 + c4)
        course.append((x, y, z))
    return np.array(course[3::4])


_TRANSIENT = 1000
"""Rows that are thrown away."""


def _mackey_glass(delay: int) -> Callable[[int, int], Array]:
    def generate(seed: int, rows: int) -> Array:
        first = float(np.random.default_rng(seed).uniform(0.5, 1.2))
        return mackey_glass(delay, [first] * (delay * 10 + 1), _TRANSIENT + rows)[9::10][_TRANSIENT:, None]

    return generate


def _lorenz(columns: int) -> Callable[[int, int], Array]:
    def generate(seed: int, rows: int) -> Array:
        x, y, z = np.random.default_rng(seed).uniform(-5, 5, 3).tolist()
        return lorenz((x, y, z + 25), _TRANSIENT + rows)[_TRANSIENT:, :columns]

    return generate


SYSTEMS: dict[str, System] = {
    "Mackey-Glass 17": System(1.0, 0.0052, _mackey_glass(17)),
    "Mackey-Glass 30": System(1.0, 0.0073, _mackey_glass(30)),
    "Lorenz": System(0.02, 0.906, _lorenz(3)),
    "Lorenz, first coordinate": System(0.02, 0.906, _lorenz(1)),
}
"""The series. The exponents are those of these equations and step sizes (see `exponent`)."""


def exponent(advance: Callable[[Array], Array], start: Array, time: float, rounds: int, small: float = 1e-7) -> float:
    """The largest Lyapunov exponent, from a course and a disturbed one that is brought back every round (Benettin).

    Args:
        advance: From a state to that one round later.
        start: A state on the attractor.
        time: Length of a round.
        rounds: How many to average over.
        small: Size of the disturbance.
    """
    course = start
    other = start + small / math.sqrt(start.size)
    total = 0.0
    for _ in range(rounds):
        course, other = advance(course), advance(other)
        apart = float(np.linalg.norm(other - course))
        total += math.log(apart / small)
        other = course + (other - course) * (small / apart)
    return total / (rounds * time)


class Reader(Protocol):
    """What is kept of the rows read so far, and its features."""

    state_numbers: int

    def read(self, rows: Array) -> Array:
        """[T, C] to the states after each row, [T, S]."""
        ...

    def step(self, state: Array, row: Array) -> Array:
        """States [B, S] and their next rows [B, C] to the next states."""
        ...

    def features(self, state: Array, row: Array) -> Array:
        """States [B, S] and the last rows that they have read [B, C] to [B, F]."""
        ...


class WindowReader:
    """Keeps the last rows and nothing else; features are made of every `stride`-th of them, from the last on back.

    Args:
        taps: Rows that features are made of.
        stride: From one of them to the next.
        columns: C of each.
        features: From their values [n, taps · C], oldest row first, to [n, F].
    """

    def __init__(self, taps: int, stride: int, columns: int, features: Callable[[Array], Array]) -> None:
        self.length, self.stride, self.columns, self.of_window = (taps - 1) * stride + 1, stride, columns, features
        self.state_numbers = self.length * columns

    def read(self, rows: Array) -> Array:
        filled = np.concatenate([np.repeat(rows[:1], self.length - 1, 0), rows])
        windows = np.lib.stride_tricks.sliding_window_view(filled, self.length, axis=0).swapaxes(1, 2)
        return windows.reshape(len(rows), -1)

    def step(self, state: Array, row: Array) -> Array:
        return np.concatenate([state[:, self.columns :], row], 1)

    def features(self, state: Array, row: Array) -> Array:
        rows = state.reshape(len(state), self.length, self.columns)[:, :: self.stride]
        return self.of_window(rows.reshape(len(state), -1))


class EchoState:
    """An echo-state network whose weights reservoirpy draws, for many streams at once.

    Args:
        columns: C of a row.
        setting: See `SEARCH`.
        seed: Of the weights.

    Raises:
        MissingExtraError: reservoirpy is not installed.
    """

    def __init__(self, columns: int, setting: Setting, seed: int) -> None:
        try:
            from reservoirpy import mat_gen
            from reservoirpy.nodes import Reservoir
        except ImportError as error:
            raise MissingExtraError(
                'quality: this part needs reservoirpy; type: pip install "sparse-stream[bench]"'
            ) from error
        self.state_numbers = setting["units"]
        self.direct, self.leak = setting["direct"], setting["leak"]
        bias: Any = mat_gen.uniform(low=-setting["bias"], high=setting["bias"])
        self.node = Reservoir(
            setting["units"], lr=self.leak, sr=setting["radius"], input_scaling=setting["input"],
            input_connectivity=setting["connected"], rc_connectivity=min(1.0, 10 / setting["units"]), bias=bias,
            seed=seed,
        )  # fmt: skip
        self.node.initialize(np.zeros((1, columns)))

    def read(self, rows: Array) -> Array:
        state = np.zeros((1, self.state_numbers))
        states = [state := self.step(state, row[None]) for row in rows]
        return np.concatenate(states)

    def step(self, state: Array, row: Array) -> Array:
        node: Any = self.node
        driven = np.tanh((node.W @ state.T + node.Win @ row.T).T + node.bias)
        return (1 - self.leak) * state + self.leak * driven

    def features(self, state: Array, row: Array) -> Array:
        parts = [state, np.ones((len(state), 1)), *([row] if self.direct else [])]
        return np.concatenate(parts, 1)


def products(width: int, degree: int) -> Callable[[Array], Array]:
    """All products of up to `degree` of `width` values, and 1."""
    groups = [itertools.combinations_with_replacement(range(width), size) for size in range(1, degree + 1)]
    chosen = [np.array(list(group)) for group in groups]

    def features(values: Array) -> Array:
        parts = [np.ones((len(values), 1))]
        for group in chosen:
            product = values[:, group[:, 0]]
            for column in range(1, group.shape[1]):
                product = product * values[:, group[:, column]]
            parts.append(product)
        return np.concatenate(parts, 1)

    return features


def swiglu(width: int, units: int, scale: float, bias: float, seed: int) -> Callable[[Array], Array]:
    """silu(A x + a) ∘ (B x + b) with random weights, x, and 1: `units` numbers in all."""
    random = np.random.default_rng(seed)
    inner = units - width - 1
    gate, up = (scale / math.sqrt(width) * random.standard_normal((width, inner)) for _ in range(2))
    gate_bias, up_bias = (bias * random.standard_normal(inner) for _ in range(2))

    def features(windows: Array) -> Array:
        gated = windows @ gate + gate_bias
        # silu, written so that nothing overflows
        hidden = gated * (0.5 + 0.5 * np.tanh(gated / 2)) * (windows @ up + up_bias)
        return np.concatenate([hidden, windows, np.ones((len(windows), 1))], 1)

    return features


def stack(width: int, units: int, setting: Setting, seed: int) -> Callable[[Array], Array]:
    """The last hidden vector of an SSMN with random weights that reads a window as one step, the window, and 1."""
    hidden = (units - width - 1) // 2 * 2
    config = SSMNConfig(
        input_dim=width, output_dim=1, hidden_dim=hidden, layer_types=("static",) * setting["layers"], num_heads=1,
        num_layers=setting["layers"], window_size=1, ffn_dim=units,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SSMN(config).double().eval()
        torch.nn.init.normal_(model.input.weight, std=setting["scale"] / math.sqrt(width))
        torch.nn.init.normal_(model.input.bias, std=setting["bias"])
        for block in model.blocks:
            for linear in (block.ffn.gate, block.ffn.up, block.ffn.down):
                torch.nn.init.normal_(linear.weight, std=setting["gain"] / math.sqrt(linear.in_features))

    @torch.no_grad()
    def features(windows: Array) -> Array:
        kept: list[torch.Tensor] = []
        hook = model.norm.register_forward_hook(lambda _module, _inputs, hidden: kept.append(hidden[:, -1]))
        try:
            model(torch.tensor(windows)[:, None])
        finally:
            hook.remove()
        return np.concatenate([kept[0].numpy(), windows, np.ones((len(windows), 1))], 1)

    return features


def _draw(kind: str, columns: int, random: np.random.Generator, units: int) -> dict[str, Any]:
    """A random setting of a model."""

    def between(low: float, high: float) -> float:
        return float(np.exp(random.uniform(np.log(low), np.log(high))))

    def one_of(*values: Any) -> Any:
        return values[random.integers(len(values))]

    common = {"ridge": between(1e-14, 1e-5), "increment": one_of(True, False), "units": units}
    if kind == "echo-state network":
        return {
            **common, "radius": between(0.2, 1.6), "leak": between(0.1, 1.0), "input": between(0.05, 2.0),
            "bias": between(0.05, 2.0), "connected": one_of(0.1, 1.0), "direct": one_of(True, False),
        }  # fmt: skip
    if kind == "products of the last rows":
        setting = {**common, "degree": int(random.integers(2, 6))}
        most = next(
            count for count in itertools.count(1) if math.comb(count + 1 + setting["degree"], count + 1) > units
        )
    else:
        setting = {**common, "scale": between(0.1, 3.0), "bias": between(0.1, 3.0)}
        most = 60
    if kind == "SSMN, random weights":
        setting |= {"layers": one_of(1, 2), "gain": between(0.3, 3.0)}
    taps = max(1, int(between(columns, most + 1) / columns))
    widest = 10 if taps == 1 else min(10, (units // columns - 1) // (taps - 1))
    return {**setting, "taps": taps, "stride": int(random.integers(1, widest + 1))}


KINDS = ("echo-state network", "SSMN, random weights", "SwiGLU of the last rows", "products of the last rows")
"""The models."""


def reader(kind: str, columns: int, setting: Setting, seed: int) -> Reader:
    """The model of a setting, for rows of so many columns."""
    if kind == "echo-state network":
        return EchoState(columns, setting, seed)
    width = setting["taps"] * columns
    if kind == "products of the last rows":
        features = products(width, setting["degree"])
    elif kind == "SwiGLU of the last rows":
        features = swiglu(width, setting["units"], setting["scale"], setting["bias"], seed)
    else:
        features = stack(width, setting["units"], setting, seed)
    return WindowReader(setting["taps"], setting["stride"], columns, features)


def ridge(features: Array, targets: Array, penalty: float) -> Array:
    """Weights [F, C] by ridge regression.

    By QR and singular values, since the squares that normal equations are made of lose half of the digits.

    Args:
        features: [n, F].
        targets: [n, C].
        penalty: Times the mean of F squared singular values: a share of the features' mean square.
    """
    turn, triangle = np.linalg.qr(features)
    left, values, right = np.linalg.svd(triangle)
    shrunk = values / (values**2 + penalty * np.mean(values**2))
    return right.T @ (shrunk[:, None] * (left.T @ (turn.T @ targets)))


@dataclass(frozen=True)
class Data:
    """A series: the training part, then two parts to start in.

    Attributes:
        rows: [N, C], standardised by the training part.
        starts: The first row to forecast, of each free run, by `validation` and `test`.
        horizon: Rows of a free run at most.
    """

    rows: Array
    starts: Mapping[str, NDArray[np.int64]]
    horizon: int


@functools.lru_cache(maxsize=4)
def data(name: str, seed: int, train: int, starts: int, limit: float) -> Data:
    """The series of a system and a seed. Starts are a Lyapunov time apart."""
    system = SYSTEMS[name]
    apart, horizon = math.ceil(system.lyapunov_rows), math.ceil(limit * system.lyapunov_rows)
    first = {"validation": train, "test": train + starts * apart + horizon}
    rows = system.generate(seed, first["test"] + starts * apart + horizon)
    rows = (rows - rows[:train].mean(0)) / rows[:train].std(0)
    return Data(rows, {part: begin + apart * np.arange(starts) for part, begin in first.items()}, horizon)


def valid_times(made: Reader, given: Data, train: int, part: str, setting: Setting) -> tuple[list[int], float, int]:
    """Fits the read-out and runs free from every start.

    Returns:
        Rows until each run is lost, root mean squared error one row ahead in the training part, features.
    """
    starts = given.starts[part]
    seen = given.rows[: starts[-1]]
    states = made.read(seen)
    before = seen[WASHOUT : train - 1]
    targets = seen[WASHOUT + 1 : train] - (before if setting["increment"] else 0)
    fitted = made.features(states[WASHOUT : train - 1], before)
    weights = ridge(fitted, targets, setting["ridge"])
    error = float(np.sqrt(np.mean((fitted @ weights - targets) ** 2)))
    state, row = states[starts - 1], given.rows[starts - 1]
    lost = np.full(len(starts), given.horizon)
    running = np.arange(len(starts))
    with np.errstate(over="ignore", invalid="ignore"):
        for ahead in range(given.horizon):
            row = made.features(state, row) @ weights + (row if setting["increment"] else 0)
            truth = given.rows[starts[running] + ahead]
            # not "exceeds": what is no number any more is lost, too
            good = np.sqrt(np.mean((row - truth) ** 2, 1)) <= THRESHOLD
            lost[running[~good]] = ahead
            running, state, row = running[good], state[good], row[good]
            if not len(running):
                break
            state = made.step(state, row)
    return lost.tolist(), error, fitted.shape[1]


def runs(options: Options) -> Generator[Run, Result | None, None]:
    """Of every model on every series the choice of a setting, then all seeds with it."""
    sizes: dict[str, Any] = {"train": ROWS, "starts": STARTS, "limit": LIMIT, "units": UNITS}
    tried = SETTINGS
    if options.quick:
        sizes, tried = {"train": 500, "starts": 3, "limit": 1.0, "units": 80}, 2
    for name, kind in itertools.product(list(SYSTEMS)[-1:] if options.quick else SYSTEMS, KINDS):
        base = {"system": name, "kind": kind, **sizes}
        label = f"{name}-{kind}".replace(", ", "-").replace(" ", "-").lower()
        chosen = yield Run(f"{label}-choice", {**base, "settings": tried})
        if chosen is None:
            continue
        for seed in range(options.seeds):
            yield Run(f"{label}-{seed}", {**base, "seed": seed, "setting": chosen["setting"]})


def measure(run: Run, place: Workplace) -> Result | None:
    """A choice: the setting with the longest valid time from the validation starts. Else: the test starts."""
    given = run.settings
    system, kind, train = SYSTEMS[given["system"]], given["kind"], given["train"]

    def one(setting: Setting, seed: int, part: str) -> Result:
        series = data(given["system"], seed, train, given["starts"], given["limit"])
        made = reader(kind, series.rows.shape[1], setting, seed)
        lost, error, features = valid_times(made, series, train, part, setting)
        times = [rows / system.lyapunov_rows for rows in lost]
        return {
            "median": statistics.median(times), "times": times, "one_row": error, "features": features,
            "state": made.state_numbers,
        }  # fmt: skip

    if "setting" in given:
        return one(given["setting"], given["seed"], "test")
    columns = data(given["system"], 0, train, given["starts"], given["limit"]).rows.shape[1]
    random, tried = np.random.default_rng(0), []
    for number in range(given["settings"]):
        setting = _draw(kind, columns, random, given["units"])
        tried.append((one(setting, 0, "validation"), setting))
        best = max(tried, key=lambda pair: (pair[0]["median"], statistics.mean(pair[0]["times"])))
        if place.on_step(number + 1, given["settings"], f"{kind}: {best[0]['median']:.2f} Lyapunov times"):
            return None
    best = max(tried, key=lambda pair: (pair[0]["median"], statistics.mean(pair[0]["times"])))
    return {"setting": best[1], "validation": best[0]["median"], "all": [pair[0]["median"] for pair in tried]}


def tables(finished: Mapping[str, Result]) -> list[Table]:
    """Valid times on the test starts: a row for each series and model."""
    rows = []
    for name, kind in itertools.product(SYSTEMS, KINDS):
        found = [
            run["results"]
            for run in finished.values()
            if (run["settings"]["system"], run["settings"]["kind"]) == (name, kind) and "seed" in run["settings"]
        ]
        if found:
            medians = [result["median"] for result in found]
            spread = f"{min(medians):.2f} to {max(medians):.2f}"
            size = [str(found[0]["state"]), str(found[0]["features"])]
            error = f"{statistics.mean(result['one_row'] for result in found):.1e}"
            rows.append([name, kind, f"{statistics.mean(medians):.2f}", spread, str(len(found)), *size, error])
    head = ["series", "model", "valid time", "of the seeds", "seeds", "state", "features", "error one row ahead"]
    caption = f"Lyapunov times, median of the starts, until the error exceeds {THRESHOLD} deviations"
    return [Table("Chaotic series: valid time of free-running forecasts", head, rows, caption, texts=2)]


PART = Part("chaos", "Chaotic series, free-running, against an echo-state network.", runs, measure, tables)
