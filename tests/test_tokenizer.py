"""Tokenizers are lossless or say what they lose, encode line by line as they do at once, and say what is wrong."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

import foreign
from ssmn.errors import DtypeError, FileError, RangeError
from ssmn.stream import Stream
from ssmn.streaming import line_surprise
from ssmn.training import Tokenizer
from tiny import text_model

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
    sparse = '{"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 4000000000}, "unk_token": "a"}}'
    (tmp_path / "sparse.json").write_text(sparse)
    with pytest.raises(FileError, match=r"sparse\.json: has token number 4000000000; wanted numbers below 16777216"):
        Tokenizer.load(tmp_path / "sparse.json")
    (tmp_path / "empty.json").write_text('{"model": {"type": "BPE", "vocab": {}, "merges": []}}')
    with pytest.raises(FileError, match="the vocabulary is empty; train the tokenizer first"):
        Tokenizer.load(tmp_path / "empty.json")


FOREIGN = "The memory recalls né 日本, and </s> it's now."
every_kind = pytest.mark.parametrize("kind", foreign.KINDS)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """Every kind, through a file."""
    found = {}
    for kind, make in foreign.KINDS.items():
        path = tmp_path_factory.mktemp("foreign") / f"{kind}.json"
        make().save(str(path))
        found[kind] = Tokenizer.load(path)
    return found


@every_kind
def test_foreign_tokenizers_decode_as_their_own_library_does(kind: str, loaded: dict[str, Tokenizer]) -> None:
    tokenizer, theirs = loaded[kind], foreign.KINDS[kind]()
    theirs.no_padding()
    theirs.no_truncation()
    plain = FOREIGN.replace("</s>", "<b>")
    wanted = theirs.decode(theirs.encode(plain, add_special_tokens=False).ids)
    tokens = tokenizer.encode(plain)
    assert tokenizer.decode(tokens).strip() == wanted.strip()
    assert tokenizer.byte_lengths[tokens].sum() == len(tokenizer.decode_bytes(tokens))
    assert tokenizer.decode([]) == ""


@pytest.mark.parametrize("kind", ["byte-level", "metaspace-bpe"])
@given(text=text)
@settings(max_examples=40, deadline=None)
def test_foreign_tokenizers_that_know_every_byte_are_lossless(
    kind: str, loaded: dict[str, Tokenizer], text: str
) -> None:
    tokenizer = loaded[kind]
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert tokenizer.byte_lengths[tokens].sum() == len(text.encode())
    decoder = tokenizer.stream_decoder()
    pieces = [decoder.push(int(token)) for token in tokens]
    assert not decoder.pending
    assert "".join(pieces) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


@every_kind
def test_pieces_of_a_text_get_no_space_and_no_tokens_of_their_own(kind: str, loaded: dict[str, Tokenizer]) -> None:
    tokenizer = loaded[kind]
    if kind in ("byte-level", "metaspace-bpe", "unigram"):
        both = np.concatenate([tokenizer.encode("The mem"), tokenizer.encode("ory now")])
        assert tokenizer.decode(both) == "The memory now"
    assert len(tokenizer.encode("")) == 0
    unknown = {"<unk>", "[UNK]"}
    special = {number for name, number in tokenizer.special_tokens.items() if name not in unknown}
    assert not special & set(tokenizer.encode(FOREIGN).tolist())


def test_special_tokens_are_text_unless_asked_for(loaded: dict[str, Tokenizer]) -> None:
    tokenizer = loaded["metaspace-bpe"]
    end = tokenizer.special_tokens["</s>"]
    assert end not in tokenizer.encode("now.</s>")
    assert tokenizer.encode("now.</s>", special=True)[-1] == end
    assert end not in tokenizer.encode("now.</s>")
    assert tokenizer.byte_lengths[end] == 0
    assert tokenizer.decode([end]) == ""


def test_added_tokens_that_are_not_special_stand_for_their_text(loaded: dict[str, Tokenizer]) -> None:
    tokenizer = loaded["byte-level"]
    tokens = tokenizer.encode("a<tab é>b")
    assert len(tokens) == 3
    assert tokenizer.byte_lengths[tokens[1]] == len("<tab é>".encode())
    assert tokenizer.decode(tokens) == "a<tab é>b"


def test_unknown_tokens_flatter_nobody(loaded: dict[str, Tokenizer]) -> None:
    tokenizer = loaded["wordpiece"]
    tokens = tokenizer.encode("The Ж memory")
    assert tokenizer.special_tokens["[UNK]"] in tokens
    assert tokenizer.decode(tokens) == "the memory"
    plain = Tokenizer(tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "?": 1}, unk_token="?")))
    assert plain.byte_lengths.tolist() == [2, 0]


def test_half_of_a_surrogate_pair_is_named() -> None:
    tokenizer = Tokenizer.train_bpe(["one two three one two three"], 300)
    with pytest.raises(FileError, match=r"the text has U\+D83D, half of a surrogate pair; wanted characters"):
        tokenizer.encode("cut \ud83d off")
    assert tokenizer.decode(tokenizer.encode("whole \U0001f600")) == "whole \U0001f600"


def test_a_vocabulary_with_no_way_out_says_so() -> None:
    pieces = Tokenizer(tokenizers.Tokenizer(tokenizers.models.Unigram([("a", -1.0), ("b", -2.0)])))
    assert pieces.decode(pieces.encode("ab")) == "a b"
    with pytest.raises(FileError, match=r"the Unigram tokenizer refuses the text .*wanted a vocabulary with byte f"):
        pieces.encode("x")


@every_kind
def test_foreign_tokenizers_stay_the_same_through_files(
    kind: str, loaded: dict[str, Tokenizer], tmp_path: Path
) -> None:
    loaded[kind].save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert again.to_json() == loaded[kind].to_json()
    np.testing.assert_array_equal(again.encode(FOREIGN), loaded[kind].encode(FOREIGN))
    np.testing.assert_array_equal(again.byte_lengths, loaded[kind].byte_lengths)


@every_kind
def test_a_stream_of_lines_is_scored_with_every_kind(kind: str, loaded: dict[str, Tokenizer]) -> None:
    tokenizer = loaded[kind]
    stream = Stream(text_model(vocab_size=tokenizer.vocab_size))
    source = io.BytesIO(b"The memory\n\nrecalls it")
    lines = list(line_surprise(stream, tokenizer, source))
    assert [line.bytes for line in lines] == [11, 1, 10]
    assert lines[0].bits > 0 and lines[2].bits > 0
