"""dvc.yaml tells the truth: what a stage depends on is what it imports and what it takes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from minilm.params import STAGES

ROOT = Path(__file__).parent.parent
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]

# Code that cannot change an output; a change there must not retrain every model.
NOT_A_DEPENDENCY = {
    "minilm/__init__.py": "only says where the public names live",
    "minilm/errors.py": "a class of error messages",
    "minilm/packaging.py": "only puts a finished model into MLflow",
    "minilm/params.py": "its values are tracked key by key",
    "minilm/rows.py": "only reads the notebook",
    "minilm/spool.py": "only reports",
    "minilm/tracking.py": "only reports",
    "minilm/versions.py": "only reads what git and DVC know of a model",
    "stages/__init__.py": "only starts the stage and shows its errors",
}
LOADED = """
import json, sys
from pathlib import Path
import stages.{stage}
files = [Path(m.__file__) for m in list(sys.modules.values()) if getattr(m, "__file__", None)]
files = [file.resolve() for file in files if file.is_file()]
inside = [f.relative_to(Path.cwd()).as_posix() for f in files if f.is_relative_to(Path.cwd())]
print(json.dumps([[f for f in inside if not f.startswith(".venv/")], list(sys.modules)]))
"""


@pytest.fixture(scope="module")
def loaded():
    """For each stage: this project's files and all modules that a process which imports it holds."""
    processes = {
        stage: subprocess.Popen(
            [sys.executable, "-c", LOADED.format(stage=stage)], cwd=ROOT, stdout=subprocess.PIPE
        )
        for stage in PIPELINE
    }
    return {stage: json.loads(process.communicate()[0]) for stage, process in processes.items()}


def test_the_stages_are_the_five():
    assert list(PIPELINE) == list(STAGES) == ["download", "encode", "train", "evaluate", "sample"]


@pytest.mark.parametrize("stage", PIPELINE)
def test_code_dependencies_are_exactly_the_imports(stage, loaded):
    files = set(loaded[stage][0])
    assert {dep for dep in PIPELINE[stage]["deps"] if dep.endswith(".py")} == files - NOT_A_DEPENDENCY.keys()


@pytest.mark.parametrize("stage", PIPELINE)
def test_params_are_exactly_the_fields(stage):
    assert PIPELINE[stage]["params"] == list(STAGES[stage].model_fields)


@pytest.mark.parametrize(
    ("stage", "unused"),
    [
        ("download", {"torch", "mlflow", "datasets", "safetensors"}),
        ("encode", {"torch", "mlflow", "datasets", "requests", "safetensors"}),
        ("train", {"datasets", "requests", "transformers", "minilm.evaluation", "minilm.generation"}),
        ("evaluate", {"datasets", "transformers", "minilm.training", "minilm.generation"}),
        ("sample", {"datasets", "transformers", "minilm.training", "minilm.evaluation"}),
    ],
)
def test_no_stage_imports_what_it_does_not_use(stage, unused, loaded):
    modules = set(loaded[stage][1])
    # MLflow itself loads requests.
    assert not modules & (unused - ({"requests"} if "mlflow" in modules else set()))


def test_encoding_and_params_need_no_torch():
    code = "import sys, minilm; minilm.CharTokenizer.from_text('ab'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
