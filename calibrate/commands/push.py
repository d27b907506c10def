"""`calibrate push`."""

from __future__ import annotations

from dataclasses import asdict

import click

from .group import cli, emit, json_option


@cli.command()
@click.argument("sidecar")
@click.argument("repo_id")
@click.option("--private", is_flag=True, help="Create the repository as private.")
@click.option("--revision", help="Branch to push to; created if missing [default: main].")
@click.option("--dry-run", is_flag=True, help="Print the files and the card of a new repository; ask the Hub nothing.")
@json_option
def push(sidecar: str, repo_id: str, private: bool, revision: str | None, dry_run: bool, as_json: bool) -> None:
    """Publish a sidecar on the Hugging Face Hub, in one commit.

    It holds the sidecar, a readable config.json, the recipe, the report's figures and a model card, of which only the
    part between its markers is rewritten later. The token is huggingface_hub's: HF_TOKEN, or `hf auth login`.
    """
    from ...runtime import Sidecar
    from ..share.push import gather, hub_licence, publish

    if not _is_repo(repo_id):
        raise click.BadParameter(f"{repo_id!r} is no repository id; give user/name")
    base = Sidecar.read(sidecar).metadata["base_model"]
    files = gather(sidecar, repo_id, None if dry_run else hub_licence(base), revision)
    sizes = {name: len(data) for name, data in sorted(files.items())}
    if dry_run:
        card = files["README.md"].decode()
        listed = "\n".join(f"{size:>12,}  {name}" for name, size in sizes.items())
        found = {"repo": repo_id, "dry_run": True, "files": sizes, "card": card}
        emit(found, as_json, lambda _: f"{listed}\n\n{card}")
    else:
        done = publish(files, repo_id, private=private, revision=revision)
        emit({**asdict(done), "files": sizes}, as_json, lambda _: f"{done.url}\ncommit {done.commit}")


def _is_repo(name: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    from ...runtime.checkpoint.source import is_hub_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return is_hub_id(name)
