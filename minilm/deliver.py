"""Deliver to MLflow what is kept in the spool.

    python -m minilm.deliver    all that no stage writes on any more
    (each stage starts a process of this that follows the stage's own page)

Whatever moment it is stopped at, and however often a page is delivered, MLflow holds each thing once:
what is there already is looked up first.
"""

import json
import select
import shutil
import sys
import time
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from minilm.packaging import log_model
from minilm.spool import PROGRESS, Entry, closed_pages, delivery_lock, read_entries, spool_of

from minilm.store import open_store  # isort: skip - it sets mlflow up
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

MODEL_TAG, FOLDER_TAG, TRAINING_TAG, PAGE_TAG = "model_sha256", "model_folder_sha256", "training", "page"
_POINTS_AT_ONCE = 1000  # MLflow's limit
# Delivering may take this share of the time of one of the cores, which training needs.
_LARGEST_SHARE = 0.005
_LONGEST_PAUSE = 30.0  # seconds between two attempts to reach a store


class Delivery:
    """A page on its way to MLflow.

    Args:
        root: the project's main folder.
        folder: the page's.
    """

    def __init__(self, root: Path, folder: Path):
        self.root, self.folder = root, folder
        self.run_id, self.done, self.folded = "", 0, False
        if (progress := folder / PROGRESS).exists():
            self.run_id, self.done, self.folded = json.loads(progress.read_text())
        self._known: dict[str, set[int]] = {}  # the steps that a curve has in MLflow

    def advance(self) -> None:
        """Deliver what has been written since the last time.

        Raises:
            Exception: whatever MLflow raises; what was not delivered is tried again the next time.
        """
        try:
            entries = read_entries(self.folder, self.done)
            if entries:
                first = entries[0] if not self.done else read_entries(self.folder)[0]
                self.client, self.experiment_id = open_store(self.root, first["store"])
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
            self._known = {}  # it may have arrived, and only the answer been lost
            raise

    def finish(self) -> None:
        """Deliver the rest of a page that is closed, and remove it."""
        self.advance()
        last = read_entries(self.folder)[-1:]
        if last and last[0]["kind"] != "end":  # its process was killed
            self._end({"status": "KILLED", "time": last[0]["time"]})
        shutil.rmtree(self.folder)

    def _note_progress(self) -> None:
        unfinished = self.folder / "unfinished"
        unfinished.write_text(json.dumps([self.run_id, self.done, self.folded]))
        unfinished.replace(self.folder / PROGRESS)

    def _row(self, entry: Entry) -> None:
        """Find the row that the page is of, or make it."""
        if known := self._find(PAGE_TAG, self.folder.name):  # made, but the answer was lost
            self.run_id = known[0].info.run_id
        elif model := entry.get("model"):
            found = [run for run in self._find(MODEL_TAG, model[MODEL_TAG]) if _is_of(run, model)]
            if found:
                self.run_id = found[0].info.run_id
                self._join_experiments(found[0], entry["tags"])
            else:
                self._create(entry, {"restored": "true"})
                self._params({"params": entry["params"]})
                self._model(entry)
                self.client.set_terminated(self.run_id, "FINISHED", entry["time"])
        else:
            found = [run for run in self._find(TRAINING_TAG, entry["training"]) if not _has_model(run)]
            if found and not entry["anew"]:
                self._reopen(found[0], entry)
            else:
                self._create(entry, {TRAINING_TAG: entry["training"]})

    def _create(self, entry: Entry, tags: dict[str, str]) -> None:
        tags = {**entry["tags"], **tags, PAGE_TAG: self.folder.name}
        run = self.client.create_run(self.experiment_id, entry["time"], tags, tags.get("dvc_experiment"))
        self.run_id = run.info.run_id
        self._note_progress()
        data = entry["data"]
        dataset = Dataset(
            name=data["dataset"],
            digest=data["sha256"][:32],  # MLflow takes 36 characters at most
            source_type="text",
            source=json.dumps({"origin": data["origin"], "sha256": data["sha256"]}),
            profile=json.dumps({f"{split}_characters": n for split, n in data["characters"].items()}),
        )
        context = InputTag("mlflow.data.context", "training")
        self.client.log_inputs(self.run_id, [DatasetInput(dataset, [context])])

    def _reopen(self, run: Run, entry: Entry) -> None:
        """Training goes on, in the row that it began."""
        self.run_id = run.info.run_id
        self.client.update_run(self.run_id, status="RUNNING")
        if "error" in run.data.tags:
            self.client.delete_tag(self.run_id, "error")
        self._set_tags({**entry["tags"], "dvc_experiments": _joined(run.data.tags, entry["tags"])})

    def _params(self, entry: Entry) -> None:
        """One that stands there stays, and a new value becomes the tag `latest.KEY`."""
        noted = self.client.get_run(self.run_id).data
        texts = {key: str(value) for key, value in entry["params"].items()}
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
        for first in range(0, len(new), _POINTS_AT_ONCE):
            self.client.log_batch(self.run_id, metrics=new[first : first + _POINTS_AT_ONCE])

    def _steps(self, key: str) -> set[int]:
        if key not in self._known:
            history = self.client.get_metric_history(self.run_id, key)
            self._known[key] = {point.step for point in history}
        return self._known[key]

    def _results(self, entry: Entry) -> None:
        """What evaluate or sample found: the newest in `reports/`, that of each setting in `history/`."""
        self._params({"params": entry["settings"]})
        metrics = entry["metrics"]
        latest = self.client.get_run(self.run_id).data.metrics
        if any(latest.get(key) != value for key, value in metrics.items()):
            step = max((max(self._steps(key), default=-1) for key in metrics), default=-1) + 1
            points = [Metric(key, value, entry["time"], step) for key, value in metrics.items()]
            self.client.log_batch(self.run_id, metrics=points)
            self._known = {}
        self._files({"files": entry["files"], "to": "reports"})
        history = f"history/{entry['stage']}-{entry['digest']}"
        self.client.log_dict(self.run_id, entry["settings"], f"{history}/settings.json")
        self._files({"files": entry["kept"], "to": history})

    def _files(self, entry: Entry) -> None:
        for name in entry["files"]:
            self.client.log_artifact(self.run_id, str(self.folder / name), entry["to"])

    def _model(self, entry: Entry) -> None:
        """The trained model; if an earlier row is of the very same one, this row becomes part of that."""
        model = entry["model"]
        same = [run for run in self._find(MODEL_TAG, model[MODEL_TAG]) if _is_of(run, model)]
        earlier = next((run for run in same if run.info.run_id != self.run_id), None)
        if earlier:
            self._fold_into(earlier)
        models = self.client.search_logged_models(
            [self.experiment_id], f"source_run_id = '{self.run_id}' AND status = 'READY'"
        )
        if not models:
            log_model(
                self.run_id, self.folder / entry["folder"], self.folder / entry["code"], entry["example"]
            )
        self._set_tags(model)

    def _fold_into(self, earlier: Run) -> None:
        """One row a model: give the earlier row what it lacks, and delete this one."""
        now, run_id = self.client.get_run(self.run_id), earlier.info.run_id
        for key in now.data.metrics.keys() - earlier.data.metrics.keys():  # it may have been restored
            history = self.client.get_metric_history(self.run_id, key)
            for first in range(0, len(history), _POINTS_AT_ONCE):
                self.client.log_batch(run_id, metrics=history[first : first + _POINTS_AT_ONCE])
        tags = {key: value for key, value in now.data.tags.items() if key not in _OF_ONE_ROW}
        abandoned, self.run_id, self.folded, self._known = self.run_id, run_id, True, {}
        self._params({"params": now.data.params})
        self._set_tags({**tags, "dvc_experiments": _joined(earlier.data.tags, now.data.tags)})
        if "restored" in earlier.data.tags:
            self.client.delete_tag(run_id, "restored")
        self._note_progress()
        self.client.delete_run(abandoned)

    def _join_experiments(self, run: Run, tags: dict[str, str]) -> None:
        """An experiment that only evaluated or sampled is of this row too."""
        if tags.get("dvc_experiment"):
            self._set_tags({"dvc_experiments": _joined(run.data.tags, tags)})

    def _end(self, entry: Entry) -> None:
        if self.folded:  # the row's training ended before
            return
        if error := entry.get("error"):
            self._set_tags({"error": error})
        self.client.set_terminated(self.run_id, entry["status"], entry["time"])

    def _close(self, entry: Entry) -> None:
        """Evaluate and sample leave the row's status as it is."""

    def _set_tags(self, tags: dict[str, str]) -> None:
        tags = {key: value for key, value in tags.items() if value}
        self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def _find(self, tag: str, value: str) -> list[Run]:
        """Newest first."""
        return self.client.search_runs([self.experiment_id], f"tags.{tag} = '{value}'")


