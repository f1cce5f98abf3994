"""The pictures: they open, have labels one can read, and come out the same each time."""

import subprocess
import sys
import warnings
from itertools import pairwise
from typing import NamedTuple

import matplotlib
import numpy as np
import pytest
from PIL import Image

from minilm import plots


class ByPosition(NamedTuple):
    context: int
    loss: float
    characters: int


class Bin(NamedTuple):
    confidence: float
    accuracy: float
    characters: int
    lower: float
    upper: float


class Kind(NamedTuple):
    kind: str
    loss: float
    share: float


def attention(layers, heads, length):
    """Even attention to all that came before."""
    rows = np.tri(length) / np.arange(1, length + 1)[:, None]
    return np.broadcast_to(rows, (layers, heads, length, length))


def loss_rows(count):
    return [
        {
            "step": str(50 * n),
            "train_loss": f"{3 / (n + 1)}",
            "val_loss": f"{4 / (n + 1)}",
            "learning_rate": "3e-4",
        }
        for n in range(count)
    ]


POSITIONS = [ByPosition(context, 2 + 1 / context, 100) for context in range(1, 65)]
BINS = [Bin(0.3, 0.25, 900, 4 / 15, 5 / 15), Bin(0.99, 1.0, 40, 14 / 15, 1.0)]
KINDS = [Kind("letter", 2.5, 0.8), Kind("space", 0.5, 0.1996), Kind("other", 6.0, 0.0004)]
DRAW = {
    "curves": lambda path: plots.loss_curves(loss_rows(5), path),
    "curve of one report": lambda path: plots.loss_curves(loss_rows(1), path),
    "position": lambda path: plots.loss_by_position(POSITIONS, path),
    "position of one": lambda path: plots.loss_by_position(POSITIONS[:1], path),
    "reliability": lambda path: plots.reliability(BINS, path, 0.05),
    "kinds": lambda path: plots.loss_by_kind(KINDS, path),
    "attention": lambda path: plots.attention_maps(attention(2, 2, 4), "The ", path),
    "attention of one": lambda path: plots.attention_maps(attention(1, 1, 1), "T", path),
}


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn."""
    drawn = []
    original = plots.Figure

    def remember(*arguments, **settings):
        drawn.append(original(*arguments, **settings))
        return drawn[-1]

    monkeypatch.setattr(plots, "Figure", remember)
    return drawn


@pytest.mark.parametrize("name", DRAW)
def test_draws_a_png_of_useful_size_without_warnings(name, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DRAW[name](tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        image.load()
        assert image.format == "PNG"
        assert all(300 <= side <= 1200 for side in image.size)
        colours = np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)
        assert len(colours) > 20
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("name", ["curves", "attention"])
def test_same_input_gives_same_bytes_whatever_the_users_style(name, tmp_path):
    DRAW[name](tmp_path / "a.png")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "savefig.dpi": 50}):
        DRAW[name](tmp_path / "b.png")
        assert matplotlib.rcParams["font.size"] == 30
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_loss_curves_draw_the_losses_and_the_learning_rate(figures, tmp_path):
    plots.loss_curves(loss_rows(3), tmp_path / "a.png")
    losses, rates = figures[0].axes
    assert [list(line.get_ydata()) for line in losses.lines] == [[3, 1.5, 1], [4, 2, 4 / 3]]
    assert list(rates.lines[0].get_ydata()) == [3e-4] * 3
    assert "nats" in losses.get_ylabel()
    assert "step" in rates.get_xlabel()


def test_kinds_are_sorted_and_tell_their_share(figures, tmp_path):
    plots.loss_by_kind(KINDS, tmp_path / "a.png")
    axes = figures[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["space", "letter", "other"]
    labels = [text.get_text() for text in axes.texts]
    assert labels == [
        "0.50 nats, 20% of the text",
        "2.50 nats, 80% of the text",
        "6.00 nats, <0.1% of the text",
    ]
    # The longest bar's label ends inside the picture.
    assert axes.texts[-1].get_window_extent().x1 < figures[0].bbox.x1


def test_attention_draws_at_most_six_layers_of_eight_heads_and_says_so(figures, tmp_path):
    plots.attention_maps(attention(8, 12, 3), "abc", tmp_path / "a.png")
    titles = [axes.get_title() for axes in figures[0].axes if axes.get_title()]
    assert len(titles) == 6 * 8
    assert titles[0] == "layer 1, head 1"
    assert titles[-1] == "layer 8, head 12"
    assert figures[0].get_suptitle() == "attention in 6 of 8 layers and 8 of 12 heads"


def test_attention_leaves_what_comes_later_blank(figures, tmp_path):
    plots.attention_maps(attention(1, 1, 4), "abcd", tmp_path / "a.png")
    drawn = figures[0].axes[0].images[0].get_array()
    assert (drawn.mask == np.triu(np.ones((4, 4), bool), 1)).all()


def test_attention_labels_every_kind_of_character(figures, tmp_path):
    """Also those that the font lacks, that cannot be encoded, or that matplotlib takes for a formula."""
    characters = [
        "a",
        " ",
        "\n",
        "\t",
        "\0",
        "中",
        "\ud800",
        "\u0301",
        "$",
        "\N{REPLACEMENT CHARACTER}",
        "😀",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.attention_maps(attention(1, 2, len(characters)), characters, tmp_path / "a.png")
    labels = [label.get_text() for label in figures[0].axes[0].get_xticklabels()]
    assert labels[:9] == ["a", "␣", "⏎", "⇥", "□", "□", "□", "◌\u0301", "$"]


def test_long_prompts_stay_legible(figures, tmp_path):
    plots.attention_maps(attention(1, 1, 48), "abcd" * 12, tmp_path / "a.png")
    (axes, _) = figures[0].axes
    labels = axes.get_xticklabels()
    assert labels[0].get_fontsize() >= 5.5
    boxes = [label.get_window_extent() for label in labels]
    assert all(left.x1 <= right.x0 for left, right in pairwise(boxes))


def test_pyplot_is_not_imported():
    code = "import sys, minilm.report.plots; sys.exit('matplotlib.pyplot' in sys.modules or 'torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
