"""EleutherAI's lm-evaluation-harness through LongScan: `--model longscan --model_args pretrained=...,sidecar=...`.

Versions of the harness with plugins find the class by its entry point; for the others, `calibrate lm-eval` registers
it and hands over to the harness. Nothing here truncates: a prompt longer than max_length is an error.
"""

from __future__ import annotations

import hashlib
import inspect
import traceback
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, simple_parse_args_string
from torch import Tensor

from ...runtime import load
from ...runtime.checkpoint.source import is_hub_id
from ...runtime.checkpoint.tokenizer import eos_ids, plain_ids, start_ids
from ...runtime.reading.plans import plan_at
from ...runtime.sidecar.sidecar import find_file
from ..console import progress
from ..errors import UserError, first_line
from ..sidecars import producer_version
from ..summary import calibrated_lengths

_BATCH_TOKENS = 16384  # batch_size=auto: rows of equal length up to this many tokens
# Of a task's generation_kwargs: how a token is drawn; what changes nothing here; what is not done, at its off value.
_DRAWN: dict[str, type] = {"temperature": float, "top_k": int, "top_p": float, "min_p": float, "seed": int}
_IDLE = ("do_sample", "use_cache", "early_stopping", "length_penalty")  # the last two are of beams
_OFF = {
    "num_beams": 1, "num_return_sequences": 1, "n": 1, "best_of": 1, "no_repeat_ngram_size": 0, "typical_p": 1.0,
    "frequency_penalty": 0, "presence_penalty": 0,
}  # fmt: skip


