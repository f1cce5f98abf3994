"""Print docs/architecture.svg, the model that params.yaml describes: python -m docs.architecture > FILE."""

from pathlib import Path

from torch import nn

from minilm.model.config import ModelConfig
from minilm.model.gpt import MiniGPT, TransformerBlock
from minilm.params import TrainParams, load_params

VOCABULARY = 260  # that of the first megabyte of WikiText-2, the unknown character included
HEAD = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 780 622" font-family="system-ui, sans-serif"
  font-size="15" text-anchor="middle" role="img" aria-label="{label}, and its shapes"><style>
  .page, .plus {{ fill: #fff }} .box {{ fill: #eaf2ff; stroke: #3b6fb6 }} .line {{ fill: none }}
  .line, .plus {{ stroke: #57606a }} .box, .line, .plus {{ stroke-width: 1.5 }} text {{ fill: #1f2328 }}
  .note {{ fill: #57606a; font-size: 13px }} .shape {{ fill: #0a5fb0; font: 13px monospace }}
  @media (prefers-color-scheme: dark) {{
    .page, .plus {{ fill: #161b22 }} .box {{ fill: #122a46; stroke: #6ea8fe }} text {{ fill: #e6edf3 }}
    .line, .plus {{ stroke: #9198a1 }} .note {{ fill: #adb5bd }} .shape {{ fill: #79c0ff }} }}
</style><defs><marker id="tip" refX="7" refY="4" markerWidth="12" markerHeight="12" orient="auto">
  <path d="M0 0 8 4 0 8z" fill="gray"/></marker></defs><rect width="780" height="622" rx="12" class="page"/>
<text x="170" y="26">{label}</text><text x="470" y="26">One block</text><path d="M550 6v30" class="line"/>"""


def architecture(params: TrainParams, vocab_size: int) -> str:
    """The picture as SVG: the model, and one of its blocks."""
    config = ModelConfig.from_params(vocab_size, params)
    model, batch, time, heads = MiniGPT(config), params.batch_size, config.block_size, config.num_heads
    block, stream = TransformerBlock(config), (batch, time, config.embed_dim)
    attention, mlp, norm = block.attention, block.mlp, type(block.mlp_norm).__name__
    embeddings = {name: part for name, part in model.named_children() if name.endswith("embedding")}
    drawn = [HEAD.format(label=f"The model: {model.num_parameters:,} parameters")]

    def step(x: int, row: int, name: str, note: str, shape: tuple[int, ...], *parts: nn.Module) -> None:
        """A box with what it does and how many parameters it has; below, the shape of what leaves it."""
        y, count = 40 + 80 * row, sum(weights.numel() for part in parts for weights in part.parameters())
        note += " · " * bool(note and count) + f"{count:,} parameters" * bool(count)
        drawn.append(f"""<rect x="{x - 150}" y="{y}" width="300" height="46" rx="8" class="box"/>
<text x="{x}" y="{y + 19}">{name}</text><text x="{x}" y="{y + 37}" class="note">{note}</text>
<path d="M{x} {y + 46}v32" class="line" marker-end="url(#tip)"/>
<text x="{x - 14}" y="{y + 66}" class="shape" text-anchor="end">{shape}</text>""")

    def plus(start: int, y: int) -> None:
        """The residual stream goes past some boxes, and their result is added to it."""
        drawn.append(f"""<path d="M550 {start}h174v{y - start}h-164" class="line" marker-end="url(#tip)"/>
<circle cx="550" cy="{y}" r="9" class="plus"/><text x="550" y="{y + 5}">+</text>""")

    step(170, 0, "characters to ids", f"{vocab_size} characters", (batch, time))
    step(
        170,
        1,
        " + ".join(embeddings).replace("_embedding", "") + " embedding",
        "",
        stream,
        *embeddings.values(),
    )
    step(170, 2, f"{config.num_layers} blocks, one after the other", "", stream, model.blocks)
    step(170, 3, norm, "", stream, model.final_norm)
    head = [part for name, part in model.named_children() if name == "head"]  # there is none if tied
    step(170, 4, "logits", "" if head else "by the token embedding", (batch, time, vocab_size), *head)
    step(170, 5, "softmax", "a probability for each next character", (batch, time, vocab_size))
    step(550, 0, norm, "", stream, block.attention_norm)
    qkv = 3, batch, heads, time, config.head_dim
    step(550, 1, "queries, keys, values", f"{heads} heads", qkv, attention.qkv)
    norms = [part for name, part in attention.named_children() if name.endswith("_norm")]
    step(550, 2, "softmax(Q Kᵀ / √D + mask)", "what to attend to", (batch, heads, time, time), *norms)
    step(550, 3, "gather values, join heads, project", "", stream, attention.projection)
    step(550, 4, norm, "", stream, block.mlp_norm)
    step(550, 5, "widen", config.activation, (batch, time, mlp.projection.in_features), mlp.expand)
    step(550, 6, "narrow", "", stream, mlp.projection)
    plus(26, 338)
    plus(352, 578)
    return "\n".join([*drawn, "</svg>\n"])


if __name__ == "__main__":
    print(architecture(load_params(Path(__file__).parent.parent / "params.yaml").train, VOCABULARY), end="")
