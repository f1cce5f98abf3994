"""The served model: what is logged, what it answers, and that it does so anywhere, for many at once."""

import inspect
import json
import os
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import mlflow
import pandas as pd
import pytest
import torch
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModelContext

import minilm
from helpers.servers import server
from minilm.checkpoint import save
from minilm.data.provenance import Source
from minilm.deploy import pyfunc
from minilm.generation.kv_cache import useful_threads
from minilm.tracking.store import open_store

ROOT = Path(__file__).parent.parent
PROMPT = "the quick "
SETTINGS = [
    {"max_new_tokens": 40, "seed": 3},
    {"max_new_tokens": 40, "temperature": 0.0},
    {"max_new_tokens": 40, "temperature": 1.5, "top_k": 5, "top_p": 0.9, "min_p": 0.02, "seed": 7},
    {"max_new_tokens": 60, "seed": 1, "stop": "e"},
    {"max_new_tokens": 0},
    {},
]
# Logs a model for two runs, one ended and one active, without torch; then loads it without this project.
LOG_AND_LOAD = """
import json, sys, time
from pathlib import Path

sys.path.insert(0, {project!r})
from minilm.deploy.pyfunc import log_model
import mlflow, mlflow.telemetry

assert mlflow.telemetry.get_telemetry_client() is None
client, start = mlflow.MlflowClient({uri!r}), time.perf_counter()
for run_id in {runs!r}:
    log_model(client, run_id, Path("a model").absolute())
seconds = time.perf_counter() - start
assert not {{"torch", "minilm.checkpoint"}} & set(sys.modules)

sys.path.remove({project!r})
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
for name in [name for name in sys.modules if name.partition(".")[0] == "minilm"]:
    del sys.modules[name]
try:
    import minilm
except ModuleNotFoundError:
    pass
else:
    raise SystemExit(f"minilm was imported from {{minilm.__file__}}")
model = mlflow.pyfunc.load_model(f"runs:/{{run_id}}/model")
texts = model.predict([{prompt!r}, "fox"], params={{"seed": 3}})
pieces = list(model.predict_stream({prompt!r}, params={{"seed": 3}}))
files = [module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] == "minilm"]
print(json.dumps([seconds, texts, pieces, files]))
"""


class Logged:
    """A store with two runs, one ended and one active, whose models LOG_AND_LOAD logged."""

    def __init__(self, root: Path, empty_store: Path, tiny_model):
        self.root, self.folder = root, root / "a model"
        save(self.folder, *tiny_model, {}, Source("sample", "sample", None, {"train": 45}, "ab" * 32), {})
        shutil.copy(empty_store, root)
        self.client, self.experiment = open_store(root)
        ended, active = (self.new_run() for _ in range(2))
        self.client.set_terminated(ended, end_time=1234567890123)
        script = LOG_AND_LOAD.format(
            project=str(ROOT), uri=f"sqlite:///{root / 'mlflow.db'}", runs=[ended, active], prompt=PROMPT
        )
        # Without what turns MLflow's telemetry off in tests.
        env = {
            key: value
            for key, value in os.environ.items()
            if key not in ("CI", "PYTEST_CURRENT_TEST", "MLFLOW_DISABLE_TELEMETRY")
        }
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, cwd=root, env=env
        )
        assert done.returncode == 0, done.stderr
        self.complaints = done.stderr
        self.seconds, self.texts, self.pieces, self.imported = json.loads(done.stdout)
        self.ended, self.active = self.client.get_run(ended), self.client.get_run(active)
        (self.model,) = self.models_of(ended)
        self.files = files_of(self.model)
        self.client.create_registered_model("minilm")
        version = self.client.create_model_version("minilm", str(self.files))
        self.client.set_registered_model_alias("minilm", "champion", version.version)

    def new_run(self) -> str:
        return self.client.create_run(self.experiment).info.run_id

    def models_of(self, run_id: str) -> list:
        """The models that the run refers to."""
        outputs = self.client.get_run(run_id).outputs
        models = outputs.model_outputs if outputs else []
        return [self.client.get_logged_model(model.model_id) for model in models]


@pytest.fixture(scope="module")
def logged(tmp_path_factory, empty_store, tiny_model):
    with pytest.MonkeyPatch.context() as patch:
        # MLflow sets this variable for its children; known to monkeypatch, it is gone after the tests.
        patch.setenv("MLFLOW_TRACKING_URI", "")
        patch.delenv("MLFLOW_TRACKING_URI")
        yield Logged(tmp_path_factory.mktemp("my project"), empty_store, tiny_model)
        mlflow.set_tracking_uri("")


@pytest.fixture
def generator(logged):
    """The model as MLflow holds it, in this process."""
    before = torch.get_num_threads()
    generator = pyfunc.TextGenerator()
    generator.load_context(PythonModelContext({"model": str(logged.folder)}, {}))
    yield generator
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def address(logged):
    served = ("--env-manager", "local", "--workers", "1", "--model-uri", "models:/minilm@champion")
    uri = "sqlite:///mlflow.db"
    with server(logged.root, "/ping", "models", "serve", *served, MLFLOW_TRACKING_URI=uri) as address:
        yield address


