"""One entry a family: where its Mamba layers are, how they are called, and which arithmetic they are.

Nothing is imported from the libraries: a model is recognised by the name and module of its class.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from .adapters import Adapter, falcon_h1, mamba1, mamba2, mamba_ssm, unraised_mamba2
from .hosts import Call, call_mamba_ssm, call_transformers

Layers = Iterator[tuple[nn.Module, Any]]  # (block, mixer), in order


@dataclass(frozen=True)
class Family:
    """How to attach to one family of models."""

    name: str
    find: Callable[[Any], Layers]
    call: Callable[..., Call]
    layer: Adapter
    embedding: Callable[[Any], Any]
    decimates: bool = True  # hybrids do not: the caches of their attention layers keep every token


def backbone_of(model: Any) -> Any:
    """The stack of layers: of a language model, or the stack itself."""
    return getattr(model, "backbone", None) or getattr(model, "model", None) or model


def _mixers(model: Any) -> Layers:
    for block in backbone_of(model).layers:
        if not hasattr(block.mixer, "A_log"):
            raise ValueError("attach does not read mamba_ssm's models with attention layers; load a pure Mamba")
        yield block, block.mixer


def _hybrid_mixers(model: Any) -> Layers:
    """Layers of attention, experts or an MLP alone have no Mamba.

    Zamba2's shared attention sits in front of a Mamba layer of its own; Nemotron-H calls all kinds of layers `mixer`.
    """
    for block in backbone_of(model).layers:
        inner = getattr(block, "mamba_decoder", block)
        mixer = getattr(inner, "mamba", getattr(inner, "mixer", None))
        if hasattr(mixer, "A_log"):
            yield block, mixer


def _transformers_embedding(model: Any) -> Any:
    return model.get_input_embeddings()


def _mamba_ssm_embedding(model: Any) -> Any:
    return backbone_of(model).embedding


MAMBA = Family("transformers' Mamba", _mixers, call_transformers, mamba1, _transformers_embedding)
FALCON_MAMBA = Family("transformers' FalconMamba", _mixers, call_transformers, mamba1, _transformers_embedding)
MAMBA2 = Family("transformers' Mamba2", _mixers, call_transformers, mamba2, _transformers_embedding)


def _hybrid(layer: Adapter) -> Family:
    return Family("a hybrid with attention", _hybrid_mixers, call_transformers, layer, _transformers_embedding, False)


HYBRID, UNRAISED, JAMBA, FALCON_H1 = _hybrid(mamba2), _hybrid(unraised_mamba2), _hybrid(mamba1), _hybrid(falcon_h1)
MAMBA_SSM = Family("mamba_ssm's Mamba", _mixers, call_mamba_ssm, mamba_ssm, _mamba_ssm_embedding)

_KNOWN = {
    ("transformers.models.mamba.", "MambaForCausalLM"): MAMBA,
    ("transformers.models.mamba.", "MambaModel"): MAMBA,
    ("transformers.models.falcon_mamba.", "FalconMambaForCausalLM"): FALCON_MAMBA,
    ("transformers.models.falcon_mamba.", "FalconMambaModel"): FALCON_MAMBA,
    ("transformers.models.mamba2.", "Mamba2ForCausalLM"): MAMBA2,
    ("transformers.models.mamba2.", "Mamba2Model"): MAMBA2,
    ("transformers.models.zamba2.", "Zamba2ForCausalLM"): UNRAISED,
    ("transformers.models.zamba2.", "Zamba2Model"): UNRAISED,
    ("transformers.models.bamba.", "BambaForCausalLM"): HYBRID,
    ("transformers.models.bamba.", "BambaModel"): HYBRID,
    ("transformers.models.granitemoehybrid.", "GraniteMoeHybridForCausalLM"): HYBRID,
    ("transformers.models.granitemoehybrid.", "GraniteMoeHybridModel"): HYBRID,
    ("transformers.models.jamba.", "JambaForCausalLM"): JAMBA,
    ("transformers.models.jamba.", "JambaModel"): JAMBA,
    ("transformers.models.falcon_h1.", "FalconH1ForCausalLM"): FALCON_H1,
    ("transformers.models.falcon_h1.", "FalconH1Model"): FALCON_H1,
    ("transformers.models.nemotron_h.", "NemotronHForCausalLM"): UNRAISED,
    ("transformers.models.nemotron_h.", "NemotronHModel"): UNRAISED,
    ("mamba_ssm.models.", "MambaLMHeadModel"): MAMBA_SSM,
}


def rotary_of(model: Any, family: Family) -> Any:
    """A hybrid's rotary embedding; None where attention has no positions, or its own config stretches them already."""
    found = None if family.decimates else getattr(backbone_of(model), "rotary_emb", None)
    return found if found is not None and found.rope_type == "default" else None


def _check_transformers() -> None:
    """transformers 5 keeps Mamba's states in its common Cache; before, each family had one of its own."""
    if not hasattr(sys.modules["transformers.cache_utils"].Cache, "get_recurrent_state"):
        raise ValueError("this transformers keeps Mamba's states in older caches; pip install --upgrade transformers")


def family_of(model: object) -> Family:
    """The family of a model, also of one whose class derives from a known one. Raises ValueError for any other."""
    for kind in type(model).__mro__:
        for (package, name), family in _KNOWN.items():
            if kind.__name__ == name and kind.__module__.startswith(package):
                if family.call is call_transformers:
                    _check_transformers()
                return family
    names = sorted({name for _, name in _KNOWN if not name.endswith("Model") or name.startswith("MambaLM")})
    raise ValueError(f"attach does not know {type(model).__name__}; give a model of {', '.join(names)}")
