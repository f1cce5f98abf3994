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

    rev: str  # the commit, or `workspace`
    experiment: str | None  # its name, if it is a DVC experiment
    baseline: str  # the commit that the experiment was run on
    digest: str  # DVC's MD5 of the model folder
    params: dict[str, Any]  # by their names in params.yaml
    metrics: dict[str, float]  # by their names in the reports


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
    entries = [
        (revision["data"], experiment["name"], commit["rev"])
        for commit in commits
        for experiment in commit["experiments"] or []
        for revision in experiment["revs"] or []
    ]
    entries += [(commit["data"], None, commit["rev"]) for commit in commits]
    found = []
    for data, experiment, baseline in entries:
        if data and MODEL in data["outs"]:
            params, metrics = (
                {
                    key: value
                    for file in data[part].values()
                    for key, value in (file.get("data") or {}).items()
                }
                for part in ("params", "metrics")
            )
            digest = data["outs"][MODEL]["hash"]
            found.append(Version(data["rev"], experiment, baseline, digest, params, metrics))
    return found


def model_info(root: Path, version: Version) -> ModelInfo | None:
    """What the version's config.json says, from git and DVC's cache; None if that lacks it."""
    files, name = open_files(root, version), f"{MODEL}/{CONFIG}"
    try:
        content = files.read_bytes(name)
        # In the workspace the folder may hold another model than the one that dvc.lock names.
        named = files.info(name)["dvc_info"]["md5"] == hashlib.md5(content).hexdigest()
        return parse_info(content, str(version.experiment)) if named else None
    except Exception:  # DVC's own are of many classes
        return None


def open_files(root: Path, version: Version) -> Any:
    """The version's files, as fsspec has them."""
    return DVCFileSystem(str(root), rev=None if version.rev == "workspace" else version.rev)
