"""A model's files: config, weights, index of shards, tokenizer, generation config."""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import mutate
import torch
from shared import BYTES, borrowed, checkpoints
from target import IDS, SMALL, Target, Wrong, same, strict

from longscan.runtime import load

# What may change the numbers of a model whose weights stay as they are. Anything else that does is not understood.
ARITHMETIC = {"norm_epsilon", "layer_norm_epsilon", "mixer_rms_eps", "rms_norm", "residual_in_fp32", "time_step_limit",
              "dt_limit", "norm_before_gate", "rmsnorm", "ngroups", "n_groups", "model_type", "ssm_cfg"}  # fmt: skip


def config(folder: Path, make: Callable[[Path], Path]) -> Target:
    """config.json beside weights that stay as they are."""
    path = make(folder) / "config.json"
    good = path.read_bytes()
    wanted, values = load(folder).prefill(IDS).logits, json.loads(good)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        lm = load(folder)
        found = lm.prefill(IDS).logits
        said = strict(data)
        if lm.config.train_length is not None and not 0 < lm.config.train_length < math.inf:
            raise Wrong(f"a training length of {lm.config.train_length}")
        changed = {key for key in set(said) | set(values) if said.get(key) != values.get(key)}
        if not torch.equal(found, wanted) and not changed & ARITHMETIC:
            raise Wrong(f"other logits though only {sorted(changed)} changed")

    return Target(good, mutate.text, read)


def weights(folder: Path, make: Callable[[Path], Path]) -> Target:
    """model.safetensors, read as an independent reader of the format reads it."""
    path = make(folder) / "model.safetensors"
    kinds = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}

    def read(data: bytes) -> None:
        path.write_bytes(data)
        lm = load(folder)
        size = int.from_bytes(data[:8], "little")
        header, rest = json.loads(data[8 : 8 + size]), data[8 + size :]
        for name, tensor in (("embedding", lm.weights.embedding), ("norm_f", lm.weights.norm)):
            entry = next(value for key, value in header.items() if key.startswith(f"backbone.{name}"))
            start, stop = entry["data_offsets"]
            raw = torch.frombuffer(bytearray(rest[start:stop]), dtype=kinds[entry["dtype"]]).reshape(entry["shape"])
            same(tensor, raw.float(), name)
        lm.prefill(IDS)

    return Target(path.read_bytes(), mutate.safetensors, read)


def pickled(folder: Path) -> Target:
    """pytorch_model.bin: damaged, or a dictionary of other things than tensors."""
    tensors = checkpoints.random_tensors(**SMALL)
    path = checkpoints.write_state_spaces(folder, tensors, pickled=True) / "pytorch_model.bin"
    good = path.read_bytes()

    def change(data: bytes, draw: Random) -> bytes:
        if draw.random() < 0.6:
            return mutate.damage(data, draw)
        name = draw.choice(list(tensors))
        t = tensors[name]
        other = draw.choice(
            (None, 1, "x", [t], {"a": t}, t.to_sparse(), t.int(), t.to(torch.complex64), t.bool(), t[:0], t.T, t[None],
             torch.nn.Parameter(t), t.flatten()[:1].expand(t.numel()).view(t.shape), t.new_zeros(1).expand(30_000, 20_000),  # noqa: E501
             t.new_zeros(1).expand(2**20, 2**20), t.to("meta"), t.double(), t.half(), t * math.nan, t * math.inf,
             torch.quantize_per_tensor(t, 0.1, 0, torch.qint8))
        )  # fmt: skip
        into = {**tensors, (draw.choice((name, name, name, "x", 1, None))): other}
        stream = io.BytesIO()
        torch.save(draw.choice((into, into, into, {"state_dict": into}, {"model": into, "step": 1}, [into])), stream)
        return stream.getvalue()

    def read(data: bytes) -> None:
        path.write_bytes(data)
        load(folder).prefill(IDS)

    return Target(good, change, read)


def shard_index(folder: Path) -> Target:
    """model.safetensors.index.json of two shards."""
    from safetensors.torch import save_file

    tensors = checkpoints.random_tensors(**SMALL)
    checkpoints.write_state_spaces(folder, tensors)
    wanted = load(folder).prefill(IDS).logits
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, folder / file)
    path = folder / "model.safetensors.index.json"
    good = json.dumps({"metadata": {"total_size": 1}, "weight_map": {n: f for f, held in parts.items() for n in held}})

    def read(data: bytes) -> None:
        path.write_bytes(data)
        same(load(folder).prefill(IDS).logits, wanted, "logits")

    return Target(good.encode(), mutate.text, read)


def tokenizer(folder: Path, kind: str) -> Target:
    """tokenizer.json of one of the kinds in use, then a text there and back."""
    kinds = borrowed("tests/tokenizer_kinds.py").KINDS
    checkpoints.write_state_spaces(folder, checkpoints.random_tensors(M=8, n_layer=1, V=512, N=4))
    lm = load(folder)
    path = folder / "tokenizer.json"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        lm.__dict__.pop("tokenizer", None)
        for _ in lm.generate("It was a dark night, é", max_new_tokens=3):
            pass

    return Target(kinds[kind]().to_str().encode(), mutate.text, read)


def generation(folder: Path) -> Target:
    """generation_config.json: the ids that end a text."""
    checkpoints.write_state_spaces(folder, checkpoints.random_tensors(M=8, n_layer=1, V=512, N=4))
    shutil.copyfile(BYTES, folder / "tokenizer.json")

    def read(data: bytes) -> None:
        (folder / "generation_config.json").write_bytes(data)
        list(load(folder).generate("It was", max_new_tokens=3))

    return Target(b'{"eos_token_id": [0, 3], "temperature": 1.0, "transformers_version": "5"}', mutate.text, read)
