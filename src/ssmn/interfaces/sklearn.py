"""scikit-learn: `SSMNRegressor` and `SSMNClassifier` (needs `pip install "sparse-stream[timeseries]"`).

The stack is a feature map, random or trained, and the read-out a ridge regression in closed form: fitting takes
milliseconds, is exact, and goes on with `partial_fit`. Gradient epochs through the stack come on top if asked for.
"""

from __future__ import annotations

import json
import numbers
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ssmn.config import SSMNConfig
from ssmn.errors import ConfigError, FileError, MissingExtraError, RangeError, ShapeError
from ssmn.files import PathLike, read_file, write_file
from ssmn.interfaces.features import (
    hidden_map,
    in_pieces,
    levels_of,
    paces_for,
    random_stack,
    sequence_features,
    step_features,
)
from ssmn.interfaces.ridge import Ridge
from ssmn.models import SSMN
from ssmn.state import from_numpy, to_numpy

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_array, check_is_fitted, check_X_y, validate_data
except ImportError as error:
    raise MissingExtraError(
        f"ssmn.interfaces.sklearn: {error}; it needs scikit-learn: pip install 'sparse-stream[timeseries]'"
    ) from error

Layout = Literal["features", "series"]

_NO_TARGETS = object()
"""Stands for the y of a prediction; None is what a caller of `fit` has forgotten."""


