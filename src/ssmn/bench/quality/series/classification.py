"""Sequence classification on series that sktime ships: ours, ROCKET, and a GRU of as many weights.

All three see the same training and test sets. Ours and ROCKET choose their ridge by leave-one-out errors of the
training set; ROCKET's scaling (each series by itself, or all by the training set's mean and deviation) is chosen in the
same way; the GRU's learning rate on a fifth of the training set, after which it is trained again on all of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssmn.bench.quality.frame import Options, Part, Result, Run, Workplace
from ssmn.bench.quality.models import percent
from ssmn.bench.report import Table
from ssmn.errors import MissingExtraError
from ssmn.interfaces.features import in_pieces, pooled, random_stack
from ssmn.interfaces.ridge import Ridge

SETS = ("JapaneseVowels", "BasicMotions", "ACSF1")
MODELS = ("SSMN", "ROCKET", "GRU")
RATES = (1e-3, 4e-3)

Set = tuple[list[NDArray[np.float64]], NDArray[Any]]


def runs(options: Options) -> Generator[Run, Result | None, None]:
    """Every set with every model and seed."""
    for name in SETS[1:2] if options.quick else SETS:
        for model in MODELS:
            for seed in range(options.seeds):
                settings = {
                    "set": name, "model": model, "seed": seed, "width": 8 if options.quick else 64,
                    "kernels": 50 if options.quick else 10_000, "epochs": 1 if options.quick else 20,
                }  # fmt: skip
                yield Run(f"{name}-{model}-{seed}", settings)


def measure(run: Run, place: Workplace) -> Result | None:
    """Accuracy on the test set, and seconds of fitting and predicting."""
    settings = run.settings
    train, test = load(settings["set"], "train"), load(settings["set"], "test")
    begun = time.process_time()
    answers = {"SSMN": _ssmn, "ROCKET": _rocket, "GRU": _gru}[settings["model"]](train, test[0], settings)
    return {
        "accuracy": float((answers == test[1]).mean()),
        "cpu_seconds": time.process_time() - begun,
        "series": len(test[1]),
        "longest": max(map(len, test[0])),
    }


@cache
def load(name: str, split: str) -> Set:
    """Series [T, channels] and labels of a set that sktime ships.

    Raises:
        MissingExtraError: sktime is not installed.
    """
    try:
        from sktime import datasets
    except ImportError as error:
        raise MissingExtraError(
            f"classification: {error}; its data is sktime's: pip install 'sparse-stream[timeseries]'"
        ) from error
    loaders: dict[str, Any] = {
        "JapaneseVowels": datasets.load_japanese_vowels,
        "BasicMotions": datasets.load_basic_motions,
        "ACSF1": datasets.load_acsf1,
    }
    table, labels = loaders[name](split=split, return_X_y=True, return_type="nested_univ")
    series = [np.stack([cell.to_numpy(np.float64) for cell in row], -1) for row in table.to_numpy()]
    return series, np.asarray(labels)


def _ssmn(train: Set, test: list[NDArray[np.float64]], settings: Mapping[str, Any]) -> NDArray[Any]:
    from ssmn.interfaces.sklearn import SSMNClassifier

    return SSMNClassifier(settings["width"], random_state=settings["seed"]).fit(*train).predict(test)


def _rocket(train: Set, test: list[NDArray[np.float64]], settings: Mapping[str, Any]) -> NDArray[Any]:
    classes, best, found = np.unique(train[1]), math.inf, train[1][:0]
    targets = np.where(train[1][:, None] == classes, 1.0, -1.0)
    for each in (True, False):
        x, _ = scaled(train[0], test, each)
        features = rocket(x.transpose(1, 2), settings["kernels"], settings["seed"])
        read = Ridge()
        read.add(features[: len(targets)], targets)
        assert read.held_out is not None
        error = float(((read.held_out - targets) ** 2).mean())
        if error < best:
            best, found = error, classes[read(features[len(targets) :]).argmax(1)]
    return found


def rocket(x: Tensor, kernels: int, seed: int) -> NDArray[np.float64]:
    """Share above 0 and largest value of random convolutions, as the paper draws them (Dempster et al., 2020).

    Args:
        x: [n, channels, T].
        kernels: How many.
        seed: Of the kernels.

    Returns:
        [n, 2 · kernels].
    """
    random, (_, channels, length) = np.random.default_rng(seed), x.shape
    alike: dict[tuple[int, int, int], list[tuple[NDArray[np.float64], float]]] = {}
    for _ in range(kernels):
        taps = min(int(random.choice([7, 9, 11])), length)
        chosen = random.choice(
            channels, int(2 ** random.uniform(0, math.log2(min(channels, taps) + 1))), replace=False
        )  # fmt: skip
        weights = np.zeros((channels, taps))
        drawn = random.normal(size=(len(chosen), taps))
        weights[chosen] = drawn - drawn.mean(1, keepdims=True)
        dilation = int(2 ** random.uniform(0, math.log2((length - 1) / (taps - 1))))
        padding = (taps - 1) * dilation // 2 if random.integers(2) else 0
        alike.setdefault((taps, dilation, padding), []).append((weights, random.uniform(-1, 1)))
    features = []
    for (_, dilation, padding), drawn in alike.items():
        for at in range(0, len(drawn), 64):
            weights = torch.tensor(np.stack([kernel[0] for kernel in drawn[at : at + 64]]), dtype=torch.float32)
            bias = torch.tensor([kernel[1] for kernel in drawn[at : at + 64]], dtype=torch.float32)
            rows = []
            for some in x.split(64):
                y = nn.functional.conv1d(some, weights, bias, padding=padding, dilation=dilation)
                rows.append(torch.cat([(y > 0).float().mean(-1), y.amax(-1)], 1))
            features.append(torch.cat(rows))
    return torch.cat(features, 1).double().numpy()


class GRUClassifier(nn.Module):
    """A GRU, the same figures of its hidden units as ours, and a linear layer.

    Args:
        channels: Inputs per step.
        classes: Outputs.
        width: Hidden units.
    """

    def __init__(self, channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.gru = nn.GRU(channels, width, batch_first=True)
        self.head = nn.Sequential(nn.LayerNorm(5 * width), nn.Linear(5 * width, classes))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[B, T, channels] and [B, T] to [B, classes]."""
        return self.head(pooled(self.gru(x)[0], mask))


