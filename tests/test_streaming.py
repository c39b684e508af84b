"""Endless input: surprise of text and predictions for rows, piece by piece."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch

from ssmn import streaming
from ssmn.config import Plasticity, SSMNConfig
from ssmn.errors import FileError, RangeError
from ssmn.models import SSMN
from ssmn.stream import Stream
from ssmn.streaming import RowReader, byte_surprise, line_surprise, output_names, row_predictions, token_bits
from ssmn.training import Tokenizer
from tiny import row_model, text_model

BYTES = Tokenizer.for_bytes()
TEXT = "The first line\nthe second line\n\nThe first line\nné ∞\nan unfinished one"


class Drip:
    """A source that gives a few bytes at a time and remembers how many it gave."""

    def __init__(self, data: bytes, size: int) -> None:
        self._data, self._size, self.given = data, size, 0

    def read1(self, size: int, /) -> bytes:
        chunk = self._data[self.given : self.given + min(size, self._size)]
        self.given += len(chunk)
        return chunk


def lines_of(
    text: str | bytes, stream: Stream | None = None, tokenizer: Tokenizer = BYTES
) -> list[streaming.LineSurprise]:
    data = text.encode() if isinstance(text, str) else text
    return list(line_surprise(stream or Stream(text_model()), tokenizer, io.BytesIO(data)))


def test_token_bits_are_the_models_cross_entropy() -> None:
    tokens = torch.randint(256, (30,))
    logits, _ = text_model()(tokens[None, :-1])
    wanted = torch.nn.functional.cross_entropy(logits[0], tokens[1:], reduction="none") / math.log(2)
    stream = Stream(text_model())
    np.testing.assert_allclose(token_bits(stream, tokens.numpy()), wanted.detach().numpy(), rtol=1e-5)
    assert stream.position.tolist() == [29]
    assert token_bits(stream, [5]).shape == (0,)


def test_token_bits_do_not_depend_on_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = np.random.default_rng(0).integers(256, size=60)
    whole = token_bits(Stream(text_model()), tokens)
    monkeypatch.setattr("ssmn.streaming.text.LONGEST_PIECE", 7)
    np.testing.assert_allclose(token_bits(Stream(text_model()), tokens), whole, atol=1e-4)


def test_lines_are_counted_and_told() -> None:
    lines = lines_of(TEXT)
    assert [line.text for line in lines] == TEXT.split("\n")
    assert [line.line for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line.bytes for line in lines] == [15, 16, 1, 15, 8, 17]
    assert all(line.bits_per_byte == line.bits / line.bytes > 0 for line in lines)
    assert lines_of("") == []


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_how_the_input_arrives_changes_nothing(size: int) -> None:
    whole = lines_of(TEXT)
    dripped = list(line_surprise(Stream(text_model()), BYTES, Drip(TEXT.encode(), size)))
    assert [line.text for line in dripped] == [line.text for line in whole]
    np.testing.assert_allclose([line.bits for line in dripped], [line.bits for line in whole], rtol=1e-4)


def test_a_text_cut_at_line_ends_gives_the_numbers_of_the_whole() -> None:
    whole = [line.bits for line in lines_of(TEXT)]
    stream = Stream(text_model())
    parts = [line.bits for part in TEXT.splitlines(keepends=True) for line in lines_of(part, stream)]
    np.testing.assert_allclose(parts, whole, rtol=1e-4)


def test_results_come_before_more_is_waited_for() -> None:
    source = Drip(b"one\ntwo\nthree\n", 4)
    results = line_surprise(Stream(text_model()), BYTES, source)
    assert next(results).text == "one"
    assert source.given == 4


def test_the_input_is_not_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssmn.streaming.source.READ_BYTES", 64)
    source, answered, ahead = Drip(b"0123456789abcde\n" * 100, 64), 0, 0
    for line in line_surprise(Stream(text_model()), BYTES, source):
        answered += line.bytes
        ahead = max(ahead, source.given - answered)
    assert answered == 1600
    assert ahead <= 64


@pytest.mark.parametrize("tokenizer", [BYTES, Tokenizer.train_bpe(["ab äß"], 258)], ids=["bytes", "bpe"])
def test_an_endless_line_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer) -> None:
    monkeypatch.setattr("ssmn.streaming.source.READ_BYTES", 10)
    model = text_model(vocab_size=tokenizer.vocab_size)
    text = "äß" * 20 + "\nab"
    lines = lines_of(text, Stream(model), tokenizer)
    assert [line.bytes for line in lines] == [81, 2]
    assert "äßäß".startswith(lines[0].text[:2])
    assert len(lines[0].text) <= 10


def test_bytes_share_the_bits_of_their_tokens() -> None:
    tokenizer = Tokenizer.train_bpe(["the second line " * 20], 270)
    model = text_model(vocab_size=tokenizer.vocab_size)
    shares = list(byte_surprise(Stream(model), tokenizer, io.BytesIO(TEXT.encode())))
    assert bytes(share.byte for share in shares) == TEXT.encode()
    assert [share.offset for share in shares] == list(range(len(TEXT.encode())))
    lines = lines_of(TEXT, Stream(model), tokenizer)
    assert sum(share.bits for share in shares) == pytest.approx(sum(line.bits for line in lines), rel=1e-4)


@pytest.mark.parametrize(
    ("data", "answered", "message"),
    [
        (b"good\nb\xffd\nafter\n", ["good"], r"line 2: byte 0xff is not UTF-8; wanted UTF-8 text, or a model with the"),
        (b"good\n\xc3\n", ["good"], "line 2: byte 0xc3 is not UTF-8"),
        (b"good\nna\xc3", ["good"], "line 2: the input ends inside a UTF-8 character"),
    ],
)
def test_text_that_is_not_utf8(data: bytes, answered: list[str], message: str) -> None:
    tokenizer = Tokenizer.train_bpe(["good"], 257)
    results = line_surprise(Stream(text_model(vocab_size=tokenizer.vocab_size)), tokenizer, io.BytesIO(data))
    came: list[str] = []
    with pytest.raises(FileError, match=message):
        came.extend(line.text for line in results)
    assert came == answered


def test_frozen_streams_keep_their_memory() -> None:
    stream = Stream(text_model())
    list(line_surprise(stream, BYTES, io.BytesIO(b"some text\n"), plasticity=Plasticity(frozen=True)))
    assert stream.state.nbytes
    assert not stream.state.layers[1].named_tensors()["memory"].any()


ROWS = b"load,heat\n0.5,1\n-0.25,2e-1\n\n7, 3\n"


def predictions_of(data: bytes, **options: object) -> list[streaming.RowPrediction]:
    rows = RowReader(io.BytesIO(data), 2, **options)  # pyright: ignore[reportArgumentType]
    return list(row_predictions(Stream(row_model()), rows))


def test_rows_give_the_models_output() -> None:
    y, _ = row_model()(torch.tensor([[[0.5, 1.0], [-0.25, 0.2], [7.0, 3.0]]]))
    came = predictions_of(ROWS)
    assert [row.line for row in came] == [2, 3, 5]
    torch.testing.assert_close(torch.tensor([row.values for row in came]), y[0].detach())


def test_rows_in_drips_and_many_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"".join(b"%d,%d\n" % (n % 7, n % 3) for n in range(50))
    whole = [row.values for row in predictions_of(data)]
    monkeypatch.setattr("ssmn.streaming.source.PIECE", 8)
    dripped = row_predictions(Stream(row_model()), RowReader(Drip(data, 5), 2))
    torch.testing.assert_close(torch.tensor([row.values for row in dripped]), torch.tensor(whole))


@pytest.mark.parametrize(
    ("data", "options", "names"),
    [
        (ROWS, {}, ("load", "heat")),
        (b"1,2\n3,4\n", {}, ("1", "2")),
        (b"1,2\n3,4\n", {"header": True}, ("1", "2")),
        (b"\xef\xbb\xbfa,b\n1,2\n", {}, ("a", "b")),
        (b"date,a,b\nmonday,1,2\n", {"columns": ["b", "a"]}, ("b", "a")),
        (b"date,a,b\nmonday,1,2\n", {"columns": ["3", "a"]}, ("b", "a")),
        (b"", {}, ()),
    ],
)
def test_headers_and_columns(data: bytes, options: dict[str, object], names: tuple[str, ...]) -> None:
    rows = RowReader(io.BytesIO(data), 2, **options)  # pyright: ignore[reportArgumentType]
    assert rows.names == names
    values = list(rows)
    assert len(values) == (3 if data == ROWS else 2 if b"3,4" in data and not options else 1 if data else 0)
    if options.get("columns"):
        assert values == [[2.0, 1.0]]


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (b"a,b\n1,2\n3,nan\n", {}, "line 3: column b is nan; wanted a finite number: leave the row out, or fill"),
        (b"1,2\n3,inf\n", {}, "line 2: column 2 is inf"),
        (b"a,b\n1,2\n3\n", {}, r"line 3: 1 values; the model takes 2 \(its input_dim\)"),
        (b"a,b\n1,x\n", {}, "line 2: column b is 'x'; wanted a number"),
        (b"a,b\n1,\n", {}, "line 2: column b is ''; wanted a number"),
        (b"a,b,c\n1,2,3\n", {}, r"line 1: 3 columns \(a, b, c\); the model takes 2 \(its input_dim\): choose the col"),
        (b"a,b,c\n1,2,3\n", {"columns": ["a", "z"]}, "line 1: there is no column 'z'; wanted some of a, b, c"),
        (b"a,b,c\n1,2,3\n", {"columns": ["a", "4"]}, "line 1: there is no column '4'"),
        (b"a,b,c\n1,2\n", {"columns": ["a", "c"]}, "line 2: 2 values; wanted at least 3"),
        (b"a,b\n1,\xff\n", {}, "line 2: byte 3 is not UTF-8"),
        (b"a,b\n" + b"1" * 70_000 + b",2\n", {}, "line 2: longer than 65,536 bytes"),
        (b"a,b\n1,2\n", {"header": False}, "line 1: column 1 is 'a'; wanted a number"),
    ],
)
def test_bad_rows_are_refused_by_line(data: bytes, options: dict[str, object], message: str) -> None:
    with pytest.raises(FileError, match=message):
        predictions_of(data, strict=True, **options)


def test_what_came_before_a_bad_row_is_answered() -> None:
    stream = Stream(row_model())
    results = row_predictions(stream, RowReader(io.BytesIO(b"1,2\n3,4\nnan,5\n6,7\n"), 2, strict=True))
    came: list[int] = []
    with pytest.raises(FileError, match="line 3"):
        came.extend(row.line for row in results)
    assert came == [1, 2]
    assert stream.position.tolist() == [2]


def test_bad_rows_are_left_out_and_counted() -> None:
    bad = [b"3,nan", b"3", b"x,1", b'"3,4', b"1,\xff", b"1" * 200_000 + b",2", b"5,6,7"]
    bad += [b"a,b", b"-inf,1", b"1,1e39", b",", b"\x00,1"]
    data = b"a,b\n1,2\n" + b"".join(row + b"\n8,9\n" for row in bad)
    rows = RowReader(io.BytesIO(data), 2)
    came = list(row_predictions(Stream(row_model()), rows))
    clean = predictions_of(b"1,2\n" + b"8,9\n" * len(bad))
    torch.testing.assert_close(torch.tensor([row.values for row in came]), torch.tensor([row.values for row in clean]))
    assert [row.line for row in came] == [2, *range(4, 4 + 2 * len(bad), 2)]
    assert rows.bad == len(bad)
    assert [text.split(":")[0] for text in rows.complaints] == ["line 3", "line 5", "line 7", "line 9", "line 11"]


def test_odd_lines_that_are_no_faults() -> None:
    came = predictions_of(b"\xef\xbb\xbfa,b\r\n1,2\r\n\r\n  \r\n\t3 , 4e0\r\n\n5,6", strict=True)
    assert [row.line for row in came] == [2, 5, 7]
    assert [row.values for row in came] == [row.values for row in predictions_of(b"a,b\n1,2\n3,4\n5,6\n")]
    assert list(RowReader(io.BytesIO(b" \n\na,b\n1,2\n"), 2)) == [[1, 2]]


def test_a_bad_row_keeps_no_answer_waiting() -> None:
    source = Drip(b"1,2\nx,2\n3,4\n", 8)
    results = row_predictions(Stream(row_model()), RowReader(source, 2))
    assert next(results).line == 1
    assert source.given == 8


def test_rows_with_gaps_and_a_read_out_that_learns() -> None:
    config = SSMNConfig(
        input_dim=3, output_dim=2, targets=(2, 0), missing="mask", normalise="running", head="gaussian",
        readout="delta", hidden_dim=12, num_layers=2, num_heads=2, window_size=5,
    )  # fmt: skip
    model = SSMN(config)
    rows = RowReader(io.BytesIO(b"a,b,c\n1,2,3\n4,,6\n,nan,\n7,8,9\n"), 3, gaps=True)
    came = list(row_predictions(Stream(model), rows))
    x = torch.tensor([[[1.0, 2, 3], [4, torch.nan, 6], [torch.nan] * 3, [7, 8, 9]]])
    y, _ = model(x, target=x[..., [2, 0]])
    got = torch.tensor([row.values for row in came])
    assert got[2].isnan().all()
    torch.testing.assert_close(got[[0, 1, 3]], y[0].detach().flatten(1)[[0, 1, 3]])
    without, _ = model(x)
    assert not torch.allclose(got[3], without[0, 3].detach().flatten())
    assert output_names(config, rows.names) == ["next_c", "next_c_std", "next_a", "next_a_std"]


def test_rows_with_a_clock() -> None:
    data = b"1,5,2\n4,6.5,6\n4,x,6\n7,8,9\n7,90,9\n1,9,2\n7,9,9\n3\n"
    rows = RowReader(io.BytesIO(data), 2, clock=("2", float))
    came = [(numbers, rows.elapsed) for numbers in rows]
    assert came == [([1, 2], 1.0), ([4, 6], 1.5), ([7, 9], 1.5), ([7, 9], 82.0), ([7, 9], 0.0)]
    assert rows.names == ("1", "3") and rows.bad == 3
    assert "line 3: column 2 is 'x'; wanted a time." in rows.complaints[0]
    assert "line 6: column 2 is '9', which lies before the row before; wanted rising times" in rows.complaints[1]
    model, lines = row_model(), b"heat,when,load\n1,0,2\n3,7,4\n"
    named = RowReader(io.BytesIO(lines), 2, clock=("when", float), columns=["load", "heat"])
    got = torch.tensor([row.values for row in row_predictions(Stream(model), named)])
    y, _ = model(torch.tensor([[[2.0, 1.0], [4.0, 3.0]]]), elapsed=torch.tensor([[1.0, 7.0]]))
    torch.testing.assert_close(got, y[0].detach())
    for name, columns in (("time", None), ("9", None)):
        with pytest.raises(FileError, match=f"line 1: there is no column '{name}'; wanted some of heat, when, load"):
            RowReader(io.BytesIO(lines), 2, clock=(name, float), columns=columns)


def test_names_of_outputs() -> None:
    twice = SSMNConfig(input_dim=2, output_dim=4, targets=(1, 0, 1, 0), head="quantile", quantiles=(0.5,))
    assert output_names(twice, "ab") == ["next_b_q0.5", "next_a_q0.5", "next2_b_q0.5", "next2_a_q0.5"]
    assert output_names(SSMNConfig(input_dim=3, output_dim=2), "abc") == ["output_1", "output_2"]
    assert output_names(SSMNConfig(input_dim=2, output_dim=2), "ab") == ["next_a", "next_b"]


@pytest.mark.parametrize("name", ["static_dim", "future_dim"])
def test_rows_bring_no_other_inputs(name: str) -> None:
    sizes = {"input_dim": 2, "output_dim": 1, "hidden_dim": 12, "num_layers": 2, "num_heads": 2}
    model = SSMN(SSMNConfig.from_dict({**sizes, name: 3}))
    with pytest.raises(
        RangeError, match=f"row_predictions: the model has {name}=3, which rows do not bring; use ssmn.S"
    ):
        next(row_predictions(Stream(model), RowReader(io.BytesIO(b"1,2\n"), 2)))


def test_rows_want_a_standard_model() -> None:
    with pytest.raises(RangeError, match="stream has a text model; wanted a Standard model"):
        next(row_predictions(Stream(text_model()), RowReader(io.BytesIO(b"1,2\n"), 2)))
