"""What git and DVC know of models: those of the workspace, of HEAD or all commits, and of experiments."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from dvc.api import DVCFileSystem

from minilm.checkpoint import CONFIG, ModelInfo, parse_info
from minilm.errors import InputError

MODEL = "models/minilm"


class Version(NamedTuple):
    """A state of the project that has a model in dvc.lock."""

    root: Path  # the project's main folder
    rev: str  # the commit, or `workspace`
    experiment: str | None  # its name, if it is a DVC experiment
    baseline: str  # the commit that the experiment was run on
    digest: str  # DVC's MD5 of the model folder
    metrics: dict[str, float]  # by their names in the reports

    def files(self) -> Any:
        """Its files from git and DVC's cache, as fsspec has them."""
        return DVCFileSystem(str(self.root), rev=None if self.rev == "workspace" else self.rev)

    def model_info(self) -> ModelInfo | None:
        """What its config.json says; None if DVC's cache lacks it."""
        files, name = self.files(), f"{MODEL}/{CONFIG}"
        try:
            content = files.read_bytes(name)
            # In the workspace the folder may hold another model than the one that dvc.lock names.
            named = files.info(name)["dvc_info"]["md5"] == hashlib.md5(content).hexdigest()
            return parse_info(content, str(self.experiment)) if named else None
        except Exception:  # DVC's own are of many classes
            return None

    def restore_command(self) -> str:
        """The shell command that restores the model into the workspace."""
        if self.experiment:
            return f"dvc exp apply {self.experiment}"
        return "dvc checkout" if self.rev == "workspace" else f"git checkout {self.rev[:10]} && dvc checkout"


def versions(root: Path, all_commits: bool = True) -> list[Version]:
    """The experiments, then the workspace and the commits; those of HEAD only, or of all commits.

    Raises:
        InputError: DVC cannot list them.
    """
    command = [sys.executable, "-m", "dvc", "exp", "show", "--json", *["--all-commits"] * all_commits]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"`dvc exp show` failed: {done.stderr.strip()}")
    commits = json.loads(done.stdout)
    states = [
        (state["data"], experiment["name"], commit["rev"])
        for commit in commits
        for experiment in commit["experiments"] or []
        for state in experiment["revs"] or []
    ]
    states += [(commit["data"], None, commit["rev"]) for commit in commits]
    found = []
    for data, experiment, baseline in states:
        if data and MODEL in data["outs"]:
            reports = [file.get("data") or {} for file in data["metrics"].values()]  # None if unreadable
            metrics = {key: value for report in reports for key, value in report.items()}
            digest = data["outs"][MODEL]["hash"]
            found.append(Version(root, data["rev"], experiment, baseline, digest, metrics))
    return found
