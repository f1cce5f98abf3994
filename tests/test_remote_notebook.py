"""The notebook on a real MLflow server: up, down, down and back, hanging, slow, behind a password."""

import base64
import http.client
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
from minilm.tracking.store import MlflowClient, mlflow
from servers import Server

from minilm.spool import pages, spool_of

OUTPUTS = ("models/minilm/model.safetensors", "models/minilm/config.json", "reports/loss.csv")
RATES = {"tokens_per_second", "flop_utilization"}  # differ between two equal trainings
USER, PASSWORD, WRONG = "someone", "dQw4w9WgXcQ", "aNotherOne99"
DELIVER = (sys.executable, "-m", "minilm.deliver")
# A stage waits 2 seconds for its delivery. The rest is for the model's files, on a machine that is busy.
LONGEST_END = 8


def stage(name: str) -> tuple[str, ...]:
    return (sys.executable, "-u", "-m", f"stages.{name}")


@pytest.fixture(scope="module")
def trained(make_project):
    """A project that has been through with a local notebook, what it wrote, and how its row grew."""
    project = make_project()
    project.set(steps="1000", eval_interval="50", learning_rate="0.01")  # takes seconds
    project.dvc("repro", "encode")
    project.commit()
    project.rows = {}  # as they are after each stage
    for name in ("train", "evaluate", "sample"):
        project.run(*stage(name))
        project.rows[name] = content_of(project.client(), *project.mlflow_runs())
    project.expected = {name: (project.folder / name).read_bytes() for name in OUTPUTS}
    (project.folder / "mlflow.db").unlink()
    assert project.rows["train"]["status"] == "FINISHED"
    assert project.rows["train"]["steps"]["val_loss"] == list(range(50, 1001, 50))
    return project


@pytest.fixture(scope="module")
def made_server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    store = ("--backend-store-uri", f"sqlite:///{folder / 'server.db'}")
    files = ("--artifacts-destination", str(folder / "artifacts"))
    server = Server(folder, "/health", "server", *store, *files, "--workers", "1")
    yield server
    server.kill()


@pytest.fixture
def server(made_server, trained):
    """A server that runs and has no row; the project knows it, and has nothing to deliver."""
    if not made_server.is_running:
        made_server.start()
    for run in rows(made_server):
        client_of(made_server).delete_run(run.info.run_id)
    assert not pages(trained.folder)
    trained.env["MLFLOW_TRACKING_URI"] = made_server.address
    yield made_server
    if made_server.is_running:
        made_server.send(signal.SIGCONT)
    for folder in pages(trained.folder):  # of a test that failed
        shutil.rmtree(folder)


@pytest.fixture
def start(trained):
    """Starts the training; what a failed test leaves of it is ended."""
    started = []

    def start(**env: str) -> Training:
        started.append(Training(trained, **env))
        return started[-1]

    yield start
    for training in started:
        training.kill()


def client_of(server) -> MlflowClient:
    return MlflowClient(server.address)


def rows(server):
    client = client_of(server)
    experiment = client.get_experiment_by_name("minilm")
    return client.search_runs([experiment.experiment_id]) if experiment else []


def only_row(server):
    (row,) = rows(server)
    return row


def curve(client, run, key: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, key))


def content_of(client, run) -> dict:
    """All that a row says, but for what differs between two equal trainings."""
    curves = {key: curve(client, run, key) for key in run.data.metrics}
    files, folders = [], [None]
    while folders:
        for found in client.list_artifacts(run.info.run_id, folders.pop()):
            folders.append(found.path) if found.is_dir else files.append(found.path)
    return {
        "status": run.info.status,
        "params": run.data.params,
        "tags": {key: value for key, value in run.data.tags.items() if key != "page"},
        "curves": {key: points for key, points in curves.items() if key not in RATES},
        "steps": {key: [step for step, _ in points] for key, points in curves.items()},
        "files": sorted(files),
        "inputs": [given.to_dictionary() for given in run.inputs.dataset_inputs],
        "models": len(run.outputs.model_outputs),
    }