@register_model("longscan")
class LongScanLM(TemplateLM):
    """A Mamba with its sidecar.

    pretrained: `demo`, a folder or a Hub id (of a model, or of a sidecar alone); sidecar: a file or a Hub id
    method: auto, none, scale, filter, decimate or both
    max_length: longest prompt allowed, in tokens; None reads any. Rolling perplexity cuts documents into windows of
        it; without it, of the longest calibrated length (or the training length)
    batch_size: rows read at once, equal lengths only, so that every row's plan is that of its own length; "auto"
    tokenizer: not read here; the harness's RULER tasks look for it in the model's arguments
    """

    def __init__(
        self,
        pretrained: str = "",
        sidecar: str | None = None,
        *,
        revision: str | None = None,
        method: str = "auto",
        max_length: int | str | None = None,
        max_gen_toks: int | str = 256,
        batch_size: int | str | None = 1,
        device: str | None = None,
        dtype: str = "auto",
        tokenizer: str | None = None,
        max_batch_size: int | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        known = [name for name in inspect.signature(LongScanLM).parameters if name != "unknown"]
        if unknown:
            raise ValueError(f"--model_args has no {', '.join(map(repr, unknown))}; it takes: {', '.join(known)}")
        if not pretrained:
            raise ValueError("--model_args names no model; give pretrained=MODEL")
        self.lm = load(pretrained, sidecar, device=device or "auto", dtype=dtype, revision=revision)
        self.pretrained, self.method = pretrained, method
        self.sidecar = sidecar or (pretrained if self.lm.sidecar is not None else None)
        self.sidecar_sha256 = None
        if self.sidecar is not None:  # now: the file may be another one when the tasks are through
            # As `load` has it: a model on the Hub keeps the revision to itself, and a sidecar alone is what it is of.
            of_model = sidecar is not None and is_hub_id(self.lm.source.name)
            file = find_file(self.sidecar, None if of_model else revision)
            self.sidecar_sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        self.limit = None if max_length is None else _whole("max_length", max_length)
        self.max_gen_toks = _whole("max_gen_toks", max_gen_toks)
        self.rows = None if str(batch_size).startswith("auto") else _whole("batch_size", batch_size or 1)
        self._device = self.lm.device
        self._eos = next(iter(eos_ids(self.lm.tokenizer, self.lm.config)), None)
        self.plans: Counter[str] = Counter()  # resolved method -> prompts read with it

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> LongScanLM:
        """What --model_args says, and the harness's own options (--batch_size 1 is its default, not a wish)."""
        more = {name: value for name, value in (additional_config or {}).items() if value is not None}
        if more.get("batch_size") in (1, "1"):
            more = {**more, "batch_size": arg_dict.get("batch_size", 1)}
        twice = [name for name in arg_dict if name in more and str(arg_dict[name]) != str(more[name])]
        if twice:
            raise ValueError(f"{twice[0]} differs between --model_args and --{twice[0]}; give one of them")
        return cls(**{**arg_dict, **more})

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> LongScanLM:
        """The same from "key=value,key=value"."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    def apply_chat_template(self, *_: Any, **__: Any) -> str:
        """Refused: prompts are read as the task writes them."""
        raise ValueError("longscan applies no chat template; leave out --apply_chat_template")

    @property
    def eot_token_id(self) -> int | None:
        return self._eos

    @property
    def prefix_token_id(self) -> int:
        """What stands before the first token of a text: the tokenizer's BOS if it puts one there, else end-of-text, or
        a newline where the model has none."""
        begin = self.tok_encode("")
        if begin:
            return begin[-1]
        return self.tok_encode("\n")[0] if self._eos is None else self._eos

    @property
    def max_length(self) -> int:
        if self.limit is not None:
            return self.limit
        if self.lm.sidecar is not None:
            return calibrated_lengths(self.lm.sidecar)[-1]
        return self.lm.config.train_length or 2048

    @property
    def tokenizer_name(self) -> str:
        return self.lm.source.name.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text that begins, as `LM.generate` reads it; add_special_tokens=False: nothing before it."""
        encode = plain_ids if add_special_tokens is False else start_ids
        return encode(self.lm.tokenizer, [string])[0]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """The ids of context + continuation, cut in two; a token that spans the border belongs to the continuation.

        White space at the end of the context goes to the continuation, as everywhere in the harness.
        """
        stripped = context.rstrip()
        whole, alone = self.tok_encode(context + continuation), self.tok_encode(stripped)
        cut = next((at for at, (x, y) in enumerate(zip(whole, alone)) if x != y), min(len(whole), len(alone)))
        return whole[:cut] or [self.prefix_token_id], whole[cut:]

    def get_model_info(self) -> dict[str, Any]:
        """Goes into the results: which model, which sidecar (its file's sha256), what was done to the prompts."""
        return {
            "longscan_version": producer_version(),
            "model_name": self.lm.source.name,
            "model_revision": self.lm.source.revision,
            "model_fingerprint": self.lm.fingerprint,
            "model_dtype": str(self.lm.weights.embedding.dtype),
            "sidecar": self.sidecar,
            "sidecar_sha256": self.sidecar_sha256,
            "method": self.method,
            "prompts_by_resolved_method": dict(self.plans),
        }

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """(log-probability of the continuation in nats, whether greedy decoding would give it), one a request."""
        answers: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        batches = list(self._batches(requests))
        for batch in batches if disable_tqdm else progress(batches, "log-likelihoods", unit="batch"):
            continuations = [requests[i][2] for i in batch]
            inputs = torch.tensor([(requests[i][1] + requests[i][2])[:-1] for i in batch])
            logits = self._read(inputs, len(continuations[0]))
            for row, (i, continuation) in enumerate(zip(batch, continuations)):
                scores = logits[row].double().log_softmax(-1).cpu()
                target = torch.tensor(continuation)
                likelihood = float(scores.gather(1, target[:, None]).sum())
                answers[i] = (likelihood, bool((scores.argmax(-1) == target).all()))
                if requests[i][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[i][0], answers[i])
        return answers

    def _batches(self, requests: Sequence[tuple[Any, list[int], list[int]]]) -> Iterable[list[int]]:
        """Indices of requests to read at once, the longest first; empty continuations are left out.

        Lengths are equal, so that S is every row's own; continuations too, so that r is (tokens safe from decimation).
        """

        def shape(i: int) -> tuple[int, int]:
            return len(requests[i][1]) + len(requests[i][2]), len(requests[i][2])

        batch: list[int] = []
        for i in sorted((i for i in range(len(requests)) if requests[i][2]), key=shape, reverse=True):
            rows = self.rows or max(1, _BATCH_TOKENS // shape(i)[0])
            if batch and (shape(batch[0]) != shape(i) or len(batch) >= rows):
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _read(self, inputs: Tensor, wanted: int) -> Tensor:
        """Last `wanted` logits of prompts (B, S) of one length: (B, wanted, V). S is what picks plan and g."""
        self._check(inputs.shape[1])
        out = self.lm.prefill(inputs, method=self.method, logits_to_keep=wanted)
        plan = out.plan[0] if isinstance(out.plan, tuple) else out.plan
        self.plans[plan.method] += len(inputs)
        return out.logits

    def _check(self, length: int) -> None:
        if self.limit is not None and length > self.limit:
            raise ValueError(
                f"a prompt of {length} tokens is longer than max_length={self.limit}, and prompts are never truncated; "
                "give a larger max_length, or leave it out"
            )

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole documents; one longer than max_length is read in windows of it."""
        owners: list[int] = []
        windows: list[tuple[Any, list[int], list[int]]] = []
        for index, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0], add_special_tokens=False)  # the first window brings the prefix
            rolling = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1)
            for context, continuation in map(make_disjoint_window, rolling):
                owners.append(index)
                windows.append((None, context, continuation))
        totals = [0.0] * len(requests)
        for index, (value, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm)):
            totals[index] += value
        for request, total in zip(requests, totals):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Text up to the first stop sequence, end-of-text or max_gen_toks, one a request."""
        answers = []
        jobs = [(request, _generation(request.args[1], self.max_gen_toks)) for request in requests]
        for request, options in jobs if disable_tqdm else progress(jobs, "generating", unit="prompt"):
            context = request.args[0]
            length = len(self.tok_encode(context))
            self._check(length)
            self.plans[plan_at(self.lm.sidecar, length, self.method, fresh=True).method] += 1
            pieces = self.lm.generate(context, method=self.method, **options)
            answers.append("".join(pieces))
            self.cache_hook.add_partial("generate_until", request.args, answers[-1])
        return answers


def _generation(given: dict[str, Any], default: int) -> dict[str, Any]:
    """A task's generation_kwargs as `LM.generate` takes them. Raises ValueError naming what it cannot do."""
    asked = {key: value for key, value in normalize_gen_kwargs(given, default).items() if value is not None}
    until, most = asked.pop("until", []), asked.pop("max_gen_toks")
    for key, value in asked.items():
        if key not in (*_DRAWN, *_IDLE, "repetition_penalty") and value != _OFF.get(key):
            raise ValueError(
                f"generation_kwargs {key}={value!r}: longscan has no such way to generate; leave it out of the task, "
                f"or of --gen_kwargs (known: until, max_gen_toks, do_sample, {', '.join(_DRAWN)}, repetition_penalty)"
            )
    options: dict[str, Any] = {"max_new_tokens": most, "stop": [text for text in until if text]}
    options["repetition_penalty"] = float(asked.get("repetition_penalty", 1.0))
    if asked.get("temperature"):  # else the likeliest token is taken, whatever says how to draw
        options |= {key: kind(asked[key]) for key, kind in _DRAWN.items() if key in asked}
        options["top_k"] = max(0, options.get("top_k", 0))  # -1 is how others write 0
    return options


def _whole(name: str, value: int | str) -> int:
    if not str(value).isdecimal() or int(value) < 1:
        raise ValueError(f"{name}={value} in --model_args is no whole number above 0; give one")
    return int(value)


def _ours(error: BaseException) -> bool:
    """Whether our code, not the harness's, called what raised it: a fault to be seen, not an argument to be checked."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code is not main.__code__)
    names = [str(frame.f_globals.get("__name__")).split(".")[0] for frame in frames]
    return next((name == "longscan" for name in reversed(names) if name in ("longscan", "lm_eval")), False)


def main(arguments: Sequence[str]) -> None:
    """Run the harness's own command line, with the class above registered.

    Raises UserError where a task's data cannot be fetched or what it needs is not installed.
    """
    import sys

    from lm_eval.__main__ import cli_evaluate

    sys.argv = ["lm_eval", *arguments]
    try:
        cli_evaluate()
    except ImportError as error:
        raise UserError(f"a task needs what is not installed: {first_line(error, 300)}; install it") from error
    except OSError as error:
        if error.errno is not None and not isinstance(error, ConnectionError):
            raise
        raise UserError(
            f"cannot fetch what a task needs ({first_line(error, 300)}); check the name and the connection"
        ) from error
    except (KeyError, TypeError, NotImplementedError) as error:  # the harness's own refusals, among them task files
        if _ours(error):
            raise
        raise UserError(f"lm-eval: {type(error).__name__}: {first_line(error, 300)}; check its arguments") from error
