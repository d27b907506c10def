"""`calibrate push`: a sidecar as a repository of the Hub, in one commit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...runtime.checkpoint.source import BUNDLED, SIDECAR_FILE, is_hub_id
from ...runtime.files import parse_json
from ...runtime.sidecar.sidecar import Sidecar, find_file
from ..errors import UserError, first_line
from ..report.figures import pictures
from ..report.inspect import describe
from ..summary import to_yaml
from .card import merge, model_card
from .hub import explain, retried, status, unanswered

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CARD, CONFIG = "README.md", "config.json"


@dataclass(frozen=True)
class Pushed:
    """Where it went: the repository's full id, its URL, the commit's id."""

    repo: str
    url: str
    commit: str


def gather(sidecar: str, repo_id: str, licence: str | None = None, revision: str | None = None) -> dict[str, bytes]:
    """The files of a repository by name: sidecar, readable config.json, recipe.yaml, figures, and a new card."""
    path = find_file(sidecar)
    side = Sidecar.read(path)
    drawn = {f"figures/{picture.name}.png": picture for picture in pictures(side)}
    titles = {name: picture.title for name, picture in drawn.items()}
    found = describe(side)
    return {
        SIDECAR_FILE: path.read_bytes(),
        CONFIG: (json.dumps(found, indent=2, ensure_ascii=False) + "\n").encode(),
        "recipe.yaml": to_yaml(found["recipe"]).encode(),
        **{name: picture.render("png") for name, picture in drawn.items()},
        CARD: model_card(
            side, repo_id, titles, licence or known_licence(side.metadata["base_model"]), revision
        ).encode(),
    }


def known_licence(base_model: str) -> str | None:
    """The licence of the models everyone starts with; state-spaces publishes all of its under one."""
    return "apache-2.0" if base_model in BUNDLED or base_model.startswith("state-spaces/") else None


def hub_licence(base_model: str) -> str | None:
    """The licence on the base model's card; None where there is none, or it cannot be read."""
    from huggingface_hub import HfApi

    if not is_hub_id(base_model):
        return None
    try:
        card = HfApi(library_name="longscan").model_info(base_model, timeout=10).card_data
    except Exception as error:
        if not unanswered(error):
            raise
        return None  # only a courtesy: a push must not fail for the base model's card
    found = None if card is None else card.to_dict().get("license")
    return found if isinstance(found, str) else None


def publish(files: Mapping[str, bytes], repo_id: str, *, private: bool = False, revision: str | None = None) -> Pushed:
    """Create the repository if needed and commit all files at once. Raises UserError; then nothing was committed."""
    try:
        return _publish(files, repo_id, private, revision)
    except Exception as error:  # the client raises its HTTP library's errors besides its own
        raise explain(error, repo_id) from error


def _publish(files: Mapping[str, bytes], repo_id: str, private: bool, revision: str | None) -> Pushed:
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    if get_token() is None:
        raise UserError("no token for the Hub; run `hf auth login`, or set HF_TOKEN to a token with write access")
    api = HfApi(library_name="longscan")
    # exist_ok would also accept a repository one may only read; what is there is judged below.
    repo = retried(lambda: api.create_repo(repo_id, private=private or None, exist_ok=True), "creating").repo_id
    if revision is not None:
        retried(lambda: api.create_branch(repo, branch=revision, exist_ok=True), "creating the branch")
    branch = revision or "main"
    additions = {name: CommitOperationAdd(name, data) for name, data in files.items() if name != CARD}
    wanted = hashlib.sha256(files[SIDECAR_FILE]).hexdigest()
    message = f"Sidecar {wanted[:12]} by calibrate push"
    tried: set[str] = set()  # heads on which a commit was asked for

    def landed() -> Pushed | None:
        """The commit of a try whose answer was lost; others may have committed since."""
        for one in api.list_repo_commits(repo, revision=branch) if tried else ():
            if one.commit_id in tried:
                return None
            if one.title == message:
                return Pushed(repo, _url(api, repo, branch), one.commit_id)
        return None

    def commit() -> Pushed:
        """One try. Its parent is named, so that a commit whose answer got lost cannot be made twice."""
        if (found := landed()) is not None:
            return found
        info = api.model_info(repo, revision=branch, files_metadata=False)
        head = str(info.sha)
        names = {entry.rfilename for entry in info.siblings or []}
        if private and not info.private:
            raise UserError(f"{repo} exists and is public; make it private in its settings, or choose another name")
        if CONFIG in names:
            _refuse_foreign(_read(api, repo, CONFIG, head), files[CONFIG], repo)
        old = _read(api, repo, CARD, head).decode() if CARD in names else None
        card = CommitOperationAdd(CARD, merge(old, files[CARD].decode()).encode())
        api.preupload_lfs_files(repo, additions.values(), revision=branch)
        operations = [*additions.values(), card]
        tried.add(head)
        made = api.create_commit(repo, operations, commit_message=message, revision=branch, parent_commit=head)
        return Pushed(repo, _url(api, repo, branch), made.oid)

    def twice() -> Pushed:
        try:
            return commit()
        except Exception as error:
            if status(error) not in (409, 412):
                raise
            return commit()  # someone committed in between: read the card again

    try:
        return retried(twice, "pushing")
    except Exception as error:
        try:
            found = landed()
        except Exception as again:
            raise UserError(
                f"the Hub broke off while it took the commit to {repo} ({first_line(again, 120)}), which may be made "
                "or not; run the same command again"
            ) from error
        if found is None:
            raise
        return found


def _read(api: HfApi, repo: str, name: str, revision: str) -> bytes:
    return Path(api.hf_hub_download(repo, name, revision=revision)).read_bytes()


def _refuse_foreign(old: bytes, new: bytes, repo: str) -> None:
    """Raise UserError where the repository holds anything but a sidecar of the same model."""
    ours = json.loads(new)
    try:
        there = parse_json(old)
    except ValueError:
        there = {}
    if not isinstance(there, dict) or there.get("schema") != ours["schema"]:
        raise UserError(f"{repo} already holds something else (its config.json is no sidecar's); choose another name")
    if there.get("model_fingerprint") != ours["model_fingerprint"]:
        raise UserError(
            f"{repo} already holds the sidecar of another model ({there.get('base_model')}); choose another name"
        )


def _url(api: HfApi, repo: str, branch: str) -> str:
    return f"{api.endpoint}/{repo}" + ("" if branch == "main" else f"/tree/{branch}")
