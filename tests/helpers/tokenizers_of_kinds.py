"""Tokenizers of every kind in use, small ones trained here and real ones where their files are at hand."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from helpers.paths import ROOT, SHARED

_PUBLISHED = SHARED / "data" / "tokenizers"
_SMALL = ("byte-level BPE", "BPE over spaces", "WordPiece", "Unigram", "Unigram over spaces")
_REAL = ("NeoX", "GPT-2")

KINDS = _SMALL + (_REAL if _PUBLISHED.is_dir() else ())
"""What ``tokenizer_of`` can make here."""

_TEXTS = [Path(__file__), ROOT / "tests" / "unit" / "data" / "test_sampler.py"]
_RUNS = ["a" * 60, "ab" * 40, "=-" * 30, " " * 50, "\n" * 40, "aaaa bbbb " * 20, "漢字かな交じり文" * 5]


@cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of one of ``KINDS``."""
    if kind in _REAL:
        return PreTrainedTokenizerFast(tokenizer_object=_neox() if kind == "NeoX" else _gpt2())
    special = ["<unk>", "<s>", "</s>"]
    texts = [*(path.read_text(encoding="utf-8") for path in _TEXTS), *_RUNS * 5]
    if kind.startswith("Unigram"):
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        if kind == "Unigram over spaces":
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=400, unk_token="<unk>", special_tokens=special, show_progress=False
        )
    elif kind == "WordPiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        if kind == "byte-level BPE":
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        else:
            tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Strip()])
        trainer = trainers.BpeTrainer(vocab_size=1000, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def _neox() -> Tokenizer:
    with gzip.open(_PUBLISHED / "pythia_neox_tokenizer.json.gz", "rt", encoding="utf-8") as file:
        tokenizer: Tokenizer = Tokenizer.from_str(file.read())
    return tokenizer


def _gpt2() -> Tokenizer:
    with gzip.open(_PUBLISHED / "gpt2_encoder.json.gz", "rt", encoding="utf-8") as file:
        vocabulary = json.load(file)
    with gzip.open(_PUBLISHED / "gpt2_vocab.bpe.gz", "rt", encoding="utf-8") as file:
        merges = [(left, right) for left, _, right in (line.strip().partition(" ") for line in file) if right][1:]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer
