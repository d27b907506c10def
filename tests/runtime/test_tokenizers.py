"""Tokenizers of every kind: what is streamed is what is decoded, and what stands before a prompt."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longscan.runtime.detokenize import TextStream

from ..tokenizers import KINDS

BUILT = {name: build() for name, build in KINDS.items()}
TEXT = st.text(
    st.one_of(st.sampled_from("ab the'.,\n  ▁Привет中文字한국😀é\u0301\u200d\ufffd"), st.characters(codec="utf-8")),
    max_size=30,
)


def pieces(tokenizer, before, ids):
    stream = TextStream(tokenizer, before)
    return [*(stream.push(token) for token in ids), stream.flush()]


def beyond(tokenizer, before, ids):
    """What decode makes of `ids` after `before`: its text of both without the beginning it shares with `before`'s."""
    text, whole = tokenizer.decode(before), tokenizer.decode(before + ids)
    common = next((k for k, (x, y) in enumerate(zip(text, whole)) if x != y), min(len(text), len(whole)))
    return whole[common:]


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_text_streams_as_it_decodes(name, data):
    tokenizer = BUILT[name]
    ids = tokenizer.encode(data.draw(TEXT)).ids
    cut = data.draw(st.integers(0, len(ids)))
    assert "".join(pieces(tokenizer, ids[:cut], ids[cut:])) == beyond(tokenizer, ids[:cut], ids[cut:])


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=500, deadline=None)
@given(data=st.data())
def test_any_ids_stream_as_they_decode(name, data):
    """Broken characters, special tokens and ids beyond the vocabulary, too."""
    tokenizer = BUILT[name]
    tokens = st.integers(0, tokenizer.get_vocab_size() + 3)
    if tokenizer.token_to_id("<0x41>") is not None:
        tokens = st.one_of(
            tokens,
            st.sampled_from(
                [tokenizer.token_to_id(f"<0x{b:02X}>") for b in b"\xd0\x94\xe4\xb8\xad\xf0\x9f\x98\x80 A\n"]
            ),
        )
    ids = data.draw(st.lists(tokens, max_size=60))
    cut = data.draw(st.integers(0, len(ids)))
    assert "".join(pieces(tokenizer, ids[:cut], ids[cut:])) == beyond(tokenizer, ids[:cut], ids[cut:])
