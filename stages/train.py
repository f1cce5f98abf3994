"""train: data/encoded -> models/minilm, the film of its training, reports/train.json and loss.csv."""

from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from minilm import checkpoint
from minilm.data.batches import open_tokens
from minilm.data.provenance import Source
from minilm.data.tokenizer import CharTokenizer
from minilm.device import choose_device, choose_precision, describe_environment
from minilm.files import ENCODED, FILM, INITIAL, MODEL, RAW, REPORTS, project_root
from minilm.model.config import ModelConfig
from minilm.model.cpu_kernels import prepare_compiler
from minilm.model.gpt import MiniGPT
from minilm.params import Params, load_params
from minilm.tracking.run import LiveRun, NullRun
from minilm.tracking.store import environment_params
from minilm.training.distributed import Workers, full_model, join_workers
from minilm.training.film import write_film
from minilm.training.fingerprint import fingerprint, training_inputs, training_lock
from minilm.training.loop import train
from minilm.training.memory import explain_lack_of_memory
from minilm.training.reports import Report, write_reports
from minilm.training.snapshots import Snapshots, one_at_a_time
from stages import run


def main(track: bool = True) -> None:
    """Train a model of the shape in params.yaml and write its folder; its curves go to MLflow, if `track`."""
    params = load_params("params.yaml")
    if params.train.compile:
        prepare_compiler(choose_device(params.train.device))  # refuses before an MLflow run begins
    with join_workers(params.train.device) as workers:
        train_model(params, workers, track)


def train_model(all_params: Params, workers: Workers, track: bool = True) -> None:
    """What each process does; of several, the first alone writes files, logs and messages."""
    params, source = all_params.train, Source.load(RAW / "source.json")
    tokenizer = CharTokenizer.load(ENCODED / "tokenizer.json")
    initial = (INITIAL / checkpoint.INIT_FROM).read_text(encoding="utf-8")
    with explain_lack_of_memory(None, params, workers.count):
        model = MiniGPT(ModelConfig.from_params(tokenizer.vocab_size, params), seed=params.seed)
        initial_sha256 = checkpoint.start_from(INITIAL, model) if initial else ""
        if params.sharding == "none":
            model.to(workers.device)  # else fsdp moves it block by block, since the whole may not fit
    precision = choose_precision(params.precision, workers.device)
    environment = describe_environment(workers.device, precision, workers.count)
    inputs = training_inputs(Path(), params.model_dump(), environment)
    training = fingerprint(inputs)
    snapshots = Snapshots(project_root() / ".checkpoints" / training, params.checkpoint_interval, inputs)
    first = workers.rank == 0
    logged = {key: value for part in all_params[:3] for key, value in part} | environment_params(environment)
    logged["num_parameters"] = model.num_parameters
    with (
        one_at_a_time(training_lock(project_root(), training), workers),
        LiveRun(project_root(), training, source, logged) if first and track else NullRun() as mlflow_run,
    ):
        say = tqdm.write if first else lambda _: None
        say(f"train: {source}")
        say(
            f"train: {model.num_parameters:,} parameters in {environment['precision']} on "
            f"{environment['device_type']}, {workers.count} x {environment['threads']} threads"
        )
        if others := snapshots.describe_others():
            say(f"train: {others}")

        def report(latest: Report) -> None:
            mlflow_run.log_report(latest)
            say(f"step {latest.step:>{len(str(params.steps))}}/{params.steps}  {latest}")

        train_tokens, val_tokens = open_tokens(ENCODED / "train.npy"), open_tokens(ENCODED / "validation.npy")
        film: dict[str, Tensor] = {}
        reports = train(model, train_tokens, val_tokens, params, report, snapshots, workers, film)
        model = full_model(model)
        if first:
            checkpoint.save(MODEL, model, tokenizer, params.model_dump(), source, environment, initial_sha256)
            write_film(FILM, film)
            write_reports(REPORTS, reports, params.keep, model.num_parameters)
            mlflow_run.log_model(checkpoint.read_info(MODEL))
            snapshots.remove()


if __name__ == "__main__":
    run(main)
