"""One prefill: chunks, steps, filtering and decimation against a transcription of the methods in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from longscan.runtime import Plan, load


def transcription(lm, ids, g=None, decimate=None, weight=None, r=1):
    """The whole model by the book, float64, one sequence (L,): logits of all tokens present at the end, positions."""
    w = lm.weights
    h = w.embedding[ids].double()
    positions = torch.arange(len(ids))
    for i, (layer, before) in enumerate(zip(w.layers, w.norms)):
        normed = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-5) * before.weight.double()
        x, z = (normed @ layer.in_proj.weight.double().T).chunk(2, -1)
        padded = F.pad(x, (0, 0, 3, 0))
        x = F.silu(sum(padded[k : k + len(x)] * layer.conv[:, k].double() for k in range(4)) + layer.conv_bias.double())
        R, N = layer.dt_proj.shape[1], layer.A.shape[1]
        low, B, C = (x @ layer.x_proj.weight.double().T).split([R, N, N], -1)
        delta = F.softplus(low @ layer.dt_proj.double().T + layer.dt_bias.double())
        if decimate and i in decimate:
            S = len(h)
            n = min(S - r, max(decimate[i], 20))
            score = (weight.double() * delta.square()).sum(-1).sqrt()
            best = sorted(range(S - r), key=lambda t: (-float(score[t]), t))[:n]
            keep = sorted(best) + list(range(S - r, S))
            x, z, B, C, delta, h, positions = (t[keep] for t in (x, z, B, C, delta, h, positions))
        if g is not None:
            delta = torch.where(delta > g[i].double(), delta, 0.0)
        state = torch.zeros_like(layer.A).double()
        ys = []
        for t in range(len(x)):
            state = torch.exp(delta[t, :, None] * layer.A.double()) * state + (delta[t] * x[t])[:, None] * B[t]
            ys.append(state @ C[t] + layer.D.double() * x[t])
        h = h + (torch.stack(ys) * F.silu(z)) @ layer.out_proj.weight.double().T
    h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-5) * w.norm.double()
    return h @ w.head.double().T, positions


@pytest.mark.parametrize("method", ["none", "filter", "decimate", "both"])
def test_methods_equal_the_transcription(lm, sidecar, ids, method, relative_rms):
    out = lm.prefill(ids, method=method, logits_to_keep=0)
    plan = sidecar.plan(64, method)
    assert out.plan == plan and plan.method == method
    lengths = plan.scan_lengths(3, 1)
    g = [sidecar.thresholds(i, lengths[i]) for i in range(3)] if method in ("filter", "both") else None
    for row in range(2):
        wanted, positions = transcription(lm, ids[row], g, plan.decimate, sidecar.score_weights(1, 64))
        assert out.positions[row].tolist() == positions.tolist()
        assert relative_rms(out.logits[row], wanted) < 1e-5
    # the methods differ, or the comparison above says nothing
    if method != "none":
        assert relative_rms(out.logits[:, -1], lm.prefill(ids, method="none").logits[:, -1]) > 1e-3


@pytest.mark.parametrize("method", ["none", "filter"])
@pytest.mark.parametrize("chunk", [1, 3, 7, 64, 100])
def test_any_chunk_gives_the_same(lm, ids, method, chunk, relative_rms):
    whole = lm.prefill(ids, method=method, logits_to_keep=5)
    parts = lm.prefill(ids, method=method, logits_to_keep=5, chunk=chunk)
    assert relative_rms(parts.logits, whole.logits) < 1e-4
    assert relative_rms(parts.state.ssm, whole.state.ssm) < 1e-4
    assert torch.equal(parts.positions, whole.positions) and parts.plan == whole.plan


def test_steps_equal_prefill(plain, ids, relative_rms):
    whole = plain.prefill(ids, logits_to_keep=0)
    state = plain.new_state(2)
    for t in range(ids.shape[1]):
        logits, state = plain.step(ids[:, t], state)
        assert relative_rms(logits, whole.logits[:, t]) < 1e-4
    assert relative_rms(state.ssm, whole.state.ssm) < 1e-5
    assert state.length.tolist() == [64, 64]


def test_prefill_goes_on_from_a_state_and_leaves_it(plain, ids, relative_rms):
    whole = plain.prefill(ids)
    first = plain.prefill(ids[:, :40])
    before = first.state.ssm.clone()
    second = plain.prefill(ids[:, 40:], state=first.state)
    assert relative_rms(second.logits, whole.logits) < 1e-4
    assert torch.equal(first.state.ssm, before)
    assert second.positions.tolist() == [[63], [63]]


def test_total_length_fixes_the_plan_for_all_pieces(lm, ids, relative_rms):
    whole = lm.prefill(ids, method="filter")
    first = lm.prefill(ids[:, :10], method="filter", total_length=64)
    assert first.plan == Plan("filter", 64)
    with pytest.raises(ValueError, match="not complete"):
        lm.step(ids[:, 0], first.state)
    second = lm.prefill(ids[:, 10:], state=first.state)
    assert second.plan == Plan("filter", 64)
    assert relative_rms(second.logits, whole.logits) < 1e-4
    lm.step(ids[:, 0], second.state)
    with pytest.raises(ValueError, match="total_length"):
        lm.prefill(ids, total_length=10)


def test_open_ended_never_decimates(lm, ids):
    out = lm.prefill(ids, total_length=math.inf)
    assert out.plan == Plan("filter", math.inf)
    again = lm.prefill(ids, state=out.state)
    assert again.plan == out.plan
    lm.step(ids[:, 0], again.state)


def test_later_calls_reread_g_but_never_decimate(lm, ids):
    first = lm.prefill(ids)
    assert first.plan.method == "both" and first.plan.decimate == {1: 30}
    second = lm.prefill(ids[:, :8], state=first.state)
    assert second.plan == Plan("filter", 72)


def test_at_the_training_length_the_bits_are_the_plain_models(lm, plain, ids):
    short = ids[:, :16]
    for method in ("auto", "filter", "decimate", "both"):
        out = lm.prefill(short, method=method)
        assert out.plan == Plan("none", 16)
        assert torch.equal(out.logits, plain.prefill(short).logits)


@pytest.mark.parametrize("method", ["none", "filter"])
def test_left_padding_changes_nothing(lm, ids, method, relative_rms):
    padded = torch.cat([torch.full((2, 9), 5), ids], 1)
    padded[1, 9:] = ids[1]
    mask = torch.ones_like(padded)
    mask[0, :9], mask[1, :4] = 0, 0  # row 1 is five tokens longer
    out = lm.prefill(padded, method=method, attention_mask=mask, logits_to_keep=3)
    one = lm.prefill(ids[:1], method=method, logits_to_keep=3)
    two = lm.prefill(padded[1:, 4:], method=method, logits_to_keep=3)
    assert relative_rms(out.logits, torch.cat([one.logits, two.logits])) < 1e-5
    assert out.positions.tolist() == [[61, 62, 63], [66, 67, 68]]
    assert out.plan == (one.plan, two.plan) and out.state.length.tolist() == [64, 69]
    wrong = mask.clone()
    wrong[1, 30] = 0
    with pytest.raises(ValueError, match="a hole in row 1"):
        lm.prefill(padded, attention_mask=wrong)
    with pytest.raises(ValueError, match="row 0 of attention_mask holds no token"):
        lm.prefill(padded, attention_mask=mask.index_fill(0, torch.tensor([0]), 0))
    with pytest.raises(ValueError, match="1 at tokens and 0 at padding"):
        lm.prefill(padded, attention_mask=(1.0 - mask) * -1e9)  # what some models add to attention scores


@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("method", ["none", "filter", "decimate", "both"])
def test_padding_on_the_right_is_padding_on_the_left(lm, ids, method, chunk, relative_rms):
    row = torch.cat([ids[1], torch.full((9,), 5)])
    batch = torch.stack([torch.cat([ids[0], torch.full((9,), 5)]), torch.cat([row[64:], ids[0]])])
    mask = torch.ones_like(batch)
    mask[0, 64:], mask[1, :2], mask[1, 50:] = 0, 0, 0  # a row may be padded on both sides
    out = lm.prefill(batch, method=method, attention_mask=mask, logits_to_keep=3, chunk=chunk)
    for b, text in enumerate((batch[:1, :64], batch[1:, 2:50])):
        alone = lm.prefill(text, method=method, logits_to_keep=3)
        assert relative_rms(out.logits[b], alone.logits[0]) < 1e-5
        assert out.positions[b].tolist() == alone.positions[0].tolist() and out.plan[b] == alone.plan
        assert relative_rms(out.state.conv[:, b], alone.state.conv[:, 0]) < 1e-5
        assert relative_rms(out.state.ssm[:, b], alone.state.ssm[:, 0]) < 1e-5
    whole = lm.prefill(batch, method=method, attention_mask=mask, logits_to_keep=0, chunk=chunk)
    if method in ("none", "filter"):  # every token is there, where it was given
        assert whole.positions[0].tolist() == [*range(64), *[-1] * 9]
        assert whole.positions[1].tolist() == [-1, -1, *range(48), *[-1] * 23]
        assert relative_rms(whole.logits[0, 61:64], out.logits[0]) < 1e-5


@pytest.mark.parametrize("pieces", [(20, 3), (1, 30), (2, 9)])
def test_rows_go_on_from_a_state_by_pieces_of_unequal_length(lm, ids, pieces, relative_rms):
    """A row's first new token follows its last old one, however its piece is padded."""
    first = lm.prefill(ids[:, :30], method="filter")
    out = lm.prefill([row[30 : 30 + n] for row, n in zip(ids, pieces)], state=first.state, method="filter")
    for b, n in enumerate(pieces):
        alone = lm.prefill(ids[b : b + 1, 30 : 30 + n], state=first.state.rows([b]), method="filter")
        assert relative_rms(out.logits[b], alone.logits[0]) < 1e-5
        assert relative_rms(out.state.conv[:, b], alone.state.conv[:, 0]) < 1e-5


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(1, 0, dtype=torch.int64), "empty"),
        (torch.tensor([[64]]), "0 ... 63"),
        (torch.tensor([1, 2]), "int64"),
        (torch.tensor([[1.0]]), "int64"),
    ],
)
def test_bad_ids_are_refused(plain, bad, message):
    with pytest.raises(ValueError, match=message):
        plain.prefill(bad)


