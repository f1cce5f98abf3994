"""Where a model came from.

python -m minilm.lineage models/minilm    a model folder
python -m minilm.lineage 4d175c306185     the SHA-256 of a model's weights, or its beginning
python -m minilm.lineage moony-tils       a DVC experiment
python -m minilm.lineage RUN_ID           a row of the lab notebook

It only reads, and says what it cannot find.
"""

import argparse
import hashlib
import math
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minilm.archive import WEIGHTS, Archive, Found, Model, identify
from minilm.data.provenance import Source
from minilm.errors import InputError
from minilm.files import SPLITS, sha256_of
from minilm.params import FIELDS
from minilm.rows import experiments_of, latest, made_with, settings, typed
from minilm.spool import is_closed, pages
from minilm.versions import CODE, MODEL, Version, git

if TYPE_CHECKING:
    from mlflow.entities import Run

RAW = Path("data/raw")


@dataclass(frozen=True)
class Code:
    """The code that trained a model.

    Attributes:
        commit: of git, in full.
        date: the commit's, such as 2026-01-31; empty if this repository has no such commit.
        subject: the first line of its message.
        dirty: whether the code differed from the commit; None if that is not known.
    """

    commit: str
    date: str
    subject: str
    dirty: bool | None


@dataclass
class Lineage:
    """Where a model came from, as far as it can be found.

    Attributes:
        model: which one.
        num_parameters: how many weights it has.
        params: that made, scored and sampled it, by their names in params.yaml; as they were last.
        first: the values that some of them had before.
        made_with: torch's version, device and threads, on which the bytes depend too.
        data: its text.
        data_now: whether data/raw holds that text.
        code: what trained it.
        experiments: names of the DVC experiments that made it.
        versions: those that have it in dvc.lock: experiments, the workspace, commits.
        in_cache: whether DVC's cache has its files.
        rows: of the lab notebook; the one that was asked for, or else the newest, first.
        store: the notebook's address.
        metrics: the last ones, by their names in MLflow.
        metrics_from: where they were found.
        missing: what could not be found and why: lines, by the part that they belong to.
    """

    model: Model
    num_parameters: int | None = None
    params: dict[str, Any] = field(default_factory=dict)
    first: dict[str, Any] = field(default_factory=dict)
    made_with: dict[str, Any] = field(default_factory=dict)
    data: Source | None = None
    data_now: bool = False
    code: Code | None = None
    experiments: list[str] = field(default_factory=list)
    versions: list[Version] = field(default_factory=list)
    in_cache: bool = False
    rows: "list[Run]" = field(default_factory=list)
    store: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    metrics_from: str = ""
    missing: dict[str, list[str]] = field(default_factory=dict)

    def lack(self, part: str, reason: str) -> None:
        """Note what could not be found."""
        self.missing.setdefault(part, []).append(reason)


def main() -> None:
    """Read the command line and print what was found."""
    parser = argparse.ArgumentParser(
        prog="python -m minilm.lineage",
        description="Print where a model came from: parameters, data, code, DVC, MLflow, metrics.",
        epilog="The project is $DVC_ROOT or the current folder, the notebook $MLFLOW_TRACKING_URI or the "
        "project's mlflow.db. Nothing is changed.",
    )
    parser.add_argument(
        "model",
        help="a model folder, an MLflow run id, the name of a DVC experiment, or the SHA-256 of a model's "
        "weights, 8 digits of it or more",
    )
    parser.add_argument(
        "--all", action="store_true", help="print also the parameters that have their defaults"
    )
    arguments = parser.parse_args()

    from minilm.lineage_text import text_of

    try:
        root = Path(os.environ.get("DVC_ROOT", ".")).resolve()
        print(text_of(find_lineage(root, arguments.model), arguments.all))
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")


