"""Shared by the tests: a real project in a temporary folder, and a tiny model."""

import copy
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

# Two tests run at once, on two cores; read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# MLflow keeps no store open between two calls: modules have their projects in one place, one after another.
os.environ["MLFLOW_SQLALCHEMYSTORE_POOLCLASS"] = "NullPool"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
import pytest
import requests
from dvc.repo import Repo

from helpers.preload import preloaded_python

ROOT = Path(__file__).parent.parent
# The programs of this project's environment; with it as PATH, `python` is a fresh interpreter.
REAL_PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
S3_KEY = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "secret"}
# Small enough that a whole pipeline takes seconds, most of them for imports.
TINY = {
    "block_size": "32",
    "embed_dim": "16",
    "num_heads": "2",
    "num_layers": "1",
    "batch_size": "4",
    "steps": "4",
    "eval_interval": "2",
    "eval_batches": "1",
    "num_samples": "1",
    "max_new_tokens": "10",
}


class Project:
    """A clone of this project as it is in the working tree, with tiny parameters and one commit.

    What `python` starts in it, DVC's stages included, is a preloaded interpreter (helpers/preload.py).
    """

    def __init__(self, folder: Path, cache: Path, python: Path):
        self.folder = folder
        folder.mkdir()
        listed = self._git("ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
        for name in filter(None, listed.split("\0")):
            if (source := ROOT / name).exists():
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                if source.is_symlink():
                    target.symlink_to(source.readlink())
                else:
                    target.write_bytes(source.read_bytes())
        (folder / "dvc.lock").unlink(missing_ok=True)
        self.env = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("DVC_", "MLFLOW_", "PYTEST_"))
        } | {
            "PATH": os.pathsep.join([str(python.parent), REAL_PATH]),
            "PYTHON_EXEC": str(python),  # what torchrun starts its processes with
            "HF_ENDPOINT": "http://127.0.0.1:9",  # nothing listens there
            "HF_HOME": str(cache),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "GIT_AUTHOR_NAME": "t",
            "GIT_AUTHOR_EMAIL": "t@example.org",
            "GIT_COMMITTER_NAME": "t",
            "GIT_COMMITTER_EMAIL": "t@example.org",
            "OMP_NUM_THREADS": "1",
        }
        self.set(**TINY)
        self._git("init", "--quiet")
        self.commit()

    def set(self, **values: str) -> None:
        """Write values into params.yaml."""
        path = self.folder / "params.yaml"
        text = path.read_text()
        for key, value in values.items():
            text, found = re.subn(rf'(?m)^{key}: *("[^"]*"|[^#\n]+?)(?= *(#|$))', f"{key}: {value}", text)
            assert found == 1, key
        path.write_text(text)

    def run(self, *command: str, ok: bool = True, **env: str) -> subprocess.CompletedProcess:
        """Run a command in the project; its output is stdout and stderr together."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.env | env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=300,
        )
        assert (done.returncode == 0) == ok, f"{command}\n{done.stdout}"
        return done

    def dvc(self, *arguments: str, ok: bool = True, **env: str) -> str:
        """Run dvc and return what it printed."""
        return self.run("python", "-m", "dvc", *arguments, ok=ok, **env).stdout

    def work_off_queue(self, jobs: int) -> str:
        """Run the queued experiments, as many at once; returns what `dvc queue status` says in the end."""
        start = ["python", "-m", "dvc", "queue", "start", "--jobs", str(jobs)]
        # Not through a pipe: the workers hold it open until they have been idle for 10 seconds.
        subprocess.run(start, cwd=self.folder, env=self.env, check=True, stdout=subprocess.DEVNULL)
        self.await_queue()
        return self.dvc("queue", "status")

    def await_queue(self) -> None:
        """Wait until the queued experiments have run, and end the workers."""
        deadline = time.monotonic() + 240
        # The workers are DVC's own background processes; asking is the only way to know of their end.
        # Asked in this process: one for each `dvc queue status` would take half a core from them.
        with Repo(self.folder) as repo:
            queue = repo.experiments.celery_queue
            while list(queue.iter_queued()) or list(queue.iter_active()):
                assert time.monotonic() < deadline, queue.status()
                time.sleep(1)
            queue.shutdown()

    def main(self, *arguments: str, ok: bool = True) -> str:
        """Run the command line and return what it printed."""
        return self.run("python", "main.py", *arguments, ok=ok).stdout

    def commit(self) -> None:
        """Commit everything."""
        self._git("add", "--all")
        self._git("commit", "--quiet", "--message", "x")

    def client(self):
        """An MLflow client of the project's own store."""
        from minilm.tracking.store import MlflowClient  # which sets up MLflow

        return MlflowClient(f"sqlite:///{self.folder / 'mlflow.db'}")

    def mlflow_runs(self):
        """All runs of the experiment minilm, newest first."""
        client = self.client()
        return client.search_runs([client.get_experiment_by_name("minilm").experiment_id])

    def read(self, name: str) -> str:
        """A file of the project."""
        return (self.folder / name).read_text()

    def _git(self, *arguments: str, cwd: Path | None = None) -> str:
        env = getattr(self, "env", None)
        return subprocess.run(
            ["git", *arguments],
            cwd=cwd or self.folder,
            env=env,
            text=True,
            check=True,
            stdout=subprocess.PIPE,
        ).stdout


