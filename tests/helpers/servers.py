"""Real servers in processes of their own."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

# Of MLflow's: without its job runner a server starts in a third of the time.
ENV = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "OMP_NUM_THREADS": "1",
}


class Server:
    """`mlflow ARGUMENTS` in `folder` with `env`, which may be stopped and started again at the same address.

    `path` answers 200 as soon as it is ready.
    """

    def __init__(self, folder: Path, path: str, *arguments: str, **env: str):
        self.folder, self.path, self.arguments, self.env = folder, path, arguments, ENV | env
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen | None = None

    @property
    def is_running(self) -> bool:
        """Whether it has been started and not been killed since."""
        return self._process is not None

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        env = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_"))}
        # uvicorn is started by its name.
        env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        where = ("--host", "127.0.0.1", "--port", str(self.port))
        with (self.folder / "server.log").open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", *self.arguments, *where],
                cwd=self.folder,
                env=env | self.env,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        end = time.monotonic() + 120
        while not _answers(self.address + self.path):
            assert self._process.poll() is None, (self.folder / "server.log").read_text()
            assert time.monotonic() < end, "the server did not answer"
            time.sleep(0.1)

    def send(self, number: int) -> None:
        """Send a signal to all of its processes."""
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """Stop it as a crash does."""
        if self._process:
            with suppress(ProcessLookupError):  # it may have died by itself
                self.send(signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextmanager
def server(folder: Path, path: str, *arguments: str, **env: str):
    """A server while the block runs, as its address."""
    started = Server(folder, path, *arguments, **env)
    try:
        started.start()
        yield started.address
    finally:
        started.kill()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status == 200
    except (OSError, urllib.error.URLError):
        return False
