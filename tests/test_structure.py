"""The parts of minilm import each other in one direction, and load no more than they need."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "minilm"
FOR_LEARNERS = ("model", "data", "training", "generation", "evaluation")


def imported_parts(path: Path) -> set[str]:
    """The packages and modules directly below minilm that a file imports anywhere; "" for minilm itself."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            below = node.module == "minilm"
            names += [f"minilm.{alias.name}" for alias in node.names] if below else [node.module]
    return {name.split(".")[1] for name in names if name.startswith("minilm.")}


def parts() -> dict[str, set[str]]:
    """For each package and module directly below minilm the others that it imports."""
    found: dict[str, set[str]] = {}
    for path in LIBRARY.rglob("*.py"):
        part = path.relative_to(LIBRARY).parts[0].removesuffix(".py")
        if part != "__init__":
            found.setdefault(part, set()).update(imported_parts(path) - {part})
    return found


PARTS = parts()


@pytest.mark.parametrize("package", FOR_LEARNERS)
def test_what_is_for_learners_imports_nothing_of_what_is_around_it(package):
    assert not PARTS[package] & {"tracking", "deploy", "report", "export"}


def test_imports_go_one_way():
    assert PARTS.keys() >= {*FOR_LEARNERS, "report", "tracking", "deploy", "params", "checkpoint"}
    TopologicalSorter(PARTS).prepare()  # raises CycleError, which names the cycle


@pytest.mark.parametrize("package", [*FOR_LEARNERS, "report", "tracking", "deploy"])
def test_packages_have_empty_init_files(package):
    assert (LIBRARY / package / "__init__.py").read_bytes() == b""


def test_configuration_parameters_tokenizer_and_model_info_load_no_torch():
    code = (
        "import sys, minilm.model.config, minilm.generation.config, minilm.params, minilm.checkpoint\n"
        "minilm.CharTokenizer.from_text('ab'), minilm.ModelConfig(3)\n"
        "print('torch' in sys.modules, 'MiniGPT' in dir(minilm), minilm.MiniGPT, 'torch' in sys.modules)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert printed.stdout == "False True <class 'minilm.model.gpt.MiniGPT'> True\n"
