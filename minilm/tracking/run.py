"""The lab notebook: one MLflow run for each trained model, found again by the digests of its files.

It only reports. A stage writes what it has to tell into the spool, and a process beside it delivers that to
MLflow: a store that is slow, down or back later costs the stage next to nothing, and nothing is lost.
"""

import getpass
import hashlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minilm.checkpoint import CONFIG, TOKENIZER, ModelCard, read_card
from minilm.data.provenance import Source
from minilm.data.tokenizer import CharTokenizer
from minilm.errors import StoppedError
from minilm.files import sha256_of
from minilm.packaging import copy_code
from minilm.params import STAGES
from minilm.rows import PRECISION_USED, without_password
from minilm.spool import DELIVERED, LOG, READY, REFUSED, TROUBLE, Page, spool_id, spool_of, store_uri
from minilm.versions import CODE, git, standing_outputs

# How long a stage waits at its end until all has arrived, in seconds: for a local store; for a server, or
# that share of its own time if it is more; for a server that did not answer the last time.
_LOCAL_WAIT, _SERVER_WAIT, _SERVER_SHARE, _TROUBLE_WAIT = 60.0, 2.0, 0.03, 0.5
_LONGEST_IMPORT = 15.0  # seconds that a training waits until the process that delivers has imported MLflow
# Of a stage's results, the file that MLflow keeps for each setting.
_KEPT = {"evaluate": Path("reports/metrics.json"), "sample": Path("reports/samples.txt")}