# Tags that do not go over to another row.
_OF_ONE_ROW = {PAGE_TAG, "mlflow.runName"}


def _is_of(run: Run, model: dict[str, str]) -> bool:
    """Rows written before there was a tag for the whole folder are found by the weights alone."""
    return run.data.tags.get(FOLDER_TAG, model[FOLDER_TAG]) == model[FOLDER_TAG]


def _has_model(run: Run) -> bool:
    return MODEL_TAG in run.data.tags


def _joined(before: dict[str, str], tags: dict[str, str]) -> str:
    names = [*before.get("dvc_experiments", "").split(", "), tags.get("dvc_experiment", "")]
    return ", ".join(filter(None, dict.fromkeys(names)))


def deliver_closed(root: Path) -> None:
    """Deliver the pages that nobody writes on any more, oldest first, since one may build on another.

    Raises:
        Exception: the first that MLflow raised; what was not delivered stays where it is.
    """
    for folder in closed_pages(root):
        deliver_page(root, folder)


def deliver_page(root: Path, folder: Path) -> None:
    """Deliver a closed page; one that MLflow refuses for good is put aside, so that it holds up no other."""
    try:
        with delivery_lock(folder):
            if folder.exists():
                Delivery(root, folder).finish()
    except MlflowException as error:
        if not _is_final(error):
            raise
        refused = spool_of(root) / f"refused-{folder.name}"
        folder.rename(refused)
        print(f"WARNING: MLflow refused what is kept in {refused}: {_first_line(error)}", file=sys.stderr)
    except FileNotFoundError:
        if folder.exists():  # else another process has delivered it
            raise


