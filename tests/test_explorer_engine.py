"""The explorer's engine in a real browser, held to PyTorch: the same logits, the same texts."""

import copy
import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.models import randomized
from minilm import CharTokenizer, ModelConfig, checkpoint, generate
from minilm.data.provenance import Source
from minilm.evaluation.scoring import surprisals
from minilm.generation.config import Sampling
from minilm.generation.sampling import limit
from minilm.model.config import ACTIVATIONS, NORMALIZATIONS, POSITIONS
from minilm.model.local_context import NGramEmbedding
from minilm.report.explorer.page import ENGINE, SOURCES, film_data, model_data

BLOCK = 12
TOKENIZER = CharTokenizer.from_text("the quick brown fox jumps over the lazy dog.\n\N{GRINNING FACE}")
PLAIN = ModelConfig(TOKENIZER.vocab_size, BLOCK, embed_dim=24, num_heads=3)
LOCAL = {"token_shift": 0.5, "ngram_embedding": 3, "ngram_rows": 200}
CONFIGS = {
    **{
        f"{position}, {activation}, {norm}": replace(
            PLAIN, position=position, activation=activation, normalization=norm
        )
        for position, activation, norm in itertools.product(POSITIONS, ACTIVATIONS, NORMALIZATIONS)
    },
    **{f"{position}, local context": replace(PLAIN, position=position, **LOCAL) for position in POSITIONS},
    "qk_norm": replace(PLAIN, qk_norm=True),
    "qk_norm, rope, rmsnorm": replace(PLAIN, qk_norm=True, position="rope", normalization="rmsnorm"),
    "logit_softcap": replace(PLAIN, logit_softcap=1.5),
    "untied": replace(PLAIN, tied_embeddings=False),
    "no biases": replace(PLAIN, biases=False),
    "like Llama": replace(
        PLAIN,
        position="rope",
        activation="swiglu",
        normalization="rmsnorm",
        tied_embeddings=False,
        biases=False,
    ),
    "token_shift": replace(PLAIN, token_shift=0.3),
    "token_shift of 2.5 channels": replace(PLAIN, embed_dim=10, num_heads=2, token_shift=0.25),
    "n-grams, exact": replace(PLAIN, ngram_embedding=2, ngram_rows=PLAIN.vocab_size**2),
    # 31^8 is beyond 32 bits, and 2^53 is not far.
    "n-grams, hashed": replace(PLAIN, ngram_embedding=9, ngram_rows=1000),
    "alibi, 6 heads": replace(PLAIN, position="alibi", num_heads=6),
    "sinusoidal, odd width": replace(PLAIN, position="sinusoidal", embed_dim=15),
    "one head, one layer, narrow MLP": replace(PLAIN, num_heads=1, num_layers=1, mlp_ratio=1),
    "block_size 1": replace(PLAIN, block_size=1),
}
NAMES = list(CONFIGS)
SETTINGS = [
    {"temperature": 0.0, "top_k": 0},
    {"temperature": 0.8, "top_k": 0},
    {"temperature": 0.8, "top_k": 50},
    {"temperature": 1.2, "top_k": 5},
    {"temperature": 0.8, "top_k": 0, "top_p": 0.9},
    {"temperature": 0.8, "top_k": 0, "min_p": 0.05},
    {"temperature": 0.7, "top_k": 8, "top_p": 0.9, "min_p": 0.05},
]
PAGE = """<!doctype html><meta charset="utf-8">{head}<script type="application/json" id="data">{data}</script>
<script id="engine">{engine}</script><script>{client}
const data = JSON.parse(document.getElementById("data").textContent);
const client = new Client(data, document.getElementById("engine").textContent);
window.minilm = publicInterface(client);</script>"""


@pytest.fixture(scope="module")
def models():
    """All with random weights."""
    return {name: randomized(config) for name, config in CONFIGS.items()}


