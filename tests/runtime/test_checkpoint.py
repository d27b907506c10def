"""Reading checkpoints: every layout gives the same model, every damage one clear line."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from longscan.runtime import CheckpointError, load

from ..checkpoints import random_tensors, write_state_spaces

TENSORS = random_tensors()


def test_layouts_give_the_same_model_and_fingerprint(tmp_path, plain, ids):
    pickled = load(write_state_spaces(tmp_path / "bin", TENSORS, pickled=True))
    folder = tmp_path / "sharded"
    folder.mkdir()
    hf = {("backbone.embeddings.weight" if k == "backbone.embedding.weight" else k): v for k, v in TENSORS.items()}
    names = sorted(hf)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: hf[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {"model_type": "mamba", "hidden_size": 24, "num_hidden_layers": 3, "vocab_size": 64, "state_size": 8}
    (folder / "config.json").write_text(json.dumps(config))
    sharded = load(folder)
    wanted = plain.prefill(ids).logits
    for other in (pickled, sharded):
        assert torch.equal(other.prefill(ids).logits, wanted)
        assert other.fingerprint == plain.fingerprint
    other = load(write_state_spaces(tmp_path / "other", random_tensors(seed=1)))
    assert other.fingerprint != plain.fingerprint


class _Trap:
    def __reduce__(self):
        return (print, ("executed",))


def _damage(tmp_path, what):
    folder = write_state_spaces(tmp_path, dict(TENSORS))
    weights = folder / "model.safetensors"
    if what == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif what == "empty":
        weights.write_bytes(b"")
    elif what == "nan":
        broken = {**TENSORS, "backbone.layers.1.mixer.D": torch.full((48,), torch.nan)}
        save_file(broken, weights)
    elif what == "missing":
        save_file({k: v for k, v in TENSORS.items() if "layers.2.mixer.A_log" not in k}, weights)
    elif what == "shape":
        save_file({**TENSORS, "backbone.norm_f.weight": torch.ones(7)}, weights)
    elif what == "unknown":
        save_file({**TENSORS, "backbone.layers.0.mixer.lora": torch.ones(7)}, weights)
    elif what == "no weights":
        weights.unlink()
    elif what == "no config":
        (folder / "config.json").unlink()
    elif what == "bad config":
        (folder / "config.json").write_text("{")
    elif what == "mamba-2":
        write_state_spaces(tmp_path, TENSORS, ssm_cfg={"layer": "Mamba2"})
    elif what == "pickle":
        weights.unlink()
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": _Trap()}))
    return folder


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("truncated", "download it again"),
        ("empty", "download it again"),
        ("nan", "layers.1.mixer.D.*NaN"),
        ("missing", "layers.2.mixer.A_log"),
        ("shape", "norm_f.weight.*expected"),
        ("unknown", "lora"),
        ("no weights", "neither"),
        ("no config", "config.json"),
        ("bad config", "JSON"),
        ("mamba-2", "A_log has shape.*config.json and weights differ"),
        ("pickle", "weights_only"),
    ],
)
def test_damage_is_one_clear_line(tmp_path, what, message, capsys):
    with pytest.raises(CheckpointError, match=message) as caught:
        load(_damage(tmp_path, what))
    assert "\n" not in str(caught.value)
    assert "executed" not in capsys.readouterr().out


def _config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def _shards(folder, parts, index=None, files=None):
    """A folder whose weights are `parts`, with the index given (by default, what they hold)."""
    write_state_spaces(folder, TENSORS)
    (folder / "model.safetensors").unlink()
    names = files or [f"model-{i:05}-of-{len(parts):05}.safetensors" for i in range(1, len(parts) + 1)]
    for name, part in zip(names, parts):
        save_file(part, folder / name)
    found = {key: name for name, part in zip(names, parts) for key in part} if index is None else index(names)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": found}))
    return folder


def _halves():
    names = sorted(TENSORS)
    return [{name: TENSORS[name] for name in part} for part in (names[::2], names[1::2])]


PARAMETERS = {name: torch.nn.Parameter(tensor) for name, tensor in TENSORS.items()}


@pytest.mark.parametrize(
    ("content", "options"),
    [
        (PARAMETERS, {}),
        (TENSORS, {"_use_new_zipfile_serialization": False}),
        (PARAMETERS, {"_use_new_zipfile_serialization": False}),
        ({"state_dict": TENSORS}, {}),
    ],
    ids=["parameters", "before 1.6", "parameters before 1.6", "nested"],
)
def test_a_bin_of_another_make_gives_the_same_model(tmp_path, content, options, plain, ids):
    folder = write_state_spaces(tmp_path, TENSORS)
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin", **options)
    lm = load(folder)
    assert not lm.weights.embedding.requires_grad and not lm.weights.layers[0].A.requires_grad
    assert lm.fingerprint == plain.fingerprint
    assert torch.equal(lm.prefill(ids).logits, plain.prefill(ids).logits)


@pytest.mark.parametrize(
    "content, message",
    [
        ({"epoch": 3, "state_dict": TENSORS}, "'epoch' is a int; save what it holds under 'state_dict' by itself"),
        ([1, 2], "holds a list"),
        ({**TENSORS, "config": "x"}, "'config' is a str; give"),
        ({**TENSORS, None: torch.ones(1)}, "None is a Tensor"),
        ({**TENSORS, "x": torch.ones(1).expand(2**20, 2**20)}, "x is stored without all its values"),  # 4 TiB copied
        ({**TENSORS, "x": torch.ones(9, device="meta")}, "x is stored without all its values"),
    ],
)
def test_a_bin_that_is_no_dictionary_of_tensors_says_what_it_is(tmp_path, content, message):
    folder = write_state_spaces(tmp_path, TENSORS)
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_a_legacy_pickle_is_not_executed_either(tmp_path, capsys):
    folder = write_state_spaces(tmp_path, TENSORS)
    (folder / "model.safetensors").unlink()
    torch.save({"x": _Trap()}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="weights_only"):
        load(folder)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.complex64])
@pytest.mark.parametrize("pickled", [False, True])
def test_a_tensor_of_another_kind_is_named(tmp_path, dtype, pickled):
    name = "backbone.layers.1.mixer.in_proj.weight"
    folder = write_state_spaces(tmp_path, {**TENSORS, name: TENSORS[name].to(dtype)}, pickled=pickled)
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(CheckpointError, match=f"{name} holds {kind}.*unquantised"):
        load(folder)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq, 4 bits"),
        ({"load_in_8bit": True, "load_in_4bit": False}, "bitsandbytes, 8 bits"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}, "bitsandbytes, 4 bits"),
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, "fp8"),
        ({"quant_method": "awq", "bits": 4}, "awq, 4 bits"),
    ],
)
@pytest.mark.parametrize("more", [{}, {"model_type": "zamba2"}, {"model_type": "mamba2", "hidden_size": 24}])
def test_a_quantised_model_is_refused_by_its_method(tmp_path, said, told, more):
    folder = _config(write_state_spaces(tmp_path, TENSORS), quantization_config=said, **more)
    with pytest.raises(CheckpointError, match=rf"quantised \({told}\).*unquantised"):
        load(folder)


def test_values_beyond_the_dtype_are_refused_not_made_infinite(tmp_path):
    name = "backbone.layers.0.mixer.out_proj.weight"
    folder = write_state_spaces(tmp_path, {**TENSORS, name: TENSORS[name] * 1e8})
    load(folder, dtype="bfloat16")
    with pytest.raises(CheckpointError, match=f"{name} has values too large for float16; load with"):
        load(folder, dtype="float16")


@pytest.mark.parametrize("other", ["adapter_model", "x.longscan", "consolidated"])
def test_weights_are_found_by_name_whatever_lies_beside_them(tmp_path, other, plain):
    folder = write_state_spaces(tmp_path, TENSORS, pickled=True)
    save_file({"a": torch.ones(2)}, folder / f"{other}.safetensors")
    assert load(folder).fingerprint == plain.fingerprint
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match=rf"neither.*\(found {other}"):
        load(folder)


def test_an_adapter_beside_the_model_is_not_left_out_in_silence(tmp_path):
    folder = write_state_spaces(tmp_path, TENSORS)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"adapter.*merge"):
        load(folder)


@pytest.mark.parametrize("beside", [{}, {"adapter_model.safetensors": b"x"}, {"v1.longscan.safetensors": b"x"}])
@pytest.mark.parametrize("kept", ["pickled", "shards", "odd shards"])
def test_the_hub_gives_the_models_own_weights(tmp_path, monkeypatch, plain, beside, kept):
    """`snapshot_download` of a local folder that stands for the repository."""
    import shutil
    from fnmatch import fnmatch

    import huggingface_hub

    if kept == "pickled":
        repo = write_state_spaces(tmp_path / "repo", TENSORS, pickled=True)
    else:
        repo = tmp_path / "repo"
        _shards(repo, _halves(), files=["a.safetensors", "b.safetensors"] if kept == "odd shards" else None)
    for name, data in {**beside, "consolidated.safetensors": b"large"}.items():
        (repo / name).write_bytes(data)
    cache = tmp_path / "cache"

    def snapshot(repo_id, *, revision, allow_patterns):
        cache.mkdir(exist_ok=True)
        for path in repo.iterdir():
            if any(fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copyfile(path, cache / path.name)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert load("someone/model").fingerprint == plain.fingerprint
    assert not (cache / "consolidated.safetensors").exists() and not (cache / "adapter_model.safetensors").exists()


def test_shards_give_the_same_model_wherever_the_index_puts_a_tensor(tmp_path, plain):
    moved = _shards(
        tmp_path, _halves(), lambda names: dict.fromkeys(TENSORS, names[0]) | {"backbone.norm_f.weight": names[1]}
    )
    assert load(moved).fingerprint == plain.fingerprint


@pytest.mark.parametrize("case", ["twice", "both names", "nowhere", "not an index"])
def test_shards_that_contradict_each_other_are_refused_by_the_tensors_name(tmp_path, case):
    first, second = _halves()
    name = next(iter(first))
    if case == "twice":
        folder, message = _shards(tmp_path, [first, {**second, name: first[name] + 1}]), f"{name} is stored twice"
    elif case == "both names":
        again = {"backbone.embeddings.weight": TENSORS["backbone.embedding.weight"] + 1}
        folder, message = _shards(tmp_path, [first, {**second, **again}]), "embedding.weight is stored twice"
    elif case == "nowhere":
        folder = _shards(tmp_path, [first, second], lambda n: {**dict.fromkeys(TENSORS, n[0]), "x": n[1]})
        message = "index names x, which no shard holds"
    else:
        folder, message = _shards(tmp_path, [first, second], lambda names: {}), "names no shards"
    with pytest.raises(CheckpointError, match=message):
        load(folder)


@pytest.mark.parametrize(
    "extra",
    [
        "layers.0.mixer.x_proj.bias",
        "layers.0.mixer.in_proj.lora_A.weight",
        "layers.0.norm.bias",
        "norm_f.bias",
        "head.bias",
    ],
)
def test_a_tensor_that_would_not_be_used_is_named(tmp_path, extra):
    folder = write_state_spaces(tmp_path, {**TENSORS, f"backbone.{extra}": torch.ones(24)})
    with pytest.raises(CheckpointError, match=f"{extra} belongs to no layer"):
        load(folder)


def test_a_head_of_its_own_is_not_taken_for_a_tied_one(tmp_path, plain, ids):
    head = TENSORS["backbone.embedding.weight"] + 1
    tensors = {**TENSORS, "lm_head.weight": head}
    with pytest.raises(CheckpointError, match=r"lm_head.weight differs"):
        load(write_state_spaces(tmp_path, tensors))
    other = load(write_state_spaces(tmp_path, tensors, tie_embeddings=False))
    assert not torch.allclose(other.prefill(ids).logits, plain.prefill(ids).logits)


HF = {"model_type": "mamba", "hidden_size": 24, "num_hidden_layers": 3, "vocab_size": 64}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_ffn": 4}, "key 'd_ffn', which is not understood"),
        ({"ssm_cfg": {"d_state": 8, "activation": "gelu"}}, "key 'activation'"),
        ({"ssm_cfg": {"ngroups": 2}}, "key 'ngroups'"),
        ({"ssm_cfg": {"d_state": 16}}, "d_state: 8 in the weights, 16"),
        ({"ssm_cfg": {"bias": True}}, "in_proj.bias: False in the weights, True"),
        ({"ssm_cfg": {"conv_bias": False}}, "conv1d.bias: True in the weights, False"),
        ({"ssm_cfg": [1]}, "expected an object"),
        ({"rms_norm": "false"}, "rms_norm 'false'; expected true or false"),
        ({"norm_epsilon": None}, "norm_epsilon None"),
        ({"attn_layer_idx": [1]}, "attention"),
        ({"d_intermediate": 32}, "MLP"),
        ({**HF, "hidden_act": "gelu"}, "activation 'gelu'"),
        ({**HF, "use_bias": True}, "in_proj.bias: False"),
        ({**HF, "use_conv_bias": False}, "conv1d.bias: True"),
        ({**HF, "state_size": 16}, "d_state: 8"),
        ({**HF, "auto_map": {"AutoModelForCausalLM": "modeling.Mine"}}, "auto_map"),
        ({**HF, "layer_norm_epsilon": "1e-5"}, "layer_norm_epsilon '1e-5'"),
        ({**HF, "tie_word_embeddings": False}, "lm_head.weight"),
        ({**HF, "layer_norm_epsilon": 1e308}, r"layer_norm_epsilon 1e\+308; expected a number between 0 and 1"),
        ({"norm_epsilon": 10**400}, "norm_epsilon 1000"),
        ({"d_model": True}, "no usable 'd_model'"),
        ({"n_layer": 10**12}, "1000000000000 layers"),  # whose names no memory would hold
        ({"train_length": "4k"}, "train_length '4k'; expected a whole number above 0"),
        ({**HF, "model_type": "mamba2", "n_groups": 2.5}, "n_groups 2.5; expected a whole number"),
        ({**HF, "model_type": "mamba2", "n_groups": None}, "n_groups None"),
        ({**HF, "model_type": "mamba2", "time_step_limit": [0.1, 0.01]}, "limits delta"),
        ({**HF, "model_type": "mamba2", "time_step_limit": "09"}, "limits delta"),
        ({**HF, "model_type": "mamba2", "time_step_limit": [0, float("nan")]}, "limits delta"),
    ],
)
def test_a_key_that_changes_the_arithmetic_is_read_or_refused_by_name(tmp_path, changes, message):
    folder = _config(write_state_spaces(tmp_path, TENSORS), **changes)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize(
    ("text", "message"),
    [('{"a": 1, "a": 2}', "key 'a' is given twice|shard index"), ("[" * 10**5, "nested|shard index")],
)
def test_json_that_can_be_read_in_two_ways_or_not_at_all(tmp_path, file, text, message):
    folder = _shards(tmp_path, [TENSORS])
    (folder / file).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_a_shard_of_an_impossible_name_is_missing(tmp_path):
    with pytest.raises(CheckpointError, match="shard missing"):
        load(_shards(tmp_path, [TENSORS], index=lambda names: {"x": "a" * 300}))


def test_a_conversion_that_keeps_the_old_keys_is_read_by_the_new_ones(tmp_path, ids):
    """As state-spaces/mamba-130m-hf: transformers' config.json with d_model and ssm_cfg left in it."""
    kept = _config(write_state_spaces(tmp_path / "a", TENSORS), **HF, layer_norm_epsilon=0.1)
    clean = write_state_spaces(tmp_path / "b", TENSORS)
    (clean / "config.json").write_text(json.dumps({**HF, "layer_norm_epsilon": 0.1, "rescale_prenorm_residual": True}))
    assert torch.equal(load(kept).prefill(ids).logits, load(clean).prefill(ids).logits)


