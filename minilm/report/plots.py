"""The report's pictures, as PNG files: the same input gives the same bytes.

They are drawn with matplotlib's objects alone and with fixed margins: pyplot would look for a display and
double the time of the import, an automatic layout that of drawing.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import style
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from minilm.report.html import percent, visible

# From the palette of Okabe and Ito, which color-blind readers can tell apart.
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
GRAY = "#6b6b6b"
FONT = "DejaVu Sans"  # comes with matplotlib, so that every machine draws the same
STYLE: dict[Any, Any] = {
    "font.family": FONT,
    "font.size": 12,
    "axes.titlesize": 13,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "figure.facecolor": "white",
    "grid.color": "#e3e3e3",
    "lines.linewidth": 2,
    "legend.frameon": False,
    "savefig.dpi": 110,
    "text.parse_math": False,
}
MOST_MARKERS = 40  # points of a curve that are marked one by one
MOST_LAYERS, MOST_HEADS = 6, 8

Table = Mapping[str, Sequence[Any]]  # columns by their names


def loss_curves(table: Table, path: Path) -> None:
    """Draw the losses, and below them the learning rate, over the steps of training: reports/loss.csv."""
    steps, rate = table["step"], table["learning_rate"]
    marker = "o" if len(steps) <= MOST_MARKERS else None
    with _picture(path, 8, 5.5) as figure:
        losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        losses.plot(steps, table["train_loss"], color=ORANGE, marker=marker, linestyle="--", label="training")
        losses.plot(steps, table["val_loss"], color=BLUE, marker=marker, label="validation")
        losses.set(ylabel="loss\n(nats per character)")
        losses.legend()
        rates.plot(steps, rate, color=GREEN, marker=marker)
        rates.set(ylim=(0, 1.15 * max(rate) or 1), ylabel="learning\nrate", xlabel="step")
        rates.ticklabel_format(axis="y", scilimits=(-2, 4))
        rates.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.align_ylabels()


def loss_by_position(table: Table, path: Path) -> None:
    """Draw the loss over how many characters the model could look back on: reports/loss_by_position.csv.

    Contexts are joined in two bins an octave. The band is the mean's standard error, by the spread in a bin.
    """
    names = ("context", "loss", "characters", "deviation")
    contexts, losses, characters, deviations = (np.array(table[name], float) for name in names)
    starts = np.flatnonzero(np.diff(np.ceil(2 * np.log2(contexts)), prepend=-1))
    count = np.add.reduceat(characters, starts)
    context, loss, squares = (
        np.add.reduceat(characters * values, starts) / count
        for values in (contexts, losses, losses**2 + deviations**2)
    )
    error = np.sqrt(np.maximum(squares - loss**2, 0) / count)
    with _picture(path, 8, 5) as figure:
        axes = figure.subplots()
        axes.fill_between(context, loss - error, loss + error, color=BLUE, alpha=0.25, linewidth=0)
        axes.plot(context, loss, color=BLUE, marker="o")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.set(
            xlabel="context (characters before the predicted one, logarithmic)",
            ylabel="loss (nats per character)",
        )


def calibration(table: Table, path: Path, error: float) -> None:
    """Draw the accuracy over the confidence (a reliability diagram), and below it the characters of each bin.

    The bins are those of reports/calibration.csv; `error` is their mean distance from the diagonal, 0 to 1.
    """
    characters, lower = np.array(table["characters"]), np.array(table["lower"])
    with _picture(path, 7, 7) as figure:
        curve, counts = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        curve.plot([0, 1], [0, 1], color=GRAY, linestyle="--", label="perfect calibration")
        confidence, accuracy = table["confidence"], table["accuracy"]
        curve.plot(confidence, accuracy, color=BLUE, marker="o", clip_on=False, label="the model")
        curve.set(ylim=(0, 1), ylabel="accuracy", title=f"calibration error {error:.1%}")
        curve.legend(loc="upper left")
        shares, widths = characters / characters.sum(), np.array(table["upper"]) - lower
        counts.bar(lower, shares, widths, align="edge", color=BLUE, edgecolor="white")
        counts.set(xlim=(0, 1), ylabel="characters")
        counts.set_xlabel("confidence (probability of the most likely character)")
        for axis in (curve.yaxis, counts.yaxis, counts.xaxis):
            axis.set_major_formatter(PercentFormatter(1, decimals=0))
        figure.align_ylabels()


def loss_by_kind(table: Table, path: Path) -> None:
    """Draw a bar for each kind of character, the highest loss on top: reports/loss_by_kind.csv."""
    rows = sorted(zip(table["loss"], table["kind"], table["share"], strict=True))
    losses = [loss for loss, _, _ in rows]
    with _picture(path, 8, 1.6 + 0.55 * len(rows)) as figure:
        axes = figure.subplots()
        bars = axes.barh([kind for _, kind, _ in rows], losses, color=BLUE)
        labels = [f"{loss:.2f} nats, {percent(share)} of the split" for loss, _, share in rows]
        axes.bar_label(bars, labels, padding=5)
        # With room for the label of the longest bar.
        axes.set(xlim=(0, 1.7 * max(losses) or 1), xlabel="loss (nats per character)")
        axes.grid(axis="y", visible=False)


def attention(weights: npt.NDArray[np.floating], characters: Sequence[str], path: Path) -> None:
    """Draw a map of the attention weights for each layer and head, at most MOST_LAYERS times MOST_HEADS.

    The weights are (layers, heads, T, T): each of T characters, a row, attends to those up to itself.
    """
    layers, heads, length, _ = weights.shape
    drawn_layers, drawn_heads = _evenly(layers, MOST_LAYERS), _evenly(heads, MOST_HEADS)
    # All sizes are in inches, from the upper left corner.
    side = max(1.7, 0.083 * length)  # of a map, so that the characters at its edges stay legible
    left, top = 0.6, 0.75
    lefts = [left + (side + 0.3) * i for i in range(len(drawn_heads))]
    tops = [top + (side + 0.3) * i for i in range(len(drawn_layers))]
    right, bottom = lefts[-1] + side, tops[-1] + side
    width, height = max(4.5, right + 1.3), bottom + 0.6
    later = np.triu(np.ones((length, length), bool), 1)
    small = min(12.0, 72 * 0.93 * side / length)
    with _picture(path, width, height) as figure:
        # One pair of axes holds all maps: a pair for each would take seconds.
        axes = figure.add_axes((0, 0, 1, 1))
        for y, layer in zip(tops, drawn_layers, strict=True):
            for x, head in zip(lefts, drawn_heads, strict=True):
                image = axes.imshow(
                    np.ma.array(weights[layer, head], mask=later),
                    extent=(x, x + side, y + side, y),
                    norm=PowerNorm(0.5, 0, 1),  # the square root, since most weights are small
                    cmap="YlGnBu",  # from a pale yellow, which differs from the white of the masked part
                )
                axes.plot([x, x, x + side], [y, y + side, y + side], color="black", linewidth=0.8)
                title = f"layer {layer + 1}, head {head + 1}"
                axes.text(x + side / 2, y - 0.07, title, ha="center", fontsize=11)
        # Only the outer edges have the characters, since text is what takes time.
        for place, label in enumerate(map(_drawable, characters)):
            middle = side / length * (place + 0.5)  # of its row and of its column
            for y in tops:
                axes.text(left - 0.06, y + middle, label, ha="right", va="center_baseline", fontsize=small)
            for x in lefts:
                axes.text(x + middle, bottom + 0.04, label, ha="center", va="top", fontsize=small)
        drawn = f"attention in {_of(drawn_layers, layers, 'layer')} and {_of(drawn_heads, heads, 'head')}"
        axes.text(width / 2, 0.32, drawn, ha="center", fontsize=13)
        axes.text((left + right) / 2, bottom + 0.45, "attended character", ha="center")
        axes.text(0.3, (top + bottom) / 2, "attending character", ha="center", va="center", rotation=90)
        axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
        axes.axis("off")
        box = ((right + 0.3) / width, 1 - bottom / height, 0.12 / width, (bottom - top) / height)
        scale = figure.add_axes(box)
        figure.colorbar(image, cax=scale, ticks=[0, 0.05, 0.25, 0.5, 1], label="attention weight")
        scale.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


@contextmanager
def _picture(path: Path, width: float, height: float) -> Iterator[Figure]:
    """An empty figure of so many inches, which is saved when the block ends."""
    with style.context(["default", STYLE]):  # not a user's own matplotlibrc
        figure = Figure((width, height))
        figure.subplots_adjust(1.15 / width, 0.65 / height, 1 - 0.25 / width, 1 - 0.35 / height)
        yield figure
        figure.savefig(path, format="png", metadata={"Software": None})


def _evenly(count: int, most: int) -> list[int]:
    """All of range(count), or `most` of them from the first to the last."""
    return sorted({round(index) for index in np.linspace(0, count - 1, min(count, most))})


def _of(drawn: list[int], count: int, noun: str) -> str:
    """How many were drawn of how many, in words."""
    share = "" if len(drawn) == count else f"{len(drawn)} of "
    return f"{share}{count} {noun}{'s' if count > 1 else ''}"


def _drawable(character: str) -> str:
    """The character as a label, or a box where it cannot be drawn: a code point is too wide for a label."""
    label = visible(character)
    font = get_font(findfont(FontProperties(FONT)))
    drawable = len(label) <= 2 and all(font.get_char_index(ord(part)) for part in label)
    return label if drawable else "\N{WHITE SQUARE}"
