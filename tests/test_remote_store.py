"""The MLflow store on a real server: up, down, down and back, hanging, behind a password, losing requests."""

import base64
import http.client
import itertools
import re
import signal
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from werkzeug.serving import make_ssl_devcert

from helpers.servers import Server
from minilm.errors import UserError
from minilm.tracking import sync as syncing
from minilm.tracking.store import open_store

OUTPUTS = ("models/minilm/model.safetensors", "models/minilm/config.json", "reports/loss.csv")
RATES = {"tokens_per_second", "mfu"}  # differ between two equal trainings
USER, PASSWORD, WRONG = "someone", "dQw4w9WgXcQ", "aNotherOne99"
# A stage waits one second for a server that does not answer; the rest is for writing the model, on a machine
# that is busy.
LONGEST_END = 4


@pytest.fixture(scope="module")
def trained(make_project):
    """A project whose pipeline has run with a local store, what it wrote, and what its run says."""
    project = make_project()
    project.set(steps="600", eval_interval="50", learning_rate="0.01")  # takes seconds
    project.commit()
    project.dvc("repro")
    project.local = content_of(project.client(), *project.mlflow_runs())
    project.expected = {name: (project.folder / name).read_bytes() for name in OUTPUTS}
    (project.folder / "mlflow.db").unlink()
    assert project.local["status"] == "FINISHED"
    assert project.local["steps"]["val_loss"] == list(range(50, 601, 50))
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
def known_server(made_server, trained, monkeypatch):
    """The server, running or not; the project knows its address."""
    trained.env["MLFLOW_TRACKING_URI"] = made_server.address
    monkeypatch.setenv("MLFLOW_TRACKING_URI", made_server.address)
    return made_server


@pytest.fixture
def server(known_server):
    """The server, which runs and has no run of ours."""
    if not known_server.is_running:
        known_server.start()
    for run in runs(known_server):
        client_of(known_server).delete_run(run.info.run_id)
    yield known_server
    if known_server.is_running:
        known_server.send(signal.SIGCONT)


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


def runs(server):
    client = client_of(server)
    experiment = client.get_experiment_by_name("minilm")
    return client.search_runs([experiment.experiment_id]) if experiment else []


def only_run(server):
    (run,) = runs(server)
    return run


def curve(client, run, key: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, key))


def content_of(client, run) -> dict:
    """All that a run says, but for what differs between two equal trainings."""
    curves = {key: curve(client, run, key) for key in run.data.metrics}
    files, folders = [], [None]
    while folders:
        for found in client.list_artifacts(run.info.run_id, folders.pop()):
            folders.append(found.path) if found.is_dir else files.append(found.path)
    return {
        "status": run.info.status,
        "params": run.data.params,
        "tags": {key: value for key, value in run.data.tags.items() if key not in ("training", "workspace")},
        "curves": {key: points for key, points in curves.items() if key not in RATES},
        "steps": {key: [step for step, _ in points] for key, points in curves.items()},
        "files": sorted(files),
        "inputs": [given.to_dictionary() for given in run.inputs.dataset_inputs],
        "models": len(run.outputs.model_outputs),
    }


def assert_complete(server, project, rates: str) -> None:
    """One run, as that of the local store; of the rates `all`, `some` or `none`; and the same bytes."""
    found, expected = content_of(client_of(server), only_run(server)), dict(project.local)
    for content in (found, expected := {**expected, "tags": {**expected["tags"]}}):
        content["steps"] = {key: steps for key, steps in content["steps"].items() if key not in RATES}
        for tag in ("restored", "mlflow.runName", "reports_sha256"):
            content["tags"].pop(tag, None)
    assert found == expected
    steps = [step for step, _ in curve(client_of(server), only_run(server), "tokens_per_second")]
    assert {"all": len(steps) == 12, "some": 0 < len(steps) < 12, "none": not steps}[rates]
    assert_same_bytes(project)


def assert_same_bytes(project) -> None:
    for name, expected in project.expected.items():
        assert (project.folder / name).read_bytes() == expected, name


class Training:
    """The stage under way."""

    def __init__(self, project, **env: str):
        for name in OUTPUTS:
            (project.folder / name).unlink()
        output = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        command = ["python", "-u", "-m", "stages.train"]
        self._process = subprocess.Popen(command, cwd=project.folder, env=project.env | env, **output)
        self._lines = iter(self._process.stdout.readline, "")
        self.printed = ""

    def until(self, step: int) -> None:
        """Read what it prints up to that step."""
        for line in self._lines:
            self.printed += line
            if re.match(rf"step +{step}/", line):
                return
        pytest.fail(self.printed)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def end(self) -> str:
        """Await its end, which must come soon after the last step; returns its warning, if any."""
        self.until(600)
        last = time.monotonic()
        self.printed += "".join(self._lines)
        assert self._process.wait() == 0, self.printed
        assert time.monotonic() - last < LONGEST_END
        return warning_in(self.printed)


def warning_in(printed: str) -> str:
    """The one about MLflow; empty if there is none."""
    warnings = re.findall("WARNING: MLflow.*", printed)
    assert len(warnings) <= 1
    return "".join(warnings)


def stage(project, name: str, **env: str) -> str:
    return project.run("python", "-m", f"stages.{name}", **env).stdout


def sync(project, ok: bool = True, **env: str) -> str:
    return project.run("python", "-m", "minilm.tracking.sync", ok=ok, **env).stdout


