"""The MLflow model: what it is made of, and how it becomes part of a run.

The process that logs a model needs no torch for it, and the model's code never runs there: `copy_code` puts
aside the code that the model was trained with, and `log_model` can do the rest later.
"""

import shutil
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# The part of this library that travels with a model: minilm/serving.py and all that it needs.
SERVED_CODE = (
    "__init__.py",
    "activations.py",
    "checkpoint.py",
    "decoding.py",
    "errors.py",
    "files.py",
    "generation.py",
    "model.py",
    "positions.py",
    "serving.py",
    "source.py",
    "tokenizer.py",
)
# What a request may set, with its value where it does not: the arguments of `minilm.generate`.
PARAMS: dict[str, int | float | str] = {
    "max_new_tokens": 200,
    "temperature": 0.8,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "stop": "",
    "seed": 0,
}
_REQUIREMENTS = "requirements.txt"
_PACKAGES = ("mlflow", "numpy", "safetensors", "torch")


def copy_code(target: Path) -> None:
    """Put the code that serves a model into `target`/minilm/, and the versions that it needs beside it."""
    package = target / "minilm"
    package.mkdir(parents=True)
    for name in SERVED_CODE:
        shutil.copy2(Path(__file__).parent / name, package / name)
    # Without the local part, such as +cpu, which the package index does not know.
    pinned = [f"{package}=={version(package).partition('+')[0]}" for package in _PACKAGES]
    (target / _REQUIREMENTS).write_text("\n".join(pinned) + "\n", encoding="utf-8")


def log_model(client: "MlflowClient", run_id: str, folder: Path, code: Path, example_prompt: str) -> None:
    """Store a model folder as the MLflow model `model` of a run, which may have ended.

    A run that has its model already keeps it, so that a second attempt does no harm.

    Args:
        client: of the store that holds the run.
        run_id: of the run.
        folder: weights, config and tokenizer.
        code: the folder that `copy_code` filled.
        example_prompt: a prompt that the model knows, for MLflow's page, which shows how to call the model.

    Raises:
        MlflowException: the store cannot be reached or knows no such run.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    run = client.get_run(run_id)
    if run.outputs and run.outputs.model_outputs:
        return
    ours = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    # One may be whole already, if an earlier attempt was stopped before the last line.
    whole = [logged.model_id for logged in ours if logged.status == LoggedModelStatus.READY]
    model_id = whole[0] if whole else _store_model(client, run, folder, code, example_prompt)
    # Last, so that a run that has a model has a whole one.
    client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])


def _store_model(client: "MlflowClient", run: "Run", folder: Path, code: Path, example_prompt: str) -> str:
    """Store the model, and return its id; the run does not know of it yet."""
    import mlflow
    from mlflow.entities import LoggedModelStatus
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    types = {int: "long", float: "double", str: "string"}
    text = Schema([ColSpec("string")])
    signature = ModelSignature(
        inputs=text,
        outputs=text,
        params=ParamSchema([ParamSpec(name, types[type(value)], value) for name, value in PARAMS.items()]),
    )
    # So minilm/serving.py sees the input as it is; else MLflow would make a DataFrame of it, and "3" of 3.
    signature._is_signature_from_type_hint = True
    logged = client.create_logged_model(
        run.info.experiment_id, "model", source_run_id=run.info.run_id, params=run.data.params
    )
    try:
        with TemporaryDirectory() as temporary:
            # This is mlflow.pyfunc.log_model, but for its last step: to load the model and let it predict.
            local = Path(temporary) / "model"
            mlflow.pyfunc.save_model(
                local,
                loader_module="minilm.serving",
                data_path=str(folder),
                code_paths=[str(code / "minilm")],
                mlflow_model=Model(
                    artifact_path=logged.artifact_location,
                    run_id=run.info.run_id,
                    model_id=logged.model_id,
                    model_uuid=logged.model_id,
                ),
                signature=signature,
                input_example=([example_prompt], {**PARAMS, "max_new_tokens": 50}),
                pip_requirements=str(code / _REQUIREMENTS),
                streamable=True,
            )
            client.log_model_artifacts(logged.model_id, str(local))
        client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    except BaseException:
        with suppress(Exception):  # the error that led here is the one to tell
            client.finalize_logged_model(logged.model_id, LoggedModelStatus.FAILED)
        raise
    return logged.model_id
