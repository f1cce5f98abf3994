"""The served model: what is logged, what it answers, and that it does so anywhere, for many at once."""

import inspect
import json
import subprocess
import sys
import textwrap
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import pytest
import torch
from minilm.data.provenance import Source
from minilm.tracking.store import open_store
from servers import server

import minilm
from minilm import packaging, serving
from minilm.checkpoint import save
from minilm.generation.sampling import stream

PROMPT = "the quick "
SETTINGS = [
    {"max_new_tokens": 40, "seed": 3},
    {"max_new_tokens": 40, "temperature": 0.0},
    {"max_new_tokens": 40, "temperature": 1.5, "top_k": 5, "top_p": 0.9, "min_p": 0.02, "seed": 7},
    {"max_new_tokens": 60, "seed": 1, "stop": "e"},
    {"max_new_tokens": 0},
]


class Logged:
    """A model that a process without torch logged as two models, one of an ended and one of an active run."""

    def __init__(self, root: Path, tiny_model):
        self.root = root
        self.folder = root / "a model"
        save(self.folder, *tiny_model, {}, Source("sample", "sample", None, {"train": 45}, "ab" * 32), {})
        packaging.copy_code(root / "code")
        self.client, self.experiment = open_store(root)
        ended, active = (self.client.create_run(self.experiment).info.run_id for _ in range(2))
        self.client.set_terminated(ended, end_time=1234567890123)
        script = f"""
            import sys, time
            from pathlib import Path
            sys.modules["torch"] = None  # importing it is an error
            from minilm import packaging
            assert not {{"mlflow", "minilm.checkpoint"}} & set(sys.modules)
            import mlflow
            client = mlflow.MlflowClient({f"sqlite:///{root / 'mlflow.db'}"!r})
            for run_id in ({ended!r}, {active!r}):
                start = time.perf_counter()
                packaging.log_model(client, run_id, Path("a model").absolute(), Path("code"), {PROMPT!r})
            print(time.perf_counter() - start)
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, cwd=root
        )
        assert done.returncode == 0, done.stderr
        self.complaints, self.seconds = done.stderr, float(done.stdout)
        self.ended, self.active = self.client.get_run(ended), self.client.get_run(active)
        (model,) = self.ended.outputs.model_outputs
        self.model = self.client.get_logged_model(model.model_id)
        self.files = files_of(self.model)


@pytest.fixture(scope="module")
def logged(tmp_path_factory, tiny_model):
    with pytest.MonkeyPatch.context() as patch:
        # MLflow sets this variable for its children; known to monkeypatch, it is gone after the tests.
        patch.setenv("MLFLOW_TRACKING_URI", "")
        patch.delenv("MLFLOW_TRACKING_URI")
        yield Logged(tmp_path_factory.mktemp("my project"), tiny_model)


@pytest.fixture(scope="module")
def generator(logged):
    return serving.TextGenerator(logged.folder)


@pytest.fixture(scope="module")
def address(logged):
    command = (
        "models",
        "serve",
        "--env-manager",
        "local",
        "--workers",
        "1",
        "--model-uri",
        str(logged.files),
    )
    with server(logged.root, "/ping", *command) as address:
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
    assert logged.seconds < 1
    assert logged.complaints == ""
    assert (logged.ended.info.status, logged.ended.info.end_time) == ("FINISHED", 1234567890123)
    assert (logged.active.info.status, logged.active.info.end_time) == ("RUNNING", None)
    assert len(logged.client.search_runs([logged.experiment])) == 2  # and there is no other run
    assert (logged.model.name, logged.model.status) == ("model", "READY")
    assert logged.model.source_run_id == logged.ended.info.run_id


def test_a_second_attempt_logs_nothing(logged):
    run_id = logged.active.info.run_id
    packaging.log_model(logged.client, run_id, logged.folder, logged.root / "code", PROMPT)
    assert len(logged.client.search_logged_models([logged.experiment], f"source_run_id = '{run_id}'")) == 1


def test_a_failed_attempt_leaves_the_run_without_a_model_and_can_be_repeated(tmp_path, logged):
    client = logged.client
    run_id = client.create_run(logged.experiment).info.run_id
    with pytest.raises(Exception, match="nowhere"):
        packaging.log_model(logged.client, run_id, tmp_path / "nowhere", logged.root / "code", PROMPT)
    assert not client.get_run(run_id).outputs.model_outputs
    (model,) = client.search_logged_models([logged.experiment], f"source_run_id = '{run_id}'")
    assert model.status == "FAILED"
    packaging.log_model(logged.client, run_id, logged.folder, logged.root / "code", PROMPT)
    assert len(client.get_run(run_id).outputs.model_outputs) == 1


def test_only_the_code_that_was_put_aside_is_logged(tmp_path, logged):
    assert {path.name for path in (logged.files / "code" / "minilm").iterdir()} == set(packaging.SERVED_CODE)
    assert [path.name for path in (logged.files / "code").iterdir()] == ["minilm"]
    packaging.copy_code(tmp_path / "code")
    (tmp_path / "code" / "minilm" / "files.py").write_text("# as it was then\n")
    run_id = logged.client.create_run(logged.experiment).info.run_id
    packaging.log_model(logged.client, run_id, logged.folder, tmp_path / "code", PROMPT)
    (model,) = logged.client.search_logged_models([logged.experiment], f"source_run_id = '{run_id}'")
    assert (files_of(model) / "code" / "minilm" / "files.py").read_text() == "# as it was then\n"


def test_page_shows_how_to_call_it(logged):
    example = json.loads((logged.files / "serving_input_example.json").read_text())
    assert example["inputs"] == [PROMPT]
    assert set(example["params"]) == set(serving.PARAMS)
    requirements = (logged.files / "requirements.txt").read_text().split()
    assert "torch==2.13.0" in requirements
    assert {line.partition("==")[0] for line in requirements} == {"mlflow", "numpy", "safetensors", "torch"}


def test_params_are_those_of_generate_with_the_same_defaults():
    known = {
        name: parameter.default
        for name, parameter in inspect.signature(stream).parameters.items()
        if name not in ("model", "tokenizer", "prompt")
    }
    assert known == packaging.PARAMS
    assert set(known) == set(serving.PARAMS)


def test_loads_where_there_is_no_minilm(tmp_path, logged, tiny_model):
    script = f"""
        import json, sys
        sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
        try:
            import minilm
        except ModuleNotFoundError:
            pass
        else:
            raise SystemExit(f"minilm is to be had from {{minilm.__file__}}")
        import mlflow
        mlflow.set_tracking_uri({f"sqlite:///{logged.root / 'mlflow.db'}"!r})
        model = mlflow.pyfunc.load_model({logged.model.model_uri!r})
        texts = model.predict([{PROMPT!r}], params={{"seed": 3}})
        pieces = list(model.predict_stream({PROMPT!r}, params={{"seed": 3}}))
        names = [name for name in sys.modules if name.partition(".")[0] == "minilm"]
        files = [sys.modules[name].__file__ for name in names]
        print(json.dumps([texts, pieces, files]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    texts, pieces, files = json.loads(done.stdout)
    assert texts == [minilm.generate(*tiny_model, PROMPT, seed=3)]
    assert len(pieces) > 100
    assert "".join(pieces) == texts[0]
    # No module is missing among the logged ones, and none is there in vain.
    assert {Path(file) for file in files} == {
        logged.files / "code" / "minilm" / n for n in packaging.SERVED_CODE
    }


@pytest.mark.parametrize("settings", SETTINGS)
def test_texts_are_those_of_generate(generator, tiny_model, settings):
    expected = [minilm.generate(*tiny_model, prompt, **settings) for prompt in (PROMPT, "fox", "dog\n")]
    assert generator.predict([PROMPT, "fox", "dog\n"], settings) == expected
    assert "".join(generator.predict_stream(PROMPT, settings)) == expected[0]


def test_streams_in_turns_do_not_disturb_each_other(generator, tiny_model):
    streams = [generator.predict_stream(PROMPT, {"seed": seed}) for seed in range(3)]
    texts = ["".join(column) for column in zip(*zip(*streams, strict=True), strict=True)]
    assert texts == [minilm.generate(*tiny_model, PROMPT, seed=seed) for seed in range(3)]


def test_each_thread_computes_with_as_many_threads_as_generate_would(logged, monkeypatch):
    before, seen = torch.get_num_threads(), []

    def watched(*arguments, **settings):
        seen.append(torch.get_num_threads())
        return stream(*arguments, **settings)

    monkeypatch.setattr(serving, "stream", watched)
    try:
        torch.set_num_threads(2)
        generator = serving.TextGenerator(logged.folder)
        torch.set_num_threads(1)  # as it is while another text is written
        with ThreadPoolExecutor(1) as pool:
            pool.submit(generator.predict, [PROMPT], {"max_new_tokens": 1}).result()
        assert seen[-1] == 2
    finally:
        torch.set_num_threads(before)


def test_a_request_ends_after_its_time(generator, monkeypatch):
    monkeypatch.setattr(serving, "MAX_SECONDS", 0.05)
    with pytest.raises(serving.Refusal, match=r"not done within 0\.05 s") as refusal:
        generator.predict([PROMPT], {"max_new_tokens": serving.MAX_NEW_TOKENS})
    assert refusal.value.get_http_status_code() == 503
    monkeypatch.setattr(serving, "MAX_SECONDS", 30.0)
    assert generator.predict([PROMPT], {"max_new_tokens": 1})  # the next one has its turn


def test_a_request_does_not_wait_for_ever_for_its_turn(generator, monkeypatch):
    monkeypatch.setattr(serving, "MAX_SECONDS", 0.05)
    with generator._turn, pytest.raises(serving.Refusal, match="not done within"):
        generator.predict([PROMPT], {"max_new_tokens": 1})


def test_unknown_params_of_other_models_are_theirs(logged):
    from mlflow.models.utils import _enforce_params_schema
    from mlflow.types import ParamSchema, ParamSpec

    serving._load_pyfunc(str(logged.folder))
    schema = ParamSchema([ParamSpec("temperature", "double", 1.0)])
    assert _enforce_params_schema({"warmth": 2.0}, schema) == {"temperature": 1.0}


LIMITS = {
    "prompts": {"inputs": [PROMPT] * (serving.MAX_PROMPTS + 1)},
    "prompt": {"inputs": ["a" * (serving.MAX_PROMPT_CHARACTERS + 1)]},
    "new": {"inputs": [PROMPT], "params": {"max_new_tokens": serving.MAX_NEW_TOKENS + 1}},
    "all": {"inputs": [PROMPT] * 3, "params": {"max_new_tokens": serving.MAX_NEW_TOKENS}},
    "stop": {"inputs": [PROMPT], "params": {"stop": "a" * (serving.MAX_STOP_CHARACTERS + 1)}},
}
LIST = "the prompts must be a list of texts"


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (LIMITS["prompts"], "65 prompts are more than 64, the limit of a request"),
        (LIMITS["prompt"], "the prompt is 10001 characters long, more than the limit of 10000"),
        (LIMITS["new"], "max_new_tokens is 10001, more than the limit of 10000"),
        (LIMITS["all"], "max_new_tokens times the number of prompts is 30000, more than 20000, the limit"),
        (LIMITS["stop"], "stop is 101 characters long, more than the limit of 100"),
        ({"inputs": []}, LIST),
        ({"inputs": None}, LIST),
        ({"inputs": "the "}, LIST),
        ({"inputs": {"prompt": ["the "]}}, LIST),
        ({"prompt": ["the "], "seed": 4}, LIST),
        ({"inputs": [""]}, "prompt: it is empty"),
        ({"inputs": ["the ", 3]}, "a prompt must be a text, not 3"),
        ({"inputs": ["the ", None]}, "a prompt must be a text, not null"),
        ('{"inputs": [NaN]}', "a prompt must be a text, not NaN"),
        ({"inputs": [["the "]]}, 'a prompt must be a text, not ["the "]'),
        ({"inputs": ["The ß"]}, "the model never saw 'T' (U+0054), 'ß' (U+00DF)"),
        ('{"inputs": ["\\ud800"]}', "the model never saw '\\ud800' (U+D800)"),
        ({"inputs": ["the "], "params": {"temperature": -1}}, "temperature and top_k must be at least 0"),
        ('{"inputs": ["the "], "params": {"temperature": NaN}}', "temperature and top_k must be at least 0"),
        ({"inputs": ["the "], "params": {"top_p": 0}}, "top_p above 0 to 1"),
        ({"inputs": ["the "], "params": {"seed": -1}}, "seed: -1 is less than 0"),
        ({"inputs": ["the "], "params": {"max_new_tokens": -1}}, "max_new_tokens: -1 is less than 0"),
        ({"inputs": ["the "], "params": {"top_k": 10**30}}, "does not fit into 64 bits"),
        ({"inputs": ["the "], "params": {"seed": None}}, "seed is null; leave it out to take its default"),
        (
            {"inputs": ["the "], "params": {"temprature": 1, "seed": 1}},
            "unknown params: 'temprature'; there are max_new_tokens, temperature, top_k, top_p, seed, min_p,",
        ),
    ],
)
def test_bad_requests_get_one_sentence(address, body, sentence):
    status, answer = post(address, body)
    answer = json.loads(answer)
    assert status == 400
    assert answer.keys() == {"error_code", "message"}
    assert sentence in answer["message"]
    assert "\n" not in answer["message"]