def files_of(model) -> Path:
    return Path(url2pathname(urlparse(model.artifact_location).path))


def post(address: str, body: str | dict, kind: str = "application/json") -> tuple[int, dict | str]:
    data = (body if isinstance(body, str) else json.dumps(body)).encode()
    request = urllib.request.Request(address + "/invocations", data, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=100) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_logging_is_quick_quiet_and_leaves_the_run_alone(logged):
    assert logged.seconds < 2
    assert logged.complaints == ""
    assert (logged.ended.info.status, logged.ended.info.end_time) == ("FINISHED", 1234567890123)
    assert (logged.active.info.status, logged.active.info.end_time) == ("RUNNING", None)
    assert (logged.model.name, logged.model.status) == ("model", "READY")
    assert logged.model.source_run_id == logged.ended.info.run_id


def test_it_loads_where_there_is_no_minilm(logged, tiny_model):
    assert logged.texts == [minilm.generate(*tiny_model, prompt, seed=3) for prompt in (PROMPT, "fox")]
    assert len(logged.pieces) > 100
    assert "".join(logged.pieces) == logged.texts[0]
    assert {file.partition("/minilm/")[0].endswith("/model/code") for file in logged.imported} == {True}


def test_a_repeated_call_logs_only_what_is_missing(tmp_path, logged):
    run_id = logged.active.info.run_id
    pyfunc.log_model(logged.client, run_id, logged.folder)
    assert len(logged.client.search_logged_models([logged.experiment], f"source_run_id = '{run_id}'")) == 1

    run_id = logged.new_run()
    with pytest.raises(Exception, match="nowhere"):
        pyfunc.log_model(logged.client, run_id, tmp_path / "nowhere")
    killed = logged.client.create_logged_model(logged.experiment, "model", source_run_id=run_id)
    assert not logged.models_of(run_id)
    pyfunc.log_model(logged.client, run_id, logged.folder)
    (model,) = logged.models_of(run_id)
    assert model.status == LoggedModelStatus.READY
    assert (files_of(model) / "MLmodel").exists()
    assert killed.model_id != model.model_id


def test_what_is_logged_names_its_versions_and_params(logged):
    requirements = (logged.files / "requirements.txt").read_text().split()
    assert "torch==2.13.0" in requirements
    assert {line.partition("==")[0] for line in requirements} == {"mlflow", "numpy", "safetensors", "torch"}
    params = mlflow.models.get_model_info(str(logged.files)).signature.params
    known = inspect.signature(minilm.generate).parameters
    arguments = {
        name: known[name].default for name in known if known[name].default is not inspect.Parameter.empty
    }
    assert {param.name: param.default for param in params} == arguments


@pytest.mark.parametrize("settings", SETTINGS)
def test_texts_are_those_of_generate(address, generator, tiny_model, settings):
    prompts = [PROMPT, "fox", "dog\n"]
    expected = [minilm.generate(*tiny_model, prompt, **settings) for prompt in prompts]
    assert post(address, {"inputs": prompts, "params": settings}) == (200, {"predictions": expected})
    assert "".join(generator.predict_stream(PROMPT, settings)) == expected[0]


def test_streams_in_turns_do_not_disturb_each_other(generator, tiny_model):
    streams = [generator.predict_stream(PROMPT, {"seed": seed}) for seed in range(3)]
    texts = ["".join(column) for column in zip(*zip(*streams, strict=True), strict=True)]
    assert texts == [minilm.generate(*tiny_model, PROMPT, seed=seed) for seed in range(3)]


def test_each_thread_computes_with_the_threads_that_the_model_can_use(generator):
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == useful_threads(generator.model)


def test_a_request_ends_after_its_time(generator, monkeypatch):
    prompts = pd.DataFrame([PROMPT])
    monkeypatch.setattr(pyfunc, "MAX_SECONDS", 0.05)
    with pytest.raises(MlflowException, match=r"not done within 0\.05 s") as refusal:
        generator.predict(prompts, {"max_new_tokens": pyfunc.MAX_NEW_TOKENS})
    assert refusal.value.get_http_status_code() == 503
    with generator.turn, pytest.raises(MlflowException, match="not done within"):
        generator.predict(prompts, {"max_new_tokens": 1})
    monkeypatch.setattr(pyfunc, "MAX_SECONDS", 30.0)
    assert generator.predict(prompts, {"max_new_tokens": 1})  # the next one has its turn


