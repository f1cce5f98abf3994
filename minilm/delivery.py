"""A page of the spool on its way to MLflow.

Whatever moment it is stopped at, and however often it is tried again, MLflow holds each thing once: what
is there already is looked up first.
"""

import json
import math
import shutil
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from minilm.packaging import log_model
from minilm.spool import ENTRIES, PROGRESS, Entry, read_entries

from minilm.store import open_store  # isort: skip - it sets mlflow up
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag

MODEL, FOLDER = "model_sha256", "model_folder_sha256"  # tags, as the following
TRAINING, PAGE, SPOOL = "training", "page", "spool"
_NOTE = "mlflow.note.content"
# Tags that do not go over to another row.
_OF_ONE_ROW = {PAGE, _NOTE, "mlflow.runName", "dvc_experiment", "dvc_experiments"}
_POINTS_AT_ONCE, _LONGEST_PARAM = 1000, 6000  # MLflow's limits


class Delivery:
    """What of a page has arrived, and the way there for the rest.

    Args:
        root: the project's main folder.
        folder: the page's.
    """

    run_id: str
    done: int  # entries
    abandoned: str  # the row that became part of an earlier one
    _known: dict[str, set[int]]  # the steps that a curve has in MLflow

    def __init__(self, root: Path, folder: Path):
        self.folder = folder
        self._recall_progress()
        self.first = read_entries(folder)[0]
        self.client, self.experiment_id = open_store(root, self.first["store"])

    def advance(self) -> None:
        """Deliver what has been written since the last time.

        Raises:
            Exception: whatever MLflow raises; what was not delivered is tried again the next time.
        """
        if self._noted() != [self.run_id, self.done, self.abandoned]:
            self._recall_progress()  # another process has gone on with it
        entries = read_entries(self.folder)[self.done :]
        try:
            while entries:
                points = list(takewhile(lambda entry: entry["kind"] == "points", entries))
                if points:
                    self._points(points)
                else:
                    getattr(self, f"_{entries[0]['kind']}")(entries[0])
                count = len(points) or 1
                entries, self.done = entries[count:], self.done + count
                self._note_progress()
        except Exception:
            self._recall_progress()
            raise

    def finish(self) -> None:
        """Deliver the rest of a page that is closed, and remove it."""
        self.advance()
        last = read_entries(self.folder)[-1]
        if "training" in self.first and last["kind"] != "end":  # its process was killed
            self._end({"status": "KILLED", "time": last["time"]})
        (self.folder / ENTRIES).unlink()  # first, so that no half of a page can be left
        shutil.rmtree(self.folder)

    def give_up(self) -> None:
        """Nothing more will be told of the row, so leave it not RUNNING."""
        if self.run_id and self.client.get_run(self.run_id).info.status == "RUNNING":
            self.client.set_terminated(self.run_id, "FAILED")

    def _recall_progress(self) -> None:
        """Begin from what is certain: after an error more may have arrived, or only half of an entry."""
        (self.run_id, self.done, self.abandoned), self._known = self._noted(), {}

    def _noted(self) -> list[Any]:
        progress = self.folder / PROGRESS
        return json.loads(progress.read_text()) if progress.exists() else ["", 0, ""]

    def _note_progress(self) -> None:
        unfinished = self.folder / "unfinished"
        unfinished.write_text(json.dumps([self.run_id, self.done, self.abandoned]))
        unfinished.replace(self.folder / PROGRESS)

    def _row(self, entry: Entry) -> None:
        """Find the row that the page is of, or make it."""
        own = self._find(PAGE, self.folder.name)  # made before, but the answer was lost
        run = own or (self._row_of_model(entry) if "model" in entry else self._row_of_training(entry))
        if run is None:
            kind = {TRAINING: entry["training"]} if "training" in entry else {"restored": "true"}
            tags = {**entry["tags"], **kind, PAGE: self.folder.name, _NOTE: _note(_names(entry["tags"]))}
            run = self.client.create_run(self.experiment_id, entry["time"], tags, entry["name"])
        self.run_id = run.info.run_id
        self._name_experiment(run.data.tags, entry["tags"])
        if run.data.tags.get(PAGE) != self.folder.name:
            return
        data = entry["data"]
        dataset = Dataset(
            name=data["dataset"],
            digest=data["sha256"][:32],  # MLflow takes 36 characters at most
            source_type="text",
            source=json.dumps({"origin": data["origin"], "sha256": data["sha256"]}),
            profile=json.dumps({f"{split}_characters": count for split, count in data["characters"].items()}),
        )
        context = InputTag("mlflow.data.context", "training")
        self.client.log_inputs(self.run_id, [DatasetInput(dataset, [context])])
        if "model" in entry:
            self._params(entry)
            self._model(entry)
            self.client.set_terminated(self.run_id, "FINISHED", entry["time"])

    def _row_of_model(self, entry: Entry) -> Run | None:
        found = self.client.search_runs([self.experiment_id], f"tags.{MODEL} = '{entry['model'][MODEL]}'")
        return next((run for run in found if _is_of(run, entry["model"])), None)

    def _row_of_training(self, entry: Entry) -> Run | None:
        """The row in which the very same training was begun but not finished; it goes on there."""
        run = None if entry["anew"] else self._find(TRAINING, entry["training"])
        # Another clone may be at the same training now, and has a row of its own.
        if run is None or MODEL in run.data.tags or run.data.tags.get(SPOOL) != entry["tags"][SPOOL]:
            return None
        self.client.update_run(run.info.run_id, status="RUNNING")
        if "error" in run.data.tags:
            self.client.delete_tag(run.info.run_id, "error")
        return run

    def _name_experiment(self, tags: dict[str, str], new: dict[str, str]) -> None:
        """Note that another DVC experiment has made the row's model too."""
        before = _names(tags)
        names = list(dict.fromkeys([*before, *_names(new)]))
        changed = {"dvc_experiments": ", ".join(names)} if names else {}
        if tags.get(_NOTE, "") in ("", _note(before)):  # else the user has written one
            changed[_NOTE] = _note(names)
        self._set_tags({key: value for key, value in changed.items() if tags.get(key) != value})

    def _params(self, entry: Entry) -> None:
        """One that stands there stays, and a new value becomes the tag `latest.KEY`."""
        noted = self.client.get_run(self.run_id).data
        texts = {key: str(value)[:_LONGEST_PARAM] for key, value in entry["params"].items()}
        new = [Param(key, text) for key, text in texts.items() if key not in noted.params]
        changed = [
            RunTag(f"latest.{key}", text)
            for key, text in texts.items()
            if noted.tags.get(f"latest.{key}", noted.params.get(key, text)) != text
        ]
        self.client.log_batch(self.run_id, params=new, tags=changed)

    def _points(self, entries: Sequence[Entry]) -> None:
        """Points of curves; where training went on from a saved state, some stand there already."""
        new = []
        for entry in entries:
            for key, value in entry["metrics"].items():
                if entry["step"] not in self._steps(key):
                    self._steps(key).add(entry["step"])
                    new.append(Metric(key, value, entry["time"], entry["step"]))
        self._log_points(self.run_id, new)

    def _log_points(self, run_id: str, points: Sequence[Metric]) -> None:
        for first in range(0, len(points), _POINTS_AT_ONCE):
            self.client.log_batch(run_id, metrics=points[first : first + _POINTS_AT_ONCE])

    def _steps(self, key: str) -> set[int]:
        if key not in self._known:
            history = self.client.get_metric_history(self.run_id, key)
            self._known[key] = {point.step for point in history}
        return self._known[key]

    def _results(self, entry: Entry) -> None:
        """What a stage found: the newest in `reports/`, and that of each setting in `history/`."""
        self._params({"params": entry["settings"]})
        metrics, latest = entry["metrics"], self.client.get_run(self.run_id).data.metrics
        if any(
            key not in latest or (math.isfinite(value) and latest[key] != value)
            for key, value in metrics.items()
        ):
            step = max((max(self._steps(key), default=-1) for key in metrics), default=-1) + 1
            points = [Metric(key, value, entry["time"], step) for key, value in metrics.items()]
            self._log_points(self.run_id, points)
            self._known = {}
        self._files({"files": entry["files"], "to": "reports"})
        self._files({"files": entry["kept"], "to": f"history/{entry['stage']}-{entry['digest']}"})

    def _files(self, entry: Entry) -> None:
        for name in entry["files"]:
            self.client.log_artifact(self.run_id, str(self.folder / name), entry["to"])

    def _model(self, entry: Entry) -> None:
        """The trained model; if an earlier row is of the very same one, this row becomes part of that."""
        earlier = self._row_of_model(entry)
        if earlier and earlier.info.run_id != self.run_id:
            self._fold_into(earlier)
        if self.abandoned and self.client.get_run(self.abandoned).info.lifecycle_stage == "active":
            self.client.delete_run(self.abandoned)
        log_model(
            self.client,
            self.run_id,
            self.folder / entry["folder"],
            self.folder / entry["code"],
            entry["example"],
        )
        self._set_tags(entry["model"])

    def _fold_into(self, earlier: Run) -> None:
        """One row a model: give the earlier row what it lacks."""
        now, run_id = self.client.get_run(self.run_id), earlier.info.run_id
        for key in now.data.metrics:  # if it was restored, it has no curves
            there = {point.step for point in self.client.get_metric_history(run_id, key)}
            history = self.client.get_metric_history(self.run_id, key)
            self._log_points(run_id, [point for point in history if point.step not in there])
        self.abandoned, self.run_id, self._known = self.run_id, run_id, {}
        self._params({"params": now.data.params})
        self._name_experiment(earlier.data.tags, now.data.tags)
        lacking = now.data.tags.keys() - earlier.data.tags.keys() - _OF_ONE_ROW
        self._set_tags({key: now.data.tags[key] for key in lacking})
        if "restored" in earlier.data.tags:
            self.client.delete_tag(run_id, "restored")
        self._note_progress()

    def _end(self, entry: Entry) -> None:
        # The training of the row that is left had ended before, unless it was killed right after its model.
        if self.abandoned and self.client.get_run(self.run_id).info.status == "FINISHED":
            return
        if error := entry.get("error"):
            self._set_tags({"error": error})
        self.client.set_terminated(self.run_id, entry["status"], entry["time"])

    def _set_tags(self, tags: dict[str, str]) -> None:
        if tags:
            self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def _find(self, tag: str, value: str) -> Run | None:
        """The newest row with that tag."""
        return next(iter(self.client.search_runs([self.experiment_id], f"tags.{tag} = '{value}'")), None)


def _is_of(run: Run, model: dict[str, str]) -> bool:
    """Whether the row, whose weights are the model's, is of the same config.json too."""
    return run.data.tags.get(FOLDER) == model[FOLDER]


def _names(tags: dict[str, str]) -> list[str]:
    """Of the DVC experiments, in the order in which they made the model."""
    names = [*tags.get("dvc_experiments", "").split(", "), tags.get("dvc_experiment", "")]
    return list(dict.fromkeys(filter(None, names)))


def _note(names: Sequence[str]) -> str:
    """What MLflow's page says above the row."""
    back = [f"Bring this experiment back into the workspace: `dvc exp apply {name}`" for name in names[-1:]]
    others = [f"The same model by another experiment: `dvc exp apply {name}`" for name in names[:-1]]
    lineage = "Where the model came from: `python -m minilm.lineage`, with its SHA-256 or the id of this run"
    return "\n\n".join([*back, *others, lineage])