@pytest.fixture(scope="module")
def make_page(tmp_path_factory):
    """Writes a page with the engine, models, and nothing to be seen.

    `film` is where the weights are cut off in each of its frames.
    """

    def make_page(models, film=(), head=""):
        base, data = tmp_path_factory.mktemp("page"), []
        for i, model in enumerate(models):
            checkpoint.save(base / f"{i}", model, TOKENIZER, {"steps": 8}, Source("", "", None, {}, ""), {})
            tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
            frames = {
                i: {name: tensors[name].clip(-end, end) for name in tensors} for i, end in enumerate(film)
            }
            data.append(model_data(base / f"{i}") | {"film": film_data(frames)})
        sources = {name: (SOURCES / name).read_text("utf-8") for name in (*ENGINE, "client.js")}
        page = PAGE.format(
            head=head,
            data=json.dumps(data).replace("<", "\\u003c"),
            engine="\n".join(sources[name] for name in ENGINE).replace("KEPT = 3e7", "KEPT = 5e4"),
            client=sources["client.js"],
        )
        (base / "page.html").write_text(page, "utf-8")
        return base / "page.html"

    return make_page


@pytest.fixture(scope="module")
def tab(browser, make_page, models):
    """One page with all models."""
    tab = browser.new_page()
    tab.goto(make_page(models.values()).as_uri())
    yield tab
    tab.close()


def random_ids(count):
    """Of any characters, the unknown one too."""
    return np.random.default_rng(count).integers(TOKENIZER.vocab_size, size=count).tolist()


def ask(tab, method, *arguments, **options):
    """What the client's method answers, as NumPy arrays."""
    plain = """async ([method, args]) => JSON.stringify(await client[method](...args), (_, value) =>
        ArrayBuffer.isView(value) ? Array.from(value) : value)"""
    answer = json.loads(tab.evaluate(plain, [method, [*arguments, options]]))
    return answer if isinstance(answer, dict) else np.array(answer, np.float32)


def in_script(settings):
    """The settings of `generate` with the names that they have in JavaScript."""
    names = {"top_k": "topK", "top_p": "topP", "min_p": "minP"}
    return {names.get(name, name): value for name, value in settings.items()}


def written(tab, prompt, length, settings=None, **options):
    """What the page writes; the settings have the names of `generate`'s."""
    given = {"prompt": prompt, "maxNewTokens": length, **in_script(settings or {})}
    return tab.evaluate("([given, options]) => client.generate(given, null, options).done", [given, options])