def assert_arrived(server, project, last_stage: str = "train") -> None:
    """One row, as that of the local store after the same stages; the same bytes; nothing left to deliver."""
    assert content_of(client_of(server), only_row(server)) == project.rows[last_stage]
    assert_same_bytes(project)
    assert not pages(project.folder)


def assert_same_bytes(project) -> None:
    for name, expected in project.expected.items():
        assert (project.folder / name).read_bytes() == expected, name


class Training:
    """The stage under way."""

    def __init__(self, project, **env: str):
        for name in OUTPUTS:
            (project.folder / name).unlink()
        output = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self._process = subprocess.Popen(stage("train"), cwd=project.folder, env=project.env | env, **output)
        self.printed = ""

    def pause_at(self, step: int) -> None:
        """Let it go on until it has told of that step, and then stand still."""
        for line in self._process.stdout:
            self.printed += line
            if re.match(rf"step +{step}/", line):
                self._process.send_signal(signal.SIGSTOP)
                return
        pytest.fail(self.printed)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def end(self) -> str:
        """Await its end; returns its warning about the notebook, if any. It must end soon."""
        for line in self._process.stdout:
            self.printed += line
            if line.startswith("step"):
                last = time.monotonic()
        assert self._process.wait() == 0, self.printed
        assert time.monotonic() - last < LONGEST_END
        return warning_in(self.printed)


def warning_in(printed: str) -> str:
    """The one about the notebook; empty if there is none."""
    warnings = re.findall("WARNING: MLflow.*", printed)
    assert len(warnings) <= 1
    return "".join(warnings)


def await_delivery(project) -> None:
    """Await the end of the processes that deliver; they may outlive their stages."""
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "minilm.deliver" in command and str(project.folder) in command[-1]:
            process.wait(120)


@contextmanager
def proxy(server, delay: float = 0.0, password: str = ""):
    """An address from which requests are passed on to the server, after a while or only with the password."""
    credentials = base64.b64encode(f"{USER}:{password}".encode()).decode()

    class Handler(BaseHTTPRequestHandler):
        def pass_on(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            time.sleep(delay)
            if password and self.headers.get("Authorization") != f"Basic {credentials}":
                return self.answer(401, [], b"who are you?")
            onward = http.client.HTTPConnection("127.0.0.1", server.port)
            onward.request(self.command, self.path, body, dict(self.headers))
            answer = onward.getresponse()
            return self.answer(answer.status, answer.getheaders(), answer.read())

        def answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
            self.send_response_only(status)
            for key, value in headers:
                if key.lower() not in ("transfer-encoding", "connection"):
                    self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)

        log_message = print  # into what pytest shows of a test that fails

    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.pass_on)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, args=(0.05,)).start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}"
        finally:
            listening.shutdown()


def test_a_row_on_a_server_is_as_one_in_the_local_store(trained, server, start, tmp_path, monkeypatch):
    start().end()
    for name in ("evaluate", "sample"):
        trained.run(*stage(name))
    await_delivery(trained)
    assert_arrived(server, trained, "sample")
    row, client = only_row(server), client_of(server)
    metrics = json.loads((trained.folder / "reports/metrics.json").read_text())
    assert metrics.items() <= row.data.metrics.items()
    for name in trained.rows["sample"]["files"]:
        if name.startswith("reports/"):
            copy = Path(client.download_artifacts(row.info.run_id, name, str(tmp_path)))
            assert copy.read_bytes() == (trained.folder / name).read_bytes()
    assert {"reports/loss.csv", "reports/samples.txt"} <= set(trained.rows["sample"]["files"])
    (given,) = row.inputs.dataset_inputs
    assert given.dataset.digest == row.data.tags["data_sha256"][:32]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    (output,) = row.outputs.model_outputs
    model = mlflow.pyfunc.load_model(f"models:/{output.model_id}")
    (text,) = model.predict(["The "], params={"max_new_tokens": 20})
    assert re.fullmatch(r"(?s)The .{20}", text)
    assert not (trained.folder / "mlflow.db").exists()