LIMITS = {
    "prompts": {"inputs": [PROMPT] * (pyfunc.MAX_PROMPTS + 1)},
    "prompt": {"inputs": ["a" * (pyfunc.MAX_PROMPT_CHARACTERS + 1)]},
    "new": {"inputs": [PROMPT], "params": {"max_new_tokens": pyfunc.MAX_NEW_TOKENS + 1}},
    "all": {"inputs": [PROMPT] * 3, "params": {"max_new_tokens": pyfunc.MAX_NEW_TOKENS}},
    "stop": {"inputs": [PROMPT], "params": {"stop": "a" * (pyfunc.MAX_STOP_CHARACTERS + 1)}},
}


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (LIMITS["prompts"], "number of prompts: 65 is more than 64, the limit of a request"),
        (LIMITS["prompt"], "characters of a prompt: 10001 is more than 10000, the limit of a request"),
        (LIMITS["new"], "max_new_tokens: 10001 is more than 10000, the limit"),
        (LIMITS["all"], "max_new_tokens of all prompts: 30000 is more than 20000, the limit"),
        (LIMITS["stop"], "characters of stop: 101 is more than 100, the limit"),
        ({"inputs": []}, "missing inputs"),
        ({"inputs": None}, "Failed to parse input data"),
        ({"inputs": {"prompt": ["the "]}}, "Failed to parse input data"),
        ({"inputs": [""]}, "prompt: it is empty"),
        ({"inputs": ["the ", 3]}, "a prompt must be a string, not 3"),
        ({"inputs": ["the ", None]}, "a prompt must be a string, not nan"),
        ({"inputs": [3]}, "a prompt must be a string, not 3"),
        ({"inputs": [True]}, "a prompt must be a string, not True"),
        ('{"inputs": [NaN]}', "a prompt must be a string, not nan"),
        ({"inputs": [[["the "]]]}, "a prompt must be a string, not ['the ']"),
        ({"inputs": [{"prompt": ["the "]}]}, "a prompt must be a string, not array(['the '"),
        ({"prompt": ["the "], "seed": 4}, "a prompt must be a string, not ['the ']"),
        ({"inputs": ["The ß"]}, "the model never saw 'T' (U+0054), 'ß' (U+00DF)"),
        ('{"inputs": ["\\ud800"]}', "surrogates not allowed"),
        ({"inputs": ["the "], "params": {"temperature": -1}}, "temperature and top_k must be at least 0"),
        ('{"inputs": ["the "], "params": {"temperature": NaN}}', "temperature and top_k must be at least 0"),
        ({"inputs": ["the "], "params": {"top_p": 0}}, "top_p above 0 to 1"),
        ({"inputs": ["the "], "params": {"seed": -1}}, "seed: -1 is less than 0"),
        ({"inputs": ["the "], "params": {"max_new_tokens": -1}}, "max_new_tokens: -1 is less than 0"),
        ({"inputs": ["the "], "params": {"seed": 1.5}}, "'seed'"),
        ({"inputs": ["the "], "params": {"seed": True}}, "'seed'"),
        ({"inputs": ["the "], "params": {"seed": "1"}}, "'seed'"),
        ({"inputs": ["the "], "params": {"stop": 1}}, "'stop'"),
        ({"inputs": ["the "], "params": {"temperature": [1]}}, "'temperature'"),
        ({"inputs": ["the "], "params": [1]}, "Parameters must be a dictionary"),
        ('{"inputs": ["the "]', "valid JSON formatted string"),
        ("[1]", "must be a JSON dictionary"),
        ("{}", "must be a JSON dictionary"),
    ],
)
def test_bad_requests_get_status_400_and_a_message(address, body, sentence):
    status, answer = post(address, body)
    answer = json.loads(answer)
    assert status == 400
    assert "stack_trace" not in answer
    assert sentence in answer["message"]


def test_another_kind_of_body_is_refused(address):
    status, answer = post(address, "the ", "text/plain")
    assert status == 415
    assert "only supports the following content types" in answer


def test_an_unknown_param_is_ignored_with_mlflows_warning(address, logged, tiny_model):
    body = {"inputs": [PROMPT], "params": {"temprature": 1, "seed": None}}
    assert post(address, body) == (200, {"predictions": [minilm.generate(*tiny_model, PROMPT)]})
    assert "['temprature']" in (logged.root / "server.log").read_text()


def test_many_at_once_get_each_their_own_text(address, tiny_model):
    clients, requests = 8, 60
    prompts = ["the quick ", "brown fox", "jumps\n", "lazy dog."]

    def ask(number: int) -> list[str]:
        params = {"seed": number, "max_new_tokens": 20 + number % 30}
        status, answer = post(address, {"inputs": [prompts[number % 4]] * (1 + number % 2), "params": params})
        assert status == 200, answer
        return answer["predictions"]

    barrier = threading.Barrier(clients)
    with ThreadPoolExecutor(clients, initializer=barrier.wait) as pool:
        answers = list(pool.map(ask, range(requests)))
    for number, answer in enumerate(answers):
        params = {"seed": number, "max_new_tokens": 20 + number % 30}
        text = minilm.generate(*tiny_model, prompts[number % 4], **params)
        assert answer == [text] * (1 + number % 2)