def stages_run(output: str) -> set[str]:
    """The stages that DVC's output says were run."""
    return set(re.findall(r"Running stage '(\w+)'", output))


def pytest_collection_modifyitems(items):
    """Files of tests with real pipelines come first, so that no worker is left alone with one at the end."""
    slow = {item.path for item in items if "make_project" in item.fixturenames}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def python(tmp_path_factory):
    """A `python` that starts with the large libraries imported; see helpers/preload.py."""
    # What a project's processes set before they import MLflow.
    env = {"OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "WARNING"}
    with preloaded_python(tmp_path_factory.mktemp("python"), os.environ | env) as python:
        yield python


@pytest.fixture(scope="session")
def make_project(tmp_path_factory, python):
    """Makes projects whose folders' names hold a space, as users' do."""

    def make() -> Project:
        base = tmp_path_factory.mktemp("p")
        return Project(base / "my project", base / "cache", python)

    return make


@pytest.fixture(scope="session")
def tiny_model():
    """An untrained model and its tokenizer."""
    from minilm import CharTokenizer, MiniGPT, ModelConfig

    tokenizer = CharTokenizer.from_text("the quick brown fox jumps over the lazy dog.\n")
    config = ModelConfig(tokenizer.vocab_size, block_size=16, embed_dim=16, num_heads=2, num_layers=2)
    return MiniGPT(config, seed=3).eval(), tokenizer


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """A store whose tables have been made, which takes seconds; an experiment would name its folder."""
    from minilm.tracking.store import MlflowClient

    database = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{database}")
    return database


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A current folder without an MLflow store."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def first_run(make_project):
    """A project whose pipeline has run on the sample text, as there is no Hub; its folder is put away."""
    project = make_project()
    project.first_output = project.dvc("repro")
    project.commit()
    project.folder.rename(project.folder.with_name("first run"))
    return project


def copy_of_first_run(first_run, request):
    """A copy of the project whose pipeline has run.

    One after another is in the folder where it ran, which mlflow.db names.
    """
    project = copy.copy(first_run)
    shutil.copytree(project.folder.with_name("first run"), project.folder, symlinks=True)
    yield project
    project.folder.rename(project.folder.with_name(request.node.name))


project = pytest.fixture(copy_of_first_run, scope="module")


@pytest.fixture
def fresh(project):
    """The project in its committed state, its outputs included."""
    yield project
    # Removed first: git may take a file that was rewritten at once with the same size for unchanged.
    for name in ("params.yaml", "dvc.lock", "data/local_text"):
        (project.folder / name).unlink(missing_ok=True)
    project._git("checkout", "--quiet", "--force", "HEAD")
    with Repo(project.folder) as repo:  # as `dvc checkout --force` does, without another process
        repo.checkout(force=True)


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        message = "these tests need Chromium: apt-get install chromium"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Opens a file in a tab, whose `problems` are console errors and requests that leave the page's files."""
    tabs = []

    def open_page(path: Path, scheme="light", width=1200):
        tab = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 800})
        tabs.append(tab)
        tab.problems = []
        tab.on("console", lambda message: tab.problems.append(message.text))
        tab.on("pageerror", lambda error: tab.problems.append(str(error)))
        tab.on(
            "request",
            lambda request: (
                request.url.startswith(("file:", "data:", "blob:")) or tab.problems.append(request.url)
            ),
        )
        tab.goto(path.as_uri())
        return tab

    yield open_page
    for tab in tabs:
        tab.close()


@pytest.fixture(scope="session")
def s3():
    """The address of a server that speaks S3, takes S3_KEY, and has a bucket `storage`."""
    from moto.server import ThreadedMotoServer  # takes a second to import

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    requests.put(f"{address}/storage", timeout=10).raise_for_status()
    yield address
    server.stop()
