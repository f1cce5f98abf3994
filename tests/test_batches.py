import numpy as np
import pytest

from minilm.data.batches import open_tokens, random_batch, scoring_batches, spaced_batches, write_tokens
from minilm.errors import InputError


def test_token_file_in_pieces_equals_numpys_own(tmp_path):
    tokens = np.arange(70000) % 300
    count = write_tokens(tmp_path / "a.npy", np.array_split(tokens.astype(np.uint16), 7), np.uint16)
    np.save(tmp_path / "b.npy", tokens.astype(np.uint16))
    assert count == 70000
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    found = open_tokens(tmp_path / "a.npy")
    assert isinstance(found, np.memmap)
    assert (found == tokens).all()
    with pytest.raises(InputError, match="dvc repro encode"):
        open_tokens(tmp_path / "c.npy")


def test_a_damaged_token_file_is_named_whatever_its_damage(tmp_path):
    path = tmp_path / "train.npy"
    write_tokens(path, [np.arange(9, dtype=np.uint16)], np.uint16)
    whole = path.read_bytes()
    damages = [b"a text instead", *(whole[:length] for length in range(len(whole)))]
    for other in (np.ones(9), np.ones((3, 3), np.uint8), np.array(["a"], object)):
        np.save(path, other)
        damages.append(path.read_bytes())
    for damage in damages:
        path.write_bytes(damage)
        with pytest.raises(
            InputError, match=rf"{path}: not a file of token ids: .*; `dvc repro encode` makes"
        ):
            open_tokens(path)


def test_random_batches_shift_targets_by_one_reach_both_ends_and_repeat_with_the_seed():
    tokens = np.arange(10, dtype=np.uint8)
    inputs, targets = random_batch(tokens, batch_size=200, block_size=4, seed=1, step=1)
    assert inputs.shape == targets.shape == (200, 4)
    assert (targets == inputs + 1).all()
    assert (np.diff(inputs) == 1).all()
    assert inputs.min() == 0
    assert targets.max() == 9
    assert (random_batch(tokens, 200, 4, seed=1, step=1)[0] == inputs).all()
    assert (random_batch(tokens, 200, 4, seed=1, step=2)[0] != inputs).any()
    assert (random_batch(tokens, 200, 4, seed=2, step=1)[0] != inputs).any()


def test_random_batches_of_a_large_file_equal_those_of_memory(tmp_path):
    tokens = np.random.default_rng(3).integers(0, 200, 40_000_000).astype(np.uint8)
    np.save(tmp_path / "a.npy", tokens)
    on_disk = open_tokens(tmp_path / "a.npy")
    for step in range(1, 40):
        pairs = (random_batch(source, 19, 10, 1, step) for source in (on_disk, tokens))
        for found, expected in zip(*pairs, strict=True):
            assert (found == expected).all()


def test_spaced_batches_span_the_split():
    found = list(spaced_batches(np.arange(101), batch_size=3, block_size=10, count=2))
    assert [inputs[:, 0].tolist() for inputs, _ in found] == [[0, 18, 36], [54, 72, 90]]
    assert found[-1][1].max() == 100
    ((inputs, _),) = spaced_batches(np.arange(5), batch_size=1, block_size=10, count=1)
    assert inputs.tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("length", [2, 3, 11, 12, 40, 101])
def test_spaced_batches_without_a_count_cover_the_split(length):
    found = list(spaced_batches(np.arange(length), batch_size=3, block_size=10, count=0))
    assert {int(t) for _, targets in found for t in targets.flat} == set(range(1, length))
    assert sum(len(inputs) for inputs, _ in found) == -(-(length - 1) // min(10, length - 1))


@pytest.mark.parametrize("length", [2, 3, 8, 9, 10, 11, 12, 40, 101])
@pytest.mark.parametrize("context", [0, 1, 4, 7])
def test_every_token_is_scored_once_with_enough_before_it(length, context):
    block_size = 8
    scored: list[int] = []
    for inputs, targets, counts in scoring_batches(np.arange(length), block_size, context, batch_size=3):
        assert (targets == inputs + 1).all()
        for row in range(len(inputs)):
            for column in np.flatnonzero(counts[row]):
                target = int(targets[row, column])
                scored.append(target)
                before = column + 1  # tokens that the model sees before it predicts this one
                assert before > context or before == target
    assert scored == list(range(1, length))
