"""The figures of docs/theory.md: `python -m docs.figures OUT`, in a project whose pipeline has run.

They show the model in models/minilm and what the pipeline says of it; those that need no trained model are
computed. The same model gives the same pictures, byte for byte.
"""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from minilm import CharTokenizer, MiniGPT, ModelConfig, load
from minilm.data.batches import open_tokens
from minilm.data.tokenizer import UNKNOWN_ID, Ids
from minilm.evaluation.ngram import ngram_losses
from minilm.evaluation.scoring import kind_of, surprisals
from minilm.files import read_json, read_table
from minilm.generation.config import Sampling
from minilm.generation.sampling import limit
from minilm.model.config import ACTIVATIONS, Activation
from minilm.model.gpt import MLP
from minilm.model.positions import alibi_bias, alibi_slopes, rope_rotation, rotate, sinusoidal_table
from minilm.params import TrainParams
from minilm.report import plots
from minilm.report.html import visible
from minilm.report.plots import BLUE, GRAY, GREEN, ORANGE
from minilm.training.float32_muon import orthogonalize
from minilm.training.loop import next_char_loss
from minilm.training.optim import learning_rate_at

REPORTS, ENCODED = Path("reports"), Path("data/encoded")
SHOWN = 40  # characters of a passage
READ = 20_000  # characters of the test split, where means over it are shown
MERGES = 400  # of the most frequent pair of tokens
COLORS = (BLUE, ORANGE, GREEN, "#cc79a7")
MUON = (3.4445, -4.775, 2.0315)  # the coefficients of its iteration, torch's defaults


class Trained(NamedTuple):
    """What the pipeline has made."""

    model: MiniGPT
    tokenizer: CharTokenizer
    train: Ids  # (tokens,)
    test: Ids  # (tokens,)

    def windows(self, count: int) -> torch.Tensor:
        """So many windows of the test split, evenly spaced: (count, block_size)."""
        size = self.model.config.block_size
        starts = np.linspace(0, len(self.test) - size, count).astype(int)
        return torch.from_numpy(np.stack([self.test[start : start + size] for start in starts]).astype(int))


def tokens(trained: Trained, out: Path) -> None:
    """How long a text is in tokens, and how large the vocabulary, as frequent pairs become tokens."""
    ids = trained.test[:READ].astype(np.int64)
    first = vocabulary = trained.tokenizer.vocab_size
    sizes, lengths, examples = [vocabulary], [1.0], list[str]()
    text = {index: trained.tokenizer.decode([index]) for index in range(vocabulary)}
    for _ in range(MERGES):
        pairs, counts = np.unique(ids[:-1] * 2**20 + ids[1:], return_counts=True)
        left, right = divmod(int(pairs[counts.argmax()]), 2**20)
        text[vocabulary] = text[left] + text[right]
        ids = merged(ids, left, right, vocabulary)
        vocabulary += 1
        sizes.append(vocabulary)
        lengths.append(len(ids) / READ)
        examples.append(text[vocabulary - 1])
    with picture(out, 8, 3.6) as figure:
        axes = figure.subplots()
        axes.plot(sizes, lengths, color=BLUE)
        axes.plot(first, 1, "o", color=ORANGE, clip_on=False)
        axes.annotate(f"characters: {first}", (first, 1), (8, -2), textcoords="offset points")
        for merges in (10, 50, 150, MERGES):
            shown = "".join(map(visible, examples[merges - 1]))
            axes.annotate(
                f"merge {merges}: “{shown}”",
                (sizes[merges], lengths[merges]),
                (8, 8),
                textcoords="offset points",
            )
            axes.plot(sizes[merges], lengths[merges], "o", color=BLUE)
        axes.set(xlabel="size of the vocabulary", ylabel="tokens per character", ylim=(0, 1.1))
        axes.set_xlim(0, sizes[-1] * 1.25)


def merged(ids: np.ndarray, left: int, right: int, new: int) -> np.ndarray:
    """The ids with each pair (left, right) replaced by one new id, from the left: (T,) -> (fewer,)."""
    pairs = (ids[:-1] == left) & (ids[1:] == right)
    if left == right:  # of a run such as aaa the first two
        for place in np.flatnonzero(pairs):
            pairs[place] &= not (place and pairs[place - 1])
    ids = ids.copy()
    ids[:-1][pairs] = new
    return np.delete(ids, np.flatnonzero(pairs) + 1)