def close(found, expected):
    """Within what rounding in float32 explains."""
    expected = expected.detach().numpy()
    np.testing.assert_allclose(np.reshape(found, expected.shape), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_pytorch(tab, models, name):
    for length in (1, CONFIGS[name].block_size):
        ids = random_ids(length)
        close(ask(tab, "logits", ids, model=NAMES.index(name)), models[name](torch.tensor([ids])))


@pytest.mark.parametrize("name", [name for name in NAMES if "relu," in name or "local" in name] + NAMES[-10:])
def test_most_likely_text_is_that_of_generate_when_the_window_moves(tab, models, name):
    prompt = "the quick"
    expected = generate(models[name], TOKENIZER, prompt, 3 * BLOCK, **SETTINGS[0])
    assert written(tab, prompt, 3 * BLOCK, SETTINGS[0], model=NAMES.index(name)) == expected


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("seed", [0, 1337, 2**32 + 2**31 + 5])
def test_drawn_text_is_that_of_generate(tab, models, settings, seed):
    for name in ("learned, relu, layernorm", "rope, local context"):
        prompt = "the quick brown fox jumps"  # longer than the window
        expected = generate(models[name], TOKENIZER, prompt, 4 * BLOCK, **settings, seed=seed)
        assert written(tab, prompt, 4 * BLOCK, settings | {"seed": seed}, model=NAMES.index(name)) == expected


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_distribution_before_and_after_the_limits(tab, settings):
    logits = torch.randn(1, TOKENIZER.vocab_size, generator=torch.Generator().manual_seed(1)) * 2
    found = tab.evaluate(
        """([logits, settings]) => {
            const { before, after } = distribution(Float32Array.from(logits), settings);
            return [[...before], [...after]];
        }""",
        [logits[0].tolist(), in_script(settings)],
    )
    sampling = Sampling(**settings)
    drawable = limit(logits.clone(), sampling)
    drawable[:, 0] = -torch.inf
    close(found, torch.cat([logits.softmax(-1), (drawable / max(sampling.temperature, 1e-9)).softmax(-1)]))


@pytest.mark.parametrize("name", [*NAMES[:1], "alibi, swiglu, rmsnorm", "rope, local context"])
def test_inside_are_attention_and_what_each_layer_would_say(tab, models, name):
    model, ids = models[name], random_ids(BLOCK)
    inside = ask(tab, "inside", ids, model=NAMES.index(name))
    close(inside["attention"], model.attention_weights(torch.tensor([ids])))
    streams = [model.embed(torch.tensor([ids]))]
    for block in model.blocks:
        streams.append(block(streams[-1]))
    close(inside["lens"], torch.stack([model.unembed(x) for x in streams]))
    close(inside["logits"], model(torch.tensor([ids])))


@pytest.mark.parametrize("name", [*NAMES[:1], "rope, swiglu, rmsnorm", "sinusoidal, local context"])
@pytest.mark.parametrize(("heads", "mlps"), [([[0, 1]], []), ([[0, 0], [1, 2]], [0]), ([], [0, 1])])
def test_what_is_off_contributes_nothing(tab, models, name, heads, mlps):
    without, ids = copy.deepcopy(models[name]), random_ids(BLOCK)
    with torch.no_grad():
        for layer, head in heads:
            channels = slice(head * 8, (head + 1) * 8)
            without.blocks[layer].attention.projection.weight[:, channels] = 0
        for layer in mlps:
            for parameter in without.blocks[layer].mlp.projection.parameters():
                parameter.zero_()
    options = {"model": NAMES.index(name), "off": {"heads": heads, "mlps": mlps}}
    close(ask(tab, "logits", ids, **options), without(torch.tensor([ids])))
    assert written(tab, "the", 20, **options) == generate(without, TOKENIZER, "the", 20)


@pytest.mark.parametrize("length", [2, 7, BLOCK, BLOCK + 1, BLOCK + 2, 5 * BLOCK])
def test_surprisal_is_that_of_the_evaluation(tab, models, length):
    ids = random_ids(length)
    for name in ("learned, gelu, layernorm", "rope, local context"):
        nats = ask(tab, "surprisal", ids, model=NAMES.index(name))
        assert math.isnan(nats[0])
        expected = surprisals(models[name], np.array(ids, np.uint8), None, 1, length).bits * math.log(2)
        close(nats[1:], torch.from_numpy(expected))


def test_frames_of_the_film_are_models_of_their_own(open_page, make_page, models):
    film, ids, name = (0.1, 0.2, 0.3, 0.4, 0.5), random_ids(BLOCK), "alibi, swiglu, layernorm"
    tab = open_page(make_page([models[name]], film))
    # More frames than are kept, and the first one again.
    for frame in (*range(len(film)), 0):
        model = copy.deepcopy(models[name])
        for parameter in model.parameters():
            rows = parameter.data.reshape(-1, parameter.shape[-1]).clamp(-film[frame], film[frame])
            scale = rows.abs().amax(1, keepdim=True) / 31
            parameter.data = ((rows / scale).round() * scale).reshape(parameter.shape)
        close(ask(tab, "logits", ids, frame=frame), model(torch.tensor([ids])))
    close(ask(tab, "logits", ids), models[name](torch.tensor([ids])))
    close(ask(tab, "tensor", "token_embedding.weight"), models[name].token_embedding.weight)


def test_hashes_of_ngrams_are_exact(tab):
    """With so many rows, a product that is rounded would be seen in some of them."""
    rows, longest, vocab_size = 100_000, 5, 260
    embedding = NGramEmbedding(vocab_size, 1, longest, rows).double()
    embedding.tables.weight.data = torch.arange(len(embedding.tables.weight))[:, None].double()
    windows = np.random.default_rng(1).integers(vocab_size, size=(2000, longest))
    config = {"vocab_size": vocab_size, "ngram_rows": rows, "ngram_embedding": longest}
    found = tab.evaluate(
        "([windows, config]) => windows.map(ids => ngramRows(ids, config))", [windows.tolist(), config]
    )
    expected = embedding.embed(torch.from_numpy(windows)[:, None]).flatten()
    assert np.sum(found, axis=1).tolist() == expected.tolist()


def test_text_becomes_ids_and_comes_back(tab):
    text = "the fox\n\N{GRINNING FACE}XY\N{PILE OF POO}é"
    ids = tab.evaluate("text => minilm.encode(text)", text)
    assert ids == TOKENIZER.encode(text).tolist()
    assert tab.evaluate("ids => minilm.decode(ids)", ids) == TOKENIZER.decode(ids) == text[:9] + 4 * "\ufffd"
    assert tab.evaluate("[minilm.encode(''), minilm.decode([])]") == [[], ""]


def test_line_ends_and_unknown_characters_of_a_prompt(tab):
    assert written(tab, "the\r\nfox\r", 0) == "the\nfox\n"
    unknown = written(tab, "Xthe fox", 10)
    assert unknown[:8] == "Xthe fox"
    assert "\ufffd" not in unknown


def test_the_interface_for_the_curious(tab, models):
    ids = random_ids(BLOCK)
    assert tab.evaluate("minilm.ready") is None
    rows = tab.evaluate("ids => minilm.logits(ids)", ids)
    close(rows, models[NAMES[0]](torch.tensor([ids]))[0])
    text = tab.evaluate("minilm.generate({prompt: 'the ', maxNewTokens: 30, topK: 9, topP: 0.9, seed: 3})")
    assert text == generate(models[NAMES[0]], TOKENIZER, "the ", 30, top_k=9, top_p=0.9, seed=3)
    # The defaults are the library's.
    text = tab.evaluate("minilm.generate({prompt: 'the ', seed: undefined})")
    assert text == generate(models[NAMES[0]], TOKENIZER, "the ")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("minilm.logits(Array(13).fill(1))", "13 characters are more than the model's block_size, 12"),
        ("minilm.logits([1, 31])", "ids must be from 0 to 30, found 31"),
        ("minilm.logits([1.5])", "ids must be from 0 to 30, found 1.5"),
        ("minilm.generate({prompt: ''})", "the prompt is empty"),
        ("minilm.generate({prompt: 5})", "the prompt is empty"),
        ("minilm.generate({prompt: 'a', topP: 0})", "topP above 0 to 1"),
        ("minilm.generate({prompt: 'a', seed: 1.5})", "seed whole numbers"),
        ("minilm.generate({prompt: 'a', temperature: -1})", "at least 0"),
        ("new Promise(resolve => resolve(minilm.decode([31])))", "ids must be from 0 to 30, found 31"),
    ],
)
def test_errors_say_what_is_wrong(tab, call, message):
    assert message in tab.evaluate(f"{call}.then(() => '', error => error.message)")