@contextmanager
def proxy(server, password: str = "", lose: Callable[[int], str] = lambda _: "", certificate=None):
    """An address from which requests are passed on to the server, or only those that bring the password.

    `lose` says for each, by its number, whether the `request` or its `answer` is lost. The files of a
    certificate and its key make it one of HTTPS.
    """
    numbers = itertools.count(1)
    credentials = base64.b64encode(f"{USER}:{password}".encode()).decode()

    class Handler(BaseHTTPRequestHandler):
        def pass_on(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if "Transfer-Encoding" in self.headers:  # of an empty file: one last chunk
                del self.headers["Transfer-Encoding"]
                assert self.rfile.readline() + self.rfile.readline() == b"0\r\n\r\n"
            lost = lose(next(numbers))
            if lost == "request":
                return self.answer(502, [], b"lost")
            if password and self.headers.get("Authorization") != f"Basic {credentials}":
                return self.answer(401, [], b"who are you?")
            onward = http.client.HTTPConnection("127.0.0.1", server.port)
            onward.request(self.command, self.path, body, dict(self.headers))
            answer = onward.getresponse()
            if lost == "answer":
                answer.read()
                return self.answer(502, [], b"lost")
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
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            listening.socket = context.wrap_socket(listening.socket, server_side=True)
        threading.Thread(target=listening.serve_forever, args=(0.05,)).start()
        try:
            scheme, host = ("https", "localhost") if certificate else ("http", "127.0.0.1")
            yield f"{scheme}://{host}:{listening.server_port}"
        finally:
            listening.shutdown()


def test_down_before_the_start(trained, known_server, start):  # first, while the server has never run
    for warning in (start().end(), warning_in(stage(trained, "report"))):
        assert "`make sync`" in warning
        assert known_server.address in warning
    assert "does not answer" in sync(trained, ok=False)
    known_server.start()
    assert not runs(known_server)
    sync(trained)
    assert only_run(known_server).data.tags["restored"] == "true"
    assert_complete(known_server, trained, "none")


def test_a_run_on_a_server_is_as_one_in_the_local_store(trained, server, start, tmp_path):
    assert start().end() == ""
    assert "WARNING: MLflow" not in stage(trained, "report")
    assert_complete(server, trained, "all")
    run, client = only_run(server), client_of(server)
    for name in trained.local["files"]:
        if name.startswith("reports/"):
            copy = Path(client.download_artifacts(run.info.run_id, name, str(tmp_path)))
            assert copy.read_bytes() == (trained.folder / name).read_bytes()
    (output,) = run.outputs.model_outputs
    mlflow.set_tracking_uri(server.address)
    (text,) = mlflow.pyfunc.load_model(f"models:/{output.model_id}").predict(["The "], {"max_new_tokens": 20})
    assert re.fullmatch(r"(?s)The .{20}", text)
    assert not (trained.folder / "mlflow.db").exists()


def test_killed_in_the_middle(trained, server, start):
    training = start()
    training.until(200)
    while "val_loss" not in only_run(server).data.metrics:
        time.sleep(0.05)  # a server does not tell of what arrives
    server.kill()
    assert "`make sync`" in training.end()
    server.start()
    run = only_run(server)
    assert run.info.status == "RUNNING"
    stage(trained, "report")
    assert only_run(server).info.run_id == run.info.run_id
    assert_complete(server, trained, "some")


def test_hanging(trained, server, start):
    training = start()
    training.until(100)
    server.send(signal.SIGSTOP)
    assert "`make sync`" in training.end()
    began = time.monotonic()
    assert "does not answer" in warning_in(stage(trained, "report"))
    assert time.monotonic() - began < 2 * LONGEST_END
    server.send(signal.SIGCONT)
    sync(trained)
    assert len(runs(server)) == 1
    assert_complete(server, trained, "some")


def test_falling_silent_while_the_report_is_recorded(trained, server):
    def fall_silent(number: int) -> str:
        if number == 12:
            server.send(signal.SIGSTOP)
        return ""

    with proxy(server, lose=fall_silent) as address:
        began = time.monotonic()
        assert "timed out" in warning_in(stage(trained, "report", MLFLOW_TRACKING_URI=address))
        assert time.monotonic() - began < 2 * LONGEST_END
        server.send(signal.SIGCONT)
        sync(trained, MLFLOW_TRACKING_URI=address)
    assert_complete(server, trained, "none")


def test_with_a_password(trained, server, start):
    with proxy(server, password=PASSWORD) as address:
        known = {"MLFLOW_TRACKING_URI": address, "MLFLOW_TRACKING_USERNAME": USER}
        warning = start(**known, MLFLOW_TRACKING_PASSWORD=WRONG).end()
        assert "`make sync`" in warning
        assert WRONG not in warning
        assert "401" in sync(trained, ok=False, **known)  # without any password
        assert not runs(server)
        sync(trained, **known, MLFLOW_TRACKING_PASSWORD=PASSWORD)
    assert_complete(server, trained, "none")


def test_with_a_certificate_of_ones_own(server, tmp_path, monkeypatch):
    certificate = make_ssl_devcert(str(tmp_path / "own"), host="localhost")
    with proxy(server, certificate=certificate) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with pytest.raises(MlflowException, match="certificate verify failed"):
            open_store(tmp_path)
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", certificate[0])
        assert open_store(tmp_path)[1]


def test_sync_may_be_stopped_at_any_request_and_repeated(trained, server, monkeypatch):
    def lose(_: int) -> str:
        nonlocal left
        left -= 1
        return "" if left else kind

    monkeypatch.chdir(trained.folder)
    with proxy(server, lose=lose) as address:  # one for all, since MLflow keeps a run's address of files
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        # The first request only asks whether the server is there; 40 and 25 are those of files.
        for number in (*range(2, 30), 40, 25, 0):
            # Every other time the request has its effect, but the answer is lost.
            left, kind = number, "answer" if number % 2 else "request"
            with pytest.raises((UserError, MlflowException, OSError)) if number else nullcontext():
                syncing.sync(*open_store(trained.folder), trained.folder, trained.folder)
    assert_complete(server, trained, "none")
