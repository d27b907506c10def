"""llama.cpp beside us: the benchmark's own model as GGUF, and `llama-bench` where it is found on PATH.

The file is written with the `gguf` package (pip install gguf): random weights need no tokenizer. For a model with
one, llama.cpp's own script does it: python convert_hf_to_gguf.py FOLDER --outtype f32 (or bf16) --outfile FILE.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

NAMES = {  # a layer's tensors: ours by the transformers layout, theirs by llama.cpp's
    "norm.weight": "attn_norm.weight",
    "mixer.in_proj.weight": "ssm_in.weight",
    "mixer.conv1d.weight": "ssm_conv1d.weight",
    "mixer.conv1d.bias": "ssm_conv1d.bias",
    "mixer.x_proj.weight": "ssm_x.weight",
    "mixer.dt_proj.weight": "ssm_dt.weight",
    "mixer.dt_proj.bias": "ssm_dt.bias",
    "mixer.A_log": "ssm_a",
    "mixer.D": "ssm_d",
    "mixer.out_proj.weight": "ssm_out.weight",
}
PRODUCTS = ("ssm_in.weight", "ssm_x.weight", "ssm_dt.weight", "ssm_out.weight", "token_embd.weight")


def why_not() -> str | None:
    """What is missing for the comparison, or None."""
    if shutil.which("llama-bench") is None:
        return "llama-bench is not on PATH"
    return None if find_spec("gguf") else "the package gguf is not installed (pip install gguf)"


def write_gguf(folder: Path, file: Path, dtype: torch.dtype) -> None:
    """A Mamba-1 checkpoint in the transformers layout, tied, as llama.cpp reads it; matrices in `dtype`."""
    import gguf
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(file, "mamba")
    writer.add_context_length(2**20)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_ssm_conv_kernel(config["conv_kernel"])
    writer.add_ssm_inner_size(config["intermediate_size"])
    writer.add_ssm_state_size(config["state_size"])
    writer.add_ssm_time_step_rank(int(config["time_step_rank"]))
    writer.add_layer_norm_rms_eps(config["layer_norm_epsilon"])
    writer.add_ssm_dt_b_c_rms(False)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    for name, t in load_file(folder / "model.safetensors").items():
        if name == "lm_head.weight":
            continue
        found = {"backbone.embeddings.weight": "token_embd.weight", "backbone.norm_f.weight": "output_norm.weight"}
        _, _, layer, rest = name.split(".", 3) if "layers" in name else ("", "", "", "")
        there = f"blk.{layer}.{NAMES[rest]}" if layer else found[name]
        t = -torch.exp(t.float()) if there.endswith("ssm_a") else t.float().squeeze()
        if dtype == torch.bfloat16 and there.endswith(PRODUCTS):
            bits = t.bfloat16().contiguous().view(torch.uint8).numpy()
            writer.add_tensor(there, bits, raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(there, t.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def decode_speed(file: Path, threads: int) -> float:
    """Tokens a second that llama.cpp generates from nothing on so many threads."""
    command = ["llama-bench", "-m", str(file), "-t", str(threads), "-p", "0", "-n", "48", "-r", "3", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"Error: llama-bench ended with status {done.returncode}: {done.stderr.strip()[-300:]}")
    return parse(done.stdout)


def parse(printed: str) -> float:
    """`avg_ts` of the one generation that llama-bench -o json tells of."""
    rows: list[dict[str, Any]] = [row for row in json.loads(printed) if row["n_gen"] > 0]
    return float(rows[0]["avg_ts"])


def compare(folder: Path, scratch: Path, threads: int) -> dict[str, float]:
    """Tokens a second by dtype."""
    speeds = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        file = scratch / f"{name}.gguf"
        write_gguf(folder, file, dtype)
        speeds[name] = decode_speed(file, threads)
        file.unlink()
    return speeds
