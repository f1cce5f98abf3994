"""A name for a training: equal for trainings that must give the same bytes."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from minilm.files import sha256_of

# Parameters of the train stage that cannot change its result.
NO_EFFECT = ("checkpoint_interval", "launcher")


def fingerprint(project: Path, params: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    """The digest of all that a training's result depends on.

    Args:
        project: the folder with dvc.yaml; the data and code files are those that its train stage names.
        params: the train stage's.
        environment: as `minilm.device.describe_environment` gives it.
    """
    pipeline = yaml.safe_load((project / "dvc.yaml").read_text(encoding="utf-8"))
    files = {name: sha256_of(project / name) for name in pipeline["stages"]["train"]["deps"]}
    relevant = {key: value for key, value in params.items() if key not in NO_EFFECT}
    parts = json.dumps([relevant, dict(environment), files], sort_keys=True)
    return hashlib.sha256(parts.encode()).hexdigest()[:32]


def training_lock(root: Path, training: str) -> FileLock:
    """Held while the training of that fingerprint runs; the system releases it when its process dies."""
    return FileLock(root / ".dvc" / "tmp" / f"training-{training}.lock")
