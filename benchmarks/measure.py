"""One measurement in a process of its own, printed as JSON: `python -m benchmarks.measure NAME`."""

import argparse
import contextlib
import importlib.util
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks import plain
from minilm import CharTokenizer, MiniGPT, ModelConfig, generate, generate_samples, stream
from minilm.data.batches import open_tokens
from minilm.generation.kv_cache import useful_threads
from minilm.params import TrainParams
from minilm.training.loop import train

VOCABULARY, BATCH, BLOCK = 65, 32, 128
CHARACTERS = 1000  # written in a measurement of generation
PARTS = 5


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=["plain", "nanogpt", "minilm", "generation"])
    parser.add_argument("--tokens", help="a token file instead of random tokens in memory")
    parser.add_argument("--nanogpt", type=Path, help="nanoGPT's checkout")
    parser.add_argument("--steps", type=int, default=200, help="in five parts, of which the first warms up")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="parameters of minilm")
    arguments = parser.parse_args()
    if arguments.name == "generation":
        print(json.dumps(generation_rates(arguments.nanogpt)))
        return
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, 1_000_000).astype(np.uint8)
    if arguments.tokens:
        tokens = open_tokens(arguments.tokens)
    if arguments.name == "minilm":
        values = dict(pair.split("=", 1) for pair in arguments.set)
        rates = minilm_rates(tokens, arguments.steps, values)
    elif arguments.name == "plain":
        model = plain.PlainGPT(VOCABULARY)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1)

        def step(inputs: torch.Tensor, targets: torch.Tensor) -> None:
            plain.train_step(model, optimizer, inputs, targets)

        rates = loop_rates(tokens, arguments.steps, step)
    else:
        rates = loop_rates(tokens, arguments.steps, nanogpt_step(arguments.nanogpt))
    print(json.dumps({"characters_per_second": float(np.median(rates[1:])), "peak_mb": peak_memory()}))


def peak_memory() -> float:
    """The most memory that this process has held at once, in MB."""
    if (status := Path("/proc/self/status")).exists():
        # Not getrusage: on Linux its figure begins with that of the process that started this one.
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1 << 20 if sys.platform == "darwin" else 1024
    )


def minilm_rates(tokens: np.ndarray, steps: int, values: dict[str, str]) -> list[float]:
    """Characters per second in each part of a training of the default model, by the library's report."""
    params = TrainParams(
        **{"steps": str(steps), "eval_interval": str(steps // PARTS), "eval_batches": "1", **values}
    )
    return [now.tokens_per_second for now in train(MiniGPT(ModelConfig(VOCABULARY)), tokens, tokens, params)]


def loop_rates(
    tokens: np.ndarray, steps: int, step: Callable[[torch.Tensor, torch.Tensor], object]
) -> list[float]:
    """Characters per second in each part of a loop over random batches."""
    rates = []
    for _ in range(PARTS):
        start = time.perf_counter()
        for _ in range(steps // PARTS):
            step(*plain.random_batch(tokens, BATCH, BLOCK))
        rates.append(steps // PARTS * BATCH * BLOCK / (time.perf_counter() - start))
    return rates


def generation_rates(nanogpt: Path | None) -> dict[str, float]:
    """Characters per second that untrained default models write, one way after the other."""
    tokenizer = CharTokenizer("".join(map(chr, range(32, 31 + VOCABULARY))))
    model = MiniGPT(ModelConfig(VOCABULARY)).eval()
    generate(model, tokenizer, "A", 100)
    threads, rates = torch.get_num_threads(), {}

    def clock(name: str, texts: int, write: Callable[[], object]) -> None:
        torch.set_num_threads(threads)
        if name != "nanogpt":
            torch.set_num_threads(useful_threads(model, texts))
        start = time.perf_counter()
        write()
        rates[name] = texts * CHARACTERS / (time.perf_counter() - start)

    if nanogpt:
        other = nanogpt_model(nanogpt).eval()
        prompt = torch.ones(1, 1, dtype=torch.long)
        clock("nanogpt", 1, lambda: other.generate(prompt, CHARACTERS, temperature=0.8))
    clock("one", 1, lambda: generate(model, tokenizer, "A", CHARACTERS))
    clock("stream", 1, lambda: list(stream(model, tokenizer, "A", CHARACTERS)))
    clock("many", 64, lambda: generate_samples(model, tokenizer, "A", 64, CHARACTERS))
    return rates


def nanogpt_model(checkout: Path) -> torch.nn.Module:
    """The model of nanoGPT in the default shape."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", checkout / "model.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    with contextlib.redirect_stdout(sys.stderr):
        return module.GPT(
            module.GPTConfig(
                block_size=BLOCK,
                vocab_size=VOCABULARY,
                n_layer=2,
                n_head=4,
                n_embd=128,
                dropout=0.0,
                bias=True,
            )
        )


def nanogpt_step(checkout: Path) -> Callable[[torch.Tensor, torch.Tensor], object]:
    """A step as nanoGPT's train.py takes it on a CPU, with its model and its optimizer."""
    model = nanogpt_model(checkout)
    optimizer = model.configure_optimizers(0.1, 3e-4, (0.9, 0.95), "cpu")

    def step(inputs: torch.Tensor, targets: torch.Tensor) -> None:
        _, loss = model(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


if __name__ == "__main__":
    main()