class Notebook:
    """What a stage has to tell of a model.

    Args:
        root: the project's main folder, $DVC_ROOT, which holds the spool and the local store.
        stage: the name of the one that tells.
        data: the model's text.
        row: what identifies the model's row; called with the page, which can keep files for it.
    """

    def __init__(self, root: Path, stage: str, data: Source, row: Callable[[Page], Mapping[str, Any]]):
        self.root, self.stage, self.began = root, stage, time.monotonic()
        self.page: Page | None = None
        self._courier: subprocess.Popen[bytes] | None = None
        tags = _code_and_experiment() | {
            "data_source": data.origin,
            "data_sha256": data.sha256,
            "is_sample_text": str(data.origin == "sample").lower(),
        }
        try:
            page = Page(root, stage)
            page.write(
                "row",
                store=store_uri(root),
                name=tags.get("dvc_experiment") or f"{stage} {tags.get('git_commit', '')[:7]}".strip(),
                tags=tags | {"spool": spool_id(root)},
                data=asdict(data),
                **row(page),
            )
            self.page = page
            self._courier = _send_courier(page)
        except OSError as error:
            _warn(f"{'nothing is recorded' if self.page is None else 'what is recorded is kept'}: {error}")

    def wait_until_ready(self) -> None:
        """Let the process that delivers import what it needs, lest it disturb what is timed."""
        if self._courier and self._courier.stdout:
            ready, _, _ = select.select([self._courier.stdout], [], [], _LONGEST_IMPORT)
            if ready:
                self._courier.stdout.readline()

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Add points to the curves of these names; a step that a curve has already is left as it is."""
        self._tell(lambda page: page.write("points", metrics=dict(metrics), step=step))

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Note parameters; one that stands there stays, and a new value becomes the tag `latest.KEY`."""
        self._tell(lambda page: page.write("params", params=dict(params)))

    def log_files(self, *paths: Path) -> None:
        """Store copies of files under `reports/`."""
        self._tell(lambda page: page.write("files", files=[page.keep(path) for path in paths], to="reports"))

    def log_model(self, folder: Path) -> None:
        """Store the model folder as an MLflow model that serves, and tag the run with its digests."""
        self._tell(lambda page: page.write("model", **_model(page, folder, read_card(folder))))

    def log_results(
        self, settings: Mapping[str, Any], metrics: Mapping[str, float], files: Sequence[Path]
    ) -> None:
        """Note what the stage found in the model.

        Args:
            settings: the parameters that it depends on.
            metrics: where they differ from the last ones, they become the next points of their curves.
            files: stored under `reports/`; one also under `history/`, which keeps that of each setting.
        """
        self._tell(_write_results, self.stage, settings, metrics, files)

    def log_standing_results(self, model: Path) -> None:
        """Note what evaluate and sample found in the very same model before.

        After a training that gave the same bytes again they do not run, and nobody else would tell of it.
        """
        self._tell(_write_standing_results, model)

    def end(self, status: str, error: str = "") -> None:
        """How the training ended, as MLflow calls it."""
        self._tell(lambda page: page.write("end", status=status, error=error))

    def close(self) -> None:
        """Wait a while until all has arrived; say so, if it has not."""
        if self.page is None:
            return
        if self._courier is None:
            self.page.close()
            return
        try:
            self._await_delivery(self.page, self._courier)
        except KeyboardInterrupt:
            # What the stage was to do is done; who is in a hurry need not wait.
            _warn(f"the rest goes on in the background, from {spool_of(self.root)}")
        except OSError as error:
            _warn(f"not all is recorded: {error}")

    def _await_delivery(self, page: Page, courier: subprocess.Popen[bytes]) -> None:
        assert courier.stdin is not None
        assert courier.stdout is not None
        page.close()
        courier.stdin.close()
        store, trouble = store_uri(self.root), ""
        with suppress(FileNotFoundError):
            trouble = (page.folder / TROUBLE).read_text(encoding="utf-8")
        wait = (
            _TROUBLE_WAIT if trouble else max(_SERVER_WAIT, _SERVER_SHARE * (time.monotonic() - self.began))
        )
        end = time.monotonic() + (_LOCAL_WAIT if store.startswith(("sqlite:", "file:")) else wait)
        answer = READY  # which has been read only by those who waited for it
        while answer == READY:
            in_time, _, _ = select.select([courier.stdout], [], [], max(0, end - time.monotonic()))
            if not in_time:
                answer = trouble or "it takes long"
                break
            answer = courier.stdout.readline().decode().strip()
        if not answer:  # the process has ended, if it did so because there was nothing left to do
            log = page.folder / LOG
            answer = f"the process that delivers it failed, see {log}" if log.exists() else DELIVERED
        if answer == DELIVERED:
            return
        what = f"{without_password(store)} has not got all of it yet: {without_password(answer)}"
        _warn(
            what
            if REFUSED in answer
            else f"{what}. The rest is in {spool_of(self.root)}; the next stage delivers it, or "
            "`python -m minilm.deliver`"
        )

    def _tell(self, action: Callable[..., object], *arguments: Any) -> None:
        if self.page is None:
            return
        try:
            action(self.page, *arguments)
        except OSError as error:  # such as a full disk
            _warn(f"nothing more is recorded: {error}")
            with suppress(OSError):  # it fails at the same again
                self.page.close()
            self.page = None
        except Exception as error:
            # Whatever goes wrong in a notebook must not cost the training that it tells of.
            _warn(f"not all is recorded: {error}")


@contextmanager
def new_run(root: Path, data: Source, training: str, anew: bool) -> Iterator[Notebook]:
    """The row of a training, which ends with the block: FINISHED, KILLED if interrupted, or FAILED.

    Args:
        root: the project's main folder, $DVC_ROOT, which holds the spool and the local store.
        data: the text.
        training: a name for this training; if it was begun before, it goes on in the same row.
        anew: whether it begins from the start, in a new row.
    """
    notebook = Notebook(root, "train", data, lambda _: {"training": training, "anew": anew})
    notebook.wait_until_ready()
    try:
        yield notebook
    except (KeyboardInterrupt, StoppedError):
        notebook.end("KILLED")
        raise
    except BaseException as error:
        notebook.end("FAILED", (str(error).strip() or repr(error)).split("\n")[0])
        raise
    else:
        notebook.end("FINISHED")
    finally:
        notebook.close()