def find_lineage(root: Path, name: str) -> Lineage:
    """Find out where a model came from.

    Args:
        root: the project's main folder.
        name: of the model, as for `minilm.archive.identify`.

    Raises:
        InputError: there is no such model, or several; or a folder is no model's.
    """
    archive = Archive(root)
    found = identify(archive, name)
    lineage = Lineage(found.model)
    _find_files(archive, lineage)
    _find_rows(archive, lineage, found)
    _find_versions(archive, lineage, found)
    _find_params(lineage)
    _find_data(archive, lineage)
    _find_code(root, lineage)
    _find_metrics(archive, lineage)
    return lineage


def _find_files(archive: Archive, lineage: Lineage) -> None:
    """In the folder that was named, in models/minilm or in DVC's cache; and whether they are undamaged."""
    asked, local = lineage.model, archive.local
    cached = next((model for model in archive.models.values() if model.is_same(asked) and model.files), None)
    lineage.in_cache = cached is not None
    if not asked.folder:
        here = local if local and local.is_same(cached or asked) else None
        lineage.model = here or cached or asked
    model = lineage.model
    if not model.files:
        lineage.lack("Model", f"its files are neither in {MODEL} nor in DVC's cache")
    for name, digest in model.card.get("sha256", {}).items():
        if name not in model.files:
            lineage.lack("Model", f"{name} is missing")
        elif (now := sha256_of(model.files[name])) != digest:
            lineage.lack(
                "Model",
                f"{name} is damaged or of another model: its SHA-256 is {now[:12]}..., config.json says "
                f"{digest[:12]}...; all that follows is of the model of config.json",
            )
            return
    if WEIGHTS in model.files:
        lineage.num_parameters = _count_parameters(model.files[WEIGHTS])


def _find_rows(archive: Archive, lineage: Lineage, found: Found) -> None:
    """In the notebook, of the very model; those of the same weights with another config.json are named."""
    rows = archive.rows_of(lineage.model)
    first = found.row or (rows[0] if rows else None)
    lineage.store = archive.rows.store if archive.rows else ""
    if first:
        lineage.rows = [first, *(row for row in rows if row.info.run_id != first.info.run_id)]
        count = first.data.params.get("num_parameters")
        lineage.num_parameters = lineage.num_parameters or (int(count) if count else None)
        if not lineage.model.weights:
            lineage.lack("Model", f"the row has none, its training did not end: it is {first.info.status}")
    elif archive.rows is None:
        lineage.lack("MLflow", archive.no_rows)
    else:
        lineage.lack("MLflow", f"no row of this model in {lineage.store}")
        weights = lineage.model.weights
        for row in archive.rows_where(f"tags.model_sha256 = '{weights}'") if weights else []:
            lineage.lack("MLflow", f"run {row.info.run_id} has the same weights, but another config.json")
    if waiting := sum(map(is_closed, pages(archive.root))):
        lineage.lack("MLflow", f"{waiting} stages' notes have yet to be delivered: python -m minilm.deliver")


def _find_versions(archive: Archive, lineage: Lineage, found: Found) -> None:
    """Experiments and commits that have the model, and what became of those that the notebook names."""
    lineage.versions = archive.versions_of(lineage.model)
    here = [version.experiment for version in lineage.versions if version.experiment]
    noted = [name for row in lineage.rows[:1] for name in experiments_of(row)]
    asked = [found.experiment] if found.experiment else []
    lineage.experiments = list(dict.fromkeys([*asked, *noted, *here]))
    present = {version.experiment: version for version in archive.versions if version.experiment}
    for name in lineage.experiments:
        if name not in present:
            lineage.lack(
                "DVC", f"experiment {name} is not in this repository: git has no refs/exps/*/*/{name}"
            )
        elif name not in here and archive.models.get(present[name].digest() or "", Model()).weights:
            lineage.lack("DVC", f"experiment {name} is here, but has another model by now")
        elif name not in here:
            lineage.lack("DVC", f"experiment {name} is here, but its model is not in DVC's cache")
    if not lineage.versions:
        lineage.lack("DVC", "no dvc.lock here, in experiments or in commits names this model")
    elif not lineage.in_cache:
        lineage.lack("DVC", "DVC's cache lacks its files; `dvc pull` gets them if a remote has them")


