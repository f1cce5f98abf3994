"""The film of a training: copies of the weights on the way."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from minilm import MiniGPT, ModelConfig, train
from minilm.errors import TrainingInterrupted
from minilm.model.config import MOST_EXPLORED
from minilm.params import TrainParams
from minilm.training.film import frame_steps, write_film
from minilm.training.snapshots import Snapshots

TOKENS = np.random.default_rng(7).integers(1, 6, 400).astype(np.uint8)
PARAMS = TrainParams(
    block_size=8, embed_dim=16, num_heads=2, num_layers=1, batch_size=4, steps=11, eval_interval=3,
    eval_batches=1, learning_rate=0.01, precision="fp32", mlp_dropout=0.1, seed=4,
)  # fmt: skip


def filmed(snapshots: Snapshots | None = None, **values):
    """The film and the model of a training with these parameters."""
    params = TrainParams(**PARAMS.model_dump() | values)
    model, film = MiniGPT(ModelConfig.from_params(6, params), seed=4), {}
    train(model, TOKENS, TOKENS[:60], params, snapshots=snapshots, film=film)
    return film, model


def steps_of(film) -> list[int]:
    return sorted({int(name.split("/")[0]) for name in film})


@pytest.mark.parametrize(
    ("steps", "most", "expected"),
    [
        (200, 16, [1, 2, 4, 8, 16, 32, 64, 128, 200]),
        (256, 16, [1, 2, 4, 8, 16, 32, 64, 128, 256]),
        (200, 3, [64, 128, 200]),
        (200, 1, [200]),
        (200, 0, []),
        (1, 16, [1]),
        (2, 16, [1, 2]),
        (3, 16, [1, 2, 3]),
        (10**9, 2, [2**29, 10**9]),
    ],
)
def test_the_steps_double_and_the_earliest_are_left_out(steps, most, expected):
    assert frame_steps(steps, most) == expected


@pytest.mark.parametrize("values", [{}, {"optimizer": "muon"}, {"keep": "best", "learning_rate": 1.0}])
def test_a_frame_is_the_model_after_so_many_steps_in_half_precision(values):
    film, _ = filmed(**values)
    assert steps_of(film) == [1, 2, 4, 8, 11]
    for step in (2, 11):
        _, model = filmed(**values | {"steps": step, "keep": "last"})
        for name, tensor in model.state_dict().items():
            assert torch.equal(film[f"{step}/{name}"], tensor.half()), name


def test_with_keep_best_the_last_frame_is_still_the_last_step():
    film, model = filmed(keep="best", learning_rate=1.0, eval_interval=1)
    assert not torch.equal(film["11/final_norm.weight"], model.final_norm.weight.half())


def test_no_frames_where_none_are_asked_for_and_of_a_model_too_large_for_the_explorer():
    assert filmed(film=0)[0] == {}
    film, model = filmed(steps=1, embed_dim=1024)
    assert model.num_parameters > MOST_EXPLORED
    assert film == {}


class Interrupted(Snapshots):
    """Saves after every step, and stops training after one of them, as a signal would."""

    def __init__(self, folder, last: int):
        super().__init__(folder, 1)
        self.last = last

    def due(self) -> bool:
        return True

    def save(self, step: int, state: dict) -> None:
        super().save(step, state)
        if step == self.last:
            raise TrainingInterrupted("stopped")


def test_equal_trainings_and_resumed_ones_write_equal_bytes(tmp_path):
    def written(film) -> bytes:
        write_film(tmp_path / "film.safetensors", film)
        return (tmp_path / "film.safetensors").read_bytes()

    expected = written(filmed()[0])
    assert load_file(tmp_path / "film.safetensors").keys() == filmed()[0].keys()
    assert written(filmed()[0]) == expected
    for last in (1, 4, 5, 10):
        with pytest.raises(TrainingInterrupted):
            filmed(Interrupted(tmp_path / str(last), last))
        resumed, _ = filmed(Snapshots(tmp_path / str(last), 100))
        assert written(resumed) == expected


def test_a_film_without_frames_is_a_file_too(tmp_path):
    write_film(tmp_path / "models" / "film.safetensors", {})
    assert load_file(tmp_path / "models" / "film.safetensors") == {}
