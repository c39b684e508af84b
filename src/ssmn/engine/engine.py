"""The engine: owns its streams and steps them in place."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from ctypes import byref
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from ssmn import native
from ssmn.config import Plasticity
from ssmn.engine.packing import FORMATS, Source, pack
from ssmn.engine.streams import Streams, check_elapsed, check_stream
from ssmn.errors import DtypeError, RangeError, ShapeError, StateError
from ssmn.files import Origin, PathLike, atomic_write, write_state_arrays

if TYPE_CHECKING:
    from ssmn.state import StreamState

Dtype = Literal["float32", "bfloat16", "int8", "int4"]
_Beside = dict[str, NDArray[np.float32] | None]


class Engine:
    """A whole model in one arena; a step of all its streams is one call of the C library.

    The weights are copied, and rounded to `dtype`; the memory and the window are float32. The arrays that `step`
    returns belong to the engine: the next step overwrites them.

    Args:
        model: An `SSMN` or a `TextSSMN` of float32, bfloat16 or float16 weights.
        dtype: How the large matrices are stored: `float32`, `bfloat16`, `int8` or `int4` (symmetric, a scale per 32
            columns). With the last two, what enters a product is rounded to int8.
        streams: How many streams there are at the start; `fork` makes more.
        threads: How many threads a call may use; 1 is best for small models.

    Raises:
        DtypeError, RangeError, ConfigError: An argument does not fit; the message names it.
        BackendError: There is no C library.

    Example:
        >>> import numpy, ssmn
        >>> model = ssmn.SSMN(ssmn.SSMNConfig.preset("tiny", input_dim=3, output_dim=2))
        >>> engine = ssmn.Engine(model)
        >>> y_t = engine.step(numpy.zeros(3, numpy.float32))
        >>> y_t.shape, engine.position(0)
        ((2,), 1)
    """

    def __init__(self, model: Any, dtype: Dtype = "float32", streams: int = 1, threads: int = 1) -> None:
        if dtype not in FORMATS:
            raise RangeError(f"Engine: dtype={dtype!r}; wanted one of {', '.join(FORMATS)}.")
        self._require_counts(streams=streams, threads=threads)
        source = model if isinstance(model, Source) else Source.of_model(model)
        self.config, self.dtype, self.threads = source.config, dtype, threads
        self._packed = pack(source, dtype, threads)
        self._is_text = bool(self._packed.sizes.is_text)
        self._origin = source.origin()
        self._streams = Streams(self._packed, source.config, streams)
        self._lock = threading.Lock()
        self._engine = byref(self._packed.sizes)
        self._run = native.library().ssmn_engine_run
        self._bind()

    @classmethod
    def load(
        cls, folder: PathLike, dtype: Dtype = "float32", streams: int = 1, threads: int = 1, **changes: Any
    ) -> Self:
        """The engine of a model that `save_pretrained` or `ssmn train` wrote; needs no torch.

        Args:
            folder: The model's.
            dtype: As for the engine itself; `streams` and `threads` too.
            streams: See `dtype`.
            threads: See `dtype`.
            changes: Settings to change that have no weights, such as `output_memory=True`.

        Raises:
            FileError, ConfigError: The folder is not one of ours, or damaged.
        """
        return cls(Source.of_folder(folder, **changes), dtype, streams, threads)

    @property
    def streams(self) -> int:
        """How many streams there are."""
        return self._streams.count

    @property
    def nbytes(self) -> int:
        """Bytes of the arena and of all streams, room for forks included."""
        return self._packed.arena.nbytes + self._streams.numbers.nbytes

    @property
    def stream_nbytes(self) -> int:
        """Bytes of one stream; the same at every position."""
        return self._streams.numbers.shape[1] * 4

    @property
    def weight_nbytes(self) -> int:
        """Bytes of the packed weights, which a step reads once (of a large vocabulary's input only one row)."""
        return self._packed.sizes.workspace

    def step(
        self,
        x: Any,
        *,
        streams: Sequence[int] | NDArray[Any] | None = None,
        elapsed: Any = None,
        target: NDArray[np.float32] | None = None,
        future: NDArray[np.float32] | None = None,
        static: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """One step of every stream, or of some.

        Args:
            x: [streams, input_dim] float32, or token numbers [streams]; of a single stream also [input_dim], or one
                token number. NaN is a missing value, if the model takes any.
            streams: Which take part, as numbers or as a mask [streams]; None = all, in order.
            elapsed: Time since the step before, a number or [streams]; None = 1.
            target: [streams, output_dim] float32, for the plastic read-out: the truth of what was predicted at the step
                before; NaN = unknown; None = none is known. It has an axis of streams if x has; so have the next two.
            future: [streams, future_dim] float32, what is known of the step that is predicted; needed if the model has
                it.
            static: [streams, static_dim] float32, what holds for a whole stream; needed if the model has it.

        Returns:
            y [streams, output_dim] (logits [streams, vocab_size]; of other heads another axis, as from the model) or,
            if x has no axis of streams, without it. The next step overwrites it: copy what is to be kept.

        Raises:
            ShapeError, DtypeError, RangeError: An argument does not fit or is not finite; nothing has changed.
            StateError: Another thread is running this engine.
        """
        if not self._lock.acquire(False):
            self._refuse_second()
        try:
            if streams is elapsed is target is future is static is None and self._needs_x_alone:
                if self._is_text:
                    if type(x) is int and self._alone:
                        if not -1 < x < self._tokens:
                            self._refuse_tokens(x, x)
                        self._x[0] = x
                        code, y = self._run(self._engine, self._call), self._y_alone
                    else:
                        y = self._put(x, self._x, self._y)
                        code = self._run(self._engine, self._call)
                elif type(x) is np.ndarray and x.dtype == np.float32 and x.shape in self._shapes:
                    self._x[...] = x
                    code = self._run(self._engine, self._call)
                    y = self._y if x.ndim == 2 else self._y_alone
                else:
                    y = self._put(x, self._x, self._y)
                    code = self._run(self._engine, self._call)
                if code:
                    self._refuse(code, self._x)
                return y
            beside = {"target": target, "future": future, "static": static}
            if streams is None and elapsed is None:
                return self._step_beside(x, beside)
            return self._step_some(x, streams, elapsed, beside)
        finally:
            self._lock.release()

    def run(
        self,
        xs: Any,
        *,
        streams: Sequence[int] | NDArray[Any] | None = None,
        elapsed: Any = None,
        target: NDArray[np.float32] | None = None,
        future: NDArray[np.float32] | None = None,
        static: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """The next T steps of every stream, or of some; equal to so many calls of `step`.

        Args:
            xs: [T, streams, input_dim] float32, or token numbers [T, streams]; of a single stream also without the
                axis of streams.
            streams: Which take part; None = all, in order.
            elapsed: A number, or [T, streams]; None = 1. It and the next three have an axis of streams if xs has.
            target: [T, streams, output_dim], as in `step`.
            future: [T, streams, future_dim], likewise.
            static: [streams, static_dim], likewise.

        Returns:
            ys [T, streams, output_dim], a new array; the axis of streams as in xs.

        Raises:
            ShapeError, DtypeError, RangeError, StateError: As in `step`.
        """
        beside = {"target": target, "future": future, "static": static}
        return self._sequence("run", xs, streams, elapsed, beside, last_only=False)

    def prefill(
        self,
        xs: Any,
        *,
        streams: Sequence[int] | NDArray[Any] | None = None,
        elapsed: Any = None,
        target: NDArray[np.float32] | None = None,
        future: NDArray[np.float32] | None = None,
        static: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """As `run`, but returns only the last step's output [streams, output_dim], a new array; T is at least 1."""
        beside = {"target": target, "future": future, "static": static}
        return self._sequence("prefill", xs, streams, elapsed, beside, last_only=True)

    def position(self, stream: int = 0) -> int:
        """Steps that a stream has seen."""
        return int(self._streams.positions[check_stream("position", stream, self.streams)])

    def fork(self, stream: int = 0) -> int:
        """Copies a stream, its plasticity included, into a new one; returns the new one's number."""
        with self._owned():
            stream = check_stream("fork", stream, self.streams)
            self._streams.add(1)
            self._streams.copy(stream, self.streams - 1)
            self._bind()
            return self.streams - 1

    def take(self, other: Engine, stream: int = 0) -> None:
        """Makes every stream of this engine a copy of one of a sibling's, its plasticity included.

        Args:
            other: An engine that `sibling` made of this one, or that this one was made of.
            stream: The stream of the other engine.

        Raises:
            StateError: `other` is no sibling.
            RangeError: It has no such stream.
        """
        if not isinstance(other, Engine) or other._lock is not self._lock:
            raise StateError("take: other is no sibling of this engine; make it with engine.sibling().")
        with self._owned():
            stream = check_stream("take", stream, other.streams)
            mine, theirs = self._streams, other._streams
            mine.numbers[: mine.count] = theirs.numbers[stream]
            mine.positions[: mine.count] = theirs.positions[stream]
            mine.learning[: mine.count] = theirs.learning[stream]

    def reset(self, stream: int = 0) -> None:
        """Makes a stream fresh; its plasticity stays."""
        with self._owned():
            self._streams.clear(check_stream("reset", stream, self.streams))

    def set_plasticity(self, plasticity: Plasticity, stream: int | None = None) -> None:
        """How strongly one stream, or every one, learns and forgets from now on.

        Args:
            plasticity: Its fields are numbers or, for all streams, one number per stream.
            stream: The stream; None = all there are.

        Raises:
            DtypeError, ShapeError, RangeError: An argument does not fit; `chat_rounds` is not for the engine.
        """
        if not isinstance(plasticity, Plasticity):
            came = type(plasticity).__name__
            raise DtypeError(f"set_plasticity: plasticity is {came}; wanted ssmn.Plasticity(...).")
        if plasticity.chat_rounds is not None:
            raise RangeError(
                f"set_plasticity: chat_rounds={plasticity.chat_rounds}; an engine has the rounds of its model: wanted "
                f"None, or an engine of model.with_chat_rounds({plasticity.chat_rounds})."
            )
        with self._owned():
            if stream is not None:
                stream = check_stream("set_plasticity", stream, self.streams)
            self._streams.set_learning(plasticity, stream)

    def sibling(self, streams: int = 1) -> Self:
        """An engine over the same packed weights, with fresh streams of its own.

        The two take turns: while one runs, a second thread that calls the other gets the same StateError.

        Args:
            streams: How many streams it has at the start.

        Raises:
            RangeError: streams is no whole number of at least 1.
        """
        self._require_counts(streams=streams)
        with self._owned():
            other = object.__new__(type(self))
            other.config, other.dtype, other.threads = self.config, self.dtype, self.threads
            other._packed, other._is_text = self._packed.again(), self._is_text
            other._origin, other._lock, other._run = self._origin, self._lock, self._run
            other._streams = Streams(other._packed, self.config, streams)
            other._engine = byref(other._packed.sizes)
            other._bind()
            return other

    def get_state(self, stream: int = 0) -> StreamState:
        """A stream's state as the models take it (this loads torch; `save_state` does not)."""
        return self._state_of(self._alone_of("get_state", stream))

    def get_states(self, streams: Sequence[int] | NDArray[Any] | None = None) -> StreamState:
        """The states of several streams, a row each.

        Args:
            streams: Which, as numbers or as a mask [streams]; None = all, in order.

        Raises:
            DtypeError, RangeError: streams is no list of streams.
        """
        return self._state_of(self._chosen("get_states", streams))

    def set_state(self, stream: int, state: StreamState) -> None:
        """Replaces a stream's state by one of a model's, of one row.

        Raises:
            StateError: It is not a state of this model's.
        """
        self._set("set_state", self._alone_of("set_state", stream), state)

    def set_states(self, state: StreamState, streams: Sequence[int] | NDArray[Any] | None = None) -> None:
        """Replaces the states of several streams by the rows of one of a model's.

        Args:
            state: A row for each of the streams.
            streams: As for `get_states`.

        Raises:
            StateError: It is not a state of this model's with so many rows; nothing has changed.
            DtypeError, RangeError: streams is no list of streams.
        """
        self._set("set_states", self._chosen("set_states", streams), state)

    def save_state(self, stream: int, path: PathLike) -> None:
        """Writes a stream's state to the file that `StreamState.save` would write with the model.

        Raises:
            StateError: The state has values that are not finite.
            FileError: The file cannot be written.
        """
        with self._owned():
            tensors = self._streams.tensors(self._alone_of("save_state", stream))
        write_state_arrays(path, tensors, self._streams.layout, self._origin)

    def save_image(self, path: PathLike) -> None:
        """Writes the packed model, without streams, for a program without Python: `examples/engine.c` steps it.

        The structs of `ssmn.h` and the weights as they lie in memory: for little-endian machines of 64 bits, and for
        this version of the library. Numbers alone, but a program trusts the sizes in it: open what you wrote.

        Args:
            path: The file.

        Raises:
            FileError: The file cannot be written.
        """
        atomic_write(path, *self._packed.image())

    def load_state(self, stream: int, path: PathLike, allow_other_weights: bool = False) -> None:
        """Replaces a stream's state by a file's, which this engine or its model wrote.

        Raises:
            FileError: The file is missing, damaged, or no state.
            StateError: It belongs to another model (unless `allow_other_weights`), or does not fit.
        """
        tensors, header = self._streams.read(path)
        if not allow_other_weights:
            way_out = "use the model that the state was saved with, or pass allow_other_weights=True"
            Origin(header["fingerprint"], header["config"]).require(
                "load_state", self._origin, (str(path), "this engine's model"), way_out
            )
        with self._owned():
            self._streams.put(self._alone_of("load_state", stream), tensors, "load_state")

    def __repr__(self) -> str:
        return f"Engine({self.config.kind}, {self.dtype}, streams={self.streams}, threads={self.threads})"

    def _bind(self) -> None:
        """The arrays that steps go through, and the call that knows their addresses."""
        count, sizes = self.streams, self._packed.sizes
        inputs = (count,) if self._is_text else (count, sizes.inputs)
        self._x = np.zeros(inputs, np.int64 if self._is_text else np.float32)
        self._y = np.zeros((count, *self._ending()), np.float32)
        self._needs_x_alone = self._is_text or not (sizes.static_width or sizes.future_width)
        self._tokens, self._alone = sizes.inputs, count == 1
        self._y_alone = self._y[0]
        self._shapes = (inputs, inputs[1:]) if self._alone else (inputs,)
        self._which = np.arange(count, dtype=np.int64)
        self._call_struct = native.EngineCall(
            count, 1, self._which.ctypes.data, self._x.ctypes.data, None, self._y.ctypes.data, 0, None, None, None
        )
        self._call = byref(self._call_struct)
        self._rows = {name: np.zeros((count, width), np.float32) for name, width in self._widths().items() if width}
        self._fuller_struct = native.EngineCall.from_buffer_copy(self._call_struct)
        for name, rows in self._rows.items():
            setattr(self._fuller_struct, "fixed" if name == "static" else name, rows.ctypes.data)
        self._target_address = self._fuller_struct.target
        self._fuller_call = byref(self._fuller_struct)

    @staticmethod
    def _require_counts(**counts: int) -> None:
        for name, value in counts.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise RangeError(f"Engine: {name}={value!r}; wanted a whole number of at least 1.")

    def _owned(self) -> _Owned:
        return _Owned(self)

    def _put(self, x: Any, into: NDArray[Any], y: NDArray[np.float32]) -> NDArray[np.float32]:
        """Checks x, copies it, and returns the part of y that answers it."""
        array = self._checked("step", x, into.ndim)
        shape = array.shape if array.ndim == into.ndim else (1, *array.shape)
        if array.ndim not in (into.ndim, into.ndim - 1) or shape != into.shape:
            self._refuse_shape("step", array, into.shape)
        into[...] = array
        return y if array.ndim == into.ndim else y[0]

    def _ending(self) -> tuple[int, ...]:
        """The axes of one step's output."""
        sizes = self._packed.sizes
        if self._is_text or sizes.head_kind == 0:
            return (sizes.outputs,)
        return (sizes.outputs // sizes.head_parts, sizes.head_parts)

    def _widths(self) -> dict[str, int]:
        """Of what is given beside x; 0 = the model has none."""
        sizes = self._packed.sizes
        if self._is_text:
            return {"target": 0, "future": 0, "static": 0}
        outputs = sizes.outputs // sizes.head_parts if sizes.readout else 0
        return {"target": outputs, "future": sizes.future_width, "static": sizes.static_width}

    def _step_beside(self, x: Any, beside: _Beside) -> NDArray[np.float32]:
        """A step of all streams with more than x, through arrays whose addresses the call knows."""
        y = self._put(x, self._x, self._y)
        found = self._beside("step", beside, (), self.streams, alone=y.ndim == len(self._ending()))
        for name, rows in self._rows.items():
            if found[name] is not None:
                rows[...] = found[name]
        self._fuller_struct.target = None if found["target"] is None else self._target_address
        code = self._run(self._engine, self._fuller_call)
        if code:
            self._refuse(code, self._x, found)
        return y

    def _step_some(self, x: Any, streams: Any, elapsed: Any, beside: _Beside) -> NDArray[np.float32]:
        which = self._chosen("step", streams)
        count = len(which)
        y = self._put(x, self._x[:count], self._y[:count])
        times = None if elapsed is None else check_elapsed("step", elapsed, (count,))
        more = self._beside("step", beside, (), count, alone=y.ndim == len(self._ending()))
        call = native.EngineCall(
            count, 1, which.ctypes.data, self._x.ctypes.data, _address(times), self._y.ctypes.data, 0,
            *map(_address, more.values()),
        )  # fmt: skip
        code = self._run(self._engine, byref(call))
        if code:
            self._refuse(code, self._x[:count], more)
        return y

    def _sequence(
        self, owner: str, xs: Any, streams: Any, elapsed: Any, beside: _Beside, last_only: bool
    ) -> NDArray[np.float32]:
        with self._owned():
            which = self._chosen(owner, streams)
            count, sizes = len(which), self._packed.sizes
            ending = () if self._is_text else (sizes.inputs,)
            axes = 2 + len(ending)
            array = self._checked(owner, xs, axes)
            alone = array.ndim == axes - 1 and count == 1
            if alone:
                array = array[:, np.newaxis]
            if array.ndim != axes or array.shape[1:] != (count, *ending):
                self._refuse_shape(owner, array, ("T", count, *ending))
            steps = len(array)
            if last_only and not steps:
                raise ShapeError(f"{owner}: xs has no steps; wanted at least one.")
            array = np.ascontiguousarray(array, np.int64 if self._is_text else np.float32)
            if alone and np.ndim(elapsed) == 1:
                elapsed = np.asarray(elapsed)[:, np.newaxis]
            times = None if elapsed is None else check_elapsed(owner, elapsed, (steps, count))
            more = self._beside(owner, beside, (steps,), count, alone)
            y = np.empty((count, *self._ending()) if last_only else (steps, count, *self._ending()), np.float32)
            call = native.EngineCall(
                count, steps, which.ctypes.data, array.ctypes.data, _address(times), y.ctypes.data, last_only,
                *map(_address, more.values()),
            )  # fmt: skip
            code = self._run(self._engine, byref(call))
            if code:
                self._refuse(code, array, more)
            return (y[0] if last_only else y[:, 0]) if alone else y

    def _beside(self, owner: str, given: _Beside, steps: tuple[int, ...], count: int, alone: bool) -> _Beside:
        """Target, future and static inputs, checked, in the order of `ssmn_engine_call`."""
        found: _Beside = {}
        for name, width in self._widths().items():
            array = found[name] = given[name]
            if array is None and (name == "target" or not width):
                continue
            if array is not None and not width:
                way_out = "readout=" if name == "target" else f"{name}_dim"
                raise RangeError(f"{owner}: {name} is given, but the model has none; make it with {way_out}.")
            shape = ((*steps, width) if alone else (*steps, count, width))[1 if steps and name == "static" else 0 :]
            if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.shape != shape:
                came = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
                raise ShapeError(f"{owner}: {name} is {came}; wanted a float32 numpy array {list(shape)}.")
            found[name] = np.ascontiguousarray(array)
        return found

    def _checked(self, owner: str, x: Any, axes: int) -> NDArray[Any]:
        """X as an array of numbers of the right kind."""
        if self._is_text:
            array = np.asarray(x)
            if array.dtype.kind not in "iu" and (array.size or isinstance(x, np.ndarray)):
                came = array.dtype if array.dtype != object else type(x).__name__
                raise DtypeError(f"{owner}: the tokens are {came}; wanted whole numbers, as a tokenizer gives them.")
            return array
        if not isinstance(x, np.ndarray) or x.dtype != np.float32:
            came = f"an array of {x.dtype}" if isinstance(x, np.ndarray) else type(x).__name__
            raise DtypeError(
                f"{owner}: x is {came}; wanted a float32 numpy array with {axes} axes; convert it with "
                "numpy.asarray(x, numpy.float32)."
            )
        return x

    def _chosen(self, owner: str, streams: Any) -> NDArray[np.int64]:
        """The numbers of the streams that take part."""
        if streams is None:
            return self._which
        which = np.asarray(streams)
        if which.dtype == np.bool_ and which.shape == (self.streams,):
            which = np.flatnonzero(which)
        if which.ndim != 1 or which.dtype.kind not in "iu":
            came = f"{which.dtype} {list(which.shape)}"
            raise DtypeError(
                f"{owner}: streams is {came}; wanted a list of stream numbers, or a mask [{self.streams}]."
            )
        outside = [int(number) for number in which if not 0 <= number < self.streams]
        if outside or len(set(which.tolist())) < len(which):
            came = f"has {outside[0]}" if outside else "names one twice"
            raise RangeError(f"{owner}: streams {came}; wanted each of 0 to {self.streams - 1} at most once.")
        return np.ascontiguousarray(which, np.int64)

    def _alone_of(self, owner: str, stream: Any) -> NDArray[np.int64]:
        """A list of one stream."""
        return np.array([check_stream(owner, stream, self.streams)])

    def _state_of(self, streams: NDArray[np.int64]) -> StreamState:
        from ssmn.state import state_from_arrays

        with self._owned():
            tensors = self._streams.tensors(streams)
        return state_from_arrays(tensors, self._streams.layout)

    def _set(self, owner: str, streams: NDArray[np.int64], state: Any) -> None:
        from ssmn.state import StreamState, to_numpy

        if not isinstance(state, StreamState):
            raise StateError(f"{owner}: state is {type(state).__name__}; wanted a StreamState.")
        tensors = {name: to_numpy(tensor) for name, tensor in state.named_tensors().items()}
        with self._owned():
            self._streams.put(streams, tensors, owner)

    def _refuse_shape(self, owner: str, array: NDArray[Any], wanted: tuple[Any, ...]) -> NoReturn:
        shape = f"[{', '.join(map(str, wanted))}]"
        raise ShapeError(
            f"{owner}: the input has shape {list(array.shape)}; wanted {shape} ({self.streams} streams in this "
            "engine; streams=[...] steps some of them)."
        )

    def _refuse_second(self) -> NoReturn:
        raise StateError(
            "Engine: another thread is running this engine; give each thread its own, or take turns with a lock."
        )

    def _refuse(self, code: int, x: Any, beside: _Beside | None = None) -> NoReturn:
        """Raises what a status of the C library means."""
        if code == native.ENGINE_BUSY:
            self._refuse_second()
        if code == native.NOT_FINITE:
            takes_gaps = {"the input": bool(self._packed.sizes.masks_missing), "target": True}
            for name, array in {"the input": x, **(beside or {})}.items():
                if array is None:
                    continue
                wrong = np.argwhere(np.isinf(array) if takes_gaps.get(name) else ~np.isfinite(array))
                if len(wrong):
                    came = "infinite" if takes_gaps.get(name) else "not finite"
                    way_out = "what is unknown is NaN" if name == "target" else "drop the step, or fill the value in"
                    raise RangeError(f"Engine: {name} is {came} at {wrong[0].tolist()}; {way_out}.")
        assert code == native.UNKNOWN_TOKEN, code
        self._refuse_tokens(x.min(), x.max())

    def _refuse_tokens(self, least: int, most: int) -> NoReturn:
        raise RangeError(
            f"Engine: the tokens lie in [{least}, {most}]; wanted [0, {self._tokens - 1}] (vocab_size − 1); encode "
            "with the tokenizer that was saved with the model."
        )


def _address(array: NDArray[Any] | None) -> int | None:
    return None if array is None else array.ctypes.data


class _Owned:
    """Keeps other threads out for a while."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __enter__(self) -> None:
        if not self.engine._lock.acquire(False):
            self.engine._refuse_second()

    def __exit__(self, *_: object) -> None:
        self.engine._lock.release()
