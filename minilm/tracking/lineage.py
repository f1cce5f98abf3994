"""Where a model came from, and what came of it.

python -m minilm.tracking.lineage models/minilm    a model folder
python -m minilm.tracking.lineage 4d175c306185     the SHA-256 of a model's weights, 8 digits or more
python -m minilm.tracking.lineage moony-tils       a DVC experiment
python -m minilm.tracking.lineage RUN_ID           an MLflow run

It only reads, and says what it cannot find.
"""

import argparse
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minilm.checkpoint import ModelInfo, read_info
from minilm.errors import InputError, UserError
from minilm.files import SPLITS, sha256_of
from minilm.params import FIELDS, STAGES, parse_values, text_of
from minilm.tracking import store
from minilm.tracking.experiments import MODEL, Version, model_info, versions

from mlflow.entities import Run  # isort: skip - store sets up MLflow

WIDTH = 100  # columns
Lines = Iterator[tuple[str, Any]]  # labels and what they label; "!" labels what could not be found


class Lineage:
    """Where a model came from, as far as it can be found.

    Args:
        root: the project's main folder.
        name: a model folder, a run id, an experiment's name, or the beginning of a SHA-256.

    Attributes:
        info: what its config.json says; None if only MLflow knows the model.
        runs: MLflow's runs of it.
        no_store: why there is no MLflow store, if there is none.
        versions: states of the project whose dvc.lock names it, the experiments first.

    Raises:
        InputError: there is no such model, or several.
    """

    def __init__(self, root: Path, name: str):
        self.root, self.no_store = root, ""
        self.store = store.without_password(store.store_uri(root))
        self.info = read_info(name) if "/" in name or Path(name).is_dir() else None
        self.runs = self._find_runs(name)
        for all_commits in (False, True):  # each commit takes a tenth of a second
            found = versions(root, all_commits)
            names = [name, *(name for run in self.runs for name in store.experiments_of(run))]
            candidates = [v for v in found if all_commits or v.experiment in names or v.rev == "workspace"]
            infos: dict[str, ModelInfo | None] = {}  # many versions have the same model
            for version in candidates:
                if version.digest not in infos:
                    infos[version.digest] = model_info(root, version)
            if not self.info and not self.runs:
                self.info = next((infos[v.digest] for v in candidates if v.experiment == name), None)
                self.runs = self._find_runs(name)
            same = {
                digest for digest, info in infos.items() if info and self._digests() == store.model_tags(info)
            }
            self.versions = [version for version in found if version.digest in same]
            if self.versions:
                self.info = self.info or infos[self.versions[0].digest]
                break
        if not self.info and not self.runs:
            raise InputError(
                f"{name}: no such model; tried as a folder, as a DVC experiment, and as a run id or SHA-256 "
                f"of weights in the MLflow store ({self.no_store or self.store})"
            )

    def _find_runs(self, name: str) -> list[Run]:
        if self.info:
            conditions = [store.same_model(self.info)]
        else:
            word = re.sub("[^-.0-9A-Za-z_]", "", name)  # a quote would end MLflow's condition
            conditions = [f"attributes.run_id = '{word}'", f"tags.dvc_experiments LIKE '%{word}%'"]
            if re.fullmatch("[0-9a-f]{8,64}", name):
                conditions.append(f"tags.model_sha256 LIKE '{name}%'")
        try:
            client, experiment = store.open_store(self.root, create=False)
            found = next(filter(None, (store.search_runs(client, experiment, c) for c in conditions)), [])
        except Exception as error:  # MLflow's, SQLAlchemy's, those of requests
            self.no_store = store.first_line(error)
            return []
        if len(models := {run.data.tags.get("model_sha256", "")[:16] for run in found}) > 1:
            raise InputError(f"{name}: there are several such models: {', '.join(models)}")
        return found

    def _digests(self) -> dict[str, str]:
        tags = store.model_tags(self.info) if self.info else self.runs[0].data.tags if self.runs else {}
        return {key: value for key, value in tags.items() if key in ("model_sha256", "model_folder_sha256")}

    def text(self, all_params: bool = False) -> str:
        """The page for a terminal; `all_params` prints those at their defaults too."""
        parts = {
            "Model": self._model(),
            "Parameters": self._params(all_params),
            "Data": self._data(),
            "Code": self._code(),
            "DVC": self._dvc(),
            "MLflow": self._mlflow(),
            "Metrics": self._metrics(),
        }
        text = []
        for part, content in parts.items():
            lines = list(content)
            width = max(len(label) for label, _ in lines) + 2
            text.append(part)
            for label, value in lines:
                head = "  ! " if label == "!" else f"  {label:<{width}}"
                wrapper = textwrap.TextWrapper(WIDTH, head, " " * len(head), break_long_words=False)
                text.append(wrapper.fill(str(value)))
            text.append("")
        return "\n".join(text[:-1])

    def _model(self) -> Lines:
        yield "sha256", self._digests().get("model_sha256", "none: the training did not end")
        params = self.runs[0].data.params if self.runs else self.versions[0].metrics if self.versions else {}
        if "num_parameters" in params:
            yield "size", f"{int(params['num_parameters']):,} parameters"
        if self.info:
            yield "environment", ", ".join(f"{key} {value}" for key, value in self.info.environment.items())
        else:
            yield "!", f"its files are neither in {MODEL} nor in DVC's cache"

    def _params(self, all_params: bool) -> Lines:
        params = self.versions[0].params if self.versions else {}
        params |= parse_values(store.run_params(self.runs[0])) if self.runs else {}
        params |= self.info.params if self.info else {}
        printed = set[str]()
        for stage, cls in STAGES.items():
            keys = [key for key in cls.model_fields if key in params and key not in printed]
            printed.update(keys)
            if shown := [key for key in keys if all_params or params[key] != FIELDS[key].default]:
                yield stage, ", ".join(f"{key}={text_of(params[key])}" for key in shown)
        if not all_params:
            yield (
                "defaults",
                f"{sum(params[k] == FIELDS[k].default for k in printed)} others; --all prints them",
            )
        if unknown := len(FIELDS) - len(printed):
            yield "!", f"{unknown} of {len(FIELDS)} are unknown: config.json has those of training only"

    def _data(self) -> Lines:
        sha256 = self.runs[0].data.tags.get("data_sha256") if self.runs else None
        if self.info:
            data = self.info.data
            sha256 = data.sha256
            yield "dataset", data.dataset
            yield "source", data.origin
            if data.fallback_for:
                yield "WARNING", f"the BUNDLED SAMPLE TEXT replaces {data.fallback_for}"
            yield "characters", ", ".join(f"{count:,} {split}" for split, count in data.characters.items())
        yield "sha256", sha256
        texts = [self.root / "data" / "raw" / f"{split}.txt" for split in SPLITS]
        if not all(text.is_file() for text in texts):
            yield "!", "data/raw has no text to compare with; `dvc repro download` or `dvc pull` gets it"
        elif (now := sha256_of("".join(map(sha256_of, texts)).encode())) == sha256:
            yield "now", "data/raw holds this very text"
        else:
            yield "!", f"data/raw holds another text now: {now[:12]}..."

    def _code(self) -> Lines:
        tags = self.runs[0].data.tags if self.runs else {}
        experiment = next((version for version in self.versions if version.experiment), None)
        commit = tags.get("git_commit") or (experiment and experiment.baseline)
        if not commit:
            yield "!", "unknown: only an MLflow run or an experiment names the commit"
            return
        known = store.git("show", "--no-patch", "--format=%cs %s", commit)
        yield "commit", f"{commit[:12]} {known or ''}".strip()
        if known is None:
            yield "!", "this repository has no such commit; `git fetch` may bring it"
        if tags.get("git_dirty") == "true":
            yield "changes", "UNCOMMITTED ones in *.py or dvc.yaml: the commit is not all of the code"
            if experiment:
                yield "", f"git diff {commit[:12]} {experiment.rev[:12]} -- '*.py' dvc.yaml"
        elif "git_dirty" in tags:
            yield "changes", "none"

    def _dvc(self) -> Lines:
        for version in self.versions:
            if version.experiment:
                yield "experiment", f"{version.experiment}, run on {version.baseline[:12]}"
            else:
                yield "dvc.lock", f"of {version.rev[:12]}"
        for name in {name for run in self.runs for name in store.experiments_of(run)}:
            if name not in {version.experiment for version in self.versions}:
                yield "!", f"experiment {name} is not in this repository, or DVC's cache lacks its model"
        if self.versions:
            yield "to restore it", restore_command(self.versions[0])
        else:
            yield "!", "no dvc.lock in the workspace, in experiments or in commits names this model"

    def _mlflow(self) -> Lines:
        for run in self.runs:
            yield "run", f"{run.info.run_id}, {run.info.run_name}, {run.info.status}"
            if "error" in run.data.tags:
                yield "error", run.data.tags["error"]
        yield "store", self.store
        if not self.runs:
            yield "!", self.no_store or "no run of this model; `make sync` adds one"

    def _metrics(self) -> Lines:
        found = self.runs[0].data.metrics if self.runs else self.versions[0].metrics if self.versions else {}
        for key in sorted(found, key=lambda key: (not key.startswith("test_"), key)):
            yield key, f"{found[key]:,.6g}"
        if not any(key.startswith("test_") for key in found):
            yield "!", "no test metrics; `dvc repro` evaluates the model"


def restore_command(version: Version) -> str:
    """What restores the version's model into the workspace."""
    if version.experiment:
        return f"dvc exp apply {version.experiment}"
    checkout = "" if version.rev == "workspace" else f"git checkout {version.rev[:10]} && "
    return f"{checkout}dvc checkout"


def main() -> None:
    """Read the command line and print what was found."""
    parser = argparse.ArgumentParser(
        prog="python -m minilm.tracking.lineage",
        description="Print where a model came from: parameters, data, code, DVC, MLflow, metrics.",
        epilog="The project is $DVC_ROOT or the current folder; the store $MLFLOW_TRACKING_URI or mlflow.db.",
    )
    parser.add_argument("model", help="a model folder, a run id, a DVC experiment, or a SHA-256 of weights")
    parser.add_argument("--all", action="store_true", help="print the parameters at their defaults too")
    arguments = parser.parse_args()
    try:
        root = Path(os.environ.get("DVC_ROOT", ".")).resolve()
        print(Lineage(root, arguments.model).text(arguments.all))
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
