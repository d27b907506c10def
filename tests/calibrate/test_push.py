"""`push` and loading from the Hub, against a loopback hub: real HTTP, the unmodified client, every failure."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from huggingface_hub import ModelCard

from longscan.calibrate.errors import UserError
from longscan.calibrate.share.card import BEGIN, END, merge, model_card
from longscan.calibrate.share.hub import explain
from longscan.calibrate.sidecars import sidecar_from_bands
from longscan.runtime import Sidecar, load

from ..checkpoints import make_sidecar, random_tensors, write_state_spaces
from ..client import Client
from ..hub import Hub

IDS = [(7 * k) % 60 for k in range(90)]


@pytest.fixture(scope="module")
def hub():
    with Hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("hf-home")


@pytest.fixture(scope="module")
def client(hub, home):
    with Client(hub.env(home)) as client:
        yield client


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_state_spaces(tmp_path_factory.mktemp("models") / "tiny", random_tensors(), train_length=16)


@pytest.fixture(scope="module")
def base(hub, model):
    """The model as a repository of the Hub; its sidecars name it so."""
    files = {path.name: path.read_bytes() for path in model.iterdir()}
    return hub.put("someone/tiny-mamba", {**files, "README.md": b"---\nlicense: mit\n---\n"})


@pytest.fixture(scope="module")
def sidecar(model, base, tmp_path_factory):
    """A file, made for the repository at its commit, with the metadata a calibration writes."""
    side = make_sidecar(load(model))
    provenance = {"texts": "someone/books#train@text", "samples": 4, "seed": 0, "lengths": [64], "method": "auto",
                  "layers": [{"mean_distance": 3.0 + i} for i in range(3)]}  # fmt: skip
    scores = [{"length": 64, "method": m, "loss": loss, "passkeys": 0.5} for m, loss in (("none", 1.5), ("both", 1.25))]
    band = (side.bands[0], {name.split(".")[-1]: t for name, t in side.tensors.items()})
    made = sidecar_from_bands(load(model), 16, [band], recipe={"name": "x"}, calibration=provenance, scores=scores)
    metadata = {**made.metadata, "base_model": "someone/tiny-mamba", "base_model_revision": base.id}
    path = tmp_path_factory.mktemp("side") / "tiny.longscan.safetensors"
    Sidecar(made.tensors, metadata).write(path)
    return path


@pytest.mark.parametrize(
    ("method", "decode", "said", "unsaid"),
    [
        ("filter", True, "Generated tokens are filtered, too", "Decimation"),
        ("filter", False, "Generated tokens are not filtered; `load(..., filter_decode=True)`", "Decimation"),
        ("both", True, "Decimation drops tokens of the prompt for good", "not filtered"),
        ("decimate", True, "Decimation drops tokens of the prompt for good", "Generated"),
    ],
)
def test_the_limits_say_what_happens_to_generated_tokens(sidecar, method, decode, said, unsaid):
    side = Sidecar.read(sidecar)
    policy = json.loads(side.metadata["policy"])
    policy["bands"][0]["method"] = method
    limits = model_card(
        Sidecar(side.tensors, {**side.metadata, "policy": json.dumps({**policy, "filter_decode": decode})}), "a/b", {}
    ).split("## Limits")[1]
    assert said in limits and unsaid not in limits


def wanted(model, sidecar):
    return load(model, sidecar).prefill(torch.tensor([IDS])).logits[0, -1].tolist()


def test_push_then_load_gives_the_same_logits(hub, client, home, model, sidecar):
    result = client.calibrate("push", sidecar, "someone/tiny-longscan", "--json")
    assert result.code == 0, (result.stderr, hub.log[-3:])
    done = json.loads(result.stdout)
    repo = hub.repos["models/someone/tiny-longscan"]
    assert [c.title for c in repo.branches["main"]] == ["initial commit", repo.branches["main"][-1].title]  # one commit
    files = repo.find(done["commit"]).files
    assert done["url"] == f"{hub.url}/someone/tiny-longscan" and set(done["files"]) <= set(files)
    assert files["sidecar.safetensors"] == sidecar.read_bytes()
    config = json.loads(files["config.json"])
    assert config["base_model"] == "someone/tiny-mamba" and config["bands"][0]["decimation"] == {"1": 30}
    assert files["figures/perplexity.png"][:4] == b"\x89PNG" and "figures/mean-distance.png" in files
    card = files["README.md"].decode()
    for line in ("base_model: someone/tiny-mamba", "base_model_relation: adapter", "library_name: longscan",
                 "license: mit", "- someone/books", 'load("someone/tiny-longscan")', "| 64 (4x) | 4.482 | 3.490 \\* |",
                 "calibrate run --model someone/tiny-mamba", "![Perplexity against length](figures/perplexity.png)",
                 "## Limits"):  # fmt: skip
        assert line in card, line
    for tag in ("mamba", "long-context", "decimamba", "longmamba", "calibration"):
        assert f"- {tag}\n" in card
    same = wanted(model, sidecar)
    assert client.logits(str(model), "someone/tiny-longscan", IDS) == same
    assert client.logits("someone/tiny-longscan", None, IDS) == same  # alone: the base model is in the metadata
    assert client.logits("someone/tiny-mamba", f"someone/tiny-longscan@{done['commit']}", IDS) == same
    with Client({**hub.env(home), "HF_HUB_OFFLINE": "1"}) as offline:
        before = len(hub.log)
        assert offline.logits("someone/tiny-longscan", None, IDS) == same
        assert offline.logits(str(model), "someone/tiny-longscan", IDS) == same
        assert "offline" in offline.calibrate("push", sidecar, "someone/tiny-longscan").stderr
        assert len(hub.log) == before


def test_revisions(hub, client, model, sidecar):
    result = client.calibrate("push", sidecar, "someone/branches", "--revision", "v2")
    assert result.code == 0 and "someone/branches/tree/v2\ncommit " in result.stdout, result.stderr
    repo = hub.repos["models/someone/branches"]
    assert "sidecar.safetensors" not in repo.find("main").files and "sidecar.safetensors" in repo.find("v2").files
    assert client.logits(str(model), "someone/branches", IDS, revision="v2") == wanted(model, sidecar)
    assert client.logits(str(model), "someone/branches@v2", IDS) == wanted(model, sidecar)
    assert "holds no sidecar" in client.logits(str(model), "someone/branches", IDS)
    assert "no revision 'v9'" in client.logits(str(model), "someone/branches", IDS, revision="v9")


def test_private_repositories(hub, client, model, sidecar, tmp_path):
    result = client.calibrate("push", sidecar, "someone/secret", "--private")
    assert result.code == 0 and hub.repos["models/someone/secret"].private, result.stderr
    assert client.logits(str(model), "someone/secret", IDS) == wanted(model, sidecar)
    with Client(hub.env(tmp_path, token=None)) as stranger:
        assert "no repository someone/secret" in stranger.logits(str(model), "someone/secret", IDS)
    client.calibrate("push", sidecar, "someone/open")
    refused = client.calibrate("push", sidecar, "someone/open", "--private")
    assert refused.code == 1 and "exists and is public" in refused.stderr


def test_older_repositories_and_wrong_ones(hub, client, model, sidecar, tmp_path):
    hub.put("someone/older", {"tiny.longscan.safetensors": sidecar.read_bytes()})
    assert client.logits(str(model), "someone/older", IDS) == wanted(model, sidecar)
    assert client.logits("someone/older", None, IDS) == wanted(model, sidecar)
    hub.put("someone/two", {f"{n}.longscan.safetensors": sidecar.read_bytes() for n in "ab"})
    assert "2 files" in client.logits(str(model), "someone/two", IDS)
    other = write_state_spaces(tmp_path / "other", random_tensors(seed=5))
    assert "model_fingerprint" in client.logits(str(other), "someone/older", IDS)


def test_a_card_is_updated_never_clobbered(hub, client, sidecar):
    assert client.calibrate("push", sidecar, "someone/carded").code == 0
    repo = hub.repos["models/someone/carded"]
    card = repo.find("main").files["README.md"].decode()
    edited = (
        card.replace("tags:\n", "tags:\n- mine\n")
        .replace(BEGIN, f"My words.\n\n{BEGIN}")
        .replace("## Limits", "## Gone")
    )
    hub.put("someone/carded", {"README.md": (edited + "\nMore of mine.\n").encode(), "notes.txt": b"kept"})
    assert client.calibrate("push", sidecar, "someone/carded").code == 0
    files = repo.find("main").files
    again = files["README.md"].decode()
    assert "My words." in again and "More of mine." in again and "- mine\n" in again and files["notes.txt"] == b"kept"
    assert again.count("## Limits") == 1 and "## Gone" not in again and again.count(BEGIN) == again.count(END) == 1


def test_merge_keeps_a_card_without_markers():
    new = f"---\nlicense: mit\nlibrary_name: longscan\ntags: [mamba]\n---\n\n# x\n\n{BEGIN}\nours\n{END}\n"
    merged = merge("---\nlicense: gpl\n---\n# Theirs\ntext\n", new)
    assert "license: gpl" in merged and "# Theirs\ntext\n" in merged and merged.endswith(f"{BEGIN}\nours\n{END}\n")
    assert merge(merged, new) == merged
    with pytest.raises(UserError, match="no YAML"):
        merge("---\na: [\n---\n", new)


def test_dry_run_asks_the_hub_nothing(hub, client, sidecar):
    before = len(hub.log)
    result = client.calibrate("push", sidecar, "someone/dry", "--dry-run", token=None)
    assert result.code == 0 and "sidecar.safetensors" in result.stdout and "## Measured" in result.stdout
    found = json.loads(client.calibrate("push", sidecar, "someone/dry", "--dry-run", "--json", token=None).stdout)
    assert found["files"]["config.json"] > 500 and found["card"].startswith("---\nbase_model: someone/tiny-mamba")
    assert len(hub.log) == before


@pytest.fixture
def faults(hub):
    yield hub.inject
    hub.faults.clear()


@pytest.mark.parametrize(
    ("where", "what"),
    [("repos/create", "drop"), ("/preupload/", 503), ("PUT /lfs/", "drop"), ("/commit/", "drop"), ("/commit/", 500),
     ("/commit/", "drop after"), ("/commit/", "short")],
)  # fmt: skip
def test_what_passes_is_tried_again(hub, client, sidecar, faults, where, what):
    name = f"someone/again-{where.strip('/').split('/')[-1].split()[-1]}-{str(what).replace(' ', '-')}"
    hub.lfs.clear()
    faults(where, what)
    result = client.calibrate("push", sidecar, name, "--json")
    assert result.code == 0, result.stderr
    history = hub.repos[f"models/{name}"].branches["main"]
    assert len(history) == 2 and history[-1].id == json.loads(result.stdout)["commit"]


def test_a_commit_that_others_have_built_on_is_not_made_again(hub, client, sidecar, faults):
    """Its answer is lost, and when the client looks again, it is no longer the newest."""
    name = "someone/built-on"
    faults("/commit/", "drop after")
    faults("/commits/", lambda: hub.put(name, {"theirs.txt": b"x"}))
    result = client.calibrate("push", sidecar, name, "--json")
    repo = hub.repos[f"models/{name}"]
    titles = [commit.title for commit in repo.branches["main"]]
    assert result.code == 0 and [titles[0], *titles[2:]] == ["initial commit", "files"], titles
    assert repo.find(json.loads(result.stdout)["commit"]).title == titles[1]


def test_a_push_never_says_that_nothing_was_committed_where_it_cannot_know(hub, client, sidecar, faults):
    name = "someone/unsure"
    faults("/commit/", "drop after")
    faults("/commits/", 503, 99)
    result = client.calibrate("push", sidecar, name)
    assert result.code == 1 and "may be made or not; run the same command again" in result.stderr.splitlines()[-1]
    hub.faults.clear()
    assert client.calibrate("push", sidecar, name).code == 0
    assert len(hub.repos[f"models/{name}"].branches["main"]) == 2  # the client makes no empty commit


def test_slow_answers_are_waited_for(hub, client, sidecar, faults):
    faults("/commit/", "slow", seconds=1.5)
    assert client.calibrate("push", sidecar, "someone/slow").code == 0


@pytest.mark.parametrize(
    ("where", "what", "times", "message"),
    [
        ("repos/create", 401, 1, "does not accept the token (401)"),
        ("repos/create", 403, 1, "may not write to"),
        ("/preupload/", 403, 1, "may not write to"),
        ("/commit/", 409, 2, "changed by someone else"),
        ("/commit/", 412, 2, "changed by someone else"),
        ("/commit/", 500, 9, "answers 500 and nothing was committed"),
        ("/commit/", "drop", 9, "connection to the Hub was lost"),
    ],
)
def test_failures_are_one_line_and_commit_nothing(hub, client, sidecar, faults, where, what, times, message):
    name = f"someone/fails-{what}-{where.strip('/').split('/')[-1]}"
    faults(where, what, times)
    result = client.calibrate("push", sidecar, name)
    lines = result.stderr.strip().splitlines()
    assert result.code == 1 and lines[-1].startswith("Error: ") and message in lines[-1] and ";" in lines[-1]
    assert "Traceback" not in result.stderr and result.stdout == ""
    repo = hub.repos.get(f"models/{name}")
    assert repo is None or len(repo.branches["main"]) == 1


def test_refusals(hub, client, sidecar, model, tmp_path):
    def refused(*arguments, code=1, **options):
        result = client.calibrate("push", *arguments, **options)
        assert result.code == code and result.stdout == "" and "Traceback" not in result.stderr
        return result.stderr.strip().splitlines()[-1]

    assert "no token" in refused(sidecar, "someone/x", token=None)
    assert "does not accept the token" in refused(sidecar, "someone/x", token="hf_wrong")
    assert "may not write" in refused(sidecar, "another/x")
    assert "holds something else" in refused(sidecar, "someone/tiny-mamba")  # a name clash with a model
    assert "give user/name" in refused(sidecar, "justaname", code=2)
    assert "no sidecar file" in refused(tmp_path / "none.st", "someone/x")
    lm = load(write_state_spaces(tmp_path / "other", random_tensors(seed=5)))
    make_sidecar(lm).write(tmp_path / "other.st")
    assert client.calibrate("push", sidecar, "someone/taken").code == 0
    assert "sidecar of another model" in refused(tmp_path / "other.st", "someone/taken")


def test_a_sidecar_of_a_local_model_says_so(hub, client, model, tmp_path):
    make_sidecar(load(model)).write(tmp_path / "local.st")
    assert client.calibrate("push", tmp_path / "local.st", "someone/local").code == 0
    assert (
        'load("path/to/tiny", "someone/local")'
        in hub.repos["models/someone/local"].find("main").files["README.md"].decode()
    )
    assert "sidecar of the local model 'tiny'" in client.logits("someone/local", None, IDS)
    assert len(client.logits(str(model), "someone/local", IDS)) == 64


def test_unknown_errors_are_explained_too():
    assert "check the name" in str(explain(ValueError("odd"), "a/b"))


@pytest.mark.parametrize(
    "head",
    [
        "---\r\nlicense: cc-by-4.0\r\ntags:\r\n- mine\r\n---\r\n# Theirs\r\n",
        "---\nlicense: cc-by-4.0\ntags: [mine]\n---",
        "\n---\nlicense: cc-by-4.0\ntags: [mine]\n---\n# Theirs\n",
        "---  \nlicense: cc-by-4.0\ntags: [mine]\n---\n",
    ],
)
def test_merge_finds_a_cards_head_where_the_hub_does(head):
    new = f"---\nlicense: mit\nlibrary_name: longscan\ntags: [mamba]\n---\n\n# x\n\n{BEGIN}\nours\n{END}\n"
    merged = ModelCard(merge(head, new))
    assert merged.data.license == "cc-by-4.0" and merged.data.tags == ["mine", "mamba"]
    assert merged.data.library_name == "longscan" and merged.text.count("---") == 0
    assert ModelCard(merge("---\n---\n# Theirs\n", new)).data.license == "mit"


@pytest.mark.parametrize("of, known", [("someone/tiny-mamba", True), ("folder", False)])
def test_a_card_on_a_branch_loads_from_that_branch(sidecar, of, known):
    side = Sidecar.read(sidecar)
    side = replace(side, metadata={**side.metadata, "base_model": of})
    wanted = 'load("me/x", revision="v2")' if known else 'load("path/to/folder", "me/x@v2")'
    assert wanted in model_card(side, "me/x", {}, revision="v2")
    assert model_card(side, "me/x", {}, revision="main") == model_card(side, "me/x", {})


def test_a_card_says_how_many_windows_were_read(sidecar):
    side = Sidecar.read(sidecar)
    rows = json.loads(side.metadata["scores"])
    counted = [{**row, "windows": 30 * (i + 1)} for i, row in enumerate(rows)]
    card = model_card(replace(side, metadata={**side.metadata, "scores": json.dumps(counted)}), "me/x", {})
    assert f"30 to {30 * len(rows)} windows a length" in card