def test_stopped_before_the_start(trained, server, start, tmp_path):
    server.kill()
    warning = start().end()
    assert "python -m minilm.deliver" in warning
    assert server.address in warning
    assert_same_bytes(trained)
    await_delivery(trained)
    (page,) = pages(trained.folder)
    # What waits for the server does not hold up a stage that has another store.
    assert not warning_in(trained.run(*stage("evaluate"), MLFLOW_TRACKING_URI="").stdout)
    assert "test_loss" in trained.mlflow_runs()[0].data.metrics
    (trained.folder / "mlflow.db").unlink()
    await_delivery(trained)
    assert "0 of 1 pages delivered" in trained.run(*DELIVER, ok=False).stdout  # still nothing there
    assert pages(trained.folder) == [page]
    shutil.copytree(page, tmp_path / page.name)
    server.start()
    assert not rows(server)
    assert "1 of 1 pages delivered" in trained.run(*DELIVER).stdout
    assert_arrived(server, trained)

    # The same once more, but delivered by the next stage.
    client_of(server).delete_run(only_row(server).info.run_id)
    shutil.copytree(tmp_path / page.name, page)
    trained.run(*stage("evaluate"))
    await_delivery(trained)
    assert_arrived(server, trained, "evaluate")


@pytest.mark.parametrize("back", ["while it trains", "after its end"])
def test_killed_in_the_middle(trained, server, start, back):
    # Not to be reached at first, so that the first delivery has points already.
    server.send(signal.SIGSTOP)
    training = start()
    training.pause_at(300)
    server.send(signal.SIGCONT)
    end = time.monotonic() + 60
    while not (rows(server) and "val_loss" in only_row(server).data.metrics):
        assert time.monotonic() < end
        time.sleep(0.05)  # a server does not tell of what arrives
    server.kill()
    training.go_on()
    if back == "while it trains":
        training.pause_at(600)
    else:
        assert "python -m minilm.deliver" in training.end()
        await_delivery(trained)
    server.start()
    assert only_row(server).info.status == "RUNNING"
    assert 1 <= len(curve(client_of(server), only_row(server), "val_loss")) <= 6
    if back == "while it trains":
        training.go_on()
        training.end()
        await_delivery(trained)
    else:
        trained.run(*DELIVER)
    assert_arrived(server, trained)


def test_hanging(trained, server, start):
    training = start()
    training.pause_at(50)
    server.send(signal.SIGSTOP)
    training.go_on()
    assert "python -m minilm.deliver" in training.end()
    assert len(pages(trained.folder)) == 1
    server.send(signal.SIGCONT)
    await_delivery(trained)  # its request was answered late, or else
    trained.run(*DELIVER)
    assert_arrived(server, trained)


def test_slow(trained, server, start):
    with proxy(server, delay=0.2) as address:
        warning = start(MLFLOW_TRACKING_URI=address).end()
        assert "it takes long" in warning
        assert_same_bytes(trained)
        await_delivery(trained)
    assert_arrived(server, trained)


def test_with_a_password(trained, server, start):
    with proxy(server, password=PASSWORD) as address:
        known = {"MLFLOW_TRACKING_URI": address, "MLFLOW_TRACKING_USERNAME": USER}
        warning = start(**known, MLFLOW_TRACKING_PASSWORD=WRONG).end()
        assert "python -m minilm.deliver" in warning
        await_delivery(trained)
        assert len(pages(trained.folder)) == 1
        kept = [path.read_bytes() for path in spool_of(trained.folder).rglob("*") if path.is_file()]
        assert address.encode() in b"".join(kept)
        assert WRONG.encode() not in b"".join([*kept, warning.encode()])
        assert "401" in trained.run(*DELIVER, ok=False, **known).stdout  # without any password
        assert not rows(server)
        trained.run(*stage("evaluate"), **known, MLFLOW_TRACKING_PASSWORD=PASSWORD)
        await_delivery(trained)
    assert_arrived(server, trained, "evaluate")