class _Estimator(BaseEstimator, ABC):
    """What both estimators are: reading X, the features, the read-out, files."""

    def __init__(
        self,
        hidden_dim: int = 64,
        num_layers: int = 2,
        num_heads: int = 4,
        window_size: int = 16,
        *,
        layout: Layout = "features",
        lags: int = 3,
        ridge: float | None = None,
        epochs: int = 0,
        learning_rate: float = 3e-3,
        model: SSMN | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.hidden_dim = hidden_dim
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.window_size = window_size
        self.layout = layout
        self.lags = lags
        self.ridge = ridge
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.model = model
        self.random_state = random_state

    def fit(self, X: Any, y: ArrayLike) -> Self:
        """Fits afresh.

        Args:
            X: [n, F] (see `layout`), [n, T, C], or a list of n arrays [T_i, C].
            y: n targets.

        Returns:
            The estimator itself.

        Raises:
            ValueError, ShapeError: X or y does not fit.
        """
        x, mask, checked = self._read(X, y, is_first=True)
        self._begin(x, mask)
        self._learn(x, mask, self._encoded(checked, None))
        return self

    def _begin(self, x: Tensor, mask: Tensor) -> None:
        """Scaling of the inputs, the stack, and a fresh read-out."""
        self._check_settings()
        steps = x[mask]
        self.mean_, deviation = steps.mean(0), steps.std(0, correction=0)
        self.scale_ = torch.where(deviation > 1e-7 * (1 + self.mean_.abs()), deviation, 1.0)
        self.paces_ = () if self._is_flat else paces_for(x.shape[1], self.lags)
        inputs = x.shape[-1] * (1 if self._is_flat else self.lags)
        if self.model is None:
            self.model_ = random_stack(
                inputs,
                hidden_dim=self.hidden_dim,
                num_layers=self.num_layers,
                num_heads=self.num_heads,
                window_size=self.window_size,
                seed=int(check_random_state(self.random_state).randint(2**31 - 1)),
            )
        else:
            self.model_ = hidden_map(self.model)
            if self.model.config.input_dim != inputs:
                raise ConfigError(
                    f"{type(self).__name__}: model takes {self.model.config.input_dim} inputs per step; X gives "
                    f"{inputs} ({x.shape[-1]} channels, lags={1 if self._is_flat else self.lags}); change one of them."
                )
        # One step costs next to nothing, so single vectors are exact; sequences run on the float32 kernels.
        self.model_ = self.model_.double() if self._is_flat else self.model_.float()
        self.ridge_ = Ridge(self.ridge)
        self._find_levels(x, mask)

    def _find_levels(self, x: Tensor, mask: Tensor) -> None:
        """The values of the stack's hidden units above which shares of steps are counted."""
        if self._is_flat:
            self.levels_ = torch.zeros(0, 0, self.model_.config.hidden_dim)
        else:
            self.levels_ = levels_of(self.model_, self._scaled(x, mask), mask, self.lags, self.paces_)

    def _learn(self, x: Tensor, mask: Tensor, targets: NDArray[np.float64]) -> None:
        if self.epochs and self.ridge_.rows is None:
            self._descend(self._scaled(x, mask), mask, torch.from_numpy(targets))
            self._find_levels(x, mask)
        self.ridge_.add(self._features(x, mask), targets)

    def _features(self, x: Tensor, mask: Tensor) -> NDArray[np.float64]:
        return in_pieces(self._map, self._scaled(x, mask), mask)

    def _map(self, x: Tensor, mask: Tensor) -> Tensor:
        if self._is_flat:
            return step_features(self.model_, x[:, 0])
        return sequence_features(self.model_, x, mask, self.lags, self.paces_, self.levels_)

    def _scaled(self, x: Tensor, mask: Tensor) -> Tensor:
        scaled = torch.where(mask.unsqueeze(-1), (x - self.mean_) / self.scale_, 0.0)
        return scaled.to(self.model_.input.weight.dtype)

    def _descend(self, x: Tensor, mask: Tensor, targets: Tensor) -> None:
        """Epochs of AdamW through the stack and a linear head, which the closed form then replaces."""
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(int(check_random_state(self.random_state).randint(2**31 - 1)))
            model, targets = self.model_.train(), targets.to(x.dtype)
            level, spread = targets.mean(0), targets.std(0, correction=0).clamp(min=1e-12)
            width = self._map(x[:1], mask[:1]).shape[1]
            head = torch.nn.Sequential(torch.nn.LayerNorm(width), torch.nn.Linear(width, targets.shape[1])).to(x.dtype)
            weights = [p for name, p in model.named_parameters() if not name.startswith("output.")]
            batches = max(1, len(x) // 32)
            optimizer = torch.optim.AdamW([*weights, *head.parameters()], self.learning_rate, (0.9, 0.98))
            schedule = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, self.learning_rate, self.epochs * batches + 1, pct_start=0.2, cycle_momentum=False
            )
            for _ in range(self.epochs):
                for rows in torch.randperm(len(x)).tensor_split(batches):
                    output = head(self._map(x[rows], mask[rows]))
                    loss = self._loss(output, targets[rows], level, spread)
                    optimizer.zero_grad()
                    loss.backward()
                    torch.nn.utils.clip_grad_norm_(weights, 1.0)
                    optimizer.step()
                    schedule.step()
        model.eval().requires_grad_(False)

    @property
    def _is_flat(self) -> bool:
        """Whether rows are vectors of features and not sequences."""
        return self.form_ == "features"

    def _read(self, X: Any, y: Any = _NO_TARGETS, *, is_first: bool) -> tuple[Tensor, Tensor, Any]:
        """([n, T, C] float64, mask [n, T], y), checked; the first call decides about form and columns."""
        if self.layout not in ("features", "series"):
            raise RangeError(f"{type(self).__name__}: layout={self.layout!r}; wanted features or series.")
        sequences = _as_sequences(X)
        if sequences is None:
            x, y = self._read_table(X, y, is_first)
        else:
            x, y = self._read_sequences(sequences, y, is_first)
        form = self.layout if sequences is None else "sequences"
        if is_first:
            self.form_ = form
        elif (self.form_ == "features") != (form == "features"):
            raise ShapeError(f"{type(self).__name__}: X holds {form}; wanted {self.form_}, as when it was fitted.")
        return *_padded(x), y

    def _read_table(self, X: Any, y: Any, is_first: bool) -> tuple[NDArray[np.float64], Any]:
        if y is _NO_TARGETS:
            table = validate_data(self, X, reset=is_first, dtype=np.float64)
        else:
            table, y = validate_data(
                self, X, y, reset=is_first, dtype=np.float64, multi_output=self._takes_many, y_numeric=self._takes_many
            )
        table = cast(NDArray[np.float64], table)
        return (table[:, np.newaxis] if self.layout == "features" else table[:, :, np.newaxis]), y

    def _read_sequences(self, sequences: Any, y: Any, is_first: bool) -> tuple[list[NDArray[np.float64]], Any]:
        owner = type(self).__name__
        made = [check_array(sequence, dtype="float64", input_name="X") for sequence in sequences]
        channels = made[0].shape[1] if is_first else len(self.mean_)
        for number, sequence in enumerate(made):
            if sequence.shape[1] != channels:
                raise ShapeError(
                    f"{owner}: sequence {number} of X has {sequence.shape[1]} channels; wanted {channels}, as in "
                    f"{'the first one' if is_first else 'the data it was fitted on'}."
                )
        if is_first:
            self.n_features_in_ = channels
        if y is not _NO_TARGETS:
            places = np.zeros((len(made), 1))
            _, y = check_X_y(places, y, multi_output=self._takes_many, y_numeric=self._takes_many)
        return made, y

    def _check_settings(self) -> None:
        """The stack's own settings are checked where it is made."""
        owner = type(self).__name__
        for name, least in (("lags", 1), ("epochs", 0)):
            value = getattr(self, name)
            if not isinstance(value, numbers.Integral) or isinstance(value, bool) or int(value) < least:
                raise RangeError(f"{owner}: {name}={value!r}; wanted a whole number of at least {least}.")
        if self.ridge is not None and not self.ridge >= 0:
            raise RangeError(f"{owner}: ridge={self.ridge!r}; wanted a number of at least 0, or None to choose.")
        if not self.learning_rate > 0:
            raise RangeError(f"{owner}: learning_rate={self.learning_rate!r}; wanted a positive number.")

    def save(self, path: PathLike) -> None:
        """Writes the fitted estimator to one checked file that holds no code; `load` reads it.

        Raises:
            NotFittedError: It has not been fitted.
            FileError: The file cannot be written.
        """
        check_is_fitted(self)
        settings = {name: value for name, value in self.get_params(deep=False).items() if name != "model"}
        if not isinstance(self.random_state, numbers.Integral):
            settings["random_state"] = None
        fitted = {"form": self.form_, "columns": self.n_features_in_, "paces": list(self.paces_), **self._fitted()}
        if hasattr(self, "feature_names_in_"):
            fitted["names"] = list(getattr(self, "feature_names_in_"))  # noqa: B009
        tensors = {f"model.{name}": to_numpy(tensor) for name, tensor in self.model_.state_dict().items()}
        tensors |= {f"ridge.{name}": np.ascontiguousarray(array) for name, array in self.ridge_.tensors().items()}
        tensors |= {"mean": to_numpy(self.mean_), "scale": to_numpy(self.scale_), "levels": to_numpy(self.levels_)}
        estimator = {"class": type(self).__name__, "settings": settings, "fitted": fitted}
        config = {"estimator": json.loads(json.dumps(estimator, default=float)), "model": self.model_.config.to_dict()}
        write_file(path, tensors, {"kind": "model", "config": config})

    @classmethod
    def load(cls, path: PathLike) -> Self:
        """Reads what `save` wrote; nothing in the file is executed.

        An estimator that was given a `model` comes back with the file's stack in its place.

        Raises:
            FileError: The file is damaged, or of something else.
        """
        tensors, header = read_file(path, kind="model")
        config = header.get("config") or {}
        estimator = config.get("estimator") or {}
        if estimator.get("class") != cls.__name__:
            raise FileError(f"{Path(path)}: holds {estimator.get('class') or 'a model'}; wanted {cls.__name__}.")
        if "levels" not in tensors:
            raise FileError(
                f"{Path(path)}: an estimator without levels_, of an earlier version; fit and save it again."
            )
        made, fitted = cls(**estimator["settings"]), estimator["fitted"]
        made.form_, made.paces_ = fitted["form"], tuple(fitted["paces"])
        made.mean_, made.scale_, made.levels_ = (from_numpy(tensors[name]) for name in ("mean", "scale", "levels"))
        made.n_features_in_ = fitted["columns"]
        if "names" in fitted:
            setattr(made, "feature_names_in_", np.array(fitted["names"], dtype=object))  # noqa: B010
        weights = {
            name.removeprefix("model."): from_numpy(array)
            for name, array in tensors.items()
            if name.startswith("model.")
        }
        made.model_ = SSMN(SSMNConfig.from_dict(config["model"])).to(weights["input.weight"].dtype).eval()
        made.model_.load_state_dict(weights)
        parts = {n.removeprefix("ridge."): array for n, array in tensors.items() if n.startswith("ridge.")}
        made.ridge_ = Ridge.from_tensors(parts)
        made._restore(fitted)
        return made

    _takes_many = False
    """Whether y may be [n, K]."""

    @abstractmethod
    def _encoded(self, y: NDArray[Any], classes: ArrayLike | None) -> NDArray[np.float64]:
        """What the read-out is to say, [n, K]."""

    @abstractmethod
    def _loss(self, output: Tensor, targets: Tensor, level: Tensor, spread: Tensor) -> Tensor:
        """What the gradient epochs lower."""

    @abstractmethod
    def _fitted(self) -> dict[str, Any]:
        """Plain values that a file needs beside the settings."""

    @abstractmethod
    def _restore(self, fitted: dict[str, Any]) -> None:
        """The reverse of `_fitted`."""


class SSMNRegressor(RegressorMixin, _Estimator):
    """Numbers from feature vectors or from whole sequences, by an SSMN with a ridge read-out.

    A row of a table is a vector of features, read as a sequence of one step (`layout="series"`: a series of one
    channel, a step per column). Arrays [n, T, C] and lists of arrays [T_i, C] are sequences. A vector's features are
    itself and the stack's hidden vector; a sequence's are the hidden units' mean, deviation, largest and least value
    and the shares of steps above 0 and above six quantiles of the training steps, for the stack reading it with
    delayed values at distances 1, 2, 4, ... steps.

    Args:
        hidden_dim: Width of the stack.
        num_layers: Its blocks.
        num_heads: Heads of its window attention.
        window_size: Its window in steps.
        layout: What a table's rows are: `features` or `series`.
        lags: For sequences, values of each channel that enter a step: the present one and delayed ones.
        ridge: Strength of the read-out's regularisation (≥ 0); None = by leave-one-out errors.
        epochs: Passes of gradient descent through the stack before the read-out is fitted; 0 leaves the stack as it is.
        learning_rate: Its largest step.
        model: A trained `ssmn.SSMN` for the stack, instead of a random one; it is copied, never changed. With
            sequences it takes lags · C inputs.
        random_state: Of the stack and the epochs.

    Attributes:
        model_: The stack, an `ssmn.SSMN` whose output is its hidden vector.
        ridge_: The read-out.
        paces_: Distances between delayed values, in steps.
        levels_: [paces, 6, D], the quantiles above which shares of steps are counted.

    Example:
        >>> import numpy
        >>> from ssmn.interfaces.sklearn import SSMNRegressor
        >>> x = numpy.random.default_rng(0).normal(size=(200, 3))
        >>> y = x[:, 0] * x[:, 1] + x[:, 2]
        >>> model = SSMNRegressor(random_state=0).fit(x[:150], y[:150])
        >>> bool(model.score(x[150:], y[150:]) > 0.8)
        True
    """

    _takes_many = True

    def partial_fit(self, X: Any, y: ArrayLike) -> Self:
        """Takes more rows: the read-out is then that of all rows so far, exactly.

        The first call makes the stack and fixes the inputs' scaling, the quantiles of the stack's hidden units and the
        read-out's strength; no gradient epochs.

        Args:
            X: As for `fit`.
            y: n targets.

        Returns:
            The estimator itself.
        """
        is_first = not hasattr(self, "ridge_")
        x, mask, y = self._read(X, y, is_first=is_first)
        if is_first:
            self._begin(x, mask)
        self.ridge_.add(self._features(x, mask), self._encoded(cast(NDArray[Any], y), None))
        return self

    def predict(self, X: Any) -> NDArray[np.float64]:
        """[n], or [n, K] if it was fitted so."""
        check_is_fitted(self)
        x, mask, _ = self._read(X, is_first=False)
        output = self.ridge_(self._features(x, mask))
        return output if self.is_many_ else output[:, 0]

    def _encoded(self, y: NDArray[Any], classes: ArrayLike | None) -> NDArray[np.float64]:
        self.is_many_ = y.ndim == 2
        return np.asarray(y, np.float64).reshape(len(y), -1)

    def _loss(self, output: Tensor, targets: Tensor, level: Tensor, spread: Tensor) -> Tensor:
        return torch.nn.functional.mse_loss(output, (targets - level) / spread)

    def _fitted(self) -> dict[str, Any]:
        return {"many": self.is_many_}

    def _restore(self, fitted: dict[str, Any]) -> None:
        self.is_many_ = fitted["many"]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.input_tags.three_d_array = True
        return tags


class SSMNClassifier(ClassifierMixin, _Estimator):
    """Classes of feature vectors or of whole sequences, by an SSMN with a ridge read-out.

    The read-out is fitted to +1 for a row's class and −1 for the others, as in ROCKET (Dempster et al., 2020);
    probabilities are the softmax of its scores, sharpened as suits the scores of rows left out.

    Args:
        hidden_dim: As for `SSMNRegressor`, and so are all others.
        num_layers: See there.
        num_heads: See there.
        window_size: See there.
        layout: See there.
        lags: See there.
        ridge: See there.
        epochs: See there; the loss is the cross-entropy.
        learning_rate: See there.
        model: See there.
        random_state: See there.

    Attributes:
        classes_: The labels, sorted.
        sharpness_: Factor on the scores before the softmax.
        model_: The stack.
        ridge_: The read-out.
        paces_: Distances between delayed values, in steps.
        levels_: [paces, 6, D], the quantiles above which shares of steps are counted.

    Example:
        >>> import numpy
        >>> from ssmn.interfaces.sklearn import SSMNClassifier
        >>> steps = numpy.arange(30)
        >>> waves = [numpy.sin(steps[: 20 + n] * (0.5 if n % 2 else 0.9) + n)[:, None] for n in range(10)]
        >>> labels = ["slow" if n % 2 else "quick" for n in range(10)]
        >>> SSMNClassifier(random_state=0).fit(waves[:6], labels[:6]).predict(waves[6:]).tolist()
        ['quick', 'slow', 'quick', 'slow']
    """

    def partial_fit(self, X: Any, y: ArrayLike, classes: ArrayLike | None = None) -> Self:
        """Takes more rows: the read-out is then that of all rows so far, exactly.

        Args:
            X: As for `fit`.
            y: n labels.
            classes: All labels that will ever come; needed in the first call unless that one has them all.

        Returns:
            The estimator itself.

        Raises:
            RangeError: A label is not among the classes.
        """
        is_first = not hasattr(self, "ridge_")
        x, mask, y = self._read(X, y, is_first=is_first)
        if is_first:
            self._begin(x, mask)
        targets = self._encoded(cast(NDArray[Any], y), classes if is_first else self.classes_)
        self.ridge_.add(self._features(x, mask), targets)
        if is_first:
            self._sharpen(targets)
        return self

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Scores [n, classes]; of two classes only the second one's, [n]."""
        check_is_fitted(self)
        scores = self._scores(X)
        return scores[:, 1] if len(self.classes_) == 2 else scores

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """[n, classes], in the order of `classes_`; rows sum to 1."""
        check_is_fitted(self)
        return _softmax(self.sharpness_ * self._scores(X))

    def predict(self, X: Any) -> NDArray[Any]:
        """[n] labels."""
        check_is_fitted(self)
        return self.classes_[self._scores(X).argmax(1)]

    def _scores(self, X: Any) -> NDArray[np.float64]:
        x, mask, _ = self._read(X, is_first=False)
        return self.ridge_(self._features(x, mask))

    def _learn(self, x: Tensor, mask: Tensor, targets: NDArray[np.float64]) -> None:
        super()._learn(x, mask, targets)
        self._sharpen(targets)

    def _sharpen(self, targets: NDArray[np.float64]) -> None:
        """The sharpness that makes the rows left out most likely; without them (ridge given), 2."""
        held_out, self.ridge_.held_out = self.ridge_.held_out, None
        if held_out is None:
            self.sharpness_ = 2.0
            return
        right = targets > 0
        sharpnesses = 2.0 ** np.arange(-4, 3)
        losses = [-np.log(_softmax(sharpness * held_out)[right] + 1e-12).mean() for sharpness in sharpnesses]
        self.sharpness_ = float(sharpnesses[int(np.argmin(losses))])

    def _encoded(self, y: NDArray[Any], classes: ArrayLike | None) -> NDArray[np.float64]:
        check_classification_targets(y)
        self.classes_ = np.unique(y if classes is None else np.asarray(classes))
        unknown = np.setdiff1d(y, self.classes_)
        if len(unknown):
            raise RangeError(
                f"SSMNClassifier: y has the label {unknown[0]!r}; wanted one of classes={self.classes_.tolist()}: name "
                "all of them in the first call of partial_fit."
            )
        return np.where(y[:, np.newaxis] == self.classes_, 1.0, -1.0)

    def _loss(self, output: Tensor, targets: Tensor, level: Tensor, spread: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(output, targets.argmax(1))

    def _fitted(self) -> dict[str, Any]:
        return {"classes": self.classes_.tolist(), "sharpness": self.sharpness_}

    def _restore(self, fitted: dict[str, Any]) -> None:
        self.classes_, self.sharpness_ = np.array(fitted["classes"]), fitted["sharpness"]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags


def _softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = np.exp(scores - scores.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def _as_sequences(X: Any) -> Any:
    """The sequences in X, or None if it is a table."""
    if isinstance(X, np.ndarray):
        return X if X.ndim == 3 and X.dtype != object and len(X) else None
    if isinstance(X, (list, tuple)) and X and all(isinstance(item, np.ndarray) and item.ndim == 2 for item in X):
        return X
    return None


def _padded(x: Any) -> tuple[Tensor, Tensor]:
    """([n, T, C] float64, mask [n, T]) with 0 after the end of the shorter ones."""
    lengths = np.array([len(sequence) for sequence in x])
    mask = np.arange(lengths.max()) < lengths[:, np.newaxis]
    padded = np.zeros((*mask.shape, x[0].shape[1]))
    padded[mask] = np.concatenate(x)
    return torch.from_numpy(padded), torch.from_numpy(mask)
