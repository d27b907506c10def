"""The model's tokenizer, through the `tokenizers` library: reading it, and which tokens a prompt begins with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..errors import CheckpointError
from .config import ModelConfig
from .source import Source, download

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

NEOX = "EleutherAI/gpt-neox-20b"  # what the state-spaces models were trained with; their repositories hold none


def load_tokenizer(source: Source, config: ModelConfig) -> Tokenizer:
    """tokenizer.json beside the model, else GPT-NeoX's from the Hub for the state-spaces models.

    Raises CheckpointError if there is none, or it cannot be read.
    """
    path = source.find("tokenizer.json")
    if path is None:
        if not config.neox_vocabulary:
            raise CheckpointError(f"{source.name} has no tokenizer.json; put the model's beside config.json")
        path = download(NEOX, None, ["tokenizer.json"]) / "tokenizer.json"
    with _understood("is not a tokenizer"):
        return read_tokenizer(path.read_bytes())


def read_tokenizer(data: bytes) -> Tokenizer:
    """A tokenizer.json. Truncation and padding, which it may have been saved with, are of its last user's batches."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_buffer(data)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def start_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Ids of texts that begin here: with what the tokenizer puts before a text (BOS), without what it puts after one.

    An EOS behind a prompt would end the text that is to be continued. A text that spells its BOS out gets no second.
    Raises ValueError on text that is no Unicode.
    """
    begin: list[int] | None = None
    found = []
    for one in _encoded(tokenizer, [*texts, "a"], True):  # "a": an empty text does not tell before from after
        ids, added = one.ids, one.special_tokens_mask  # 1 where the tokenizer added it, 0 where the text spells it
        first = added.index(0) if 0 in added else len(ids)
        if begin is None and first < len(ids):
            begin = ids[:first]
        found.append(ids[first : len(ids) - added[::-1].index(0)] if first < len(ids) else [])
    begin = begin or []
    return [ids if ids[: len(begin)] == begin else begin + ids for ids in found[:-1]]


def plain_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Ids of texts, nothing added before or after. Raises ValueError on text that is no Unicode."""
    return [one.ids for one in _encoded(tokenizer, texts, False)]


def inside_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Ids of texts that go on from earlier text: no BOS, nor the space that some tokenizers put before every text.

    That space is told apart by encoding the text behind a character whose own tokens come off again.
    """
    [alone] = plain_ids(tokenizer, ["a"])
    heads = plain_ids(tokenizer, _ANCHORS)
    if all(ids[-len(alone) :] == alone for ids in plain_ids(tokenizer, [anchor + "a" for anchor in _ANCHORS])):
        return plain_ids(tokenizer, texts)
    found = []
    for text in texts:
        *behind, plain = plain_ids(tokenizer, [*(anchor + text for anchor in _ANCHORS), text])
        cut = (ids[len(head) :] for head, ids in zip(heads, behind) if head and ids[: len(head)] == head)
        found.append(next(cut, plain))
    return found


_ANCHORS = ("\n", ".")  # hardly ever merged with what follows; a tokenizer that drops new lines keeps the full stop


def _encoded(tokenizer: Tokenizer, texts: Sequence[str], add_special_tokens: bool) -> list[Encoding]:
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"a text holds half a character ({text[error.start]!r} at {error.start}), as bytes that are not UTF-8 "
                "do when they are read as text; convert it to UTF-8"
            ) from None
    with _understood("cannot read a text"):
        found: list[Encoding] = tokenizer.encode_batch(list(texts), add_special_tokens=add_special_tokens)
    return found


def decoded(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of ids, special tokens left out."""
    with _understood("cannot write a text"):
        text: str = tokenizer.decode(ids)
    return text


@contextmanager
def _understood(fails: str) -> Iterator[None]:
    """The library raises bare Exception, and a panic of its Rust, which is none, is one of BaseException."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, OSError):
        raise
    except BaseException as error:
        raise CheckpointError(f"the model's tokenizer.json {fails} ({str(error)[:100]}); download it again") from error


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The special tokens, which `decode` leaves out: their texts and ids."""
    return {token.content: at for at, token in tokenizer.get_added_tokens_decoder().items() if token.special}


def eos_ids(tokenizer: Tokenizer, config: ModelConfig) -> tuple[int, ...]:
    """The ids that end a text, the model's first one first; none if the model has none."""
    if config.eos_token_ids:
        return config.eos_token_ids
    known = tokenizer.token_to_id("<|endoftext|>")
    return () if known is None else (known,)
