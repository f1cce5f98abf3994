"""A name for a training: equal for trainings that must give the same bytes."""

import ast
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from minilm.files import sha256_of

# Parameters of the train stage that do not change its result. What `auto` comes to is in the environment.
# eval_interval is not among them: the loss curve has its points there, and keep: best chooses between them.
NO_EFFECT = ("checkpoint_interval", "launcher", "device", "precision")


def training_inputs(
    project: Path, params: Mapping[str, Any], environment: Mapping[str, Any]
) -> dict[str, Any]:
    """All that a training's result depends on: parameters and environment, and the digest of each file.

    Args:
        project: the folder with dvc.yaml; the data and code files are those that its train stage names.
        params: the train stage's.
        environment: as `minilm.device.describe_environment` gives it.
    """
    pipeline = yaml.safe_load((project / "dvc.yaml").read_text(encoding="utf-8"))
    files = {name: _digest(project / name) for name in pipeline["stages"]["train"]["deps"]}
    return {key: value for key, value in params.items() if key not in NO_EFFECT} | dict(environment) | files


def fingerprint(inputs: Mapping[str, Any]) -> str:
    """The digest of what `training_inputs` gives."""
    return sha256_of(json.dumps(inputs, sort_keys=True).encode())[:32]


def training_lock(root: Path, training: str) -> FileLock:
    """Held while the training of that fingerprint runs; the system releases it when its process dies."""
    return FileLock(root / ".checkpoints" / f"{training}.lock")


def _digest(path: Path) -> str:
    """The SHA-256 of a file or folder; of code without comments, docstrings and layout."""
    if path.is_dir():
        return sha256_of("".join(map(_digest, sorted(path.iterdir()))).encode())
    if path.suffix != ".py":
        return sha256_of(path)
    tree = _WithoutDocstrings().visit(ast.parse(path.read_bytes()))
    return sha256_of(ast.dump(tree).encode())


class _WithoutDocstrings(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) else node
