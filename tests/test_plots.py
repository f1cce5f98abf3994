"""The pictures: they open, have labels one can read, and come out the same each time."""

import warnings
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
from PIL import Image

from minilm.report import plots


def weights(layers, heads, length):
    """Equal attention to all that came before."""
    rows = np.tri(length) / np.arange(1, length + 1)[:, None]
    return np.broadcast_to(rows, (layers, heads, length, length))


def losses(count):
    reports = range(1, count + 1)
    return {
        "step": [50 * n for n in reports],
        "train_loss": [3 / n for n in reports],
        "val_loss": [4 / n for n in reports],
        "learning_rate": [3e-4] * count,
    }


def positions(count):
    contexts = range(1, count + 1)
    losses = [2 + 1 / n for n in contexts]
    return {"context": contexts, "loss": losses, "characters": [9] * count, "deviation": [1.5] * count}


BINS = {
    "confidence": [0.3, 0.99],
    "accuracy": [0.25, 1.0],
    "characters": [900, 40],
    "lower": [4 / 15, 14 / 15],
    "upper": [5 / 15, 1.0],
}
KINDS = {
    "kind": ["letter", "space", "punctuation"],
    "loss": [2.5, 0.5, 6.0],
    "share": [0.8, 0.1996, 0.0004],
}
DRAW = {
    "losses": lambda path: plots.loss_curves(losses(5), path),
    "losses of one report": lambda path: plots.loss_curves(losses(1), path),
    "losses of many reports": lambda path: plots.loss_curves(losses(2000), path),
    "positions": lambda path: plots.loss_by_position(positions(64), path),
    "positions of one": lambda path: plots.loss_by_position(positions(1), path),
    "positions of many": lambda path: plots.loss_by_position(positions(65536), path),
    "calibration": lambda path: plots.calibration(BINS, path, 0.05),
    "kinds": lambda path: plots.loss_by_kind(KINDS, path),
    "attention": lambda path: plots.attention(weights(2, 2, 4), "The ", path),
    "attention of one": lambda path: plots.attention(weights(1, 1, 1), "T", path),
    "attention of default size": lambda path: plots.attention(weights(2, 4, 24), "The " * 6, path),
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
def test_draws_a_png_that_holds_all_of_it(name, figures, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DRAW[name](tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        image.load()
        assert image.format == "PNG"
        assert all(300 <= side <= 1200 for side in image.size)
        assert len(image.convert("RGB").getcolors(1 << 24)) > 20
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    # Margins are fixed: no label may reach beyond them.
    (figure,) = figures
    corners = figure.get_tightbbox().corners() / figure.get_size_inches()
    assert (corners >= -1e-9).all()
    assert (corners <= 1 + 1e-9).all()


@pytest.mark.parametrize("name", ["losses", "attention"])
def test_same_input_gives_same_bytes_whatever_the_users_style(name, tmp_path):
    DRAW[name](tmp_path / "a.png")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "savefig.dpi": 50}):
        DRAW[name](tmp_path / "b.png")
        assert matplotlib.rcParams["font.size"] == 30
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_loss_curves_draw_the_losses_and_the_learning_rate(figures, tmp_path):
    plots.loss_curves(losses(3), tmp_path / "a.png")
    curves, rates = figures[0].axes
    assert [list(line.get_ydata()) for line in curves.lines] == [[3, 1.5, 1], [4, 2, 4 / 3]]
    assert list(rates.lines[0].get_ydata()) == [3e-4] * 3
    assert "nats" in curves.get_ylabel()
    assert "step" in rates.get_xlabel()


def test_contexts_are_joined_in_two_bins_an_octave_with_the_standard_error_of_all_in_them(figures, tmp_path):
    drawn = np.random.default_rng(1).gamma(2.0, size=(8, 30))  # losses of 8 contexts
    by_context = [losses[: 30 - 2 * context] for context, losses in enumerate(drawn)]
    table = {
        "context": range(1, 9),
        "loss": [losses.mean() for losses in by_context],
        "characters": [len(losses) for losses in by_context],
        "deviation": [losses.std() for losses in by_context],
    }
    plots.loss_by_position(table, tmp_path / "a.png")
    (axes,) = figures[0].axes
    edges = [0, 1, 2, 4, 5, 8]  # contexts 1, 2, 3 to 4, 5, 6 to 8
    bins = [np.concatenate(by_context[start:end]) for start, end in pairwise(edges)]
    assert axes.lines[0].get_ydata() == pytest.approx([losses.mean() for losses in bins])
    assert axes.lines[0].get_xdata()[:2] == pytest.approx([1, 2])
    (band,) = axes.collections
    corners = band.get_paths()[0].vertices
    for x, losses in zip(axes.lines[0].get_xdata(), bins, strict=True):
        found = {round(y, 9) for at, y in corners if at == pytest.approx(x)}
        error = losses.std() / len(losses) ** 0.5
        assert sorted(found) == pytest.approx([losses.mean() - error, losses.mean() + error])


def test_kinds_are_sorted_and_tell_their_share(figures, tmp_path):
    plots.loss_by_kind(KINDS, tmp_path / "a.png")
    axes = figures[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["space", "letter", "punctuation"]
    assert [text.get_text() for text in axes.texts] == [
        "0.50 nats, 20.0% of the split",
        "2.50 nats, 80.0% of the split",
        "6.00 nats, 0.0400% of the split",
    ]


def texts(figure):
    """What is written in the picture of attention, in the order of drawing."""
    return [text.get_text() for text in figure.axes[0].texts]


def test_attention_draws_at_most_six_layers_of_eight_heads_and_says_so(figures, tmp_path):
    plots.attention(weights(8, 12, 3), "abc", tmp_path / "a.png")
    titles = [text for text in texts(figures[0]) if text.startswith("layer")]
    assert len(titles) == len(figures[0].axes[0].images) == 6 * 8
    assert titles[0] == "layer 1, head 1"
    assert titles[-1] == "layer 8, head 12"
    assert "attention in 6 of 8 layers and 8 of 12 heads" in texts(figures[0])


def test_attention_leaves_what_comes_later_blank(figures, tmp_path):
    plots.attention(weights(1, 1, 4), "abcd", tmp_path / "a.png")
    drawn = figures[0].axes[0].images[0].get_array()
    assert (drawn.mask == np.triu(np.ones((4, 4), bool), 1)).all()


def test_attention_labels_every_kind_of_character(figures, tmp_path):
    """Also those that the font lacks, that cannot be encoded, or that matplotlib takes for a formula."""
    characters = "a \n\t\0中\ud800\u0301$\N{REPLACEMENT CHARACTER}😀"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.attention(weights(1, 2, len(characters)), characters, tmp_path / "a.png")
    # Each stands beside its row, and below its column in both maps.
    labels = texts(figures[0])[2 : 2 + 9 * 3]
    wanted = ["a", "␣", "⏎", "⇥", "□", "□", "□", "◌\u0301", "$"]
    assert labels == [label for label in wanted for _ in range(3)]


def test_long_prompts_stay_legible(figures, tmp_path):
    plots.attention(weights(1, 1, 48), "abcd" * 12, tmp_path / "a.png")
    columns = [text for text in figures[0].axes[0].texts if text.get_text() in "abcd"][1::2]
    assert len(columns) == 48
    assert columns[0].get_fontsize() >= 5.5
    boxes = [label.get_window_extent() for label in columns]
    assert all(left.x1 <= right.x0 for left, right in pairwise(boxes))