@contextmanager
def run_of(root: Path, stage: str, folder: Path) -> Iterator[Notebook]:
    """The newest row of the model in `folder`, as it is; or a new one, where the store has none.

    A fresh clone with a pulled model has none: then the model folder tells what made it, and the tag
    `restored` says that the curves are missing.

    Args:
        root: the project's main folder, $DVC_ROOT, which holds the spool and the local store.
        stage: the name of the one that tells.
        folder: the model's.
    """
    card = read_card(folder)
    params = card.params | made_with_params(card.made_with)
    notebook = Notebook(root, stage, card.data, lambda page: {**_model(page, folder, card), "params": params})
    try:
        yield notebook
    finally:
        notebook.close()


def _send_courier(page: Page) -> subprocess.Popen[bytes]:
    """Start the process that delivers."""
    with (page.folder / LOG).open("w") as log:
        # Its standard input ends when this process does, in whatever way; Ctrl-C is not for it.
        return subprocess.Popen(
            [sys.executable, "-m", "minilm.deliver", str(page.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # so that what has been said but not read yet is seen by select
            stderr=log,
            start_new_session=True,
        )


def made_with_params(made_with: Mapping[str, Any]) -> dict[str, Any]:
    """What `minilm.checkpoint.ModelCard.made_with` holds, by its names in MLflow."""
    return {PRECISION_USED if key == "precision" else key: value for key, value in made_with.items()}


def _model(page: Page, folder: Path, card: ModelCard) -> dict[str, Any]:
    """A model that the page keeps, with all that serves it."""
    code = page.new_folder()
    copy_code(code)
    characters = CharTokenizer.load(folder / TOKENIZER).characters
    return {
        "model": {"model_sha256": card.model_sha256, "model_folder_sha256": sha256_of(folder / CONFIG)},
        "folder": page.keep(folder),
        "code": page.name_of(code),
        "example": next(filter(str.isalpha, characters), characters[0]),  # a prompt that it certainly knows
    }


def _write_results(
    page: Page, stage: str, settings: Mapping[str, Any], metrics: Mapping[str, float], files: Sequence[Path]
) -> None:
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    (file := page.new_folder() / "settings.json").write_text(text, encoding="utf-8")
    page.write(
        "results",
        stage=stage,
        settings=dict(settings),
        digest=hashlib.sha256(text.encode()).hexdigest()[:8],
        metrics=dict(metrics),
        files=[page.keep(path) for path in files],
        kept=[page.name_of(file), page.keep(_KEPT[stage])],
    )


def _write_standing_results(page: Page, model: Path) -> None:
    for stage, kept in _KEPT.items():
        if standing := standing_outputs(Path.cwd(), stage, model):
            settings = STAGES[stage].model_validate(standing.params).model_dump(exclude={"device"})
            metrics = json.loads(kept.read_text()) if kept.suffix == ".json" else {}
            _write_results(page, stage, settings, metrics, standing.files)


def _code_and_experiment() -> dict[str, str]:
    """Tags that lead back to the code and the DVC experiment; what is not known is left out."""
    commit = git(Path.cwd(), "rev-parse", "HEAD")
    tags = {
        "dvc_experiment": os.environ.get("DVC_EXP_NAME"),
        "dvc_baseline": os.environ.get("DVC_EXP_BASELINE_REV"),
        "git_commit": commit,
        "mlflow.source.git.commit": commit,
        "mlflow.source.name": "dvc.yaml",
        "mlflow.source.type": "PROJECT",
    }
    with suppress(OSError, KeyError):  # a container may have no name for its user
        tags["mlflow.user"] = getpass.getuser()
    # What an experiment changes in params.yaml and dvc.lock is told by the row's params; this is of the code.
    changes = git(Path.cwd(), "status", "--porcelain", "--untracked-files=no", "--", *CODE)
    if changes is not None:
        tags["git_dirty"] = str(bool(changes)).lower()
    return {key: value for key, value in tags.items() if value}


def _warn(what: str) -> None:
    print(f"WARNING: MLflow: {what}", file=sys.stderr)