def width_for(parameters: int, channels: int) -> int:
    """Of a GRU with about so many weights: 3 (w² + channels · w + 2 w) of them."""
    linear = channels + 2
    return round((-linear + math.sqrt(linear * linear + 4 * parameters / 3)) / 2)


def _gru(train: Set, test: list[NDArray[np.float64]], settings: Mapping[str, Any]) -> NDArray[Any]:
    x, mask = scaled(train[0], test, each=False)
    classes, labels = np.unique(train[1], return_inverse=True)
    count, y, channels = len(labels), torch.from_numpy(labels), x.shape[2]
    size = random_stack(channels, hidden_dim=settings["width"]).num_parameters()
    width = width_for(size - settings["width"] ** 2, channels)  # without the identity that hands the hidden vector out
    order = np.random.default_rng(settings["seed"]).permutation(count)
    held, kept = order[: count // 5], order[count // 5 :]

    def trained(rows: NDArray[np.int64], rate: float) -> GRUClassifier:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings["seed"])
            model = GRUClassifier(channels, len(classes), width)
            batches = max(1, len(rows) // 16)
            steps = settings["epochs"] * batches
            optimizer = torch.optim.AdamW(model.parameters(), rate, (0.9, 0.98))
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps + 1, cycle_momentum=False)
            for _ in range(settings["epochs"]):
                for some in torch.from_numpy(rows)[torch.randperm(len(rows))].tensor_split(batches):
                    loss = nn.functional.cross_entropy(model(x[some], mask[some]), y[some])
                    optimizer.zero_grad()
                    loss.backward()
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    schedule.step()
        return model.eval()

    def answers(model: GRUClassifier, rows: Any) -> NDArray[np.int64]:
        return in_pieces(model, x[rows], mask[rows]).argmax(1)

    right = {rate: (answers(trained(kept, rate), held) == labels[held]).mean() for rate in RATES}
    best = max(RATES, key=lambda rate: right[rate])
    return classes[answers(trained(order, best), slice(count, None))]


def scaled(train: list[NDArray[np.float64]], test: list[NDArray[np.float64]], each: bool) -> tuple[Tensor, Tensor]:
    """Both sets as [n, T, channels] float32 with 0 after the end of a shorter series, and the mask [n, T].

    Args:
        train: Series [T, channels].
        test: The same.
        each: Whether every series is standardised by itself, and not all by the training set's mean and deviation.
    """
    steps = np.concatenate(train)
    made = []
    for series in [*train, *test]:
        source = series if each else steps
        made.append((series - source.mean(0)) / (source.std(0) + 1e-8))
    lengths = np.array([len(series) for series in made])
    mask = np.arange(lengths.max()) < lengths[:, None]
    x = np.zeros((*mask.shape, made[0].shape[1]), np.float32)
    x[mask] = np.concatenate(made)
    return torch.from_numpy(x), torch.from_numpy(mask)


def tables(finished: Mapping[str, Result]) -> list[Table]:
    """Accuracy by set and model."""
    rows = []
    for name in SETS:
        for model in MODELS:
            found = [
                run for run in finished.values() if (run["settings"]["set"], run["settings"]["model"]) == (name, model)
            ]
            if found:
                accuracies = [run["results"]["accuracy"] for run in found]
                seconds = sum(run["results"]["cpu_seconds"] for run in found) / len(found)
                rows.append([
                    name, model, percent(sum(accuracies) / len(found)), " ".join(map(percent, accuracies)),
                    f"{seconds:.1f}", f"{found[0]['results']['series']}",
                ])  # fmt: skip
    return [
        Table(
            "Classification of whole sequences",
            ["set", "model", "right, mean", "by seed", "CPU seconds", "test series"], rows,
            "train and test sets as published; nothing was chosen by the test set",
        )
    ]  # fmt: skip


PART = Part("classification", "Whole sequences: ours, ROCKET and a GRU.", runs, measure, tables)
