"""Generation: greedy equals the argmax of prefill, pieces are whole characters, stops and seeds work."""

from __future__ import annotations

import pytest
import torch

from longscan.runtime import load
from longscan.runtime.generate import sample


@pytest.fixture(scope="module")
def demo():
    return load("demo")


def test_greedy_ids_are_the_argmax_of_prefill(lm, ids):
    prompt = ids[0, :12].tolist()  # at most the training length, so that prefill is plain all along
    made = list(lm.generate(prompt, 4))
    for k in range(4):
        logits = lm.prefill(torch.tensor([prompt + made[:k]]), method="none").logits
        assert int(logits[0, -1].argmax()) == made[k]


def test_text_comes_in_pieces(demo):
    pieces = list(demo.generate("It is a truth universally acknowledged, that ", 24))
    text = "".join(pieces)
    assert len(pieces) > 3 and len(text) == 24 and "\ufffd" not in text
    ids = demo.tokenizer.encode("It is a truth universally acknowledged, that ").ids
    assert demo.tokenizer.decode(list(demo.generate(ids, 24))) == text


def test_stop_is_not_shown_even_when_cut_across_pieces(demo):
    prompt = "It is a truth universally acknowledged, that "
    text = "".join(demo.generate(prompt, 24))
    stop = text[7:10]
    assert "".join(demo.generate(prompt, 24, stop=stop)) == text[: text.find(stop)]


def test_tokenizer_of_the_demo_is_the_bytes(demo):
    text = "naïve café — 12345\n"
    assert demo.tokenizer.encode(text).ids == list(text.encode())
    assert demo.tokenizer.decode(list(text.encode())) == text


def test_seeds(demo):
    draw = lambda seed: "".join(demo.generate("The ", 20, temperature=1.0, seed=seed))  # noqa: E731
    assert draw(1) == draw(1) and draw(1) != draw(2)


def test_sampling_limits():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    g = torch.Generator().manual_seed(0)
    assert {int(sample(logits, 1.0, 2, 1.0, g)) for _ in range(60)} == {0, 1}
    assert {int(sample(logits, 1.0, 0, 0.6, g)) for _ in range(60)} == {0, 1}
    assert int(sample(logits, 0.0, 0, 1.0, None)) == 0


@pytest.mark.parametrize("options", [{"temperature": -1}, {"top_p": 0}, {"max_new_tokens": -1}])
def test_impossible_options(demo, options):
    with pytest.raises(ValueError, match="need"):
        list(demo.generate("x", **options))
    with pytest.raises(ValueError, match="empty"):
        list(demo.generate(""))
