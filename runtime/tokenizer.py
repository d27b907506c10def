"""The model's tokenizer, through the `tokenizers` library."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .config import ModelConfig
from .errors import CheckpointError
from .source import Source, download

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NEOX = "EleutherAI/gpt-neox-20b"  # what the state-spaces models were trained with; their repositories hold none


def load_tokenizer(source: Source, config: ModelConfig) -> Tokenizer:
    """tokenizer.json beside the model, else GPT-NeoX's from the Hub for the state-spaces models.

    Raises CheckpointError if there is none, or it cannot be read.
    """
    from tokenizers import Tokenizer

    path = source.find("tokenizer.json")
    if path is None:
        if not config.neox_vocabulary:
            raise CheckpointError(f"{source.name} has no tokenizer.json; put the model's beside config.json")
        path = download(NEOX, None, ["tokenizer.json"]) / "tokenizer.json"
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{path.name} is not a tokenizer ({str(error)[:100]}); download it again") from error


def eos_id(tokenizer: Tokenizer, config: ModelConfig) -> int | None:
    """The id that ends a text, or None if the model has none."""
    return config.eos_token_id if config.eos_token_id is not None else tokenizer.token_to_id("<|endoftext|>")
