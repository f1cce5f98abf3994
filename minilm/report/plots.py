"""The report's pictures, as PNG files: the same input gives the same bytes.

They are drawn with matplotlib's objects alone: pyplot would look for a display and double the import's time.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from minilm.pages import visible

# Of the palette of Okabe and Ito, which the colour-blind can tell apart.
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
GREY = "#6b6b6b"
FONT = "DejaVu Sans"  # comes with matplotlib, so that every machine draws the same
STYLE: dict[Any, Any] = {
    "font.family": FONT,
    "font.size": 12,
    "axes.titlesize": 13,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e3e3e3",
    "lines.linewidth": 2,
    "legend.frameon": False,
    "savefig.dpi": 110,
    "text.parse_math": False,
}
MOST_LAYERS, MOST_HEADS = 6, 8


def loss_curves(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw the losses, and below them the learning rate, over the steps of training.

    Args:
        rows: reports/loss.csv's, as numbers or text: step, train_loss and val_loss in nats per character,
            learning_rate.
        path: of the PNG.
    """
    steps, train, validation, rate = (
        [float(row[column]) for row in rows] for column in ("step", "train_loss", "val_loss", "learning_rate")
    )
    marker = "o" if len(rows) <= 40 else None
    with _picture(path, 8, 5.5) as figure:
        losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        losses.plot(steps, train, color=ORANGE, marker=marker, linestyle="--", label="training text")
        losses.plot(steps, validation, color=BLUE, marker=marker, label="validation text")
        losses.set_ylabel("loss\n(nats per character)")
        losses.legend()
        rates.plot(steps, rate, color=GREEN, marker=marker)
        rates.set_ylim(0, 1.15 * max(rate) or 1)
        rates.set_ylabel("learning\nrate")
        rates.ticklabel_format(axis="y", scilimits=(-2, 4))
        rates.set_xlabel("step (updates of the weights)")
        rates.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.align_ylabels()


def loss_by_position(rows: Sequence[Any], path: str | Path) -> None:
    """Draw what more context buys: the loss over how many characters the model saw before.

    Args:
        rows: with .context, characters before the scored one, ascending from 1, and .loss in nats.
        path: of the PNG.
    """
    contexts = [row.context for row in rows]
    with _picture(path, 8, 5) as figure:
        axes = figure.subplots()
        axes.plot(contexts, [row.loss for row in rows], color=BLUE, marker="o" if len(rows) <= 40 else None)
        axes.set_xlabel("context (characters before the one that is guessed)")
        axes.set_ylabel("loss (nats per character)")
        if len(rows) > 16:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            axes.set_xlabel("context (characters before the one that is guessed, logarithmic)")
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def reliability(rows: Sequence[Any], path: str | Path, calibration_error: float) -> None:
    """Draw how often the model is right over how sure it is, and below how many characters that is about.

    Args:
        rows: one a bin of confidence, with .confidence and .accuracy (means, 0 to 1), .characters, and the
            bin's edges .lower and .upper.
        path: of the PNG.
        calibration_error: mean distance from the diagonal, 0 to 1.
    """
    confidences = [row.confidence for row in rows]
    characters = np.array([row.characters for row in rows])
    with _picture(path, 7, 7) as figure:
        curve, counts = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        curve.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="as often right as it is sure")
        accuracies = [row.accuracy for row in rows]
        curve.plot(confidences, accuracies, color=BLUE, marker="o", clip_on=False, label="the model")
        curve.set(ylim=(0, 1), ylabel="right guesses", title=f"calibration error {calibration_error:.1%}")
        curve.legend(loc="upper left")
        counts.bar(
            [row.lower for row in rows],
            characters / characters.sum(),
            width=[row.upper - row.lower for row in rows],
            align="edge",
            color=BLUE,
            edgecolor="white",
        )
        counts.set(
            xlim=(0, 1), xlabel="confidence (probability of the likeliest character)", ylabel="characters"
        )
        for axis in (curve.yaxis, counts.yaxis, counts.xaxis):
            axis.set_major_formatter(PercentFormatter(1, decimals=0))
        figure.align_ylabels()


