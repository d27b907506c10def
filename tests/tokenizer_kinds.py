"""Tiny tokenizers of every kind that models come with: trained here, in the forms of the published ones."""

from __future__ import annotations

import json
from collections.abc import Callable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = [
    "Hello world, the quick brown fox doesn't stop: it runs over 12 lazy dogs.\n  And two hundred more!",
    "This is a test of the thing that was there, and Hello to the world.",
    "naïve café – привет",
] * 3
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_end|>"]


def with_bytes(tokenizer: Tokenizer) -> Tokenizer:
    """The same with <0x00> ... <0xFF>, which trainers do not make, and without a pre-tokeniser."""
    data = json.loads(tokenizer.to_str()) | {"pre_tokenizer": None}
    vocabulary = data["model"]["vocab"]
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    return Tokenizer.from_str(json.dumps(data))


def byte_level(prefix_space: bool = False) -> Tokenizer:
    """GPT-NeoX, Falcon, Llama 3."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    return tokenizer


def byte_fallback() -> Tokenizer:
    """Llama 2, Mistral, Codestral-Mamba, Zamba2: a normaliser puts the space before a text, a decoder strips it."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # while it learns, so that no token goes beyond a word
    ascii_alone = [text.replace("\n", " ") for text in TEXTS if text.isascii()]
    tokenizer.train_from_iterator(ascii_alone, trainers.BpeTrainer(vocab_size=90, special_tokens=SPECIAL))
    tokenizer = with_bytes(tokenizer)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


def metaspace_fallback() -> Tokenizer:
    """The same as a pre-tokeniser: newer conversions of Llama 2 and Mistral."""
    tokenizer = byte_fallback()
    tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return tokenizer


def metaspace() -> Tokenizer:
    """T5, ALBERT, XLM-R: Unigram."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(
        TEXTS, trainers.UnigramTrainer(vocab_size=100, special_tokens=SPECIAL, unk_token="<unk>")
    )
    return tokenizer


def word_piece() -> Tokenizer:
    """BERT."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=SPECIAL))
    return tokenizer


def words() -> Tokenizer:
    """No decoder at all: tokens are joined by spaces."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(TEXTS, trainers.WordLevelTrainer(special_tokens=SPECIAL))
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    kind.__name__: kind for kind in (byte_level, byte_fallback, metaspace_fallback, metaspace, word_piece, words)
}


def with_template(tokenizer: Tokenizer, template: str) -> Tokenizer:
    """The same with a post-processor, such as "<s> $A </s>"."""
    known = [(name, tokenizer.token_to_id(name)) for name in template.split() if name != "$A"]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=known)
    return tokenizer
