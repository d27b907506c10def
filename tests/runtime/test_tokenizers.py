"""Tokenizers of every kind: what is streamed is what is decoded, what stands before a prompt, and what ends a text."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from longscan.calibrate.errors import UserError
from longscan.calibrate.texts.passkey import WORDINGS, answer
from longscan.calibrate.texts.tokens import encode
from longscan.runtime import CheckpointError, load
from longscan.runtime.checkpoint import source
from longscan.runtime.checkpoint.config import eos_ids_of
from longscan.runtime.checkpoint.tokenizer import inside_ids, load_tokenizer, plain_ids, read_tokenizer, start_ids
from longscan.runtime.generate.detokenize import TextStream
from longscan.runtime.generate.loop import generate_batch, generate_text

from ..checkpoints import random_tensors, write_state_spaces
from ..tokenizer_kinds import KINDS, with_template
from .attach.models import build

BUILT = {name: build() for name, build in KINDS.items()}
for built in BUILT.values():
    built.add_tokens([AddedToken("<tool>", lstrip=True, rstrip=True), "é😀", AddedToken("<|x|>", special=True)])
NEOX = Path(__file__).parents[1] / "data" / "gpt-neox-20b.json.gz"
BYTES = b"\xd0\x94\xe4\xb8\xad\xf0\x9f\x98\x80 A\n"
LETTERS = st.sampled_from("ab the'.,\n  ▁Привет中文字한국😀é\u0301\u200d\ufffd")
TEXT = st.text(st.one_of(LETTERS, st.characters(codec="utf-8")), max_size=30)


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
        tokens = st.one_of(tokens, st.sampled_from([tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in BYTES]))
    ids = data.draw(st.lists(tokens, max_size=60))
    cut = data.draw(st.integers(0, len(ids)))
    assert "".join(pieces(tokenizer, ids[:cut], ids[cut:])) == beyond(tokenizer, ids[:cut], ids[cut:])


@pytest.mark.parametrize("name", KINDS)
def test_the_space_before_a_word_stays(name):
    """Where the prompt ends in whole characters: decode(prompt + ids) without decode(prompt)."""
    tokenizer = BUILT[name]
    before = plain_ids(tokenizer, ["Hello"])[0]
    ids = plain_ids(tokenizer, ["Hello world"])[0][len(before) :]
    assert "".join(pieces(tokenizer, before, ids)) == " world"


def test_bytes_are_shown_when_their_row_ends():
    tokenizer = BUILT["byte_fallback"]
    ids = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "Да".encode()]
    a = tokenizer.token_to_id("a")
    assert pieces(tokenizer, [a], [*ids, a, *ids, ids[0]]) == [*[""] * 4, "Даa", *[""] * 5, "\ufffd" * 5]


class Told:
    """An LM that says what it is told, a list of ids a row, then END, and remembers its prompts."""

    device, END = torch.device("cpu"), 998

    def __init__(self, tokenizer, *rows, ends=()):
        self.tokenizer, self.told, self.config = tokenizer, rows, SimpleNamespace(eos_token_ids=(self.END, *ends))

    def prefill(self, prompts, **_):
        self.prompts = [ids.tolist() for ids in prompts]
        state = ToldState([(row, 1) for row in self.told])
        return SimpleNamespace(logits=self._logits([row[0] for row in self.told])[:, None], state=state)

    def step(self, _, state):
        tokens = [row[at] if at < len(row) else self.END for row, at in state.places]
        return self._logits(tokens), ToldState([(row, at + 1) for row, at in state.places])

    def _logits(self, tokens):
        return torch.nn.functional.one_hot(torch.tensor(tokens), 1000).float()


class ToldState:
    def __init__(self, places):
        self.places = places

    def rows(self, index):
        return ToldState([self.places[k] for k in index])


def say(name, texts, prompt="Hello", **options):
    """What a reader sees of a model that continues `prompt` by `texts` (strings, or ids)."""
    tokenizer = BUILT[name]
    rows = [inside_ids(tokenizer, [text])[0] if isinstance(text, str) else text for text in texts]
    lm = Told(tokenizer, *rows, ends=options.pop("ends", ()))
    found = list(generate_batch(lm, [prompt] * len(rows), **options))
    return ["".join(column) for column in zip(*found)]


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback", "metaspace_fallback"])
@pytest.mark.parametrize("stop", ["中", "и", "\n", "ет\n中", " мир", "😀, t", "never"])
def test_stops_are_found_across_tokens_and_characters(name, stop):
    text = " Привет\n中文 мир 😀, the"
    assert say(name, [text, text[::-1]], stop=stop) == [text.split(stop)[0], text[::-1].split(stop)[0]]


def test_stops_need_not_begin_with_a_token():
    assert say("metaspace", [" world and the"], stop="ld a") == [" wor"]
    assert say("word_piece", [" world and the"], stop="d an") == [" worl"]
    assert say("byte_level", ["é!"], stop="!") == ["é"]


def test_a_special_token_is_a_stop():
    tokenizer = BUILT["byte_fallback"]
    a, end = tokenizer.token_to_id("a"), tokenizer.token_to_id("<|im_end|>")
    assert say("byte_fallback", [[a, end, a]]) == ["aa"]  # not shown, and no end by itself
    assert say("byte_fallback", [[a, end, a], [a, a, a]], stop="<|im_end|>") == ["a", "aaa"]
    assert say("byte_fallback", [[a, end, a]], stop=["never", "<|im_end|>\n"]) == ["a"]
    assert say("byte_fallback", [[a, end, a]], stop=[end]) == ["a"]
    with pytest.raises(ValueError, match=r"after other text.*two stop strings"):
        say("byte_fallback", [[a]], stop="\n<|im_end|>")


def test_every_eos_ends():
    tokenizer = BUILT["byte_fallback"]
    a, ends = tokenizer.token_to_id("a"), [tokenizer.token_to_id(token) for token in ("</s>", "<|im_end|>")]
    rows = [[a, ends[0], a], [a, a, ends[1]], [a, a, a]]
    assert say("byte_fallback", rows, ends=tuple(ends)) == ["a", "aa", "aaa"]


def test_ids_the_tokenizer_does_not_know_say_nothing():
    a = BUILT["byte_level"].token_to_id("a")
    assert say("byte_level", [[a, 999, a]]) == ["aa"]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("template", ["<s> $A", "<s> $A </s>", "$A </s>", "<s> <unk> $A <|im_end|> </s>", None])
def test_a_text_gets_what_stands_before_texts_and_nothing_behind(name, template):
    tokenizer = KINDS[name]()
    begin = []
    if template is not None:
        with_template(tokenizer, template)
        begin = [tokenizer.token_to_id(token) for token in template.split("$A")[0].split()]
    texts = ["Hello world", "This is <|im_end|> a test </s>", ""]
    plain = plain_ids(tokenizer, texts)
    assert start_ids(tokenizer, texts) == [begin + ids for ids in plain]
    assert start_ids(tokenizer, [""]) == [begin]
    if begin:
        spelled = "".join(tokenizer.id_to_token(one) for one in begin) + "Hello"
        assert start_ids(tokenizer, [spelled]) == plain_ids(tokenizer, [spelled])
    assert inside_ids(tokenizer, ["."]) == [[tokenizer.encode("a.", add_special_tokens=False).ids[-1]]]


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback", "metaspace_fallback"])  # those that lose nothing
@settings(max_examples=100, deadline=None)
@given(text=TEXT)
def test_inside_a_text_nothing_is_added(name, text):
    tokenizer = BUILT[name]
    before = tokenizer.encode("Hello", add_special_tokens=False).ids
    ids = inside_ids(tokenizer, [text])[0]
    assert tokenizer.decode(before + ids) == "Hello" + text


def test_inside_a_text_a_word_goes_on():
    assert (
        BUILT["metaspace"].decode(
            [*plain_ids(BUILT["metaspace"], ["Hel"])[0], *inside_ids(BUILT["metaspace"], ["lo"])[0]]
        )
        == "Hello"
    )


@pytest.mark.parametrize("name", ["byte_fallback", "metaspace_fallback", "metaspace"])
def test_a_passkey_is_asked_for_with_its_own_spaces(name):
    """What stands behind the question is the answer that a model can give: no second space."""
    tokenizer = BUILT[name]
    question, answered = (inside_ids(tokenizer, [text])[0] for text in (WORDINGS[0].question, answer("aaaaa")))
    assert tokenizer.decode([tokenizer.token_to_id("a"), *question, *answered]).endswith(" key is aaaaa.")


def test_inside_a_text_byte_level_tokens_are_the_plain_ones():
    """What calibrations and their passkeys were made of does not change."""
    texts = [f(" ") if callable(f) else f for w in WORDINGS for f in (w.question, w.hide("01234"), answer("01234"))]
    for tokenizer in (BUILT["byte_level"], load("demo").tokenizer, read_tokenizer(gzip.decompress(NEOX.read_bytes()))):
        assert inside_ids(tokenizer, [*texts, "\n\n x", "  y"]) == plain_ids(tokenizer, [*texts, "\n\n x", "  y"])


def test_prompts_begin_texts_or_go_on():
    tokenizer = with_template(KINDS["byte_fallback"](), "<s> $A </s>")
    bos, a = tokenizer.token_to_id("<s>"), tokenizer.token_to_id("a")
    lm = Told(tokenizer, [a])
    list(generate_text(lm, "Hello", 1))
    assert lm.prompts == [[bos, *tokenizer.encode("Hello", add_special_tokens=False).ids]]
    list(generate_text(lm, "Hello", 1, state=SimpleNamespace(length=torch.tensor([0]))))
    assert lm.prompts[0][0] == bos  # a state of no tokens
    list(generate_text(lm, "orld", 1, state=SimpleNamespace(length=torch.tensor([7]))))
    assert tokenizer.decode([a, *lm.prompts[0]]) == "aorld" and bos not in lm.prompts[0]


def test_a_prompt_without_tokens_is_refused():
    """BERT's normaliser drops control characters."""
    tokenizer = with_template(KINDS["word_piece"](), "<s> $A </s>")
    lm = Told(tokenizer, [tokenizer.token_to_id("a")])
    with pytest.raises(ValueError, match="no token in the prompt"):
        list(generate_text(lm, "\x00\x01", 1))
    assert "".join(generate_text(lm, "<s>", 1)) == "a"  # BOS, spelled out


