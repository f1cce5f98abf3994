"""Where a model came from, and what came of it.

python -m minilm.tracking.lineage models/minilm    a model folder
python -m minilm.tracking.lineage 4d175c306185     the SHA-256 of a model's weights, 8 digits or more
python -m minilm.tracking.lineage moony-tils       a DVC experiment
python -m minilm.tracking.lineage RUN_ID           an MLflow run

It only reads, and prints YAML; under `missing` stands what it cannot find.
"""

import argparse
import hashlib
import json
import subprocess
import sys
from collections import ChainMap
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from dvc.api import DVCFileSystem

from minilm.checkpoint import CONFIG, ModelInfo, parse_info, read_info
from minilm.errors import InputError, UserError
from minilm.files import MODEL, RAW, SPLITS, project_root, sha256_of
from minilm.params import FIELDS
from minilm.tracking import store

from mlflow.entities import Run, RunData  # isort: skip - store sets up MLflow


class Version(NamedTuple):
    """A state of the project that has a model in dvc.lock."""

    root: Path  # the project's main folder
    rev: str  # the commit, or `workspace`
    experiment: str  # its name; empty if it is no DVC experiment
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
            return parse_info(content, self.experiment) if named else None
        except Exception:  # DVC's own are of many classes
            return None

    def restore_command(self) -> str:
        """The shell command that restores the model into the workspace."""
        if self.experiment:
            return f"dvc exp apply {self.experiment}"
        return "dvc checkout" if self.rev == "workspace" else f"git checkout {self.rev[:10]} && dvc checkout"


def versions(root: Path, all_commits: bool = True) -> list[Version]:
    """The experiments, then the workspace and the commits, from HEAD on or all; InputError if DVC fails."""
    command = [sys.executable, "-m", "dvc", "exp", "show", "--json", *["--all-commits"] * all_commits]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"`dvc exp show` failed: {done.stderr.strip()}")
    states = [
        (state["data"], experiment["name"], commit["rev"])
        for commit in json.loads(done.stdout)
        for experiment in [*(commit["experiments"] or []), {"name": "", "revs": [commit]}]
        for state in experiment["revs"] or []
        if state["data"] and str(MODEL) in state["data"]["outs"]
    ]
    found = []
    for data, experiment, baseline in sorted(states, key=lambda state: not state[1]):
        metrics = ChainMap(*(file.get("data") or {} for file in data["metrics"].values()))
        digest = data["outs"][str(MODEL)]["hash"]
        found.append(Version(root, data["rev"], experiment, baseline, digest, dict(metrics)))
    return found


