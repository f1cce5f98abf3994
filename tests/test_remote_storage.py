"""Models and experiments go to S3 by `dvc push` and come back in other clones; moto serves the S3."""

import copy
from types import SimpleNamespace

import pytest
import requests

from conftest import S3_KEY, stages_run

MODEL = "models/minilm"


@pytest.fixture(scope="module")
def origin(project, s3, tmp_path_factory):
    """The project as others find it: a bare repository in git, its outputs and an experiment in S3."""
    folder = tmp_path_factory.mktemp("origin")
    repository = folder / "minilm.git"
    # Settings for S3 that this machine may have must not count.
    (folder / "none").touch()
    project.env = {key: value for key, value in project.env.items() if not key.startswith("AWS_")} | {
        "AWS_CONFIG_FILE": str(folder / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
        **S3_KEY,
    }
    project.dvc("remote", "add", "--default", "storage", "s3://storage/minilm")
    project.dvc("remote", "modify", "storage", "endpointurl", s3)
    project.commit()
    project.dvc("push")
    project.run("git", "clone", "--quiet", "--bare", ".", str(repository))
    project.run("git", "remote", "add", "origin", str(repository))
    wanted = {path.name: path.read_bytes() for path in (project.folder / MODEL).iterdir()}
    text = project.main("--generate")

    project.dvc("exp", "run", "--name", "other", "-S", "seed=2")
    project.dvc("exp", "push", "--run-cache", "origin", "other")
    return SimpleNamespace(
        repository=repository, model=wanted, text=text, others_lock=project.read("dvc.lock")
    )


@pytest.fixture
def clone(project, origin, tmp_path):
    """A fresh clone: what git knows, and nothing else."""
    clone = copy.copy(project)
    clone.folder = tmp_path / "clone"
    project.run("git", "clone", "--quiet", str(origin.repository), str(clone.folder))
    return clone


def model_of(clone) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (clone.folder / MODEL).iterdir()}


def test_fresh_clone_pulls_the_model_and_writes_as_its_origin_does(clone, origin):
    clone.dvc("pull", MODEL)
    assert model_of(clone) == origin.model
    assert clone.main("--generate") == origin.text
    assert not (clone.folder / "data" / "raw").exists()
    assert not (clone.folder / "mlflow.db").exists()
    assert clone._git("status", "--porcelain") == ""


def test_pulled_project_is_complete_and_the_run_cache_spares_what_others_ran(clone, origin):
    clone.dvc("pull", "--run-cache")
    assert stages_run(clone.dvc("repro")) == set()
    clone.set(seed="2")
    output = clone.dvc("repro", "--pull")
    assert stages_run(output) == set()
    assert "Stage 'train' is cached" in output
    assert clone.read("dvc.lock") == origin.others_lock
    clone.set(seed="1337")
    assert stages_run(clone.dvc("repro")) == set()
    assert model_of(clone) == origin.model
    assert clone._git("status", "--porcelain") == ""


def test_experiment_of_another_comes_with_its_model(clone, origin):
    # Credentials in the configuration that git ignores do as well as those in the environment.
    clone.env = {key: value for key, value in clone.env.items() if key not in S3_KEY}
    clone.dvc("remote", "modify", "--local", "storage", "access_key_id", "someone")
    clone.dvc("remote", "modify", "--local", "storage", "secret_access_key", "secret")
    clone.dvc("exp", "pull", "origin", "other")
    clone.dvc("exp", "apply", "other")
    assert "\nseed: 2" in clone.read("params.yaml")
    assert clone.read("dvc.lock") == origin.others_lock
    assert model_of(clone).keys() == origin.model.keys()
    assert model_of(clone)["model.safetensors"] != origin.model["model.safetensors"]
    assert stages_run(clone.dvc("repro")) == set()
    # The credentials are not among what git would commit.
    assert set(clone._git("status", "--porcelain").split()) == {"M", "params.yaml", "dvc.lock"}


def test_clone_of_a_project_without_remote_says_what_is_missing(clone):
    clone.run("git", "checkout", "--quiet", "HEAD~1")
    assert "No remote provided and no default remote set" in clone.dvc("pull", MODEL, ok=False)
    assert "train a model with `dvc repro` or get it with `dvc pull`" in clone.main("--generate", ok=False)


def test_failed_pull_says_why_and_leaves_the_model_as_it_was(clone, origin, s3):
    clone.dvc("pull", MODEL)
    (clone.folder / "dvc.lock").write_text(origin.others_lock)
    clone.dvc("remote", "add", "--local", "nowhere", "s3://storage/minilm")
    clone.dvc("remote", "modify", "--local", "nowhere", "endpointurl", "http://127.0.0.1:9")

    def failure(*arguments: str) -> str:
        output = clone.dvc("pull", *arguments, MODEL, ok=False, AWS_MAX_ATTEMPTS="1")
        assert "Traceback" not in output
        assert model_of(clone) == origin.model
        return output

    assert "Could not connect to the endpoint" in failure("--remote", "nowhere")
    # From now on the server asks who it is, and knows nobody.
    requests.post(f"{s3}/moto-api/reset-auth", data=b"0", timeout=10).raise_for_status()
    try:
        assert "Forbidden" in failure()
    finally:
        requests.post(f"{s3}/moto-api/reset-auth", data=b"inf", timeout=10).raise_for_status()
    clone.env = {key: value for key, value in clone.env.items() if key not in S3_KEY}
    assert "Unable to locate credentials" in failure()

    clone.env |= S3_KEY
    clone.dvc("pull", MODEL)
    assert model_of(clone)["model.safetensors"] != origin.model["model.safetensors"]


def test_model_that_was_never_pushed_is_said_to_be_missing_and_the_one_before_it_comes_back(clone, origin):
    clone.dvc("pull", MODEL)
    (clone.folder / "dvc.lock").write_text(origin.others_lock)
    clone.dvc("remote", "modify", "--local", "storage", "url", "s3://no-such-bucket/minilm")
    output = clone.dvc("pull", MODEL, ok=False)
    assert "Missing cache files" in output
    assert f"Checkout failed for following targets:\n{MODEL}" in output
    clone.run("git", "checkout", "--quiet", "dvc.lock")
    clone.dvc("checkout", MODEL)
    assert model_of(clone) == origin.model
