"""Where a model's files are: a bundled demo, a local folder, or a Hub repository."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..files import parse_json
from .weight_files import BIN, INDEX, SAFE, main_file, weight_map

HERE = Path(__file__).parents[1]
BUNDLED = {"demo": HERE / "demo", "demo-mamba2": HERE / "demo_mamba2"}
SIDECAR_FILE = "sidecar.safetensors"  # its name in a repository that `calibrate push` made


@dataclass(frozen=True)
class Source:
    """A model's files and the name under which a sidecar remembers it (never a path)."""

    name: str
    revision: str
    folder: Path

    def find(self, *names: str) -> Path | None:
        """The first of `names` that exists in the folder."""
        return next((self.folder / name for name in names if (self.folder / name).is_file()), None)

    def is_sidecar(self) -> bool:
        """Whether this is what `calibrate push` made: a sidecar and no model."""
        config = self.find("config.json")
        if config is None:
            return self.find(SIDECAR_FILE) is not None or any(self.folder.glob("*.longscan.safetensors"))
        return peek(config).get("schema") == "longscan.sidecar"


def peek(path: Path) -> dict[str, Any]:
    """A file's JSON object; empty where it holds none, of which reading the model says what is wrong."""
    try:
        data = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def split_revision(name: str) -> tuple[str, str | None]:
    """`user/repo@revision` -> its two parts; None where there is no revision."""
    repo, _, revision = name.partition("@")
    return repo, revision or None


def is_hub_id(name: str) -> bool:
    """Whether a name can be a Hub repository, `user/name`, and is no path."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def is_known_anywhere(name: str) -> bool:
    """Whether a name finds its model on any machine: bundled, or on the Hub."""
    return name in BUNDLED or is_hub_id(name)


def expand(name: str | Path) -> Path:
    """A path with its ~ resolved; as it stands where nobody has that home."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def locate(model: str, revision: str | None = None) -> Source:
    """Turn MODEL (`demo`, `demo-mamba2`, a folder, or a Hub id) into a Source, downloading what is missing.

    Raises CheckpointError if there is no such folder or repository, or the Hub cannot be reached.
    """
    if model in BUNDLED:
        return Source(model, "", BUNDLED[model])
    path = expand(model)
    if path.is_dir():
        return _merged(Source(path.resolve().name, "", path))
    if path.is_file():
        raise CheckpointError(f"{model} is a file; give the folder that holds config.json and the weights")
    if not is_hub_id(model):
        raise CheckpointError(f"no model folder {model!r}; give a folder, a Hub id, demo or demo-mamba2")
    return _merged(_fetched(model, revision))


def _merged(source: Source) -> Source:
    """Refuse a model whose adapter lies beside it: whoever names the folder means both."""
    if source.find("adapter_config.json"):
        raise CheckpointError(
            f"{source.name} holds an adapter (adapter_config.json), which is not read; merge it into its model first"
        )
    return source


def _fetched(repo: str, revision: str | None) -> Source:
    """A Hub repository's own weights, not whatever lies beside them: `.bin` files only if it has nothing safer."""
    small = ["config.json", "generation_config.json", "tokenizer.json", "adapter_config.json"]
    small += [SIDECAR_FILE, "*.longscan.safetensors"]
    for first in (SAFE, BIN):
        folder = download(repo, revision, [*small, first, first + INDEX])
        found = main_file(folder, first, first + INDEX)
        if found is None:
            continue
        if found.name.endswith(INDEX):
            folder = download(repo, folder.name, sorted(set(weight_map(found).values())))
        break
    return Source(repo, folder.name, folder)


def download(repo: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Snapshot of the files of a Hub repository that match. Raises CheckpointError with the remedy."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(patterns)))
    except GatedRepoError as error:
        raise CheckpointError(f"{repo} is gated; accept its terms and log in with `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(f"no repository {repo} on the Hub; check the name (private: `hf auth login`)") from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{repo} has no revision {revision!r}; check --revision") from error
    except HFValidationError as error:
        raise CheckpointError(f"{repo!r} is neither a folder nor a valid Hub id; check the name") from error
    except Exception as error:  # the client raises many kinds: offline mode, refused connections, http errors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"cannot fetch {repo} from the Hub ({reason[:160]}); connect, or give a local folder"
        ) from error
