"""Text to token numbers and back, byte for byte: single bytes, or byte-level byte-pair encoding."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers
from tokenizers import Regex, models, pre_tokenizers, trainers

from ssmn.errors import DtypeError, FileError, RangeError
from ssmn.files import atomic_write

# A word takes the space before it. Every line feed ends a piece, so a text encoded line by line has
# the same tokens as the whole text: that is what lets a stream be encoded as it arrives.
_PATTERN = r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|[^\S\n]+(?!\S)|[^\S\n]+|\n"

_CHUNK_CHARACTERS = 1 << 16


def _byte_alphabet() -> list[str]:
    """The printable character that stands for each byte in byte-level vocabularies (GPT-2's table)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(hidden)) for byte in range(256)]


_ALPHABET = _byte_alphabet()
_BYTE_OF = {character: byte for byte, character in enumerate(_ALPHABET)}


class Tokenizer:
    """A lossless byte-level tokenizer: what it encodes, it decodes to the same bytes.

    Made by `Tokenizer.for_bytes()`, `Tokenizer.train_bpe(texts, vocab_size)` or `Tokenizer.load(path)`.
    The file is the `tokenizer.json` of the `tokenizers` library; any byte-level one loads.

    Attributes:
        vocab_size: Number of tokens.
        byte_lengths: How many bytes each token stands for, int64 `[vocab_size]`.

    Example:
        >>> from ssmn.training import Tokenizer
        >>> tokenizer = Tokenizer.for_bytes()
        >>> tokenizer.encode("né").tolist()
        [110, 195, 169]
        >>> tokenizer.decode([110, 195, 169])
        'né'
    """

    def __init__(self, backend: tokenizers.Tokenizer, source: str = "tokenizer"):
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self._backend = backend
        self.vocab_size = 1 + max(vocabulary.values(), default=-1)
        self._token_bytes = [b""] * self.vocab_size
        for token, number in vocabulary.items():
            try:
                self._token_bytes[number] = bytes(_BYTE_OF[character] for character in token)
            except KeyError:
                raise FileError(
                    f"{source}: token {number} is {token!r}, which is not made of byte symbols; wanted a byte-level "
                    f"tokenizer.json, such as `ssmn train` writes."
                ) from None
        self.byte_lengths = np.array([len(token) for token in self._token_bytes], dtype=np.int64)
        self._is_identity = self._token_bytes == [bytes([byte]) for byte in range(256)]
        self._dtype = np.uint16 if self.vocab_size <= 1 << 16 else np.int32

    @property
    def kind(self) -> Literal["bytes", "bpe"]:
        """`bytes` takes any bytes; `bpe` (byte pairs) takes UTF-8."""
        return "bytes" if self._is_identity else "bpe"

    @classmethod
    def for_bytes(cls) -> Tokenizer:
        """The tokenizer whose 256 tokens are the bytes themselves."""
        vocabulary = {character: byte for byte, character in enumerate(_ALPHABET)}
        return cls(_byte_level(models.BPE(vocab=vocabulary, merges=[])))

    @classmethod
    def train_bpe(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learns byte-pair merges from texts.

        Args:
            texts: The training texts; long ones are cut at line ends.
            vocab_size: Number of tokens, at least 256 (the bytes). Fewer come out if the texts hold
                no more pairs.

        Returns:
            The tokenizer.

        Raises:
            RangeError: `vocab_size` is below 256.
        """
        if vocab_size < 256:
            raise RangeError(f"Tokenizer.train_bpe: vocab_size={vocab_size}; wanted at least 256, one for each byte.")
        backend = _byte_level(models.BPE())
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=_ALPHABET, show_progress=False)
        backend.train_from_iterator((chunk for text in texts for chunk in _line_chunks(text)), trainer)
        return cls(backend)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Reads a `tokenizer.json`.

        Raises:
            FileError: The file is absent, is not a tokenizer, or is not byte-level.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise FileError(f"{path}: cannot be read ({error}); wanted a tokenizer.json.") from error
        try:
            backend = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception for every malformed file
            raise FileError(f"{path}: not a tokenizer.json ({error}).") from error
        return cls(backend, source=str(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a `tokenizer.json`, whole or not at all."""
        atomic_write(path, self._backend.to_str(pretty=True).encode())

    def encode(self, text: str | bytes) -> np.ndarray:
        """Tokens of a text.

        Args:
            text: Characters, or bytes (any bytes for the byte tokenizer, UTF-8 for byte pairs).

        Returns:
            Token numbers `[tokens]`, uint16 (int32 for more than 65,536 tokens).

        Raises:
            DtypeError: Neither characters nor bytes.
            FileError: Byte pairs were asked for and the bytes are not UTF-8.
        """
        if not isinstance(text, (str, bytes, bytearray)):
            raise DtypeError(f"Tokenizer.encode: text is {type(text).__name__}; wanted str or bytes.")
        if self._is_identity:
            raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
            return np.frombuffer(raw, dtype=np.uint8).astype(self._dtype)
        if not isinstance(text, str):
            try:
                text = text.decode("utf-8")
            except UnicodeDecodeError as error:
                raise FileError(
                    f"Tokenizer.encode: byte {error.start} is not UTF-8; wanted UTF-8 text, or use the byte tokenizer."
                ) from error
        encodings = self._backend.encode_batch_fast(list(_line_chunks(text)), add_special_tokens=False)
        pieces = [np.array(encoding.ids, dtype=self._dtype) for encoding in encodings]
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=self._dtype)

    def decode_bytes(self, tokens: Sequence[int] | np.ndarray) -> bytes:
        """The exact bytes that the tokens stand for."""
        try:
            return b"".join([self._token_bytes[token] for token in _numbers(tokens)])
        except IndexError:
            largest = max(_numbers(tokens))
            raise RangeError(f"Tokenizer.decode: token {largest}; wanted numbers below {self.vocab_size}.") from None

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text that the tokens stand for; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(tokens).decode("utf-8", "replace")

    def stream_decoder(self) -> StreamDecoder:
        """A decoder for tokens that arrive one by one."""
        return StreamDecoder(self)


class StreamDecoder:
    """Turns tokens into text as they arrive, and holds back bytes of a character until it is whole.

    Example:
        >>> from ssmn.training import Tokenizer
        >>> decoder = Tokenizer.for_bytes().stream_decoder()
        >>> [decoder.push(token) for token in (110, 195, 169)]
        ['n', '', 'é']
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The characters that this token completes (often none or one)."""
        return self._decoder.decode(self._tokenizer.decode_bytes([token]))

    def finish(self) -> str:
        """What is left at the end: U+FFFD for an unfinished character, else nothing."""
        return self._decoder.decode(b"", final=True)


def _byte_level(model: Any) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return backend


def _numbers(tokens: Sequence[int] | np.ndarray) -> list[int]:
    numbers = tokens.tolist() if isinstance(tokens, np.ndarray) else [int(token) for token in tokens]
    if any(number < 0 for number in numbers):
        raise RangeError(f"Tokenizer.decode: token {min(numbers)}; wanted numbers from 0 up.")
    return numbers


def _line_chunks(text: str) -> Iterator[str]:
    """Pieces of about 64k characters that end at line ends, for the library to encode in parallel."""
    start = 0
    while start < len(text):
        end = text.find("\n", start + _CHUNK_CHARACTERS)
        end = len(text) if end < 0 else end + 1
        yield text[start:end]
        start = end
