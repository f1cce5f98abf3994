"""The lab notebook's rows, read without changing anything: no store is made where there is none."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from minilm.errors import InputError
from minilm.params import FIELDS
from minilm.spool import store_uri

if TYPE_CHECKING:
    from mlflow.entities import Run


# What the parameter `precision`, which may be `auto`, came to.
PRECISION_USED = "precision_used"


class NoNotebookError(InputError):
    """There is no store here."""


class Rows:
    """The rows of the experiment `minilm`.

    Args:
        root: the project's main folder, which holds the local store.

    Raises:
        NoNotebookError: there is no store.
        InputError: it cannot be read.
    """

    def __init__(self, root: Path):
        uri = store_uri(root)
        self.store = without_password(uri)
        # SQLite would make a database that is missing.
        if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
            unset = "" if os.environ.get("MLFLOW_TRACKING_URI") else " and MLFLOW_TRACKING_URI is not set"
            raise NoNotebookError(
                f"no notebook here: {self.store.removeprefix('sqlite:///')} does not exist{unset}"
            )

        from minilm.store import EXPERIMENT, MlflowClient

        with self._readable():
            self._client = MlflowClient(uri)
            experiment = self._client.get_experiment_by_name(EXPERIMENT)
        self._experiments = [experiment.experiment_id] if experiment else []

    def all(self, condition: str = "") -> "Iterator[Run]":
        """The rows that meet MLflow's condition, newest first.

        Raises:
            InputError: the store cannot be read any more.
        """
        token = None
        while self._experiments:
            with self._readable():
                page = self._client.search_runs(self._experiments, condition, page_token=token)
            yield from page
            if not (token := page.token):
                return

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # MLflow's, SQLAlchemy's, those of requests
            reason = (str(error).strip() or repr(error)).split("\n")[0]
            raise InputError(
                f"the notebook {self.store} cannot be read: {without_password(reason)}"
            ) from None

    def characters(self, run: "Run") -> dict[str, int]:
        """How many characters each split of the row's text has; empty if the row does not say."""
        for given in run.inputs.dataset_inputs if run.inputs else []:
            profile = json.loads(given.dataset.profile or "{}")
            return {key.removesuffix("_characters"): count for key, count in profile.items()}
        return {}


def experiments_of(run: "Run") -> list[str]:
    """The names of the DVC experiments that made the row's model, the latest first."""
    tags = run.data.tags
    names = [tags.get("dvc_experiment", ""), *reversed(tags.get("dvc_experiments", "").split(", "))]
    return list(filter(None, dict.fromkeys(names)))


def settings(run: "Run") -> dict[str, Any]:
    """The row's parameters as they were last, by their names in params.yaml and with their types."""
    return typed(run.data.params | latest(run))


def made_with(run: "Run") -> dict[str, Any]:
    """What the model's bytes depend on besides, as in `minilm.checkpoint.ModelCard`."""
    texts = run.data.params | latest(run)
    types = {"torch": str, "device_type": str, PRECISION_USED: str, "threads": int, "processes": int}
    facts = {key: cast(texts[key]) for key, cast in types.items() if key in texts}
    return {"precision" if key == PRECISION_USED else key: value for key, value in facts.items()}


def latest(run: "Run") -> dict[str, str]:
    """The parameters that changed after the row was made."""
    tags = run.data.tags.items()
    return {key.removeprefix("latest."): value for key, value in tags if key.startswith("latest.")}


def typed(texts: dict[str, str]) -> dict[str, Any]:
    """Those of the texts that are parameters, as values; one that the schema does not know stays text."""
    return {key: _value(key, texts[key]) for key in FIELDS if key in texts}


def text_of_setting(value: Any) -> str:
    """A parameter's value as params.yaml writes it; text that is empty or has spaces in quotes."""
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, ensure_ascii=False) if re.search(r"^$|\s", str(value)) else str(value)


def without_password(text: str) -> str:
    """The text, with the user's name and password taken out of the addresses in it."""
    return re.sub(r"//[^/@\s]*@", "//", text)


def _value(key: str, text: str) -> Any:
    annotation: Any = FIELDS[key].annotation
    try:
        return TypeAdapter(annotation).validate_python(text)
    except ValidationError:
        return text
