"""Small tokenizers of every kind that a `tokenizer.json` may hold, built here from a few lines."""

from __future__ import annotations

from collections.abc import Callable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

LINES = [
    "The memory stores what followed this, and asks what followed things like now.",
    "It learns while it reads; nothing grows with the position.",
    "né naïve 日本 — the window looks back, the memory recalls.",
] * 5
SPECIAL = ["<unk>", "<s>", "</s>"]


def byte_level() -> Tokenizer:
    """GPT-2's kind, with a space put in front and a special token."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(LINES, trainer)
    made.add_tokens(["<tab é>"])
    made.enable_padding(length=40, pad_id=0, pad_token="<|end|>")
    made.enable_truncation(5)
    return made


def metaspace_bpe() -> Tokenizer:
    """Llama's kind: metaspace by normaliser, bytes for what the vocabulary lacks."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    named = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=380, special_tokens=SPECIAL, show_progress=False, limit_alphabet=40)
    made.train_from_iterator(LINES, trainer)
    return _with_bytes(made, named)


def _with_bytes(made: Tokenizer, named: list[str]) -> Tokenizer:
    """The vocabulary with the byte tokens as ordinary ones, which training cannot put there."""
    import json

    layout = json.loads(made.to_str())
    others = [token for token in layout["model"]["vocab"] if token not in named]
    layout["model"]["vocab"] = {token: number for number, token in enumerate([*named, *others])}
    return Tokenizer.from_str(json.dumps(layout))


def unigram() -> Tokenizer:
    """SentencePiece's kind, by metaspace pre-tokenizer and without byte fallback."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    made.train_from_iterator(LINES, trainer)
    return made


def wordpiece() -> Tokenizer:
    """BERT's kind: lower case, words, and tokens around every text."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=150, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    made.train_from_iterator(LINES, trainer)
    cls, sep = made.token_to_id("[CLS]"), made.token_to_id("[SEP]")
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", cls), ("[SEP]", sep)]
    )
    return made


def suffixed_bpe() -> Tokenizer:
    """The original byte-pair kind, whose words end in a mark."""
    made = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=150, special_tokens=SPECIAL, end_of_word_suffix="</w>", show_progress=False
    )
    made.train_from_iterator(LINES, trainer)
    return made


def word_level() -> Tokenizer:
    """Whole words, no decoder."""
    made = Tokenizer(models.WordLevel(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.train_from_iterator(LINES, trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False))
    return made


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level,
    "metaspace-bpe": metaspace_bpe,
    "unigram": unigram,
    "wordpiece": wordpiece,
    "suffixed-bpe": suffixed_bpe,
    "word-level": word_level,
}
