"""Generation: greedy equals the argmax of prefill, pieces are whole characters, stops and seeds work."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longscan.runtime import load
from longscan.runtime.generate.detokenize import StopCutter, TextStream
from longscan.runtime.generate.loop import Generation
from longscan.runtime.generate.sampling import Sampling, draw, penalise, sample

from ..conftest import NoWaiting


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


def test_without_a_seed_torchs_own_decides(demo):
    def draw():
        return list(demo.generate([1, 2, 3], 20, temperature=1.0))

    torch.manual_seed(5)
    first, second = draw(), draw()
    torch.manual_seed(5)
    assert (draw(), draw()) == (first, second) and first != second


def test_seeds(demo):
    draw = lambda seed: "".join(demo.generate("The ", 20, temperature=1.0, seed=seed))  # noqa: E731
    assert draw(1) == draw(1) and draw(1) != draw(2)


def test_sampling_limits():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    g = torch.Generator().manual_seed(0)
    assert {int(sample(logits, Sampling(1.0, 2, 1.0), g)) for _ in range(60)} == {0, 1}
    assert {int(sample(logits, Sampling(1.0, 0, 0.6), g)) for _ in range(60)} == {0, 1}
    assert draw(logits, Sampling(), [None]) == [0]


@pytest.mark.parametrize("options", [{"temperature": -1}, {"top_p": 0}, {"max_new_tokens": -1}])
def test_impossible_options(demo, options):
    with pytest.raises(ValueError, match="need"):
        list(demo.generate("x", **options))
    with pytest.raises(ValueError, match="empty"):
        list(demo.generate(""))


@pytest.mark.parametrize("temperature", [1e-8, 1e-40, 5e-324])
def test_a_tiny_temperature_is_greedy(demo, temperature):
    for scale in (1.0, 1e4, 1e30):
        logits = torch.tensor([[0.5, -2.0, 2.0, 1.9, -torch.inf]]) * scale
        assert int(sample(logits, Sampling(temperature, 0, 0.9, 0.1), torch.Generator().manual_seed(0))) == 2
    prompt = "It is a truth universally acknowledged, that "
    assert "".join(demo.generate(prompt, 8, temperature=temperature)) == "".join(demo.generate(prompt, 8))


def test_a_tiny_top_p_keeps_the_likeliest():
    assert int(sample(torch.tensor([[0.0, 1.0]]), Sampling(1.0, 0, 1e-50), torch.Generator())) == 1


def test_top_k_beyond_the_vocabulary_keeps_all():
    g = torch.Generator().manual_seed(0)
    assert {int(sample(torch.zeros(1, 3), Sampling(1.0, 10, 1.0), g)) for _ in range(60)} == {0, 1, 2}


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_refused(demo, broken, temperature, monkeypatch):
    step = type(demo).step

    def spoiled(self, token, state):
        logits, state = step(self, token, state)
        return logits.index_fill(1, torch.tensor([5]), broken), state

    monkeypatch.setattr(type(demo), "step", spoiled)
    pieces = demo.generate(list(b"The "), 3, temperature=temperature)
    assert isinstance(next(pieces), int)
    with pytest.raises(ValueError, match=r"NaN or infinity.*try float32"):
        next(pieces)
    settings = Sampling(temperature=temperature)
    with pytest.raises(ValueError, match="NaN or infinity"):
        draw(torch.tensor([[0.0, 1.0], [-torch.inf, -torch.inf]]), settings, [None, None])
    assert draw(torch.tensor([[-torch.inf, 1.0]]), settings, [None]) == [1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_is_drawn_with_one_wait(temperature, monkeypatch):
    """Whatever its rows, the host asks once, and each row's own generator decides."""
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(0))
    asked = []
    monkeypatch.setattr(torch.Tensor, "tolist", lambda t, run=torch.Tensor.tolist: asked.append(t) or run(t))
    settings = Sampling(temperature=temperature, top_k=20, top_p=0.9, min_p=0.01)
    with NoWaiting():
        found = draw(logits, settings, [torch.Generator().manual_seed(b) for b in range(5)])
    assert len(asked) == 1
    alone = [draw(logits[b : b + 1], settings, [torch.Generator().manual_seed(b)]) for b in range(5)]
    assert found == [token for (token,) in alone]