def test_half_a_surrogate_pair_is_refused():
    with pytest.raises(ValueError, match=r"half a character \('\\udce9' at 3\).*UTF-8"):
        list(generate_text(Told(BUILT["byte_level"], [5]), "caf\udce9", 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose tokenizer.json was saved by a training script, and two EOS ids in each of its configs."""
    folder = write_state_spaces(tmp_path_factory.mktemp("model"), random_tensors(V=1000))
    tokenizer = with_template(KINDS["byte_fallback"](), "<s> $A </s>")
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": [2, 3]}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 7]}))
    return folder


def test_truncation_and_padding_are_off(folder):
    lm = load(folder)
    text = "Hello world. " * 40
    assert lm.tokenizer.decode(lm.tokenizer.encode(text).ids) == text
    assert len(lm.tokenizer.encode("the").ids) == 3
    long, short = encode(lm, SimpleNamespace(documents=[text, "the"]))
    assert lm.tokenizer.decode(long.tolist()) == text and len(short) == 1


def test_eos_ids_of_both_configs(folder, tmp_path):
    assert load(folder).config.eos_token_ids == (2, 3, 7)
    assert eos_ids_of(tmp_path, None) == () and eos_ids_of(tmp_path, 5) == (5,)
    with pytest.raises(CheckpointError, match=r"config\.json says eos_token_id 'x'.*expected"):
        eos_ids_of(tmp_path, "x")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, null]}')
    with pytest.raises(CheckpointError, match=r"generation_config\.json says eos_token_id \[1, None\]"):
        eos_ids_of(tmp_path, 5)


def test_eos_ids_of_a_hybrid(tmp_path):
    build("zamba2").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": [2, 3]}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert load(tmp_path).config.eos_token_ids == (2, 3, 7)


def test_the_hub_brings_both_configs(folder, tmp_path, monkeypatch):
    def download(repo, revision, patterns):
        for path in {path for pattern in patterns for path in folder.glob(pattern)}:
            shutil.copy(path, tmp_path)
        return tmp_path

    monkeypatch.setattr(source, "download", download)
    assert load("someone/model").config.eos_token_ids == (2, 3, 7)


def test_a_tokenizer_beyond_the_model_is_refused(folder, tmp_path):
    small = write_state_spaces(tmp_path, random_tensors(V=64))
    (small / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    lm = load(small)
    with pytest.raises(ValueError, match="own tokenizer"):
        list(lm.generate("Привет"))
    with pytest.raises(UserError, match=r"the model knows 64.*own tokenizer"):
        encode(lm, SimpleNamespace(documents=["Привет"]))


def test_a_tokenizer_that_the_library_panics_at_or_cannot_use_is_refused(tmp_path):
    said = json.loads(BUILT["byte_fallback"].to_str())
    said["model"]["merges"][0][1] = "<|im_end|>"  # a merge longer than what it merges: a slice out of range
    config = SimpleNamespace(neox_vocabulary=False)
    (tmp_path / "tokenizer.json").write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match=r"tokenizer.json is not a tokenizer \(.*\); download it again"):
        load_tokenizer(source.Source("x", "", tmp_path), config)
    said = json.loads(BUILT["words"].to_str())
    del said["model"]["vocab"][said["model"]["unk_token"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match=r"tokenizer.json cannot read a text \(.*UNK.*\); download it again"):
        plain_ids(load_tokenizer(source.Source("x", "", tmp_path), config), ["unheard of"])