def objective(trained: Trained, out: Path) -> None:
    """The surprisal of a passage, and the mean over the test split beside that of models that count."""
    middle = len(trained.test) // 2
    bits = surprisals(trained.model, trained.test, None, middle, SHOWN).bits
    passage = trained.tokenizer.decode(trained.test[middle : middle + SHOWN])
    counting = ngram_losses(trained.train, trained.test, trained.tokenizer.vocab_size)
    names = ["uniform", *(f"{order}-gram" for order in range(1, len(counting) + 1)), "this model"]
    measured = read_json(REPORTS / "metrics.json")["test_loss"]
    nats = [math.log(trained.tokenizer.vocab_size), *counting, measured]
    with picture(out, 9, 5.6) as figure:
        above, below = figure.subplots(2, 1)
        above.bar(range(len(bits)), bits, color=BLUE)
        above.set_xticks(range(len(bits)), [visible(character) for character in passage])
        above.set(ylabel="surprisal (bits)", xlim=(-1, len(bits)))
        above.grid(axis="x", visible=False)
        bars = below.bar(names, nats, color=[GRAY, *[GREEN] * len(counting), BLUE])
        below.bar_label(
            bars,
            [f"{n:.2f} nats\n{n / math.log(2):.2f} bits\n1 of {math.exp(n):.1f}" for n in nats],
            fontsize=9,
        )
        below.set(ylabel="loss (nats per character)", ylim=(0, 1.35 * max(nats)))
        below.grid(axis="x", visible=False)


def embeddings(trained: Trained, out: Path) -> None:
    """The characters' embeddings in the plane in which they differ most: the first two principal axes."""
    counts = np.bincount(trained.train, minlength=trained.tokenizer.vocab_size)
    frequent = np.argsort(-counts)[:64]
    vectors = trained.model.token_embedding.weight[torch.from_numpy(frequent.copy())]
    centered = torch.nn.functional.normalize(vectors, dim=1) - torch.nn.functional.normalize(
        vectors, dim=1
    ).mean(0)
    places = (centered @ torch.linalg.svd(centered).Vh[:2].T).numpy()
    with picture(out, 8, 5) as figure:
        axes = figure.subplots()
        for (x, y), index in zip(places, frequent, strict=True):
            character = trained.tokenizer.decode([index])
            color = kind_color(character)
            axes.text(
                x, y, visible(character), color=color, ha="center", va="center", fontsize=15, weight="bold"
            )
        low, high = places.min(0), places.max(0)
        margin = 0.06 * (high - low)
        axes.set(
            xlim=(low[0] - margin[0], high[0] + margin[0]), ylim=(low[1] - margin[1], high[1] + margin[1])
        )
        axes.set(xlabel="first principal axis", ylabel="second principal axis")
        for label, color in (("vowels", ORANGE), ("consonants", BLUE), ("capitals", GREEN), ("others", GRAY)):
            axes.plot([], [], "s", color=color, label=label)
        axes.legend(loc="best")


def kind_color(character: str) -> str:
    """One color each for vowels, other small letters, capitals, and the rest."""
    if character.lower() in "aeiou" and character.islower():
        return ORANGE
    if kind_of(character) == "letter":
        return GREEN if character.isupper() else BLUE
    return GRAY


def saturation(_: Trained, out: Path) -> None:
    """The softmax over random scores of heads of several widths, without and with the division."""
    generator = torch.Generator().manual_seed(0)
    widths, keys, trials = (4, 16, 64, 256), 32, 500
    with picture(out, 9, 3.6) as figure:
        for axes, title in zip(figure.subplots(1, 2, sharey=True), ("q · k", "q · k / √D"), strict=True):
            for width, color in zip(widths, COLORS, strict=True):
                query = torch.randn(trials, 1, width, generator=generator)
                key = torch.randn(trials, keys, width, generator=generator)
                scores = (query @ key.transpose(1, 2))[:, 0] / (math.sqrt(width) if "√" in title else 1)
                weights = scores.softmax(-1).sort(descending=True).values.mean(0)
                axes.plot(range(1, 11), weights[:10], color=color, marker="o", label=f"D = {width}")
            axes.set(
                title=f"softmax({title})",
                xlabel=f"the ten largest of {keys} keys",
                ylim=(0, 1),
                xticks=range(1, 11),
            )
        figure.axes[0].set_ylabel("attention weight")
        figure.axes[0].legend()


def attention(trained: Trained, out: Path) -> None:
    """Where each head looks in the beginning of the middle passage of the test split."""
    middle = len(trained.test) // 2
    ids = trained.test[middle : middle + 16].astype(np.int64)
    weights = trained.model.attention_weights(torch.from_numpy(ids)[None])[:, 0].numpy()
    plots.attention(weights, trained.tokenizer.decode(ids), out)


