"""The tokenizer is lossless, encodes line by line as it does at once, and says what is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmn.errors import DtypeError, FileError, RangeError
from ssmn.training import Tokenizer

SAMPLE = "To be, or not to be:\n\tthat is  the question \r\n\n\n  Whether 'tis nobler — né 42 日本語 🙂\n" * 40
BYTES = Tokenizer.for_bytes()
BPE = Tokenizer.train_bpe([SAMPLE], 300)
text = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\n \t"), max_size=60)


@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["bytes", "bpe"])
@given(text=text)
@settings(max_examples=60, deadline=None)
def test_decoding_gives_back_every_text(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert tokenizer.byte_lengths[tokens].sum() == len(text.encode())


@given(text=text)
@settings(max_examples=60, deadline=None)
def test_encoding_line_by_line_equals_encoding_at_once(text: str) -> None:
    lines = [BPE.encode(line + "\n") for line in text.split("\n")]
    np.testing.assert_array_equal(np.concatenate(lines), BPE.encode(text + "\n"))


def test_a_long_text_is_encoded_in_chunks_as_if_at_once() -> None:
    long = SAMPLE * 60
    assert len(long) > 3 * 65_536
    np.testing.assert_array_equal(BPE.encode(long), np.tile(BPE.encode(SAMPLE), 60))
    assert BPE.decode(BPE.encode("x" * 200_000)) == "x" * 200_000


@given(raw=st.binary(max_size=60))
def test_the_byte_tokenizer_takes_any_bytes(raw: bytes) -> None:
    assert BYTES.encode(raw).tolist() == list(raw)
    assert BYTES.decode_bytes(BYTES.encode(raw)) == raw


def test_byte_pairs_are_learnt() -> None:
    assert BPE.kind == "bpe"
    assert BYTES.kind == "bytes"
    assert 256 < BPE.vocab_size <= 300
    assert len(BPE.encode(SAMPLE)) < 0.75 * len(SAMPLE.encode())


@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["bytes", "bpe"])
def test_saving_and_loading_changes_nothing(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.kind == tokenizer.kind
    assert loaded.vocab_size == tokenizer.vocab_size
    np.testing.assert_array_equal(loaded.encode(SAMPLE), tokenizer.encode(SAMPLE))
    np.testing.assert_array_equal(loaded.byte_lengths, tokenizer.byte_lengths)


def test_the_stream_decoder_holds_back_unfinished_characters() -> None:
    decoder = BYTES.stream_decoder()
    assert [decoder.push(token) for token in "é🙂".encode()] == ["", "é", "", "", "", "🙂"]
    assert decoder.push(0xE2) == ""
    assert decoder.finish() == "�"
    for tokenizer in (BYTES, BPE):
        decoder = tokenizer.stream_decoder()
        assert "".join(decoder.push(int(token)) for token in tokenizer.encode(SAMPLE)) + decoder.finish() == SAMPLE


def test_bad_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DtypeError, match="text is int; wanted str or bytes"):
        BYTES.encode(3)  # type: ignore[arg-type]
    with pytest.raises(FileError, match="byte 1 is not UTF-8"):
        BPE.encode(b"a\xff")
    with pytest.raises(RangeError, match="token 256; wanted numbers below 256"):
        BYTES.decode([1, 256])
    with pytest.raises(RangeError, match="token -1; wanted numbers from 0 up"):
        BYTES.decode([-1])
    with pytest.raises(RangeError, match="vocab_size=255; wanted at least 256"):
        Tokenizer.train_bpe(["a"], 255)
    with pytest.raises(FileError, match="cannot be read"):
        Tokenizer.load(tmp_path / "absent.json")
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(FileError, match=r"not a tokenizer\.json"):
        Tokenizer.load(tmp_path / "broken.json")
    foreign = '{"model": {"type": "WordLevel", "vocab": {"hello world": 0}, "unk_token": "hello world"}}'
    (tmp_path / "words.json").write_text(foreign)
    with pytest.raises(FileError, match="token 0 is 'hello world', which is not made of byte symbols"):
        Tokenizer.load(tmp_path / "words.json")
