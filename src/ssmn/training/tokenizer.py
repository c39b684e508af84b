"""Text to token numbers and back: single bytes, byte-level byte pairs, or any tokenizer of Hugging Face."""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Regex, models, pre_tokenizers, trainers

from ssmn.errors import DtypeError, FileError, RangeError
from ssmn.files import atomic_write

# A word takes the space before it. Every line feed ends a piece, so a text encoded line by line has
# the same tokens as the whole text: that is what lets a stream be encoded as it arrives.
_PATTERN = r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|[^\S\n]+(?!\S)|[^\S\n]+|\n"

_SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair, which is no character: what `surrogateescape` and some JSON leave in a string."""

_CHUNK_CHARACTERS = 1 << 16
_MOST_TOKENS = 1 << 24
"""A vocabulary has a table of so many rows; a file with larger numbers would have one of any size made."""


def _byte_alphabet() -> list[str]:
    """The printable character that stands for each byte in byte-level vocabularies (GPT-2's table)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(hidden)) for byte in range(256)]


_ALPHABET = _byte_alphabet()
_BYTE_OF = {character: byte for byte, character in enumerate(_ALPHABET)}


class Tokenizer:
    """Text to token numbers and back: our own byte-level tokenizers, or any `tokenizer.json` of Hugging Face.

    Made by `Tokenizer.for_bytes()`, `Tokenizer.train_bpe(texts, vocab_size)` or `Tokenizer.load(path)`. The first two
    are lossless: what they encode, they decode to the same bytes. A loaded one is as lossless as its vocabulary and its
    normaliser. Four things are the same for all of them, because a stream has no first word and is read in pieces:

    - no space is put before a text (`add_prefix_space`, metaspace's `prepend_scheme`, a `Prepend` normaliser);
    - no tokens are added around it, nothing is cut off or padded;
    - special tokens that a text spells out are text, unless `encode(..., special=True)` says otherwise;
    - each token stands for the same bytes everywhere; special and unknown tokens stand for none.

    Attributes:
        vocab_size: Number of tokens.
        byte_lengths: How many bytes of text each token stands for, int64 `[vocab_size]`; bits per byte divide by them.
        special_tokens: Numbers of the special tokens by name.

    Example:
        >>> from ssmn.training import Tokenizer
        >>> tokenizer = Tokenizer.for_bytes()
        >>> tokenizer.encode("né").tolist()
        [110, 195, 169]
        >>> tokenizer.decode([110, 195, 169])
        'né'
    """

    def __init__(self, backend: tokenizers.Tokenizer, source: str = "tokenizer"):
        largest = max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
        if largest >= _MOST_TOKENS:
            raise FileError(f"{source}: has token number {largest}; wanted numbers below {_MOST_TOKENS}.")
        self._backend = _for_streams(backend, source)
        added = self._backend.get_added_tokens_decoder()
        self.special_tokens = {token.content: number for number, token in added.items() if token.special}
        spelling = _Spelling(self._backend)
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        self.vocab_size = 1 + max(vocabulary.values(), default=-1)
        if not self.vocab_size:
            raise FileError(f"{source}: the vocabulary is empty; train the tokenizer first.")
        self._token_bytes = [b""] * self.vocab_size
        for token, number in vocabulary.items():
            if number in added:
                self._token_bytes[number] = b"" if added[number].special else token.encode()
            elif token != spelling.unknown:
                self._token_bytes[number] = spelling.bytes_of(token)
        self.byte_lengths = np.array([len(token) for token in self._token_bytes], dtype=np.int64)
        controls = {name: number for name, number in self.special_tokens.items() if name != spelling.unknown}
        self._controls = np.array(list(controls.values()), np.int64)
        self._names = re.compile("|".join(f"(?<={re.escape(name[:1])})(?={re.escape(name[1:])})" for name in controls))
        self._kind = spelling.kind
        self._begins_with_space = spelling.begins_with_space
        self._is_identity = self._token_bytes == [bytes([byte]) for byte in range(256)]
        self._dtype = np.uint16 if self.vocab_size <= 1 << 16 else np.int32

    @property
    def kind(self) -> str:
        """`bytes` takes any bytes; all others take UTF-8: `bpe` (byte-level pairs), or the name of the model.

        A `tokenizer.json` that is not byte-level has `BPE`, `Unigram`, `WordPiece` or `WordLevel`.
        """
        return "bytes" if self._is_identity else self._kind

    @property
    def line_end(self) -> np.ndarray:
        """`[1]`, the token that a text stands at before its first line: a line feed's.

        Of a vocabulary that has none, some special token, or the first one: it is only ever read, never predicted.
        """
        found = self.encode("\n")
        return found[-1:] if len(found) else np.array([min(self.special_tokens.values(), default=0)], self._dtype)

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
            FileError: The file is absent or is not a tokenizer.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise FileError(f"{path}: cannot be read ({why}); wanted a tokenizer.json.") from error
        try:
            backend = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception for every malformed file
            raise FileError(f"{path}: not a tokenizer.json ({error}).") from error
        return cls(backend, source=str(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a `tokenizer.json`, whole or not at all."""
        atomic_write(path, self.to_json().encode())

    def to_json(self) -> str:
        """What `save` writes."""
        return self._backend.to_str(pretty=True)

    def encode(self, text: str | bytes, *, special: bool = False) -> np.ndarray:
        """Tokens of a text.

        Args:
            text: Characters, or bytes (any bytes for the byte tokenizer, UTF-8 for the others).
            special: Whether special tokens that the text spells out become those tokens, as templates need it. Off for
                what others have written: it cannot then pass for a turn's end.

        Returns:
            Token numbers `[tokens]`, uint16 (int32 for more than 65,536 tokens).

        Raises:
            DtypeError: Neither characters nor bytes.
            FileError: The bytes are not UTF-8 (or the text has half of a surrogate pair), and the tokenizer is not the
                byte tokenizer.
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
        tokens = self._encode(_line_chunks(text), special)
        if not special and np.isin(tokens, self._controls).any():
            # The vocabulary itself has a special token's name as a piece; cut in two, the name is text.
            tokens = self._encode((part for chunk in _line_chunks(text) for part in self._names.split(chunk)), special)
        return tokens

    def _encode(self, pieces: Iterable[str], special: bool) -> np.ndarray:
        self._backend.encode_special_tokens = not special
        pieces = list(pieces)
        try:
            encodings = self._backend.encode_batch_fast(pieces, add_special_tokens=False)
        except Exception as error:  # bare, of a vocabulary that has no token for something and none for the unknown
            if lone := next(filter(None, map(_SURROGATE.search, pieces)), None):
                raise FileError(
                    f"Tokenizer.encode: the text has U+{ord(lone[0]):04X}, half of a surrogate pair; wanted characters "
                    "of Unicode (text.encode('utf-8', 'replace')), or use the byte tokenizer."
                ) from None
            raise FileError(
                f"Tokenizer.encode: the {self.kind} tokenizer refuses the text ({error}); wanted a vocabulary with "
                "byte fallback or an unknown token."
            ) from error
        found = [np.array(encoding.ids, dtype=self._dtype) for encoding in encodings]
        return np.concatenate(found) if found else np.empty(0, dtype=self._dtype)

    def decode_bytes(self, tokens: Sequence[int] | np.ndarray) -> bytes:
        """The bytes that the tokens stand for, one after the other."""
        try:
            return b"".join([self._token_bytes[token] for token in _numbers(tokens)])
        except IndexError:
            largest = max(_numbers(tokens))
            raise RangeError(f"Tokenizer.decode: token {largest}; wanted numbers below {self.vocab_size}.") from None

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text that the tokens stand for; bytes that are not UTF-8 become U+FFFD.

        Where every word brings the space before it (WordPiece), the first one's is left out.
        """
        text = self.decode_bytes(tokens).decode("utf-8", "replace")
        return text.removeprefix(" ") if self._begins_with_space else text

    def stream_decoder(self) -> StreamDecoder:
        """A decoder for tokens that arrive one by one and go on from a text."""
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

    @property
    def pending(self) -> bool:
        """Whether a character is held back that is not whole yet."""
        return bool(self._decoder.getstate()[0])

    def finish(self) -> str:
        """What is left at the end: U+FFFD for an unfinished character, else nothing."""
        return self._decoder.decode(b"", final=True)


class _Spelling:
    """What the tokens of a vocabulary stand for, as its decoder would have it."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        layout = json.loads(backend.to_str())
        self._decoder = backend.decoder
        types = {part["type"] for part in _parts(layout.get("decoder")) if "type" in part}
        before = {part["type"] for part in _parts(layout.get("pre_tokenizer")) if "type" in part}
        model = layout["model"]
        # Files of ours have no decoder: the pre-tokenizer says that tokens are made of byte symbols.
        self._is_byte_level = "ByteLevel" in types or (not types and "ByteLevel" in before)
        self._has_byte_tokens = "ByteFallback" in types or bool(model.get("byte_fallback"))
        self.kind: str = "bpe" if self._is_byte_level else model["type"]
        self.unknown = _unknown(model)
        self.begins_with_space = not self._is_byte_level and self._joined("a", "b") == "a b"
        self._tail = self._joined("a", "b").removeprefix("a")

    def bytes_of(self, token: str) -> bytes:
        """The bytes of one token in the middle of a text."""
        if self._is_byte_level:
            # A token of other characters was put into the vocabulary as it is.
            symbols = all(character in _BYTE_OF for character in token)
            return bytes(_BYTE_OF[character] for character in token) if symbols else token.encode()
        if self._has_byte_tokens and (found := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", token)):
            return bytes([int(found[1], 16)])
        # Between two other tokens: some decoders treat the first and the last in a way of their own.
        return self._joined("a", token, "b").removeprefix("a").removesuffix(self._tail).encode()

    def _joined(self, *tokens: str) -> str:
        return " ".join(tokens) if self._decoder is None else self._decoder.decode(list(tokens))


def _unknown(model: Mapping[str, Any]) -> str | None:
    """The token for what a vocabulary does not know."""
    if model["type"] == "Unigram":
        number = model.get("unk_id")
        return None if number is None else model["vocab"][number][0]
    return model.get("unk_token")


def _parts(layout: Any) -> Iterator[dict[str, Any]]:
    """Every object in a part of a tokenizer.json."""
    if isinstance(layout, dict):
        yield layout
        for value in layout.values():
            yield from _parts(value)
    elif isinstance(layout, list):
        for value in layout:
            yield from _parts(value)


def _for_streams(backend: tokenizers.Tokenizer, source: str) -> tokenizers.Tokenizer:
    """The tokenizer without what would put something before, around or in place of a piece of text."""
    layout = json.loads(backend.to_str())
    layout["truncation"] = layout["padding"] = layout["post_processor"] = None
    for part in _parts([layout.get("pre_tokenizer"), layout.get("decoder")]):
        if part.get("type") == "Metaspace":
            part["prepend_scheme"] = "never"
        elif part.get("type") == "ByteLevel":
            part["add_prefix_space"] = False
        elif "decoders" in part:
            # It takes back the space that is not put there any more.
            part["decoders"] = [one for one in part["decoders"] if one["type"] != "Strip" or one["content"] != " "]
    layout["normalizer"] = _without_prepend(layout.get("normalizer"))
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(layout))
    except Exception as error:  # the library raises bare Exception for every malformed file
        raise FileError(f"{source}: not a tokenizer that can read a stream ({error}).") from error


def _without_prepend(normalizer: dict[str, Any] | None) -> dict[str, Any] | None:
    if normalizer is None or normalizer["type"] == "Prepend":
        return None
    if normalizer["type"] == "Sequence":
        kept = [one for part in normalizer["normalizers"] if (one := _without_prepend(part)) is not None]
        return {**normalizer, "normalizers": kept} if kept else None
    return normalizer


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