@pytest.mark.parametrize(
    ("body", "kind", "sentence"),
    [
        ('{"inputs": ["the "]', "application/json", "valid JSON formatted string"),
        ("[1]", "application/json", "must be a JSON dictionary"),
        ("{}", "application/json", "must be a dictionary with 'inputs' key"),
        (
            {"dataframe_split": {"columns": ["x"], "data": [["the "]]}},
            "application/json",
            "must be a dictionary with 'inputs' key",
        ),
        ({"inputs": ["the "], "params": [1]}, "application/json", "Parameters must be a dictionary"),
        ({"inputs": ["the "], "params": {"seed": 1.5}}, "application/json", "'seed'"),
        ({"inputs": ["the "], "params": {"seed": True}}, "application/json", "'seed'"),
        ({"inputs": ["the "], "params": {"seed": "1"}}, "application/json", "'seed'"),
        ({"inputs": ["the "], "params": {"stop": 1}}, "application/json", "'stop'"),
        ({"inputs": ["the "], "params": {"temperature": [1]}}, "application/json", "'temperature'"),
        ("prompt\nthe \n", "text/csv", LIST),
        ("the ", "text/plain", "only supports the following content types"),
    ],
)
def test_bad_requests_that_mlflow_itself_refuses(address, body, kind, sentence):
    status, answer = post(address, body, kind)
    assert status in (400, 415)
    assert sentence in answer
    assert "Traceback" not in answer
    assert "stack_trace" not in answer


def test_many_at_once_get_each_their_own_text(address, tiny_model):
    clients, requests = 8, 200
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
