"""How many steps of training fit into a time: `python -m stages.steps SECONDS`, for main.py --seconds.

Not a stage of the pipeline: main.py writes the number into params.yaml, from which the result is made.
"""

import sys
import time

from minilm.data.batches import open_tokens
from minilm.data.tokenizer import CharTokenizer
from minilm.files import ENCODED
from minilm.model.config import ModelConfig
from minilm.model.gpt import MiniGPT
from minilm.params import TrainParams, load_params
from minilm.training.distributed import Workers, join_workers
from minilm.training.loop import PEAKS_MEASURED, Training
from stages import run

MEASURED = 3.0  # seconds of training; less where the whole time is short


def main() -> None:
    """Measure the rate of training with params.yaml on data/encoded, and print the number of steps."""
    params = load_params("params.yaml").train
    with join_workers(params.device) as workers:
        steps = steps_within(float(sys.argv[1]), params, workers)
        if workers.rank == 0:
            print(steps)


def steps_within(seconds: float, params: TrainParams, workers: Workers) -> int:
    """The steps that take about so long, with the reports among them and without starting and saving."""
    tokenizer = CharTokenizer.load(ENCODED / "tokenizer.json")
    model = MiniGPT(ModelConfig.from_params(tokenizer.vocab_size, params), seed=params.seed)
    if params.sharding == "none":
        model.to(workers.device)
    train_tokens, val_tokens = open_tokens(ENCODED / "train.npy"), open_tokens(ENCODED / "validation.npy")
    endless = params.model_copy(update={"steps": sys.maxsize})
    training = Training(model, train_tokens, val_tokens, endless, workers)
    model.train()
    for inputs, targets in training.batches():
        training.update(inputs, targets)
        enough = time.perf_counter() - training.timed_from > min(MEASURED, seconds / 10)
        if training.timed_steps >= 3 and workers.any(enough)[0]:
            break
    training.peaks = PEAKS_MEASURED * [1.0]  # only the first reports of a training measure it
    start = time.perf_counter()
    report = training.report()
    per_report = time.perf_counter() - start
    per_step = training.characters_per_step / report.tokens_per_second
    return max(1, round((seconds - per_report) / (per_step + per_report / params.eval_interval)))


if __name__ == "__main__":
    run(main)
