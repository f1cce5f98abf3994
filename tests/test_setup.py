"""The set-up: make installs what a command needs, and what is imported is declared and pinned."""

import ast
import itertools
import os
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
EXPORT = ROOT / "minilm" / "deploy" / "huggingface.py"


@pytest.fixture
def make(tmp_path):
    """Runs make in a project whose pip, dvc, pytest and mlflow only print how they were called."""
    folder = tmp_path / "my project"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    for name in ("pip", "dvc", "pytest", "mlflow"):
        (folder / f"{name}.py").write_text(
            f"import shutil, sys\nprint('{name}', sys.argv[-1], shutil.which('python'))"
        )
    python = tmp_path / "python"  # one that does not take seconds to put pip into .venv
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@" ${{3:+--without-pip}}\n')
    python.chmod(0o755)

    def make(*arguments: str, folder: Path = folder) -> tuple[list[str], str]:
        """What the programs printed, each with whether its `python` is the folder's, and the errors."""
        done = subprocess.run(
            ["make", "--silent", f"PYTHON={python}", *arguments],
            cwd=folder,
            env={"PATH": os.defpath},
            capture_output=True,
            text=True,
        )
        return done.stdout.replace(str(folder / ".venv/bin/python"), "ours").splitlines(), done.stderr

    make.folder = folder
    return make


def test_repro_installs_the_core_and_test_the_rest_once(make):
    assert make("repro") == (["pip . ours", "dvc repro ours"], "")
    assert make("repro") == (["dvc repro ours"], "")
    assert make("test") == (["pip .[dev] ours", f"pytest {make.folder / 'pytest.py'} ours"], "")
    assert len(make("test", "repro")[0]) == 2
    (make.folder / "constraints.txt").touch()
    assert [line.split()[0] for line in make("repro", "test")[0]] == ["pip", "dvc", "pip", "pytest"]


def test_a_moved_or_copied_environment_is_made_anew(make, tmp_path):
    make("repro")
    moved, linked = tmp_path / "moved", tmp_path / "linked"
    make.folder.rename(moved)
    (moved / ".venv" / "old").touch()
    assert make("repro", folder=moved) == (["pip . ours", "dvc repro ours"], "")
    assert not (moved / ".venv" / "old").exists()
    assert make("repro", folder=moved) == (["dvc repro ours"], "")
    shutil.copytree(moved, tmp_path / "copied", symlinks=True)
    assert len(make("repro", folder=tmp_path / "copied")[0]) == 2
    shutil.copytree(moved, linked, ignore=shutil.ignore_patterns(".venv"))
    (linked / ".venv").symlink_to(moved / ".venv")  # in place, as in a second work tree
    assert len(make("repro", folder=linked)[0]) == 1
    (moved / ".venv/bin/python").unlink()
    (moved / ".venv/bin/python").symlink_to("a Python that was removed")
    assert len(make("repro", folder=moved)[0]) == 2


def test_ui_on_a_port_in_use_fails_with_a_sentence(make):
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = used.getsockname()[1]
        _, errors = make("ui", f"PORT={port}")
    assert errors.startswith(f"error: port {port} is in use or reserved; ")
    assert "\nmake: *** [" in errors  # which says that it fails
    assert make("ui", f"PORT={port}") == ([f"mlflow {port} ours"], "")


def declared(*extras: str) -> set[str]:
    """The distributions that the core and the extras name."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]
    return {canonicalize_name(Requirement(line).name) for line in lines}


def undeclared(*files: Path, extras: Iterable[str] = ()) -> set[str]:
    """The packages that the files import and no declared distribution has."""
    names = set()
    for node in (node for file in files for node in ast.walk(ast.parse(file.read_text()))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    packages = {name.partition(".")[0] for name in names} - {"minilm", "stages"}
    homes = {name: set(map(canonicalize_name, found)) for name, found in packages_distributions().items()}
    return {name for name in packages & homes.keys() if not homes[name] & declared(*extras)}


def test_what_is_imported_is_declared():
    names = ("minilm", "stages", "benchmarks", "docs", "tests")
    folders = {name: [*(ROOT / name).rglob("*.py")] for name in names}
    tests = folders.pop("tests")
    core = {ROOT / "main.py", *itertools.chain(*folders.values())}
    assert undeclared(*core - {EXPORT}) == set()
    assert undeclared(EXPORT, extras=["export"]) == set()
    assert undeclared(*tests, extras=EXTRAS) == set()
    assert undeclared(EXPORT) == {"tokenizers", "transformers"}


def test_what_is_needed_is_pinned_for_all_builds_of_torch():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    needed, seen = declared(*EXTRAS), {"minilm"}
    while new := needed - seen:
        seen |= new
        requirements = (Requirement(line) for name in new for line in distribution(name).requires or ())
        needed |= {
            canonicalize_name(requirement.name)
            for requirement in requirements
            if not requirement.marker or requirement.marker.evaluate({"extra": ""})
        }
    assert seen - {"minilm"} <= pins.keys()
    # 2.13.0 means 2.13.0+cpu too, where that is on offer; 2.13.0+cpu would mean itself alone.
    assert "+" not in pins["torch"]
    assert "torch==" not in (ROOT / "pyproject.toml").read_text()