@pytest.mark.parametrize("name", ["/nowhere/at/all", "no-such-model", "./missing"])
def test_no_such_model(name):
    with pytest.raises(CheckpointError, match="give"):
        load(name)


def test_the_hub_offline_is_one_clear_line():
    with pytest.raises(CheckpointError, match="cannot fetch state-spaces/mamba-130m"):
        load("state-spaces/mamba-130m")


def test_import_is_light():
    code = (
        "import sys, time, torch; t = time.perf_counter(); import longscan.runtime; "
        "print(time.perf_counter() - t, 'triton' in sys.modules and 'torch._inductor' not in sys.modules, "
        "'numba' in sys.modules, 'click' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert out[1:] == ["False"] * 3, out


@pytest.mark.parametrize("gone", ["layers.1.mixer.conv1d.bias", "layers.1.norm.bias", "norm_f.bias"])
def test_a_bias_that_is_missing_is_not_taken_for_none(tmp_path, gone):
    tensors = random_tensors()
    norms = {name.replace("weight", "bias"): torch.ones_like(t) for name, t in tensors.items() if "norm" in name}
    tensors = {name: t for name, t in (tensors | norms).items() if name != f"backbone.{gone}"}
    with pytest.raises(CheckpointError, match=re.escape(gone)):
        load(write_state_spaces(tmp_path, tensors, rms_norm=False))
