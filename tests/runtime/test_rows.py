"""Rows of unequal length: each with its own S, plan and thresholds, each as if it were alone."""

from __future__ import annotations

import pytest
import torch

METHODS = ("none", "filter", "decimate", "both", "auto")


@pytest.fixture(scope="module")
def prompts():
    g = torch.Generator().manual_seed(5)
    return [torch.randint(0, 64, (n,), generator=g) for n in (70, 9, 45, 70, 16, 33)]  # trained at 16


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("chunk", [None, 11])
def test_rows_equal_single_rows(lm, prompts, method, chunk, relative_rms):
    out = lm.prefill(prompts, method=method, chunk=chunk, logits_to_keep=3)
    alone = [lm.prefill(p[None], method=method, logits_to_keep=3) for p in prompts]
    assert out.plan == tuple(one.plan for one in alone)
    assert out.plan[1].method == out.plan[4].method == "none"
    assert torch.equal(out.positions, torch.cat([one.positions for one in alone]))
    assert relative_rms(out.logits, torch.cat([one.logits for one in alone])) < 1e-4
    assert relative_rms(out.state.ssm, torch.cat([one.state.ssm for one in alone], 1)) < 1e-4
    assert relative_rms(out.state.conv, torch.cat([one.state.conv for one in alone], 1)) < 1e-4
    assert out.state.length.tolist() == [len(p) for p in prompts]
    # and they go on together
    token = torch.arange(len(prompts))
    wanted = torch.cat([lm.step(token[b : b + 1], one.state)[0] for b, one in enumerate(alone)])
    assert relative_rms(lm.step(token, out.state)[0], wanted) < 1e-4


def test_all_logits_of_unequal_decimated_rows(lm, prompts):
    out = lm.prefill(prompts, method="decimate", logits_to_keep=0)
    for b, prompt in enumerate(prompts):
        one = lm.prefill(prompt[None], method="decimate", logits_to_keep=0)
        K = one.positions.shape[1]
        assert torch.equal(out.positions[b, -K:], one.positions[0]) and (out.positions[b, :-K] == -1).all()
        torch.testing.assert_close(out.logits[b, -K:], one.logits[0], rtol=1e-3, atol=1e-3)


def test_equally_padded_rows_are_just_shorter(lm, prompts):
    ids = torch.stack([prompts[0], prompts[3]])
    padded = torch.cat([torch.zeros(2, 6, dtype=torch.int64), ids], 1)
    mask = torch.ones_like(padded)
    mask[:, :6] = 0
    out, wanted = lm.prefill(padded, attention_mask=mask, method="both"), lm.prefill(ids, method="both")
    assert torch.equal(out.logits, wanted.logits) and torch.equal(out.positions, wanted.positions)


def test_rows_of_a_state_can_be_picked(lm, prompts):
    out = lm.prefill(prompts, method="both")
    picked = out.state.rows([4, 0])
    assert picked.plan == (out.plan[4], out.plan[0]) and picked.length.tolist() == [16, 70]
    again = lm.prefill(prompts[0][None, :5], state=out.state.rows([0]))
    assert again.state.length.tolist() == [75]
    assert torch.equal(picked.ssm[:, 1], out.state.ssm[:, 0])


def test_bad_lists(lm, prompts):
    with pytest.raises(ValueError, match="empty"):
        lm.prefill([prompts[0], torch.zeros(0, dtype=torch.int64)])
    with pytest.raises(ValueError, match="attention_mask"):
        lm.prefill(prompts, attention_mask=torch.ones(6, 70))
    with pytest.raises(ValueError, match="1-D"):
        lm.prefill([prompts[0][None]])
    assert lm.prefill([[1, 2, 3], [4]]).state.length.tolist() == [3, 1]
