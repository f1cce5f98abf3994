"""The MLflow model: what a server or `mlflow.pyfunc.load_model` runs to continue prompts, and its logging.

A logged model holds this file, the model folder and the package `minilm` (MLflow's "models from code"), so
that it loads where this project is not. Logging runs the file too, but not the model: torch is imported
where the model is loaded.
"""

import os
import shutil
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature, infer_signature
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types import ColSpec, Schema
from mlflow.types.schema import AnyType

from minilm.errors import InputError
from minilm.generation.config import Sampling

# Limits of one request.
MAX_PROMPTS = 64
MAX_PROMPT_CHARACTERS = 10_000
MAX_STOP_CHARACTERS = 100
MAX_NEW_TOKENS = 10_000
MAX_NEW_TOKENS_OF_ALL = 20_000
MAX_SECONDS = 30.0  # MLflow's server itself gives up after 60 s
PACKAGE = Path(__file__).parent.parent
# Parts of the package that the served model does not need: each file is a request to a remote store.
NOT_SERVED = ["__pycache__", "evaluation", "report", "tracking", "training", "deploy", "sample_text"]
NOT_SERVED += ["corpus.py", "batches.py", "device.py", "export.py", "params.py"]
PACKAGES = ("mlflow", "numpy", "safetensors", "torch")  # what the served model imports


class TextGenerator(PythonModel):
    """Continues each prompt as `minilm.generate` does.

    The params are the fields of `Sampling`, whose defaults replace None and what is missing.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Load the model, once per process, and set torch's threads for it."""
        import torch

        from minilm.checkpoint import load
        from minilm.generation.kv_cache import useful_threads

        self.model, self.tokenizer = load(context.artifacts["model"])
        torch.set_num_threads(useful_threads(self.model))
        # The server's threads take turns: two texts at once are not done sooner than one after the other.
        self.turn = Lock()

    # MLflow calls both without its context, since they do not name it.
    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> list[str]:  # type: ignore[override]
        """One text for each prompt in the first column, the prompt first; the seed is the same for all.

        Raises MlflowException, which is answered with status 400 for a prompt or param that is out of its
        range or beyond a limit, with 503 if the texts are not done within MAX_SECONDS.
        """
        end = time.monotonic() + MAX_SECONDS
        streams = self._streams(model_input.iloc[:, 0].tolist(), params)
        if self.turn.acquire(timeout=MAX_SECONDS):
            try:
                texts = ["".join(takewhile(lambda _: time.monotonic() < end, pieces)) for pieces in streams]
            finally:
                self.turn.release()
            if time.monotonic() < end:
                return texts
        raise MlflowException(
            f"not done within {MAX_SECONDS:g} s, since the server is busy or the model slow; ask for fewer "
            "characters or later",
            error_code=TEMPORARILY_UNAVAILABLE,
        )

    def predict_stream(self, model_input: str, params: dict[str, Any] | None = None) -> Iterator[str]:  # type: ignore[override]
        """Yield the text that `predict` returns for one prompt, piece by piece, without a time limit."""
        return self._streams([model_input], params)[0]

    def _streams(self, prompts: list[Any], params: dict[str, Any] | None) -> list[Iterator[str]]:
        """The pieces of each text, computed when they are read; MlflowException for what is not allowed."""
        from minilm.generation.text import stream

        try:
            settings = Sampling(**{key: value for key, value in (params or {}).items() if value is not None})
            for prompt in prompts:
                if not isinstance(prompt, str):
                    raise InputError(f"a prompt must be a string, not {prompt!r:.40}")
            tokens = settings.max_new_tokens
            for name, size, limit in (
                ("number of prompts", len(prompts), MAX_PROMPTS),
                ("characters of a prompt", max(map(len, prompts), default=0), MAX_PROMPT_CHARACTERS),
                ("characters of stop", len(settings.stop), MAX_STOP_CHARACTERS),
                ("max_new_tokens", tokens, MAX_NEW_TOKENS),
                ("max_new_tokens of all prompts", tokens * len(prompts), MAX_NEW_TOKENS_OF_ALL),
            ):
                if size > limit:
                    raise InputError(f"{name}: {size} is more than {limit}, the limit of a request")
            return [stream(self.model, self.tokenizer, prompt, **asdict(settings)) for prompt in prompts]
        except InputError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None


def log_model(client: MlflowClient, run_id: str, folder: Path) -> None:
    """Log a model folder as the MLflow model `model` of a run, whose status and end time stay as they are.

    A run that has its model keeps it, so the call may be stopped anywhere and repeated. The client's address
    becomes MLflow's tracking URI.
    """
    run = client.get_run(run_id)
    if run.outputs and run.outputs.model_outputs:
        return
    model = client.create_logged_model(
        run.info.experiment_id, "model", source_run_id=run_id, params=run.data.params
    )
    signature = ModelSignature(
        # TextGenerator checks the prompts itself; as strings, MLflow would turn null into "None".
        inputs=Schema([ColSpec(AnyType())]),
        outputs=Schema([ColSpec("string")]),
        params=infer_signature(params=asdict(Sampling())).params,
    )
    mlflow.set_tracking_uri(client.tracking_uri)
    with TemporaryDirectory() as code, warnings.catch_warnings():
        shutil.copytree(PACKAGE, Path(code) / "minilm", ignore=shutil.ignore_patterns(*NOT_SERVED))
        # MLflow recommends an input example, but would load the model to try it.
        warnings.simplefilter("ignore", UserWarning)
        mlflow.pyfunc.log_model(
            name="model",
            model_id=model.model_id,
            python_model=__file__,
            artifacts={"model": str(folder)},
            code_paths=[f"{code}/minilm"],
            signature=signature,
            # Without a local part such as +cpu, which the package index does not know.
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in PACKAGES],
        )
    # Last, so that the model of a run is always whole.
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])


mlflow.models.set_model(TextGenerator())  # for MLflow, which runs this file
