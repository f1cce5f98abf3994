"""The pipeline's stages; each is a story that `python -m stages.NAME` tells."""

import atexit
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import minilm
from minilm.errors import InputError, UserError
from minilm.files import replace_what_cannot_be_shown

# A stage's time is mostly imports, whose many objects stay until the end. Looking for garbage among them
# seldom, and not at all at the end, saves a quarter of it.
gc.set_threshold(100_000)
atexit.register(gc.freeze)


def run(story: Callable[[], None]) -> None:
    """Run a stage; what the user can mend ends it with one line and no traceback."""
    replace_what_cannot_be_shown()
    try:
        _require_own_library()
        story()
    except KeyboardInterrupt:
        _restore_outputs()
        sys.exit(130)
    except Exception as error:
        _restore_outputs()
        if isinstance(error, UserError | OSError):
            sys.exit(f"error: {error}")
        raise


def _require_own_library() -> None:
    """An experiment must not run another folder's code."""
    found = Path(minilm.__file__).parent.resolve()
    if found != Path("minilm").resolve():
        raise InputError(
            f"minilm was imported from {found}; run this in the project's folder, as python -m stages.NAME"
        )


def _restore_outputs() -> None:
    """DVC removes a stage's outputs before it runs; after a failure restore the last good ones."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # one more Ctrl-C would leave half of them
    # Of several processes the first does it.
    if (stage := os.environ.get("DVC_STAGE")) and os.environ.get("RANK", "0") == "0":
        subprocess.run([sys.executable, "-m", "dvc", "checkout", "--quiet", stage], capture_output=True)
