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
    "minilm/deploy/pyfunc.py": "only logs a finished model",
    "minilm/errors.py": "only error messages",
    "minilm/generation/config.py": "its values are tracked key by key",
    "minilm/params.py": "its values are tracked key by key",
    "minilm/tracking/": "only logs",
    "minilm/training/fingerprint.py": "only names a training",
    "minilm/training/memory.py": "only explains an error",
    "stages/__init__.py": "only starts the stage and shows its errors",
}
LOADED = """
import ast, json, sys
from pathlib import Path
import stages.{stage}
for node in ast.walk(ast.parse(Path("stages/{stage}.py").read_text())):
    if isinstance(node, ast.Import | ast.ImportFrom):
        exec(ast.unparse(node))  # also what only a function imports
files = [Path(m.__file__) for m in list(sys.modules.values()) if getattr(m, "__file__", None)]
files = [file.resolve() for file in files if file.is_file()]
inside = [f.relative_to(Path.cwd()).as_posix() for f in files if f.is_relative_to(Path.cwd())]
print(json.dumps([[f for f in inside if not f.startswith(".venv/")], list(sys.modules)]))
"""


@pytest.fixture(scope="module")
def loaded():
    """For each stage: this project's files and all modules that a process holds which imports the same."""
    processes = {
        stage: subprocess.Popen(
            [sys.executable, "-c", LOADED.format(stage=stage)], cwd=ROOT, stdout=subprocess.PIPE
        )
        for stage in PIPELINE
    }
    return {stage: json.loads(process.communicate()[0]) for stage, process in processes.items()}


def test_the_stages_are_the_six():
    assert list(PIPELINE) == list(STAGES) == ["download", "encode", "train", "evaluate", "sample", "report"]


@pytest.mark.parametrize("stage", PIPELINE)
def test_code_dependencies_are_exactly_the_imports(stage, loaded):
    files = {file for file in loaded[stage][0] if (ROOT / file).stat().st_size}  # an empty one says nothing
    expected = {file for file in files if not file.startswith(tuple(NOT_A_DEPENDENCY))}
    expected.discard("minilm/__init__.py")  # only says where the public names are
    if "minilm/checkpoint.py" not in files:
        expected.discard("minilm/model/config.py")  # params.py has its defaults from there
    assert {dep for dep in PIPELINE[stage]["deps"] if dep.endswith(".py")} == expected


def test_report_depends_on_all_that_its_pages_are_made_of():
    folder = ROOT / "minilm/report"
    files = {path for path in folder.rglob("*") if path.suffix in (".html", ".css", ".js")}
    deps = {ROOT / dep for dep in PIPELINE["report"]["deps"] if dep.startswith("minilm/report/")}
    assert files == {dep for dep in deps if dep.suffix != ".py"}


@pytest.mark.parametrize("stage", PIPELINE)
def test_params_are_exactly_the_fields(stage):
    assert PIPELINE[stage]["params"] == list(STAGES[stage].model_fields)


@pytest.mark.parametrize(
    ("stage", "unused"),
    [
        ("download", {"torch", "mlflow", "datasets", "safetensors"}),
        ("encode", {"torch", "mlflow", "datasets", "requests", "safetensors"}),
        ("train", {"datasets", "transformers", "matplotlib", "dvc", "minilm.evaluation", "minilm.deploy"}),
        ("evaluate", {"datasets", "mlflow", "matplotlib", "jinja2", "minilm.training", "minilm.tracking"}),
        ("sample", {"datasets", "mlflow", "matplotlib", "jinja2", "minilm.training", "minilm.evaluation"}),
        ("report", {"datasets", "torch", "matplotlib.pyplot", "transformers"}),
    ],
)
def test_no_stage_imports_what_it_does_not_use(stage, unused, loaded):
    assert not set(loaded[stage][1]) & unused
