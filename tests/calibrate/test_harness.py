"""The lm-eval model class, under lm-eval itself, on tasks made here: nothing is fetched."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from functools import partialmethod
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from longscan.calibrate.commands import cli
from longscan.runtime import load, loading
from longscan.runtime.checkpoint.source import BUNDLED, Source
from longscan.runtime.sidecar import sidecar as sidecars

from ..checkpoints import make_sidecar, random_tensors, write_state_spaces
from ..tokenizer_kinds import byte_fallback, with_template

TEXT = (Path(__file__).parents[2] / "calibrate" / "demo" / "evaluation.txt").read_text()[:5000]
L = 256  # the demo's


def test_without_the_harness_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "longscan.calibrate.evaluate.harness", raising=False)
    result = CliRunner().invoke(cli, ["lm-eval", "ls", "--tasks", "x"])
    assert (
        result.exit_code == 1
        and result.stderr.startswith("Error: ")
        and 'pip install "longscan[lm-eval]"' in result.stderr
    )


@pytest.fixture(scope="module")
def harness():
    from longscan.calibrate.evaluate import harness

    return harness


def test_the_entry_point_is_the_class(harness):
    """As versions of the harness with plugins read it."""
    pyproject = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    group = pyproject.split('[project.entry-points."lm_eval.models"]\n')[1]
    name, value = group.splitlines()[0].split(" = ")
    assert name == "longscan"
    assert EntryPoint(name, value.strip('"'), "lm_eval.models").load() is harness.LongScanLM


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pretrained": "demo", "colour": "red"}, "no 'colour'; it takes: pretrained, sidecar, "),
        ({}, "give pretrained=MODEL"),
        ({"pretrained": "demo", "max_length": "long"}, "max_length=long"),
        ({"pretrained": "demo", "max_gen_toks": 0}, "max_gen_toks=0"),
        ({"pretrained": "demo", "device": "cuda"}, "device differs"),
    ],
)
def test_model_args_that_are_refused(harness, arguments, message):
    with pytest.raises(ValueError, match=message):
        harness.LongScanLM.create_from_arg_obj(arguments, {"batch_size": 1, "device": "cpu"})


def test_batch_size_in_model_args(harness):
    """The harness hands over its own default, 1, besides."""
    made = harness.LongScanLM.create_from_arg_string("pretrained=demo,batch_size=4", {"batch_size": 1, "device": "cpu"})
    assert made.rows == 4
    with pytest.raises(ValueError, match="batch_size differs"):
        harness.LongScanLM.create_from_arg_obj({"pretrained": "demo", "batch_size": 4}, {"batch_size": "8"})
    with pytest.raises(ValueError, match="leave out --apply_chat_template"):
        made.apply_chat_template([{"role": "user", "content": "x"}])


@pytest.fixture
def own_tasks_only(monkeypatch):
    """The thousands of tasks that ship with the harness take seconds to list. Its command line is not left changed."""
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(TaskManager, "__init__", partialmethod(TaskManager.__init__, include_defaults=False))
    monkeypatch.setattr(sys, "argv", sys.argv)


def test_what_the_harness_cannot_do_is_one_line(harness, tasks, tmp_path, own_tasks_only):
    (tmp_path / "utils.py").write_text("import no_such_extra\nf = no_such_extra.f\n")
    (tmp_path / "extra.yaml").write_text(
        "task: needs_extra\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: "
        f"{tasks}/rows.jsonl\ntest_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{{{text}}}}'\n"
        "doc_to_choice: ['a', 'b']\ndoc_to_target: 0\nprocess_results: !function utils.f\n"
    )
    (tmp_path / "far.yaml").write_text(
        "task: out_of_reach\ndataset_path: owner/nowhere\ntest_split: test\noutput_type: multiple_choice\n"
        "doc_to_text: '{{text}}'\ndoc_to_choice: ['a', 'b']\ndoc_to_target: 0\n"
    )
    base = ["lm-eval", "run", "--model", "longscan", "--model_args", "pretrained=demo", "--device", "cpu"]
    for more, message in (
        (["--include_path", str(tmp_path), "--tasks", "needs_extra"], "no_such_extra"),
        (["--include_path", str(tmp_path), "--tasks", "out_of_reach"], "cannot fetch what a task needs"),
    ):
        result = CliRunner().invoke(cli, [*base, *more])
        assert isinstance(result.exception, SystemExit) and result.exit_code == 1, result.exception
        [line] = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
        assert message in line and "space" not in line


@pytest.mark.parametrize(("place", "ours"), [("longscan.calibrate.evaluate.x", True), ("lm_eval.evaluator", False)])
def test_a_fault_of_ours_is_not_called_an_argument(harness, monkeypatch, place, ours):
    """Told apart by whose code raised it, through whatever library."""
    import lm_eval.__main__

    space = {"__name__": place, "json": json}
    exec("def cli_evaluate():\n    json.loads(None)\n", space)  # a TypeError out of the standard library
    monkeypatch.setattr(lm_eval.__main__, "cli_evaluate", space["cli_evaluate"])
    monkeypatch.setattr(sys, "argv", sys.argv)
    with pytest.raises(TypeError if ours else harness.UserError, match="the JSON object must be str"):
        harness.main([])


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory):
    path = tmp_path_factory.mktemp("side") / "demo.longscan.safetensors"
    make_sidecar(load("demo"), L, layer=3, keep=L).write(path)
    return path


def request(*arguments):
    from lm_eval.api.instance import Instance

    return Instance("loglikelihood", {}, arguments, 0)


@pytest.fixture(scope="module")
def model(harness, sidecar):
    return harness.LongScanLM("demo", str(sidecar), batch_size=4)


def expected(lm, text, continuation, method="auto"):
    ids = torch.tensor([list((text + continuation).encode())])
    K = len(continuation.encode())
    logits = lm.prefill(ids[:, :-1], method=method, logits_to_keep=K).logits[0]
    scores = logits.double().log_softmax(-1).gather(1, ids[0, -K:, None])
    return float(scores.sum()), bool((logits.argmax(-1) == ids[0, -K:]).all())


def test_log_likelihoods_are_those_of_prefill(model, sidecar):
    lm = load("demo", sidecar)
    pairs = [(TEXT[:n].rstrip(), c) for n, c in ((900, " the end"), (900, " a house"), (60, " x"), (880, " the end"))]
    pairs.append((TEXT[:900].rstrip(), " the cat"))  # in one batch with the first
    model.plans.clear()
    found = model.loglikelihood([request(*pair) for pair in pairs], disable_tqdm=True)
    for pair, (value, greedy) in zip(pairs, found):
        wanted, wanted_greedy = expected(lm, *pair)
        assert value == pytest.approx(wanted, rel=1e-5) and greedy == wanted_greedy
    assert model.plans == {"both": 4, "none": 1}  # each at its own true length
    greedy = next(iter(lm.generate(TEXT[:900], 1)))
    [(_, is_greedy)] = model.loglikelihood([request(TEXT[:900], greedy)], disable_tqdm=True)
    assert is_greedy


def test_rolling_reads_every_token_once(model, sidecar):
    lm = load("demo", sidecar)
    [short] = model.loglikelihood_rolling([request(TEXT[:500])], disable_tqdm=True)
    assert short == pytest.approx(expected(lm, "\n", TEXT[:500])[0], rel=1e-5)
    [long] = model.loglikelihood_rolling([request(TEXT[:1500])], disable_tqdm=True)  # windows of the calibrated 1024
    first = expected(lm, "\n", TEXT[:1024])[0]
    rest = expected(lm, TEXT[475:1023], TEXT[1023:1500])[0] - expected(lm, TEXT[475:1023], TEXT[1023:1024])[0]
    assert long == pytest.approx(first + rest, rel=1e-2)


def test_generation_stops_and_nothing_is_truncated(harness, model, sidecar):
    lm = load("demo", sidecar)
    plain = "".join(lm.generate(TEXT[:700], 40))
    stop = plain[10:13]
    options = {"until": [stop], "max_gen_toks": 40, "do_sample": False}
    assert model.generate_until([request(TEXT[:700], options)], disable_tqdm=True) == [plain[: plain.index(stop)]]
    assert model.generate_until([request(TEXT[:700], {"until": [], "max_gen_toks": 5})], True) == [plain[:5]]
    small = harness.LongScanLM("demo", str(sidecar), max_length=300)
    with pytest.raises(ValueError, match=r"700 tokens is longer than max_length=300.*never truncated"):
        small.generate_until([request(TEXT[:700], options)], disable_tqdm=True)
    with pytest.raises(ValueError, match="never truncated"):
        small.loglikelihood([request(TEXT[:700], " x")], disable_tqdm=True)


def generated(model, **options):
    return model.generate_until([request(TEXT[:200], {"until": [], "max_gen_toks": 12, **options})], disable_tqdm=True)


def test_what_a_task_says_of_generation_is_done(model):
    lm = model.lm
    drawn = {"do_sample": True, "temperature": 1.0, "seed": 1}
    wanted = "".join(lm.generate(TEXT[:200], 12, temperature=1.0, seed=1, min_p=0.2))
    assert generated(model, **drawn, min_p=0.2) == [wanted] != generated(model)
    assert generated(model, **drawn) == generated(model, **drawn, top_k=-1)
    penalised = "".join(lm.generate(TEXT[:200], 12, repetition_penalty=5.0))
    assert generated(model, repetition_penalty=5.0) == [penalised] != generated(model)
    off = {"num_beams": 1, "early_stopping": True, "top_p": 0, "use_cache": True, "presence_penalty": 0.0, "n": None}
    assert generated(model, **off) == generated(model)


@pytest.mark.parametrize(("key", "value"), [("num_beams", 8), ("max_length", 2), ("nonsense", 3), ("stop", ["x"])])
def test_what_a_task_says_of_generation_and_is_not_done_is_refused(model, key, value):
    with pytest.raises(ValueError, match=re.escape(f"generation_kwargs {key}={value!r}: ") + ".*; leave it out"):
        generated(model, **{key: value})


def test_the_results_name_the_sidecar_that_was_read(harness, sidecar, tmp_path, monkeypatch):
    """Though its file is another one when the tasks are through."""
    mine, digest = tmp_path / "mine.st", hashlib.sha256(sidecar.read_bytes()).hexdigest()
    mine.write_bytes(sidecar.read_bytes())
    model = harness.LongScanLM("demo", str(mine))
    mine.unlink()
    assert model.get_model_info()["sidecar_sha256"] == digest
    # a model of the Hub keeps its revision to itself
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "sidecar.safetensors").write_bytes(sidecar.read_bytes())
    asked = []
    monkeypatch.setattr(sidecars, "download", lambda repo, revision, _: asked.append((repo, revision)) or folder)
    monkeypatch.setattr(loading, "locate", lambda name, revision: Source("me/model", revision, BUNDLED["demo"]))
    model = harness.LongScanLM("me/model", "me/side", revision="v9")
    assert model.get_model_info()["sidecar_sha256"] == digest and set(asked) == {("me/side", None)}


@pytest.fixture(scope="module")
def bos_model(harness, tmp_path_factory):
    """A model whose tokenizer puts <s> before a text and </s> behind it."""
    folder = write_state_spaces(tmp_path_factory.mktemp("bos"), random_tensors(V=400))
    with_template(byte_fallback(), "<s> $A </s>").save(str(folder / "tokenizer.json"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": [2, 3]}))
    return harness.LongScanLM(str(folder))


def scored(lm, context, continuation):
    logits = lm.prefill(torch.tensor([context + continuation])[:, :-1], logits_to_keep=len(continuation)).logits[0]
    return float(logits.double().log_softmax(-1).gather(1, torch.tensor(continuation)[:, None]).sum())


def test_a_text_begins_with_bos_in_every_kind_of_request(bos_model, monkeypatch):
    lm, plain = bos_model.lm, lambda text: bos_model.tok_encode(text, add_special_tokens=False)
    assert (bos_model.eot_token_id, bos_model.prefix_token_id) == (2, 1)
    assert bos_model.tok_encode("Hello") == [1, *plain("Hello")]

    pairs = [("Hello", " world"), ("", "Hello"), ("Hello world. ", "the"), (" ", "the")]
    found = bos_model.loglikelihood([request(*pair) for pair in pairs], disable_tqdm=True)
    for (context, continuation), (value, _) in zip(pairs, found):
        ids, head = plain(context + continuation), len(plain(context.rstrip())) if context.strip() else 0
        assert value == pytest.approx(scored(lm, [1, *ids[:head]], ids[head:]), rel=1e-5)

    [rolling] = bos_model.loglikelihood_rolling([request("Hello world")], disable_tqdm=True)
    assert rolling == pytest.approx(scored(lm, [1], plain("Hello world")), rel=1e-5)

    prompts, prefill = [], type(lm).prefill
    monkeypatch.setattr(type(lm), "prefill", lambda self, ids, **o: prompts.append(ids) or prefill(self, ids, **o))
    bos_model.generate_until([request("Hello", {"until": [], "max_gen_toks": 1})], disable_tqdm=True)
    assert [ids.tolist() for ids in prompts[0]] == [bos_model.tok_encode("Hello")]


@pytest.mark.parametrize("context, continuation", [("He", "llo"), ("Hello wo", "rld"), ("t", "he"), ("Hello", "")])
def test_a_pair_is_one_text(bos_model, context, continuation):
    """A token across the border is scored, and nothing is read twice."""
    head, tail = bos_model._encode_pair(context, continuation)
    assert head + tail == bos_model.tok_encode(context + continuation)
    assert head[0] == 1 and (tail != [] or continuation == "")
    assert context.startswith(bos_model.lm.tokenizer.decode(head))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A generation task, a choice of two, and rolling perplexity, from a local file."""
    folder = tmp_path_factory.mktemp("tasks")
    key = " The pass key is 40339. Remember it. 40339 is the pass key. "
    rows = [{"text": TEXT[k : k + 100] + key + TEXT[k : k + 300] + " What is the pass key? The pass key is",
             "answer": "40339", "other": "99999"} for k in (0, 700)]  # fmt: skip
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    common = f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {folder}/rows.jsonl\ntest_split: test\n"
    (folder / "key.yaml").write_text(
        f"task: tiny_key\n{common}output_type: generate_until\ndoc_to_text: '{{{{text}}}}'\n"
        "doc_to_target: '{{answer}}'\n"
        "generation_kwargs:\n  until: ['.']\n  max_gen_toks: 8\n"
        "metric_list:\n  - metric: exact_match\n    regexes_to_ignore: ['\\s']\n"
    )
    (folder / "choice.yaml").write_text(
        f"task: tiny_choice\n{common}output_type: multiple_choice\ndoc_to_text: '{{{{text}}}}'\n"
        "doc_to_choice: '{{[answer, other]}}'\ndoc_to_target: 0\nmetric_list:\n  - metric: acc\n"
    )
    (folder / "rolling.yaml").write_text(
        f"task: tiny_rolling\n{common}output_type: loglikelihood_rolling\ndoc_to_text: ''\n"
        "doc_to_target: '{{text}}'\n"
        "metric_list:\n  - metric: byte_perplexity\n"
    )
    return folder


def test_under_the_harness(harness, tasks, sidecar, tmp_path, own_tasks_only):
    """`calibrate lm-eval`, as a user of the released harness runs it."""
    arguments = f"pretrained=demo,sidecar={sidecar},max_length=2048,method=none"
    command = ["lm-eval", "run", "--model", "longscan", "--model_args", arguments, "--device", "auto",
               "--include_path", str(tasks), "--tasks", "tiny_key,tiny_choice,tiny_rolling",
               "--output_path", str(tmp_path)]  # fmt: skip
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output[-3000:]
    document = json.loads(next(tmp_path.rglob("results_*.json")).read_text())
    results = document["results"]
    assert results["tiny_key"]["exact_match,none"] == 1.0  # the demo model was trained to answer keys at this length
    assert results["tiny_choice"]["acc,none"] == 1.0
    assert 2 < results["tiny_rolling"]["byte_perplexity,none"] < 8
    found = document["config"]
    assert found["sidecar_sha256"] == hashlib.sha256(sidecar.read_bytes()).hexdigest()
    assert found["model_name"] == "demo" and found["prompts_by_resolved_method"] == {"none": 2 + 4 + 2}
