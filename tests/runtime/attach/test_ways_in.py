"""The ways transformers' models are used, on an attached one: pipelines, streamers, padded batches, PEFT."""

from __future__ import annotations

from threading import Thread

import pytest
import torch

from longscan.runtime import attach, detach, load

from ...checkpoints import make_sidecar
from ...tokenizer_kinds import byte_level
from .models import FAMILIES, build

transformers = pytest.importorskip("transformers")

TEXTS = ["Hello world, the quick brown fox doesn't stop: it runs over 12 lazy dogs.", "This is a test of the thing."]
GREEDY = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture(scope="module", params=FAMILIES)
def found(request, tmp_path_factory):
    """An attached model with its filter, its tokenizer, and what it says after each text alone."""
    folder = tmp_path_factory.mktemp(request.param)
    raw = byte_level()
    model = build(request.param, vocab_size=raw.get_vocab_size())
    model.save_pretrained(folder)
    side = make_sidecar(load(folder), 4, share=20.0)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<unk>", padding_side="left")
    ids = tokenizer(TEXTS[0], return_tensors="pt").input_ids
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        attach(model, side, method="filter")
        assert not torch.allclose(model(input_ids=ids).logits, plain, rtol=1e-2)  # or the tests below say nothing
    yield model, tokenizer, answers(model, tokenizer)
    detach(model)


def answers(model, tokenizer):
    return [tokenizer.decode(answer(model, tokenizer(text, return_tensors="pt").input_ids)) for text in TEXTS]


def answer(model, ids):
    mask = torch.ones_like(ids)
    return model.generate(input_ids=ids, attention_mask=mask, **GREEDY)[0, ids.shape[1] :]


def test_a_pipeline(found):
    model, tokenizer, wanted = found
    pipe = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
    options = {**GREEDY, "return_full_text": False}
    said = [pipe(text, **options)[0]["generated_text"] for text in TEXTS]
    assert said == wanted
    batched = pipe(TEXTS, batch_size=2, **options)
    assert [one[0]["generated_text"] for one in batched] == wanted


def test_a_streamer_in_a_thread(found):
    model, tokenizer, wanted = found
    for text, right in zip(TEXTS, wanted):
        streamer = transformers.TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
        inputs = tokenizer(text, return_tensors="pt")
        asked = {"input_ids": inputs.input_ids, "attention_mask": inputs.attention_mask, "streamer": streamer}
        thread = Thread(target=model.generate, kwargs={**asked, **GREEDY})
        thread.start()
        assert "".join(streamer) == right
        thread.join()


def test_a_batch_padded_on_the_left(found):
    model, tokenizer, wanted = found
    inputs = tokenizer(TEXTS, return_tensors="pt", padding=True)
    assert 0 in inputs.attention_mask[:, 0]
    out = model.generate(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, **GREEDY)
    assert tokenizer.batch_decode(out[:, inputs.input_ids.shape[1] :]) == wanted


@pytest.mark.parametrize("name", ["mamba", "mamba2", "bamba"])
def test_a_peft_wrapped_model(name, tmp_path, relative_rms):
    """The adapter on in_proj works, the sidecar of the model without it fits, and merging gives the same."""
    peft = pytest.importorskip("peft", reason="needs peft", exc_type=ImportError)
    model = build(name)
    model.save_pretrained(tmp_path)
    side = make_sidecar(load(tmp_path))
    ids = torch.randint(1, 64, (2, 64), generator=torch.Generator().manual_seed(2))
    with attach(model, side, method="filter"), torch.no_grad():
        bare = model(input_ids=ids).logits
    config = peft.LoraConfig(r=4, target_modules=["in_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(1)
    wrapped = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        attach(wrapped, side, method="filter")
        adapted = wrapped(input_ids=ids).logits
        said = answer(wrapped, ids[:1])
        with wrapped.disable_adapter():
            assert torch.equal(wrapped(input_ids=ids).logits, bare)
        detach(wrapped)
        merged = wrapped.merge_and_unload()
        with attach(merged, side, method="filter"):
            assert relative_rms(merged(input_ids=ids).logits, adapted) < 1e-4
            assert torch.equal(answer(merged, ids[:1]), said)
    assert relative_rms(adapted, bare) > 1e-2


def test_an_adapter_where_weights_are_read_is_refused():
    peft = pytest.importorskip("peft", reason="needs peft", exc_type=ImportError)
    wrapped = peft.get_peft_model(build("mamba"), peft.LoraConfig(target_modules=["dt_proj"])).eval()
    with pytest.raises(ValueError, match="weights of dt_proj, and this model's is a Linear: an adapter there"):
        attach(wrapped)