def _find_params(lineage: Lineage) -> None:
    """Of the row, of dvc.lock and of config.json; the last is surest and has those of training only."""
    card = lineage.model.card
    for version in lineage.versions[:1]:
        lineage.params |= typed(version.params)
    for row in lineage.rows[:1]:
        lineage.params |= settings(row)
        changed = latest(row).keys()
        lineage.first = {key: value for key, value in typed(row.data.params).items() if key in changed}
        lineage.made_with = made_with(row)
    lineage.params |= {key: value for key, value in card.get("params", {}).items() if key in FIELDS}
    lineage.params = {key: lineage.params[key] for key in FIELDS if key in lineage.params}
    lineage.made_with |= card.get("made_with", {})
    if unknown := [key for key in FIELDS if key not in lineage.params]:
        where = "config.json has those of training only, and no row and no dvc.lock has the others"
        lineage.lack("Parameters", f"{len(unknown)} of {len(FIELDS)} are unknown: {where}")


def _find_data(archive: Archive, lineage: Lineage) -> None:
    """Of config.json or the row; and whether data/raw holds the same text, by the text itself."""
    if data := lineage.model.card.get("data"):
        lineage.data = Source(**data)
    elif lineage.rows and archive.rows and "data_sha256" in lineage.rows[0].data.tags:
        row = lineage.rows[0]
        dataset, tags = row.data.params.get("dataset", "unknown"), row.data.tags
        fallback_for = dataset if tags.get("is_sample_text") == "true" else None
        characters = archive.rows.characters(row)
        origin = tags.get("data_source", "unknown")
        lineage.data = Source(dataset, origin, fallback_for, characters, tags["data_sha256"])
    else:
        lineage.lack("Data", "unknown: there are neither the model's files nor a row that names it")
        return
    texts = [archive.root / RAW / f"{split}.txt" for split in SPLITS]
    if not all(text.is_file() for text in texts):
        lineage.lack("Data", f"{RAW} has no text to compare with; `dvc repro download` or `dvc pull` gets it")
        return
    now = hashlib.sha256("".join(map(sha256_of, texts)).encode()).hexdigest()
    lineage.data_now = now == lineage.data.sha256
    if not lineage.data_now:
        lineage.lack("Data", f"{RAW} holds another text now: {now[:12]}...")


def _find_code(root: Path, lineage: Lineage) -> None:
    """By the row, or by the experiment, which was run on a commit and holds what differed from it."""
    tags = lineage.rows[0].data.tags if lineage.rows else {}
    experiment = next((version for version in lineage.versions if version.experiment), None)
    dirty: bool | None = None
    if commit := tags.get("git_commit"):
        dirty = tags["git_dirty"] == "true" if "git_dirty" in tags else None
    elif experiment and (commit := experiment.baseline):
        changes = git(root, "diff", "--name-only", commit, str(experiment.commit), "--", *CODE)
        dirty = None if changes is None else bool(changes)
    if not commit:
        lineage.lack("Code", "unknown: only a row of the notebook or an experiment names the commit")
        return
    known = git(root, "show", "--no-patch", "--format=%cs %s", commit)
    date, _, subject = (known or "").partition(" ")
    lineage.code = Code(commit, date, subject, dirty)
    if known is None:
        lineage.lack("Code", "this repository has no such commit; `git fetch` may bring it")


def _find_metrics(archive: Archive, lineage: Lineage) -> None:
    """Of the row, or of the reports that dvc.lock names beside the model."""
    for row in lineage.rows[:1]:
        lineage.metrics, lineage.metrics_from = dict(row.data.metrics), f"run {row.info.run_id}"
    for version in lineage.versions:
        if not lineage.metrics:
            lineage.metrics = archive.reports(version)
            lineage.metrics_from = f"DVC, by {version}"
    if not any(key.startswith("test_") for key in lineage.metrics):
        lineage.lack(
            "Metrics", "no test metrics: no row and no report in DVC's cache has any; `dvc repro` tests it"
        )


def _count_parameters(weights: Path) -> int | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, "numpy") as tensors:
            return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    except SafetensorError:
        return None


if __name__ == "__main__":
    main()