def positions(_: Trained, out: Path) -> None:
    """What each scheme adds to a vector or to a score."""
    distances = torch.arange(64)
    with picture(out, 10, 2.9) as figure:
        sines, rope, alibi = figure.subplots(1, 3)
        sines.imshow(sinusoidal_table(64, 32).T.numpy(), aspect="auto", interpolation="nearest", cmap="RdBu")
        sines.set(title="sinusoidal: a vector per position", xlabel="position", ylabel="channel")
        sines.grid(visible=False)
        cos, sin = rope_rotation(distances, 32)
        for pair, color in zip((2, 4, 8), COLORS, strict=False):
            unit = torch.nn.functional.one_hot(torch.tensor(pair), 32).float()
            rope.plot(
                distances, rotate(unit.expand(64, 32), cos, sin) @ unit, color=color, label=f"pair {pair}"
            )
        rope.set(title="rope: a query times an equal key", xlabel="distance", ylabel="score")
        biases = alibi_bias(alibi_slopes(4), distances, distances[:1])[:, :, 0]  # (H, distances)
        for head, (bias, color) in enumerate(zip(biases, COLORS, strict=True), start=1):
            alibi.plot(distances, bias, color=color, label=f"head {head}")
        alibi.set(title="alibi: added to a score", xlabel="distance", ylabel="added")
        for axes in (rope, alibi):
            axes.legend(loc="lower left", fontsize=9)


def distances(trained: Trained, out: Path) -> None:
    """Over which distances the trained heads look."""
    with picture(out, 8, 3.4) as figure:
        axes = figure.subplots()
        for number, (layer, color) in enumerate(zip(by_distance(trained), COLORS, strict=False), start=1):
            for head, weights in enumerate(layer):
                label = "" if head else f"the heads of layer {number}"
                axes.plot(weights[:21], color=color, linewidth=1.2, label=label)
        axes.set(xlabel="distance (characters back)", ylabel="mean attention weight", xticks=range(0, 21, 2))
        axes.legend()


