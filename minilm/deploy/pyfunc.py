"""The served model: text in, text out, by `mlflow.pyfunc.load_model` or `mlflow models serve`.

This file and what it imports travel with the model (minilm/packaging.py).
"""

import inspect
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE

from minilm.checkpoint import load
from minilm.errors import InputError
from minilm.generation import stream

# Of one request. Whoever needs more asks several times.
MAX_PROMPTS = 64
MAX_PROMPT_CHARACTERS = 10_000
MAX_STOP_CHARACTERS = 100
MAX_NEW_TOKENS = 10_000
MAX_NEW_TOKENS_OF_ALL = 20_000
# A large model takes longer for them than anyone waits: MLflow's server answers for it after 60 s.
MAX_SECONDS = 30.0
PARAMS = tuple(inspect.signature(stream).parameters)[
    3:
]  # the first are the model, the tokenizer and the prompt


class Refusal(MlflowException):
    """A request that gets no text; the answer is one sentence.

    MLflow's server would put the whole input before it.
    """

    def serialize_as_json(self) -> str:
        """The body of the server's answer."""
        return json.dumps({"error_code": self.error_code, "message": str(self)})


class TextGenerator:
    """Continues each prompt as `minilm.generate` does; the params are its arguments.

    MLflow's server calls it from several threads. They take turns, since writing sets the number of torch's
    threads, and two texts at once come no sooner than one after the other.

    Args:
        folder: the model folder.
    """

    def __init__(self, folder: str | Path):
        self.model, self.tokenizer = load(folder)
        self._turn = Lock()
        self._threads = torch.get_num_threads()

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[str]:
        """One text for each prompt, the prompt first, all with the same params, the seed too.

        Raises:
            Refusal: a prompt or param makes no sense or is beyond a limit, or it takes too long.
        """
        end = time.monotonic() + MAX_SECONDS
        if not isinstance(model_input, list) or not model_input:
            raise _bad_request('the prompts must be a list of texts, such as {"inputs": ["The "]}')
        if len(model_input) > MAX_PROMPTS:
            raise _bad_request(
                f"{len(model_input)} prompts are more than {MAX_PROMPTS}, the limit of a request"
            )
        params = params or {}
        for prompt in model_input:
            self._check(prompt, params)
        wanted = len(model_input) * params.get("max_new_tokens", 0)
        if wanted > MAX_NEW_TOKENS_OF_ALL:
            raise _bad_request(
                f"max_new_tokens times the number of prompts is {wanted}, more than "
                f"{MAX_NEW_TOKENS_OF_ALL}, the limit of a request"
            )
        return [self._write(prompt, params, end) for prompt in model_input]

    def predict_stream(self, model_input: Any, params: dict[str, Any] | None = None) -> Iterator[str]:
        """The text that `predict` gives for one prompt, piece by piece, as it is drawn.

        Raises:
            Refusal: as for `predict`, but that it may take its time.
        """
        params = params or {}
        self._check(model_input, params)
        with self._turn:
            pieces = self._stream(model_input, params)
        while True:
            with self._turn:
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece

    def _write(self, prompt: str, params: dict[str, Any], end: float) -> str:
        pieces = []
        if self._turn.acquire(timeout=max(0, end - time.monotonic())):
            try:
                for piece in self._stream(prompt, params):
                    pieces.append(piece)
                    if time.monotonic() > end:
                        break
                else:
                    return "".join(pieces)
            finally:
                self._turn.release()
        raise Refusal(
            f"this was not done within {MAX_SECONDS:g} s, since the server is busy or the model slow; "
            "ask for fewer characters or later",
            TEMPORARILY_UNAVAILABLE,
        )

    def _stream(self, prompt: str, params: dict[str, Any]) -> Iterator[str]:
        # A thread of the server that has just begun has another number, and a text depends on it by rounding.
        torch.set_num_threads(self._threads)
        return stream(self.model, self.tokenizer, prompt, **params)

    def _check(self, prompt: Any, params: dict[str, Any]) -> None:
        """Raise Refusal for what cannot be written."""
        if not isinstance(prompt, str):
            raise _bad_request(f"a prompt must be a text, not {_shown(prompt)}")
        for name, value in params.items():
            if value is None:
                raise _bad_request(f"{name} is null; leave it out to take its default")
            if isinstance(value, int) and abs(value) >= 2**63:
                raise _bad_request(f"{name} is {_shown(value)}, which does not fit into 64 bits")
        for name, size, limit, unit in (
            ("the prompt", len(prompt), MAX_PROMPT_CHARACTERS, "characters long"),
            ("stop", len(params.get("stop", "")), MAX_STOP_CHARACTERS, "characters long"),
            ("max_new_tokens", params.get("max_new_tokens", 0), MAX_NEW_TOKENS, ""),
        ):
            if size > limit:
                raise _bad_request(f"{name} is {size} {unit}".rstrip() + f", more than the limit of {limit}")
        try:
            # Not to write, which begins with the first piece, but to hear what the library says to it.
            stream(self.model, self.tokenizer, prompt, **params)
        except InputError as error:
            raise _bad_request(str(error)) from None


class _UnknownParams(logging.Filter):
    """Turns MLflow's warning of a param that the model does not know into a refusal.

    MLflow drops such a param before the model could see it, and a misspelt `temprature` would do nothing.
    Models that do not have our params are left alone.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        begin, _, supported = record.getMessage().partition(
            " are ignored for inference. Supported params are: "
        )
        if supported and all(repr(name) in supported for name in PARAMS):
            unknown = begin.removeprefix("Unrecognized params ").strip("[]")
            raise _bad_request(f"unknown params: {unknown}; there are {', '.join(PARAMS)}")
        return True


_unknown_params = _UnknownParams()


def _load_pyfunc(path: str) -> TextGenerator:
    """What MLflow calls to load a model; `path` is the model folder within it."""
    logging.getLogger("mlflow.models.utils").addFilter(_unknown_params)
    return TextGenerator(path)


def _bad_request(sentence: str) -> Refusal:
    return Refusal(sentence, INVALID_PARAMETER_VALUE)


def _shown(value: Any) -> str:
    """A value in a message, in JSON's words, shortened."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= 40 else text[:40] + "..."