def test_min_p_and_repetition_penalty():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    g = torch.Generator().manual_seed(0)
    assert {int(sample(logits, Sampling(1.0, min_p=0.25), g)) for _ in range(80)} == {0, 1, 2}
    assert {int(sample(logits, Sampling(1.0, min_p=1.0), g)) for _ in range(20)} == {0}
    seen = torch.tensor([[True, False, True, False]])
    assert penalise(torch.tensor([[2.0, 2.0, -2.0, -2.0]]), seen, 4.0).tolist() == [[0.5, 2.0, -8.0, -2.0]]


def test_a_strong_penalty_never_repeats(demo):
    made = list(demo.generate(list(b"the the the "), 30, repetition_penalty=1e6))
    assert len(set(made)) == 30 and not set(made) & set(b"the ")


PROMPTS = ["It is a truth universally acknowledged, that ", "The ", "What is the pass key? " * 30]


@pytest.mark.parametrize("options", [{}, {"stop": ["e", "th"]}, {"repetition_penalty": 1.3, "stop": " "}])
def test_a_batch_is_its_rows(demo, options):
    pieces = list(demo.generate(PROMPTS, 24, **options))
    assert all(len(row) == 3 for row in pieces)
    together = ["".join(column) for column in zip(*pieces)]
    assert together == ["".join(demo.generate(prompt, 24, **options)) for prompt in PROMPTS]
    assert len({len(text) for text in together}) > 1 or not options  # rows do end on their own


def test_a_batch_of_ids_ends_row_by_row(demo):
    prompts = [list(prompt.encode()) for prompt in PROMPTS]
    alone = [list(demo.generate(prompt, 16)) for prompt in prompts]
    stop = alone[0][5]
    rows = list(zip(*demo.generate(prompts, 16, stop=[stop])))
    for row, wanted in zip(rows, alone):
        cut = wanted.index(stop) if stop in wanted else 16
        assert [token for token in row if token is not None] == wanted[:cut]
        assert all(token is None for token in row[cut:])


def test_rows_draw_with_their_own_seeds(demo):
    draw = lambda prompt, seed: "".join(demo.generate(prompt, 20, temperature=1.0, seed=seed))  # noqa: E731
    pieces = demo.generate(["The ", "The "], 20, temperature=1.0, seed=8)
    assert ["".join(column) for column in zip(*pieces)] == [draw("The ", 8), draw("The ", 9)]


def streamed(tokenizer, tokens, stops=()):
    """What a reader of a generation of `tokens` sees, piece by piece."""
    text, cutter = TextStream(tokenizer), StopCutter(stops)
    pieces = []
    for token in tokens:
        pieces.append(cutter.push(text.push(token)))
        if cutter.stopped:
            return pieces
    return pieces + [cutter.push(text.flush()) + cutter.flush()]


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(max_size=40).map(str.encode), st.binary(max_size=40)))
def test_text_streams_as_it_decodes(demo, data):
    """Also where the bytes are no UTF-8 at all; the demo's tokens are bytes."""
    pieces = streamed(demo.tokenizer, list(data))
    assert "".join(pieces) == demo.tokenizer.decode(list(data)) == data.decode(errors="replace")


def test_characters_come_whole_and_at_once(demo):
    pieces = streamed(demo.tokenizer, list("aé€😀b".encode()))
    assert pieces == ["a", "", "é", "", "", "€", "", "", "", "😀", "b", ""]


@settings(max_examples=200, deadline=None)
@given(st.text("abé", max_size=24), st.lists(st.text("abé", min_size=1, max_size=4), max_size=3))
def test_stops_cut_at_their_first_occurrence(demo, text, stops):
    found = "".join(streamed(demo.tokenizer, list(text.encode()), stops))
    ends = [end for s in stops for end in [text.find(s) + len(s)] if s in text]
    if not ends:
        assert found == text
        return
    first = min(ends)  # the stop that is complete first ends the text; of those, the one that begins first cuts it
    assert found == text[: min(text.find(s) for s in stops if 0 <= text.find(s) <= first - len(s))]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("ab", max_size=5), max_size=5), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_stops_do_not_depend_on_where_pieces_end(pieces, stops):
    def cut(pieces):
        cutter, found = StopCutter(stops), ""
        for piece in pieces:
            found += cutter.push(piece)
            if cutter.stopped:
                return found
        return found + cutter.flush()

    assert cut(pieces) == cut("".join(pieces))


