"""The pipeline's stages; each is a story that `python -m stages.NAME` tells."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

import minilm
from minilm.errors import InputError


def run(story: Callable[[], None]) -> None:
    """Run a stage; a mistake of the user's ends it with its message, and no traceback."""
    try:
        _require_own_library()
        story()
    except KeyboardInterrupt:
        _put_back_outputs()
        sys.exit(130)
    except Exception as error:
        _put_back_outputs()
        if isinstance(error, InputError | OSError):
            sys.exit(f"error: {error}")
        raise


def project_root() -> Path:
    """The main workspace, also while a queued experiment runs in a temporary folder."""
    return Path(os.environ.get("DVC_ROOT", ".")).absolute()


def is_forced() -> bool:
    """Whether DVC was told to run this again from the start, as by `dvc repro --force`."""
    # DVC does not tell its stages, so ask how the processes above this one were called.
    for process in psutil.Process().parents():
        with suppress(psutil.Error):
            command = process.cmdline()
            if any(Path(word).name == "dvc" for word in command[:3]):
                # `-f` may stand among other letters, as in `dvc repro -sf train`.
                return any(re.fullmatch("-[impPqRsv]*f[impPqRsv]*|--force", word) for word in command)
    return False


def _require_own_library() -> None:
    """An experiment must not run another folder's code."""
    found = Path(minilm.__file__).parent.resolve()
    if found != Path("minilm").resolve():
        raise InputError(
            f"minilm was imported from {found}; run this in the project's folder, as python -m stages.NAME"
        )


def _put_back_outputs() -> None:
    """DVC removes a stage's outputs before it runs; after a failure bring the last good ones back."""
    # Of several processes the first does it.
    if (stage := os.environ.get("DVC_STAGE")) and os.environ.get("RANK", "0") == "0":
        subprocess.run([sys.executable, "-m", "dvc", "checkout", "--quiet", stage], capture_output=True)