def test_forcing_a_method_needs_a_sidecar(plain, ids):
    with pytest.raises(ValueError, match="needs a sidecar"):
        plain.prefill(ids, method="filter")


def test_state_round_trip(lm, plain, ids, tmp_path):
    state = lm.prefill(ids).state
    state.save(tmp_path / "state.safetensors")
    again = lm.load_state(tmp_path / "state.safetensors")
    assert torch.equal(again.ssm, state.ssm) and torch.equal(again.conv, state.conv) and again.plan == state.plan
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]
    copy = state.clone()
    plain.step(ids[:, 0], copy)
    assert torch.equal(again.ssm, state.ssm)
    (tmp_path / "broken").write_bytes((tmp_path / "state.safetensors").read_bytes()[:200])
    with pytest.raises(ValueError, match="not a readable"):
        lm.load_state(tmp_path / "broken")


def test_float64_model_is_the_oracle(folder, plain, ids, relative_rms):
    oracle = load(folder, dtype=torch.float64)
    assert relative_rms(plain.prefill(ids).logits, oracle.prefill(ids).logits) < 1e-5
    assert relative_rms(load(folder, dtype="bfloat16").prefill(ids).logits, oracle.prefill(ids).logits) < 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_default_dtype_of_others_changes_nothing(lm, ids, dtype):
    """transformers sets torch's while it loads a model, for every thread."""
    wanted = [lm.prefill(ids, method=method).logits for method in ("filter", "decimate")]
    stepped = lm.step(ids[:, 0], lm.prefill(ids).state)[0]
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        for method, logits in zip(("filter", "decimate"), wanted):
            assert torch.equal(lm.prefill(ids, method=method).logits, logits)
        assert torch.equal(lm.step(ids[:, 0], lm.prefill(ids).state)[0], stepped)
    finally:
        torch.set_default_dtype(before)