def test_the_work_a_token_does_not_grow(demo):
    class Counting:
        longest = 0

        def decode(self, ids):
            self.longest = max(self.longest, len(ids))
            return demo.tokenizer.decode(ids)

        def __getattr__(self, name):
            return getattr(demo.tokenizer, name)

    counting = Counting()
    data = ("naïve " * 500).encode()
    assert "".join(streamed(counting, list(data))) == data.decode()
    assert counting.longest < 40


def test_ctrl_c_returns_what_was_made(demo, monkeypatch):
    prompt = PROMPTS[0]
    whole = "".join(demo.generate(prompt, 24))
    step, calls = type(demo).step, iter(range(100))

    def interrupted(self, token, state):
        if next(calls) == 9:
            raise KeyboardInterrupt
        return step(self, token, state)

    monkeypatch.setattr(type(demo), "step", interrupted)
    watch = Generation()
    stop = whole[9] + "never"  # the tenth character is held back as it may begin this, and must not be lost
    assert "".join(demo.generate(prompt, 24, watch=watch, stop=stop)) == whole[:10]
    assert watch.interrupted and watch.made == 10
    assert watch.read == watch.prompt_tokens == len(prompt)


def test_generation_goes_on_from_a_state(demo):
    start, question = "It is a truth universally acknowledged, ", "that "
    state = demo.prefill(torch.tensor([list(start.encode())])).state
    assert "".join(demo.generate(question, 12, state=state)) == "".join(demo.generate(start + question, 12))


@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p", "repetition_penalty"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_options_that_are_no_numbers(demo, name, value):
    with pytest.raises(ValueError, match="need"):
        list(demo.generate("x", **{name: value}))


@pytest.mark.parametrize("options", [{"min_p": 2}, {"repetition_penalty": 0}, {"top_k": -1}])
def test_more_impossible_options(demo, options):
    with pytest.raises(ValueError, match="need"):
        list(demo.generate("x", **options))
    with pytest.raises(ValueError, match="stop string"):
        list(demo.generate("x", stop=["", "a"]))
    with pytest.raises(ValueError, match="seed"):
        list(demo.generate("x", seed=2**70))
    with pytest.raises(ValueError, match="empty"):
        list(demo.generate(["x", ""]))
    with pytest.raises(ValueError, match="all texts or all ids"):
        list(demo.generate(["x", [1, 2]]))
    with pytest.raises(ValueError, match="all texts or all ids"):
        list(demo.generate([[1, 2], "x"]))
    with pytest.raises(ValueError, match="whole numbers, found"):
        list(demo.generate([1.5, 2.0]))
    with pytest.raises(ValueError, match=r"ended by ids.*'e'"):
        list(demo.generate([1, 2], stop="e"))


@pytest.mark.parametrize("form", [torch.tensor, lambda ids: torch.tensor([ids]), np.array, tuple])
def test_ids_come_in_many_forms(demo, form):
    ids = list(b"It is a truth ")
    alone = list(demo.generate(ids, 6))
    assert list(demo.generate(form(ids), 6)) == alone
    assert list(demo.generate(form(ids), 6, stop=np.array(alone[4:5]))) == alone[: alone.index(alone[4])]


@pytest.mark.parametrize("form", [torch.tensor, np.array, lambda rows: [np.array(row) for row in rows]])
def test_arrays_of_two_rows_are_two_prompts(demo, form):
    rows = [list(b"It is a truth "), list(b"The pass key ")[:14] + [32]]
    assert list(zip(*demo.generate(form(rows), 6))) == [tuple(demo.generate(row, 6)) for row in rows]


def test_generators_of_one_model_do_not_meet(demo):
    """Taken in turns, from texts and from one state they share; one of them is left half-way."""
    state = demo.prefill(torch.tensor([list(b"It is a truth universally acknowledged, ")])).state
    calls = [
        lambda: demo.generate(PROMPTS[1], 16),
        lambda: demo.generate(PROMPTS[2], 16, temperature=1.0, seed=3),
        lambda: demo.generate("that ", 16, state=state),
        lambda: demo.generate("and ", 16, state=state),
    ]
    alone = [list(call()) for call in calls]
    assert len({tuple(pieces) for pieces in alone}) == 4
    running, found = [call() for call in calls], [[] for _ in calls]
    left = demo.generate("What ", 16, state=state)
    for k in range(16):
        for pieces, generator in zip(found, running):
            pieces += [piece for piece in [next(generator, None)] if piece is not None]
        if k < 5:
            next(left)
    assert found == alone