class Lineage:
    """Where the model came from that a folder, a run id, an experiment or the beginning of a SHA-256 names.

    Raises InputError if there is no such model, or several.
    """

    info: ModelInfo | None  # None if only MLflow knows the model
    runs: list[Run]
    versions: list[Version]  # states of the project whose dvc.lock names it, the experiments first

    def __init__(self, root: Path, name: str):
        self.root, self.no_store = root, ""
        self.store = store.without_password(store.store_uri(root))
        folder = read_info(name) if "/" in name or Path(name).is_dir() else None
        for all_commits in (False, True):  # each commit takes a tenth of a second
            known = versions(root, all_commits)
            self.info = folder or next((v.model_info() for v in known if v.experiment == name), None)
            self.runs = self._find_runs(name)
            self.logged = self.runs[0].data if self.runs else RunData()
            self.versions = self._find_versions(known)
            if self.versions:
                break
        if not self.info and not self.runs:
            raise InputError(
                f"{name}: no such model; tried as a folder, as a DVC experiment, and as a run id or SHA-256 "
                f"of weights in the MLflow store ({self.no_store or self.store})"
            )

    def _find_runs(self, name: str) -> list[Run]:
        """The runs of the model in `info`; without it those that the name means."""
        try:
            runs = store.search_runs(*store.open_store(self.root, create=False))
        except Exception as error:  # MLflow's, SQLAlchemy's, those of requests
            self.no_store = store.first_line(error)
            return []
        if self.info:
            return [run for run in runs if store.model_tags(self.info).items() <= run.data.tags.items()]
        found = [
            run
            for run in runs
            if name in (run.info.run_id, run.data.tags.get("dvc_experiment"), *store.experiments_of(run))
        ]
        if not found and len(name) >= 8:
            found = [run for run in runs if run.data.tags.get("model_sha256", "").startswith(name)]
        if len(models := {run.data.tags.get("model_sha256", "")[:16] for run in found}) > 1:
            raise InputError(f"{name}: there are several such models: {', '.join(models)}")
        return found

    def _find_versions(self, known: list[Version]) -> list[Version]:
        """Those that have the model of `info` or the runs; `info` is then what they say of it."""
        sha256 = self.info.folder_sha256 if self.info else self.logged.tags.get("model_folder_sha256")
        names = [name for run in self.runs for name in store.experiments_of(run)]
        likely_first = sorted(known, key=lambda v: v.experiment not in names and v.rev != "workspace")
        for digest, version in {version.digest: version for version in likely_first}.items():
            if (info := version.model_info()) and info.folder_sha256 == sha256:
                self.info = info
                return [version for version in known if version.digest == digest]
        return []

    def describe(self, all_params: bool = False) -> dict[str, Any]:
        """All of it by parts, as plain values; `all_params` includes those at their defaults."""
        self.missing: list[str] = []
        parts = {
            "model": self._model(),
            "parameters": self._params(all_params),
            "data": self._data(),
            "code": self._code(),
            "dvc": self._dvc(),
            "mlflow": self._mlflow(),
            "metrics": self._metrics(),
            "missing": self.missing,
        }
        return {part: found for part, found in parts.items() if found}

    def _model(self) -> dict[str, Any]:
        found = {"sha256": self.logged.tags.get("model_sha256", "none: the training did not end")}
        if "num_parameters" in self.logged.params:
            found["size"] = f"{int(self.logged.params['num_parameters']):,} parameters"
        if not self.info:
            self.missing.append(f"its files are neither in {MODEL} nor in DVC's cache")
            return found
        if self.info.initial_sha256:
            found["trained further from"] = self.info.initial_sha256
        return found | {"sha256": self.info.model_sha256, "environment": self.info.environment}

    def _params(self, all_params: bool) -> dict[str, Any]:
        known = self.info.params if self.info else {}
        if self.runs:
            known = store.run_params(self.runs[0]) | known
        else:
            self.missing.append("parameters of other stages: config.json has those of training only")
        shown = [key for key in FIELDS if key in known and (all_params or known[key] != FIELDS[key].default)]
        return {key: known[key] for key in shown}

    def _data(self) -> dict[str, Any]:
        found = asdict(self.info.data) if self.info else {"sha256": self.logged.tags.get("data_sha256")}
        if found.get("fallback_for"):
            found["WARNING"] = f"the BUNDLED SAMPLE TEXT replaces {found['fallback_for']}"
        try:
            texts = [sha256_of(self.root / RAW / f"{split}.txt") for split in SPLITS]
        except FileNotFoundError:
            self.missing.append("a dataset in data/raw to compare with; `dvc repro download` gets it")
            return found
        if (now := sha256_of("".join(texts).encode())) == found["sha256"]:
            return found | {"now": "data/raw holds this dataset"}
        self.missing.append(f"the dataset: data/raw holds another one now, {now[:12]}...")
        return found

    def _code(self) -> dict[str, Any]:
        experiment = next((version for version in self.versions if version.experiment), None)
        commit = self.logged.tags.get("git_commit") or (experiment and experiment.baseline)
        if not commit:
            self.missing.append("the code: only an MLflow run or an experiment names the commit")
            return {}
        known = store.git("show", "--no-patch", "--format=%cs %s", commit)
        if known is None:
            self.missing.append(f"the commit {commit[:12]} in this repository; `git fetch` may bring it")
        found = {"commit": f"{commit[:12]} {known or ''}".strip()}
        if self.logged.tags.get("git_dirty") == "true":
            found["changes"] = "UNCOMMITTED ones in *.py or dvc.yaml: the commit is not all of the code"
            if experiment:
                found["seen by"] = f"git diff {commit[:12]} {experiment.rev[:12]} -- '*.py' dvc.yaml"
        return found

    def _dvc(self) -> dict[str, Any]:
        here = [version.experiment for version in self.versions if version.experiment]
        for name in dict.fromkeys(name for run in self.runs for name in store.experiments_of(run)):
            if name not in here:
                self.missing.append(f"experiment {name} in this repository, or its model in DVC's cache")
        if not self.versions:
            where = "in the workspace, in experiments or in commits"
            self.missing.append(f"a dvc.lock {where} that names this model")
            return {}
        return {
            "experiments": here,
            "dvc.lock of": [version.rev[:12] for version in self.versions if not version.experiment],
            "to restore it": self.versions[0].restore_command(),
        }

    def _mlflow(self) -> dict[str, Any]:
        if not self.runs:
            self.missing.append(self.no_store or "an MLflow run of this model; `make sync` adds one")
        runs = {run.info.run_id: f"{run.info.run_name}, {run.info.status}" for run in self.runs}
        errors = [run.data.tags["error"] for run in self.runs if "error" in run.data.tags]
        return {"store": self.store, "runs": runs} | ({"errors": errors} if errors else {})

    def _metrics(self) -> dict[str, float]:
        found = self.logged.metrics or (self.versions[0].metrics if self.versions else {})
        if not any(key.startswith("test_") for key in found):
            self.missing.append("test metrics; `dvc repro` evaluates the model")
        order = sorted(found, key=lambda key: (not key.startswith("test_"), key))
        return {key: float(f"{found[key]:.6g}") for key in order}


def main() -> None:
    """Read the command line and print what was found."""
    description = "Print where a model came from: parameters, data, code, DVC, MLflow, metrics."
    parser = argparse.ArgumentParser(prog="python -m minilm.tracking.lineage", description=description)
    parser.add_argument("model", help="a model folder, a run id, a DVC experiment, or a SHA-256 of weights")
    parser.add_argument("--all", action="store_true", help="print the parameters at their defaults too")
    arguments = parser.parse_args()
    try:
        root = project_root()
        page = Lineage(root, arguments.model).describe(arguments.all)
        shown = "utf" in (sys.stdout.encoding or "").lower()  # else YAML writes \\u2603
        print(yaml.safe_dump(page, sort_keys=False, allow_unicode=shown, width=100), end="")
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
