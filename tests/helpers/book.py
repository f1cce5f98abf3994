"""A project's folder with a trained model and a notebook of which nobody delivers the pages by himself."""

import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
from minilm.data.provenance import Source
from minilm.tracking.store import MlflowClient

from minilm import tracking
from minilm.checkpoint import save
from minilm.spool import store_uri

SOURCE = Source("wikitext-2", "sample", "wikitext-2", {"train": 9, "validation": 3, "test": 2}, "ab" * 32)
DIGESTS = ("model_sha256", "model_folder_sha256")
# What names one training or model; it differs between two that are alike.
NAMES = {"page", "training", *DIGESTS}
PARAMS = {"learning_rate": 0.01, "stop": ""}
METRICS = {"test_loss": 2.5, "ngram_loss": 1.5}


class Book:
    """A project's folder with a trained model, and its local notebook."""

    def __init__(self, root: Path, store: Path, tiny_model, patch: pytest.MonkeyPatch):
        self.root, self.patch = root, patch
        self.model = root / "models" / "minilm"
        (root / "reports").mkdir(parents=True)
        shutil.copy(store, root / "mlflow.db")
        save(self.model, *tiny_model, PARAMS, SOURCE, {"torch": "2.13.0", "precision": "float32"})
        for name in ("loss.csv", "metrics.json", "samples.txt"):
            (root / "reports" / name).write_text(f"this is {name}\n")
        self.client = MlflowClient(store_uri(root))
        self.experiment = self.client.get_experiment_by_name("minilm").experiment_id
        patch.setenv("DVC_ROOT", str(root))
        patch.chdir(root)

    @contextmanager
    def written(self, opened):
        """A notebook whose page nobody delivers by itself; it is closed after the block."""
        with self.patch.context() as patch:
            patch.setattr(tracking, "_send_courier", lambda _: None)
            with opened as notebook:
                yield notebook
        notebook.page.close()

    def trained(self) -> Path:
        """The page of a training, with an entry of each kind that it writes."""
        with self.written(tracking.new_run(self.root, SOURCE, "some training", anew=False)) as notebook:
            notebook.log_params(PARAMS)
            for step in (1, 2):
                notebook.log_metrics({"train_loss": 3.0 / step, "val_loss": 4.0 / step}, step)
            notebook.log_model(self.model)
            notebook.log_metrics({"best_val_loss": 2.0})
            notebook.log_files(Path("reports/loss.csv"))
            self.log_evaluation(notebook)
        return notebook.page.folder

    def evaluated(self, settings=None, metrics=None) -> Path:
        """The page of an evaluation, which makes the model's row where there is none."""
        with self.written(tracking.run_of(self.root, "evaluate", self.model)) as notebook:
            self.log_evaluation(notebook, settings, metrics)
        return notebook.page.folder

    @staticmethod
    def log_evaluation(notebook, settings=None, metrics=None) -> None:
        files = [Path("reports/metrics.json")]
        # A training tells of it too, by log_standing_results.
        tracking._write_results(
            notebook.page, "evaluate", settings or {"eval_context": 8}, metrics or METRICS, files
        )

    def rows(self):
        return self.client.search_runs([self.experiment])

    def content(self, row) -> dict:
        """All that a row says; equal for two rows of which the same was told."""
        found = self.client.search_logged_models([self.experiment], max_results=1000)
        run_id, files, folders = row.info.run_id, [], [None]
        while folders:
            for file in self.client.list_artifacts(run_id, folders.pop()):
                folders.append(file.path) if file.is_dir else files.append((file.path, file.file_size))
        return {
            "status": (row.info.status, row.info.start_time, row.info.end_time),
            "params": row.data.params,
            "tags": {key: "" if key in NAMES else value for key, value in row.data.tags.items()},
            "curves": {key: self.curve(row, key) for key in row.data.metrics},
            "files": sorted(files),
            "inputs": [given.to_dictionary() for given in row.inputs.dataset_inputs],
            "models": len(row.outputs.model_outputs),
            "whole models": [m.status for m in found if m.source_run_id == run_id].count("READY"),
        }

    def curve(self, row, key: str) -> list[tuple[int, float, int]]:
        history = self.client.get_metric_history(row.info.run_id, key)
        return sorted((point.step, point.value, point.timestamp) for point in history)
