"""What the tokens of a training run are: bytes, or a BPE vocabulary trained on the training texts themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from train_data import NONE, Marked, tensors


class Bytes:
    """A byte is a token, its value the id. spread: bytes of a sample a token of the training length."""

    size, spread = 256, 1.0

    def __init__(self) -> None:
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2's mapping of bytes to characters
        others = [b for b in range(256) if b not in printable]
        alphabet = {**{chr(b): b for b in printable}, **{chr(256 + i): b for i, b in enumerate(others)}}
        self.tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
        self.tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self.tokenizer.decoder = decoders.ByteLevel()

    def encode(self, text: bytes) -> list[int]:
        return list(text)

    def widths(self) -> Tensor:
        """Bytes of each token, (V,)."""
        return torch.ones(self.size)

    def batch(self, samples: list[Marked], size: int, length: int) -> tuple[Tensor, Tensor]:
        """ids and marks (B, size) of samples of `size` bytes."""
        return tensors(samples, size)


class Subwords(Bytes):
    """Byte-level BPE in which a digit is always a token of its own, so that keys are cut the same everywhere."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.size = tokenizer, tokenizer.get_vocab_size()

    @classmethod
    def read(cls, path: Path, texts: Sequence[bytes], size: int) -> Subwords:
        """The tokenizer at `path`, trained on `texts` and written there first if there is none."""
        if not path.exists():
            tokenizer = Tokenizer(models.BPE())
            level = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level])
            tokenizer.decoder = decoders.ByteLevel()
            alphabet = pre_tokenizers.ByteLevel.alphabet()
            trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
            tokenizer.train_from_iterator((text.decode(errors="ignore") for text in texts), trainer)
            tokenizer.save(str(path))
        found = cls(Tokenizer.from_file(str(path)))
        sample = texts[0][:200_000]
        found.spread = 0.9 * len(sample) / len(found.encode(sample))  # keys and questions take more tokens a byte
        return found

    def encode(self, text: bytes) -> list[int]:
        return self.tokenizer.encode(text.decode(errors="ignore")).ids

    def widths(self) -> Tensor:
        vocabulary = self.tokenizer.get_vocab()  # a character stands for a byte
        return torch.tensor([float(len(token)) for token in sorted(vocabulary, key=vocabulary.__getitem__)])

    def batch(self, samples: list[Marked], size: int, length: int) -> tuple[Tensor, Tensor]:
        """ids and marks (B, at most `length`): a token's mark is its last character's, NONE past a sample's end."""
        ids = torch.zeros(len(samples), length, dtype=torch.int64)
        marks = torch.full_like(ids, NONE)
        longest = 0
        for row, sample in enumerate(samples):
            texts = [part.decode(errors="ignore") for part, _ in sample]
            by_character = [mark for text, (_, mark) in zip(texts, sample) for _ in text]
            found = self.tokenizer.encode("".join(texts))
            n = min(length, len(found.ids))
            ids[row, :n] = torch.tensor(found.ids[:n])
            marks[row, :n] = torch.tensor([by_character[end - 1] for _, end in found.offsets[:n]])
            longest = max(longest, n)
        return ids[:, :longest], marks[:, :longest]
