"""A small project with real git, DVC and MLflow, but without a pipeline that takes time."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from conftest import ROOT
from minilm import MiniGPT
from minilm.checkpoint import read_info, save
from minilm.data.provenance import Source
from minilm.files import SPLITS
from minilm.params import FIELDS
from minilm.tracking import store
from minilm.tracking.lineage import Lineage

TEXTS = {"train": "the quick brown fox " * 9, "validation": "jumps over ", "test": "the lazy dog.\n"}
TEXT_SHA256 = hashlib.sha256(
    "".join(hashlib.sha256(TEXTS[split].encode()).hexdigest() for split in SPLITS).encode()
).hexdigest()
ENVIRONMENT = {"torch": "2.13.0", "device_type": "cpu", "precision": "float32", "threads": 1, "processes": 1}
DEFAULTS = {key: field.default for key, field in FIELDS.items()}


class Lab:
    """A project with a committed model, another one in the experiment `wider`, and runs of both.

    Its one stage does nothing; DVC, git and the MLflow store are real.
    """

    def __init__(self, root: Path):
        self.root, self.folder = root, root / "models" / "minilm"

    def build(self, tiny_model) -> None:
        self.root.mkdir()
        shutil.copy(ROOT / "params.yaml", self.root)
        (self.root / "minilm.py").write_text("# the code\n")
        outs = {"outs": ["models/minilm"], "metrics": ["reports/metrics.json"], "params": [*FIELDS]}
        (self.root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"train": {"cmd": "true", **outs}}}))
        (self.root / "data" / "raw").mkdir(parents=True)
        for split, text in TEXTS.items():
            (self.root / "data" / "raw" / f"{split}.txt").write_text(text)
        self.git("init", "--quiet", "--initial-branch", "main")
        self.dvc("init", "--quiet")
        (self.root / ".gitignore").write_text("mlflow.db*\ndata/\n")
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "The code")

        self.change("learning_rate", "0.01")
        self.write(tiny_model[0], tiny_model[1], {"learning_rate": 0.01}, 4.5)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "A model")
        code = self.git("rev-parse", "HEAD~")
        store.open_store(self.root)  # makes it
        self.plain = self.add_run(
            self.folder, {"git_commit": code, "git_dirty": "false"}, {"learning_rate": 0.01}, 4.5
        )

        (self.root / "minilm.py").write_text("# the code, changed\n")
        self.change("learning_rate", "0.02")
        other = MiniGPT(tiny_model[0].config, seed=4)
        self.write(other, tiny_model[1], {"learning_rate": 0.02}, 4.25)
        self.dvc("exp", "save", "--name", "wider")
        tags = {
            "git_commit": self.git("rev-parse", "HEAD"),
            "git_dirty": "true",
            "dvc_experiment": "wider",
            "dvc_experiments": "wider",
        }
        self.wider = self.add_run(self.folder, tags, {"learning_rate": 0.02}, 4.25)
        self.git("checkout", "--quiet", "--force", "HEAD")
        self.dvc("checkout", "--quiet", "--force")

    def change(self, key: str, value: str) -> None:
        path = self.root / "params.yaml"
        path.write_text(re.sub(rf"(?m)^{key}: \S+", f"{key}: {value}", path.read_text()))

    def write(self, model, tokenizer, params, bits: float) -> None:
        source = Source(
            "wikitext-2", "sample", "wikitext-2", {k: len(v) for k, v in TEXTS.items()}, TEXT_SHA256
        )
        save(self.folder, model, tokenizer, params, source, ENVIRONMENT)
        (self.root / "reports").mkdir(exist_ok=True)
        (self.root / "reports" / "metrics.json").write_text(json.dumps({"test_bits_per_char": bits}))
        self.dvc("commit", "--force", "--quiet")

    def add_run(self, folder: Path | None, tags=None, params=None, bits=None, status="FINISHED") -> str:
        client, experiment = store.open_store(self.root, create=False)  # this may be a copy
        tags = {"data_source": "sample", "data_sha256": TEXT_SHA256, **(tags or {})}
        if folder:
            tags |= store.model_tags(read_info(folder))
        run_id = client.create_run(experiment, tags=tags).info.run_id
        logged = DEFAULTS | (params or {}) | store.environment_params(ENVIRONMENT) | {"num_parameters": 7}
        store.log_params(client, run_id, {key: value for key, value in logged.items() if key != "device"})
        if bits:
            client.log_metric(run_id, "test_bits_per_char", bits)
        client.set_terminated(run_id, status)
        return run_id

    def client(self):
        return store.open_store(self.root, create=False)[0]

    def git(self, *arguments: str) -> str:
        return self.run("git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments)

    def dvc(self, *arguments: str) -> str:
        return self.run(sys.executable, "-m", "dvc", *arguments)

    def run(self, *command: str) -> str:
        names = {
            f"GIT_{who}_{what}": "t@example.org"
            for who in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        }
        done = subprocess.run(
            command, cwd=self.root, env=os.environ | names, text=True, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def text(self, name, **options) -> str:
        return yaml.safe_dump(Lineage(self.root, str(name)).describe(**options), sort_keys=False, width=10**6)
