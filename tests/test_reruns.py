"""Changing one parameter reruns exactly the stages that depend on it."""

import pytest
from dvc.repo import Repo

from conftest import stages_run
from minilm.params import FIELDS, STAGES

# A change of each key that a run on the bundled sample bears.
CHANGES = {
    "dataset": "minilm/data/sample_text/train.txt", "allow_fallback": "yes",
    "holdout_fraction": "0.2", "holdout_blocks": "2", "init_from": "models/minilm",
    "min_char_count": "2",
    "block_size": "16", "embed_dim": "32", "num_heads": "4", "num_layers": "2", "mlp_ratio": "2",
    "position": "rope", "activation": "gelu", "normalization": "rmsnorm", "qk_norm": "true",
    "tied_embeddings": "false", "biases": "false", "attention_dropout": "0.1", "mlp_dropout": "0.1",
    "logit_softcap": "15", "zero_init_projections": "true",
    "token_shift": "0.5", "ngram_embedding": "3", "ngram_rows": "100",
    "batch_size": "8", "grad_accumulation": "2", "optimizer": "muon", "learning_rate": "3e-3",
    "learning_rate_schedule": "cosine", "min_learning_rate_ratio": "0.2", "warmup_steps": "2",
    "adam_beta1": "0.8", "adam_beta2": "0.99", "weight_decay": "0", "grad_clip": "0", "steps": "5",
    "eval_interval": "3", "eval_batches": "2", "keep": "best", "film": "2", "precision": "fp32",
    "compile": "true", "checkpoint_interval": "1", "sharding": "fsdp", "seed": "1", "launcher": "python3",
    "eval_context": "3", "prompt": "A", "num_samples": "2", "max_new_tokens": "5", "temperature": "1.0",
    "top_k": "3", "top_p": "0.5", "min_p": "0.1", "stop": "x", "sample_seed": "1", "device": "cpu",
}  # fmt: skip
# Stages that run because what they read has changed, by the first stage that runs. A change of
# allow_fallback or the held-out share leaves the sample text as it is, so nothing follows on download;
# another text, after which all stages run, is in test_experiments.py.
FOLLOWING = {
    "encode": {"train", "evaluate", "sample", "report"},
    "train": {"evaluate", "sample", "report"},
    "evaluate": {"report"},
    "sample": {"report"},
}


def stages_of(key: str) -> set[str]:
    return {stage for stage, cls in STAGES.items() if key in cls.model_fields}


@pytest.mark.parametrize("key", FIELDS)
def test_each_key_concerns_dvc_in_exactly_its_stages(project, key, monkeypatch):
    before = project.read("params.yaml")
    project.set(**{key: CHANGES[key]})
    monkeypatch.chdir(project.folder)  # stages are named from there
    with Repo() as repo:  # as `dvc status` does, without a process for each key
        status = repo.status()
    (project.folder / "params.yaml").write_text(before)
    assert {stage for stage in status if not stage.endswith(".dvc")} == stages_of(key)


# checkpoint_interval stands for all keys of train: even though the weights stay the same, the rest follows.
@pytest.mark.parametrize(
    "key", ["allow_fallback", "min_char_count", "checkpoint_interval", "eval_context", "num_samples"]
)
def test_a_run_takes_those_stages_and_what_follows_on_them(fresh, key):
    expected = stages_of(key)
    for stage in tuple(expected):
        expected |= FOLLOWING.get(stage, set())
    fresh.set(**{key: CHANGES[key]})
    assert stages_run(fresh.dvc("repro")) == expected