def follow(root: Path, folder: Path) -> None:
    """Deliver a page while it is written, until standard input ends, as it does when its writer does."""
    print("ready", flush=True)
    delivery, pause = Delivery(root, folder), 0.0
    open_for_writing = True
    with delivery_lock(folder):
        while open_for_writing:
            readable, _, _ = select.select([sys.stdin], [], [], pause)
            open_for_writing = not readable
            began = time.process_time()
            try:
                deliver_closed(root)
                delivery.advance()
                pause = max(1.0, (time.process_time() - began) / _LARGEST_SHARE)
            except Exception as error:
                if isinstance(error, MlflowException) and _is_final(error):
                    break
                _note_trouble(folder, error)
                pause = min(max(1.0, 2 * pause), _LONGEST_PAUSE)
    # What is left of this page, the last attempt included.
    if (folder / "trouble").exists() and not delivery.done:
        deliver_closed(root)
    deliver_page(root, folder)


def _note_trouble(folder: Path, error: Exception) -> None:
    (folder / "trouble").write_text(_first_line(error))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).split("\n")[0]


def _is_final(error: MlflowException) -> bool:
    """Whether another attempt cannot end better, as it can once a server is back or the password is right."""
    status = error.get_http_status_code()
    return 400 <= status < 500 and status not in (401, 403, 408, 429)