def test_a_model_that_diverged_writes_nothing(open_page, make_page, models):
    broken = copy.deepcopy(models[NAMES[0]])
    broken.final_norm.weight.data[0] = torch.nan
    tab = open_page(make_page([broken]))
    assert "no numbers" in tab.evaluate("minilm.generate({prompt: 'a'}).then(String, error => error.message)")


def test_a_text_arrives_in_pieces_and_can_be_stopped(tab):
    pieces, text, answered_before = tab.evaluate(
        """async () => {
            const pieces = [];
            let ended = false;
            const more = new Promise(resolve => { window.arrived = resolve; });
            const writing = client.generate({ prompt: "the ", maxNewTokens: 1e9 }, piece => {
                pieces.push(piece);
                if (pieces.length === 3) arrived();
            });
            writing.done.then(() => { ended = true; });
            await more;
            await client.logits([1]); // is not kept waiting
            const before = !ended;
            writing.stop();
            const text = await writing.done;
            return [pieces, text, before];
        }"""
    )
    assert answered_before
    assert "the " + "".join(pieces) == text
    assert len(pieces) >= 3


@pytest.mark.parametrize("how", ["policy", "exception"])
def test_works_without_a_worker(open_page, make_page, models, how):
    policy = '<meta http-equiv="Content-Security-Policy" content="worker-src \'none\'">'
    missing = "<script>delete window.Worker</script>"
    tab = open_page(make_page([models[NAMES[0]]], head=policy if how == "policy" else missing))
    tab.wait_for_function("minilm.ready.then(() => true)")  # asked before it is known that there is none
    ids = random_ids(BLOCK)
    close(ask(tab, "logits", ids), models[NAMES[0]](torch.tensor([ids])))
    assert written(tab, "the ", 30) == generate(models[NAMES[0]], TOKENIZER, "the ", 30)
    endless = "{ prompt: 'a', maxNewTokens: 1e9 }"
    assert tab.evaluate(f"() => {{ const a = client.generate({endless}, () => a.stop()); return a.done; }}")


def test_the_worker_runs_beside_the_page_and_nothing_is_requested(open_page, make_page, models):
    tab = open_page(make_page([models[NAMES[0]]]))
    tab.evaluate("minilm.ready")
    assert len(tab.workers) == 1
    assert written(tab, "the ", 5).startswith("the ")
    assert tab.problems == []
