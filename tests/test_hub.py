"""The Hub by the real `load_dataset` over HTTP, its absence, its silence, and what comes instead."""

import json
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from conftest import ROOT
from helpers import hub
from minilm.data.corpus import open_corpus

WIKI = {
    "train": [" = Fox = \n", "", " The quick brown fox , again and again . \n"] * 60,
    "validation": [" jumps over \n", ""],
    "test": ["", " the lazy dog \n"],
}

READ = """
import json, sys
from pathlib import Path
from minilm.data.corpus import open_corpus
corpus = open_corpus(sys.argv[1], holdout_fraction=0.1, allow_fallback=sys.argv[2] == "yes")
print(json.dumps([corpus.origin, corpus.fallback_for, {s: "".join(p()) for s, p in corpus.splits.items()}]))
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    hub.write_dataset(root, "Salesforce/wikitext", "wikitext-2-raw-v1", WIKI)
    hub.write_dataset(
        root, "someone/stories", "default", {"train": ["One.", "Two.\n"] * 50, "test": ["End."]}
    )
    hub.write_dataset(root, "someone/images", "default", {"train": ["a"]}, column="image")
    hub.write_dataset(root, "someone/tests", "default", {"test": ["a"]})
    hub.write_dataset(root, "someone/numbers", "default", {"train": [1, 2]})
    hub.write_dataset(root, "someone/gaps", "default", {"train": ["One.", None] * 50, "test": ["End.", None]})
    hub.write_dataset(root, "someone/two", "de", {"train": ["Eins."]})
    hub.write_dataset(root, "someone/two", "en", {"train": ["One."]})
    hub.write_dataset(root, "someone/broken", "default", {"train": ["a"]})
    (root / "someone/broken/default/train-00000-of-00001.parquet").write_bytes(b"PAR1 no more")
    hub.write_dataset(root, "someone/refused", "default", {"train": ["a"]})
    (root / "someone/refused/default/train-00000-of-00001.parquet").write_bytes(hub.REFUSED)
    (root / "someone/empty").mkdir()
    (root / "someone/empty/README.md").write_text("# Nothing yet")
    (root / "someone/script").mkdir()
    (root / "someone/script/script.py").write_text("import datasets")
    with hub.serve(root) as url:
        yield url


@pytest.fixture
def read(python, tmp_path):
    """Reads a dataset in a process of its own, as the Hub's address is read when `datasets` is imported."""

    def read(endpoint: str, dataset: str, fallback: str = "no") -> subprocess.CompletedProcess:
        env = {"PATH": "", "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
        command = [python, "-c", READ, dataset, fallback]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)

    return read


@pytest.fixture
def corpus(read):
    """What was read: its origin, what it replaces, and the splits."""

    def corpus(*arguments):
        done = read(*arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return corpus


def test_wikitext_rows_are_joined_as_they_are_and_the_cache_serves_without_the_hub(address, corpus):
    expected = [
        "hub:Salesforce/wikitext:wikitext-2-raw-v1",
        None,
        {s: "".join(rows) for s, rows in WIKI.items()},
    ]
    assert corpus(address, "wikitext-2") == expected
    assert corpus("http://127.0.0.1:9", "wikitext-2") == expected


def test_any_dataset_with_text_and_its_missing_split(address, corpus):
    origin, _, splits = corpus(address, "hub:someone/stories")
    assert origin == "hub:someone/stories"
    whole = "One.\nTwo.\n" * 50
    assert splits == {"train": whole[:450], "validation": whole[450:], "test": "End.\n"}
    assert corpus(address, "hub:someone/stories:default")[2] == splits


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("hub:someone/nothing", "hub:someone/nothing"),
        ("hub:someone/stories:other", "Available: ['default']"),
        ("hub:someone/images", "has no column text, only image"),
        ("hub:someone/tests", "has no split train, only test"),
        ("hub:someone/numbers", "the column text of hub:someone/numbers is not text but Value('int64')"),
        ("hub:someone/two", "has several configurations; name one, as in hub:someone/two:de: de, en"),
        ("hub:someone/broken", "hub:someone/broken cannot be read: "),
        ("hub:someone/refused", "hub:someone/refused cannot be read: Client error '403 Forbidden' for url"),
        ("hub:someone/empty", "hub:someone/empty cannot be read: "),
        ("hub:someone/script", "scripts are no longer supported"),
    ],
)
def test_what_the_hub_does_not_have_is_an_error_even_with_fallback(address, read, dataset, message):
    done = read(address, dataset, "yes")
    assert done.returncode != 0
    assert message in done.stderr.splitlines()[-1]
    assert "InputError: dataset:" in done.stderr.splitlines()[-1]


def test_a_hub_that_accepts_and_keeps_silent_is_given_up_in_time(corpus):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        start = time.monotonic()
        origin, fallback_for, _ = corpus(endpoint, "wikitext-2", "yes")
        assert time.monotonic() - start < 15
    assert (origin, fallback_for) == ("sample", "wikitext-2")


def test_rows_without_text_are_left_out(address, corpus):
    assert corpus(address, "hub:someone/gaps")[2]["test"] == "End.\n"


def test_a_cache_that_cannot_be_written_is_an_error(address, read, tmp_path):
    (tmp_path / "datasets").touch()
    done = read(address, "wikitext-2", "yes")
    assert "InputError: dataset: " in done.stderr.splitlines()[-1]
    assert str(tmp_path / "datasets") in done.stderr.splitlines()[-1]


AWAY_AND_BACK = """
import os
from minilm import load_wikitext
import datasets  # reads the address for all its requests
address = os.environ["HF_ENDPOINT"]
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"
sample = load_wikitext("test")
os.environ["HF_ENDPOINT"] = address
print([sample == load_wikitext("test"), load_wikitext("test")])
"""


def test_load_wikitext_asks_the_hub_again_after_a_failure(address, python, tmp_path):
    env = {"PATH": "", "HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [python, "-c", AWAY_AND_BACK]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout == f"{[False, ''.join(WIKI['test'])]}\n", done.stderr
    assert "SAMPLE TEXT" in done.stderr
    assert "(ConnectionError: [Errno 111] Connection refused)" in done.stderr


def test_the_reason_why_the_hub_cannot_be_reached(address, monkeypatch):
    def reason() -> str:
        return open_corpus("wikitext-2", holdout_fraction=0.1, allow_fallback=True).reason

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert reason() == "ConnectionError: [Errno 111] Connection refused"
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert reason() == "ProxyError: [Errno 111] Connection refused"
    monkeypatch.setenv("HF_ENDPOINT", address.replace("http:", "https:"))
    assert "SSLError: " in reason()
    assert "wrong version number" in reason()


@pytest.mark.parametrize("status", [429, 503])  # too many requests; out of service
def test_a_hub_that_answers_nobody_for_now_counts_as_unreachable(status, monkeypatch):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(status)

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.handle_request, daemon=True).start()
        corpus = open_corpus("wikitext-2", holdout_fraction=0.1, allow_fallback=True)
    assert (corpus.origin, corpus.reason) == ("sample", f"it answers with status {status}")


def test_without_fallback_an_absent_hub_is_an_error(read):
    done = read("http://127.0.0.1:9", "wikitext-2")
    assert "could not be read from the Hugging Face Hub" in done.stderr.splitlines()[-1]
    assert "allow_fallback: true" in done.stderr.splitlines()[-1]
