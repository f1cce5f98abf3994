"""Position schemes against literal computations of their papers' formulas."""

import math

import pytest
import torch

from minilm.model.positions import alibi_bias, alibi_slopes, rope_rotation, rotate, sinusoidal_table


@pytest.mark.parametrize("channels", [6, 7])
def test_sinusoidal_table_equals_the_formula_cell_by_cell(channels):
    table = sinusoidal_table(5, channels)
    for position in range(5):
        for channel in range(channels):
            angle = position / 10000 ** (2 * (channel // 2) / channels)
            expected = math.cos(angle) if channel % 2 else math.sin(angle)
            assert table[position, channel].item() == pytest.approx(expected, abs=1e-6)


def test_rotation_equals_a_complex_product_pair_by_pair():
    x = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1))
    positions = torch.tensor([0, 3, 4, 9])
    rotated = rotate(x, *rope_rotation(positions, x.shape[-1]))
    for batch in range(2):
        for row, position in enumerate(positions.tolist()):
            for pair in range(3):
                angle = position / 10000 ** (2 * pair / 6)
                before = complex(x[batch, row, pair], x[batch, row, pair + 3])
                after = before * complex(math.cos(angle), math.sin(angle))
                assert rotated[batch, row, pair].item() == pytest.approx(after.real, abs=1e-5)
                assert rotated[batch, row, pair + 3].item() == pytest.approx(after.imag, abs=1e-5)


def test_products_of_rotated_vectors_depend_on_the_distance_only():
    query, key = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(2))

    def score(i: int, j: int) -> float:
        rotated = [rotate(x, *rope_rotation(torch.tensor([at]), 8)) for x, at in ((query, i), (key, j))]
        return (rotated[0] @ rotated[1].T).item()

    assert score(7, 4) == pytest.approx(score(103, 100), abs=1e-4)
    assert score(7, 4) != pytest.approx(score(7, 5), abs=1e-2)


@pytest.mark.parametrize(
    ("heads", "slopes"),
    [
        (1, [2**-8]),
        (8, [2**-i for i in range(1, 9)]),
        (4, [2**-2, 2**-4, 2**-6, 2**-8]),
        (3, [2**-4, 2**-8, 2**-2]),
        (6, [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]),
    ],
)
def test_alibi_slopes_are_the_authors(heads, slopes):
    assert alibi_slopes(heads).tolist() == pytest.approx(slopes)


def test_alibi_slopes_equal_hugging_faces():
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    for heads in (2, 5, 12):
        theirs = build_alibi_tensor(torch.ones(1, 4), heads, torch.float32)  # (heads, 1, keys)
        ours = alibi_slopes(heads)[:, None] * torch.arange(4)
        torch.testing.assert_close(ours, theirs[:, 0])


def test_alibi_bias_is_minus_slope_times_distance():
    bias = alibi_bias(torch.tensor([0.5, 0.25]), torch.tensor([2, 3]), torch.arange(4))
    assert bias.tolist() == [
        [[-1, -0.5, 0, 0.5], [-1.5, -1, -0.5, 0]],
        [[-0.5, -0.25, 0, 0.25], [-0.75, -0.5, -0.25, 0]],
    ]