def by_distance(trained: Trained) -> np.ndarray:
    """The mean attention weight over each distance, in the second half of windows: (layers, H, distances)."""
    weights = trained.model.attention_weights(trained.windows(16)).mean(1).numpy()  # (layers, H, T, T)
    size = weights.shape[-1]
    rows = range(size // 2, size)
    return (
        np.stack([[weights[:, :, row, row - d] for row in rows] for d in range(size // 2)])
        .mean(1)
        .transpose(1, 2, 0)
    )


def mlp(trained: Trained, out: Path) -> None:
    """The activations, and how many of the trained model's hidden channels are on at once."""
    x = torch.linspace(-3, 3, 121)
    found: list[torch.Tensor] = []
    hooks = [
        block.mlp.projection.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
        for block in trained.model.blocks
    ]
    trained.model(trained.windows(16))
    for hook in hooks:
        hook.remove()
    with picture(out, 9, 3.6) as figure:
        curves, active = figure.subplots(1, 2)
        for name, color in zip(ACTIVATIONS, COLORS, strict=True):
            curves.plot(
                x, activation(name, x), color=color, label=name if name != "swiglu" else "silu, swiglu's gate"
            )
        curves.set(title="the non-linearity", ylim=(-1, 4), xlabel="input", ylabel="output")
        curves.legend()
        for number, (hidden, color) in enumerate(zip(found, COLORS, strict=False)):
            shares = (hidden > 0).float().mean((0, 1)).sort(descending=True).values
            active.plot(
                np.linspace(0, 100, len(shares)), 100 * shares, color=color, label=f"layer {number + 1}"
            )
        active.set(title="this model's hidden channels", ylim=(0, 100))
        active.set(xlabel="channels, the busiest first (%)", ylabel="positions where it is above 0 (%)")
        active.legend()


def activation(name: Activation, x: torch.Tensor) -> torch.Tensor:
    """What `MLP.activate` makes of x, (n,); swiglu's gate is multiplied by a value of 1."""
    layer = MLP(ModelConfig(2, embed_dim=8, num_heads=1, activation=name))
    return (
        layer.activate(torch.stack([x, torch.ones_like(x)], -1))[..., 0]
        if name == "swiglu"
        else layer.activate(x)
    )


def residual(trained: Trained, out: Path) -> None:
    """The size of the residual stream after each block, and the loss if the model ended there."""
    ids = trained.windows(64)
    untrained = MiniGPT(trained.model.config, seed=1)
    sizes, losses = [stream_sizes(model, ids) for model in (untrained, trained.model)], []
    x = trained.model.embed(ids)
    for block in [None, *trained.model.blocks]:
        x = block(x) if block else x
        logits = trained.model.unembed(x)[:, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))
    layers = range(len(losses))
    with picture(out, 9, 3.4) as figure:
        norms, lens = figure.subplots(1, 2)
        norms.plot(layers, sizes[0], color=ORANGE, marker="o", linestyle="--", label="before training")
        norms.plot(layers, sizes[1], color=BLUE, marker="o", label="after training")
        norms.set(
            yscale="log", xticks=layers, xlabel="blocks passed", ylabel="root mean square of the stream"
        )
        norms.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        norms.legend()
        lens.plot(layers, losses, color=BLUE, marker="o")
        lens.set(ylim=(0, 1.1 * float(max(losses))), xticks=layers, xlabel="blocks passed")
        lens.set_ylabel("loss if the model ended there\n(nats per character)")


def stream_sizes(model: MiniGPT, ids: torch.Tensor) -> list[float]:
    """The root mean square of the residual stream's entries before each block and after the last."""
    x = model.embed(ids)
    sizes = [x.square().mean().sqrt().item()]
    for block in model.blocks:
        x = block(x)
        sizes.append(x.square().mean().sqrt().item())
    return sizes


def initialization(_: Trained, out: Path) -> None:
    """An untrained model of 24 layers: the stream with GPT-2's scaled projections, without, and from zero."""
    ids = torch.randint(1, 66, (8, 64), generator=torch.Generator().manual_seed(0))
    lines: dict[str, list[float]] = {}
    for label, zero, factor in (
        ("all weights 0.02", False, math.sqrt(2 * 24)),
        ("projections 0.02 / √(2 layers)", False, 1),
        ("projections 0", True, 1),
    ):
        config = ModelConfig(66, num_layers=24, embed_dim=128, zero_init_projections=zero)
        model = MiniGPT(config, seed=1)
        for name, parameter in model.named_parameters():
            if name.endswith("projection.weight"):
                parameter.mul_(factor)
        lines[label] = stream_sizes(model, ids)
    with picture(out, 8, 3.4) as figure:
        axes = figure.subplots()
        for (label, sizes), color in zip(lines.items(), (ORANGE, BLUE, GREEN), strict=True):
            axes.plot(sizes, color=color, marker=".", label=label)
        axes.set(xlabel="blocks passed", ylabel="root mean square\nof the residual stream", ylim=(0, None))
        axes.legend()


def training(_: Trained, out: Path) -> None:
    """The schedules of the learning rate, and the losses of this model's training."""
    steps = range(1, 201)
    curves = read_table(REPORTS / "loss.csv")
    with picture(out, 9, 3.4) as figure:
        rates, losses = figure.subplots(1, 2)
        for name, color in (("constant", GRAY), ("linear", BLUE), ("cosine", ORANGE)):
            recipe = TrainParams(learning_rate=1.0, warmup_steps=20, learning_rate_schedule=name, steps=200)
            rates.plot(steps, [learning_rate_at(step, recipe) for step in steps], color=color, label=name)
        rates.set(title="learning rate", xlabel="step", ylabel="share of its highest", ylim=(0, 1.05))
        rates.legend()
        losses.plot(curves["step"], curves["train_loss"], color=ORANGE, linestyle="--", label="training")
        losses.plot(curves["step"], curves["val_loss"], color=BLUE, label="validation")
        losses.set(title="this model", xlabel="step", ylabel="loss (nats per character)")
        losses.legend()


def muon(trained: Trained, out: Path) -> None:
    """How long a step is in each direction: the gradient's singular values, and those of Muon's step."""
    gradient = gradient_of_mlp(trained)
    with picture(out, 8, 3.2) as figure:
        axes = figure.subplots()
        for matrix, color, label in (
            (gradient, ORANGE, "the gradient"),
            (orthogonalize(gradient, MUON), BLUE, "Muon's step"),
        ):
            found = torch.linalg.svdvals(matrix)
            axes.plot(range(1, len(found) + 1), found / found.max(), color=color, label=label)
        axes.set(yscale="log", xlabel="direction, the longest first", ylabel="length (share of the longest)")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.legend()


def gradient_of_mlp(trained: Trained) -> torch.Tensor:
    """The gradient of the first block's widening matrix on 32 windows of the test split."""
    ids = trained.windows(32)
    with torch.enable_grad():
        next_char_loss(trained.model, ids[:, :-1], ids[:, 1:], torch.float32).backward()
    gradient = trained.model.blocks[0].mlp.expand.weight.grad
    assert gradient is not None
    trained.model.zero_grad()
    return gradient


def sampling(trained: Trained, out: Path) -> None:
    """The probabilities after a prompt at three temperatures, and what each limit leaves of them."""
    middle = len(trained.test) // 2
    ids = torch.from_numpy(
        trained.test[middle - trained.model.config.block_size // 2 : middle].astype(np.int64)
    )
    logits = trained.model(ids[None])[0, -1]
    logits[UNKNOWN_ID] = -torch.inf
    likely = logits.topk(14).indices
    names = [visible(character) for character in trained.tokenizer.decode(likely.numpy())]
    shown = "".join(map(visible, trained.tokenizer.decode(ids[-12:].numpy())))
    with picture(out, 9, 5.4) as figure:
        grid = figure.subplots(2, 3, sharey=True, sharex=True).flat
        for axes, (title, temperature, settings) in zip(
            grid,
            (
                ("temperature 0.5", 0.5, {}),
                ("temperature 1", 1.0, {}),
                ("temperature 1.5", 1.5, {}),
                ("top_k 5", 1.0, {"top_k": 5}),
                ("top_p 0.9", 1.0, {"top_p": 0.9}),
                ("min_p 0.05", 1.0, {"min_p": 0.05}),
            ),
            strict=True,
        ):
            kept = limit(logits[None].clone(), Sampling(temperature, **({"top_k": 0} | settings)))[0]
            before = (logits / temperature).softmax(-1)[likely].numpy()
            axes.bar(names, before, color="#d0d0d0")
            axes.bar(names, (kept / temperature).softmax(-1)[likely].numpy(), color=BLUE, width=0.5)
            axes.set_title(title)
            axes.grid(axis="x", visible=False)
        figure.supylabel("probability")
        figure.supxlabel(f"the character after “…{shown}”")


def cache(trained: Trained, out: Path) -> None:
    """Multiplications for each new character, with and without kept keys and values."""
    config = trained.model.config
    lengths = np.arange(1, config.block_size + 1)
    weights = sum(p.numel() for p in trained.model.blocks.parameters() if p.dim() == 2)
    weights += config.vocab_size * config.embed_dim
    attended = 2 * config.num_layers * config.embed_dim * lengths  # scores, and sums of values
    with picture(out, 8, 3.4) as figure:
        axes = figure.subplots()
        axes.plot(
            lengths, lengths * (weights + attended) / 1e6, color=ORANGE, label="the window again: naive.py"
        )
        axes.plot(lengths, (weights + attended) / 1e6, color=BLUE, label="one row: kv_cache.py")
        axes.set(
            yscale="log",
            xlabel="characters in the window",
            ylabel="million multiplications\nper new character",
        )
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.legend()


def quality(_: Trained, out: Path) -> None:
    """What more context brings, and whether the model is right as often as it says."""
    position, bins = (read_table(REPORTS / f"{name}.csv") for name in ("loss_by_position", "calibration"))
    octaves = np.floor(np.log2(position["context"])).astype(int)
    octaves[-1] = octaves[-2]  # block_size alone would be a point of its own
    count, nats = (np.bincount(octaves, weights) for weights in (None, position["loss"]))
    with picture(out, 9, 3.8) as figure:
        context, calibration = figure.subplots(1, 2)
        context.plot(2.0 ** np.arange(len(count)), nats / count, color=BLUE, marker="o")
        context.set_xscale("log", base=2)
        context.set(xlabel="characters of context, from", ylabel="loss (nats per character)")
        context.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        calibration.plot([0, 1], [0, 1], color=GRAY, linestyle="--", label="perfect calibration")
        calibration.plot(bins["confidence"], bins["accuracy"], color=BLUE, marker="o", label="this model")
        calibration.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability of its first choice")
        calibration.set_ylabel("how often that was right")
        calibration.legend()


FIGURES: tuple[Callable[[Trained, Path], None], ...] = (
    tokens,
    objective,
    embeddings,
    saturation,
    attention,
    positions,
    distances,
    mlp,
    residual,
    initialization,
    training,
    muon,
    sampling,
    cache,
    quality,
)


@contextmanager
def picture(path: Path, width: float, height: float) -> Iterator[Figure]:
    """An empty figure of so many inches, which is saved when the block ends."""
    with style.context(["default", plots.STYLE, {"font.size": 11, "savefig.dpi": 80}]):
        figure = Figure((width, height), layout="constrained")
        yield figure
        figure.savefig(path, format="png", metadata={"Software": None})


def main(out: Path) -> None:
    """Draw them all."""
    model, tokenizer = load("models/minilm")
    trained = Trained(model, tokenizer, open_tokens(ENCODED / "train.npy"), open_tokens(ENCODED / "test.npy"))
    out.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        for draw in FIGURES:
            draw(trained, out / f"{draw.__name__}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