def loss_by_kind(rows: Sequence[Any], path: str | Path) -> None:
    """Draw a bar for each kind of character, the hardest on top.

    Args:
        rows: with .kind, .loss in nats, and .share of the scored characters, 0 to 1.
        path: of the PNG.
    """
    rows = sorted(rows, key=lambda row: row.loss)
    with _picture(path, 8, 1.6 + 0.55 * len(rows)) as figure:
        axes = figure.subplots()
        bars = axes.barh([row.kind for row in rows], [row.loss for row in rows], color=BLUE)
        labels = [f"{row.loss:.2f} nats, {_percent(row.share)} of the text" for row in rows]
        axes.bar_label(bars, labels, padding=5)
        # Room for the label of the longest bar.
        axes.set_xlim(0, 1.7 * max(row.loss for row in rows) or 1)
        axes.set_xlabel("loss (nats per character)")
        axes.grid(axis="y", visible=False)


def attention_maps(weights: npt.NDArray[np.floating], characters: Sequence[str], path: str | Path) -> None:
    """Draw where each head looks: a map a layer and head, of at most MOST_LAYERS times MOST_HEADS.

    Args:
        weights: (layers, heads, T, T), each row what one character attends to; it sums to 1.
        characters: T of them, those that attend and are attended to.
        path: of the PNG.
    """
    layers, heads, length, _ = weights.shape
    drawn_layers, drawn_heads = _evenly(layers, MOST_LAYERS), _evenly(heads, MOST_HEADS)
    side = max(1.7, 0.085 * length)  # inches a map, so that the characters at its edges stay legible
    font_size = min(12.0, 72 * 0.93 * side / length)
    later = np.triu(np.ones((length, length), bool), 1)
    labels = [_drawable(character) for character in characters]
    title = f"attention in {_of(drawn_layers, layers, 'layer')} and {_of(drawn_heads, heads, 'head')}"
    width, height = side * len(drawn_heads) + 2.3, (side + 0.3) * len(drawn_layers) + 1.1
    with _picture(path, max(4.5, width), height, layout="compressed") as figure:
        grid = figure.subplots(len(drawn_layers), len(drawn_heads), squeeze=False)
        for layer, row in zip(drawn_layers, grid, strict=True):
            for head, axes in zip(drawn_heads, row, strict=True):
                image = axes.imshow(
                    np.ma.array(weights[layer, head], mask=later),
                    # The square root of the share, since most shares are small.
                    norm=PowerNorm(0.5, 0, 1),
                    # From a pale yellow, which differs from the white of what cannot be seen.
                    cmap="YlGnBu",
                )
                axes.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=11)
                axes.tick_params(length=0, pad=2, labelsize=font_size)
                axes.set(xticks=[], yticks=[])
                axes.grid(visible=False)
        # Only the outer edges have labels: each costs as much time as a small map.
        for axes in grid[-1]:
            axes.set_xticks(range(length), labels)
        for axes in grid[:, 0]:
            axes.set_yticks(range(length), labels)
        figure.suptitle(title, fontsize=13)
        figure.supxlabel("character that is looked at", fontsize=12)
        figure.supylabel("character that looks back", fontsize=12)
        bar = figure.colorbar(
            image, ax=grid, ticks=[0, 0.05, 0.25, 0.5, 1], label="share of attention", aspect=30
        )
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


@contextmanager
def _picture(
    path: str | Path,
    width: float,
    height: float,
    layout: Literal["constrained", "compressed"] = "constrained",
) -> Iterator[Figure]:
    """An empty figure of so many inches, which is saved when the block ends."""
    with matplotlib.rc_context():
        # A user's own matplotlibrc must not change the picture.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure((width, height), layout=layout, facecolor="white")
        yield figure
        figure.savefig(path, format="png", metadata={"Software": None})


def _evenly(count: int, most: int) -> list[int]:
    """All of range(count), or `most` of them from the first to the last."""
    return sorted({round(index) for index in np.linspace(0, count - 1, min(count, most))})


def _of(drawn: list[int], count: int, noun: str) -> str:
    """How many were drawn of how many, in words."""
    share = f"{count}" if len(drawn) == count else f"{len(drawn)} of {count}"
    return f"{share} {noun}{'s' if count > 1 else ''}"


def _drawable(character: str) -> str:
    """The character as a label, or a box where it cannot be drawn: a code point is too wide for a label."""
    label = visible(character)
    font = get_font(findfont(FontProperties(FONT)))
    drawable = len(label) <= 2 and all(font.get_char_index(ord(part)) for part in label)
    return label if drawable else "\N{WHITE SQUARE}"


def _percent(share: float) -> str:
    """Two digits, so that labels stay short."""
    if share >= 0.1:
        return f"{share:.0%}"
    return f"{share:.1%}" if share >= 0.001 or share == 0 else "<0.1%"
