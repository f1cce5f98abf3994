"""The export to transformers: equal logits, equal tokens, and a model card that says where they come from."""

import itertools
import json
import math
import os
import random
import re
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from minilm import CharTokenizer, MiniGPT, ModelConfig, checkpoint, generate
from minilm.data.provenance import Source
from minilm.deploy.huggingface import export, main
from minilm.errors import InputError
from minilm.model.config import ACTIVATIONS, NORMALIZATIONS, POSITIONS
from minilm.params import load_params, load_recipe

ROOT = Path(__file__).parent.parent
# White space, characters that other tokenizers write for it, combining marks, and what looks special.
CHARACTERS = (
    "The quick brown fox jumps over the lazy dog.,?!'\"<s>/[UNK]|endoftext" + "\n\r\t \u00a0\u3000\u200b\x00"
    "▁ĠĊ##@@ée\u0301ﬁİ\u0131한👩\u200d🚀\ufe0f"
)
SOURCE = Source("wikitext-2", "hub:Salesforce/wikitext:wikitext-2-raw-v1", None, {"train": 1234567}, "ab12")
CONFIG = ModelConfig(len(CharTokenizer(CHARACTERS).characters) + 1, 25, 24, 3, 2, mlp_ratio=3)
SHAPES = [
    dict(zip(("position", "activation", "normalization", "qk_norm", "biases"), values, strict=True))
    for values in itertools.product(POSITIONS, ACTIVATIONS, NORMALIZATIONS, (False, True), (False, True))
]


def save_model(folder: Path, config: ModelConfig, source: Source = SOURCE) -> tuple[MiniGPT, CharTokenizer]:
    """A model folder with weights far from their initial values, so that every one matters."""
    model, tokenizer = MiniGPT(config).eval(), CharTokenizer(CHARACTERS)
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    checkpoint.save(folder, model, tokenizer, {"steps": 7, "learning_rate": 0.0003}, source, {"torch": "x"})
    return model, tokenizer


def architecture(position, activation, normalization, qk_norm, biases) -> str | None:
    """The class that a shape must become; None for a shape that must be refused."""
    gated = activation == "swiglu"
    if position in ("learned", "sinusoidal") and normalization == "layernorm" and not gated and not qk_norm:
        return "GPT2LMHeadModel"
    if position == "rope" and normalization == "layernorm" and not gated:
        return "PersimmonForCausalLM"
    if position == "rope" and normalization == "rmsnorm" and gated and not qk_norm:
        return "LlamaForCausalLM"
    if position == "rope" and normalization == "rmsnorm" and gated and not biases:
        return "Qwen3ForCausalLM"
    return None


MAPPED = [shape for shape in SHAPES if architecture(**shape)]
UNMAPPED = [shape for shape in SHAPES if not architecture(**shape)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model, its tokenizer, its folder, and the folder of what it was exported to."""
    base = tmp_path_factory.mktemp("my models")
    model, tokenizer = save_model(base / "model", CONFIG)
    export(base / "model", base / "out")
    return model, tokenizer, base / "model", base / "out"


@pytest.fixture
def command(capsys):
    """Runs the command line; returns the one line of its error."""

    def command(folder, out):
        with pytest.raises(SystemExit) as caught:
            main([str(folder), str(out)])
        message = caught.value.code
        assert message.startswith("error: ")
        assert "\n" not in message
        return message

    return command


@pytest.mark.parametrize("shape", MAPPED, ids=lambda shape: "-".join(map(str, shape.values())))
def test_logits_are_equal_in_every_shape_that_maps(shape, tmp_path):
    ids = torch.randint(0, CONFIG.vocab_size, (3, 25), generator=torch.Generator().manual_seed(1))
    for tied in (False, True):
        config = replace(CONFIG, **shape, tied_embeddings=tied, attention_dropout=0.1, mlp_dropout=0.2)
        model, _ = save_model(tmp_path / f"model{tied}", config)
        export(tmp_path / f"model{tied}", tmp_path / f"out{tied}")
        stock = AutoModelForCausalLM.from_pretrained(tmp_path / f"out{tied}")
        assert type(stock).__name__ == architecture(**shape)
        assert stock.config.tie_word_embeddings == tied
        with torch.no_grad():
            for time in (1, 7, 25):
                expected = model(ids[:, :time])
                torch.testing.assert_close(stock(ids[:, :time]).logits, expected, atol=1e-4, rtol=0)
                assert expected.std() > 0.3


def test_every_other_shape_is_refused_and_nothing_is_written(tmp_path):
    assert len(MAPPED) + len(UNMAPPED) == 128
    for number, shape in enumerate(UNMAPPED):
        save_model(tmp_path / str(number), replace(CONFIG, **shape))
        with pytest.raises(InputError, match="map to no stock architecture"):
            export(tmp_path / str(number), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"position": "alibi"},
            "GPT-2 wants position learned or sinusoidal, not alibi; Persimmon wants position rope, not alibi",
        ),
        (
            {"position": "rope", "activation": "swiglu", "normalization": "rmsnorm", "qk_norm": True},
            "Llama wants qk_norm false, not true; Qwen3 wants biases false, not true",
        ),
        (
            {"activation": "swiglu", "logit_softcap": 30.0},
            "GPT-2 wants activation relu or gelu or relu2, not swiglu, and logit_softcap 0.0, not 30.0",
        ),
        (
            {"token_shift": 0.5, "ngram_embedding": 3},
            "GPT-2 wants token_shift 0.0, not 0.5, and ngram_embedding 1, not 3",
        ),
    ],
)
def test_what_does_not_map_is_named_with_what_would(settings, expected, tmp_path, command):
    save_model(tmp_path / "model", replace(CONFIG, **settings))
    message = command(tmp_path / "model", tmp_path / "out")
    assert message == (
        f"error: {tmp_path / 'model'}: its settings map to no stock architecture of transformers: {expected}"
    )
    assert not (tmp_path / "out").exists()


def test_the_classic_recipe_maps_and_what_of_the_modern_one_does_not_is_named(tmp_path):
    for recipe in ("classic", "modern"):
        params = load_params(ROOT / "params.yaml", load_recipe(ROOT / "recipes" / f"{recipe}.yaml")).train
        save_model(tmp_path / recipe, ModelConfig.from_params(CONFIG.vocab_size, params))
    assert export(tmp_path / "classic", tmp_path / "out").startswith("GPT-2")
    with pytest.raises(InputError, match=r"Persimmon wants logit_softcap 0.0, not 15.0, and token_shift"):
        export(tmp_path / "modern", tmp_path / "out 2")


def test_dropout_is_that_of_training(tmp_path):
    config = replace(CONFIG, attention_dropout=0.1, mlp_dropout=0.2)
    save_model(tmp_path / "gpt2", config)
    export(tmp_path / "gpt2", tmp_path / "gpt2 out")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "gpt2 out").config
    assert (stock.attn_pdrop, stock.resid_pdrop, stock.embd_pdrop) == (0.1, 0.2, 0.0)
    save_model(tmp_path / "persimmon", replace(config, position="rope"))
    export(tmp_path / "persimmon", tmp_path / "persimmon out")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "persimmon out").config
    assert (stock.attention_dropout, stock.hidden_dropout) == (0.1, 0.2)


def texts():
    yield from (
        "",
        " ",
        "  The  fox \n\n jumps\t\tover \r\n",
        "The fox , the dog . Isn 't it ? do n't",  # what a clean-up of spaces would change
        "▁The Ġquick Ċ ##s @@ <s></s>[UNK]<|endoftext|><unk>",
        "e\u0301 é ﬁ İ \u0131 \u00a0\u3000\u200b 한 👩\u200d🚀 \ufe0f\x00",
        "unknown: Ω≈ç√ 👾 \u0327 \u2028\u0085 \ufffd\ufeff",
        "Ω",
    )
    generator = random.Random(3)
    for length in (2, 30, 3000):
        yield "".join(generator.choices(CHARACTERS, k=length))
        # Any character but surrogates, which stand alone in no text.
        yield "".join(chr((0xE000 + generator.randrange(0x10F800)) % 0x110000) for _ in range(length))
    yield (ROOT / "minilm" / "data" / "sample_text" / "train.txt").read_text(encoding="utf-8")


def test_the_tokenizer_reads_and_writes_characters_as_ours_does(exported):
    _, ours, _, out = exported
    theirs = AutoTokenizer.from_pretrained(out)
    assert len(theirs) == ours.vocab_size
    for text in texts():
        ids = ours.encode(text).tolist()
        assert theirs(text)["input_ids"] == theirs.encode(text) == ids
        assert theirs.decode(ids) == theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids)
        if not ours.unknown_characters(text):
            assert theirs.decode(ids) == text
    assert theirs.convert_ids_to_tokens([0]) == ["\ufffd"]


def test_greedy_text_is_ours_up_to_the_end_of_the_window(exported):
    model, ours, _, out = exported
    stock, theirs = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    for prompt in ("T", "The fox", "dog. "):
        answer = stock.generate(**theirs(prompt, return_tensors="pt"), do_sample=False)[0]
        assert len(answer) == CONFIG.block_size
        expected = generate(model, ours, prompt, CONFIG.block_size - len(prompt), temperature=0)
        assert theirs.decode(answer) == expected


def test_generate_never_draws_the_unknown_character(tmp_path):
    model, tokenizer = save_model(tmp_path / "model", CONFIG)
    with torch.no_grad():
        model.token_embedding.weight[0] = 30 * model.final_norm.bias.sign()  # it would be drawn always
    checkpoint.save(tmp_path / "model", model, tokenizer, {}, SOURCE, {})
    export(tmp_path / "model", tmp_path / "out")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.ones(4, 1, dtype=torch.long)
    assert (stock(ids).logits.argmax(-1) == 0).all()
    assert (stock.generate(ids, attention_mask=torch.ones_like(ids)) != 0).all()


EXPORT_AND_RUN_THE_CARD = """
import os, re, runpy, sys

# As `python -m minilm.export FOLDER OUT --format transformers` does.
sys.path.insert(0, {project!r})
sys.argv[1:] = [{folder!r}, "deep/er/out", "--format", "transformers"]
runpy.run_module("minilm.export", run_name="__main__", alter_sys=True)

class NoMiniLM:
    def find_spec(self, name, *rest):
        if name.split(".")[0] == "minilm":
            raise ImportError("there is no minilm here")

for name in [name for name in sys.modules if name.split(".")[0] == "minilm"]:
    del sys.modules[name]
sys.meta_path.insert(0, NoMiniLM())
os.chdir("deep/er/out")
exec(re.search(r"```python\\n(.*?)```", open("README.md").read(), re.DOTALL)[1])
print("ids", tokenizer("The\\n Ω")["input_ids"])
print(type(model).__module__, type(tokenizer).__module__)
"""


def test_the_former_command_exports_what_runs_where_there_is_no_minilm(exported, tmp_path):
    model, tokenizer, folder, out = exported
    script = EXPORT_AND_RUN_THE_CARD.format(project=str(ROOT), folder=os.path.relpath(folder, tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.stderr == ""
    report, text, *_, ids, modules = done.stdout.splitlines()
    assert report == (
        f"export: deep/er/out: GPT-2 with {model.num_parameters:,} parameters; README.md with no metrics, "
        "since this model has no evaluation"
    )
    assert text.startswith("The ")
    assert ids == "ids " + str(tokenizer.encode("The\n Ω").tolist())
    assert all(module.startswith("transformers.") for module in modules.split())
    for file in out.iterdir():
        assert (tmp_path / "deep" / "er" / "out" / file.name).read_bytes() == file.read_bytes(), file.name


def test_the_same_model_gives_the_same_files(exported, tmp_path):
    _, _, folder, out = exported
    (tmp_path / "again").mkdir()  # an empty folder is taken
    export(folder, tmp_path / "again")
    assert sorted(file.name for file in out.iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for file in out.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name


def test_an_out_that_is_in_use_is_refused_and_stays(exported, tmp_path, command):
    *_, folder, out = exported
    before = {file: file.read_bytes() for file in (*folder.iterdir(), *out.iterdir())}
    assert "name a new folder or an empty one" in command(folder, out)
    assert "is in the model folder" in command(folder, folder)
    assert "is in the model folder" in command(folder, folder / "transformers")
    (tmp_path / "file").write_text("x")
    assert "name a new folder or an empty one" in command(folder, tmp_path / "file")
    assert str(tmp_path / "file") in command(folder, tmp_path / "file" / "out")
    assert {file: file.read_bytes() for file in (*folder.iterdir(), *out.iterdir())} == before
    assert (tmp_path / "file").read_text() == "x"


def test_a_model_folder_that_is_missing_or_damaged_is_one_sentence(tmp_path, command):
    assert "config.json is missing" in command(tmp_path / "nothing", tmp_path / "out")
    save_model(tmp_path / "model", CONFIG)
    with (tmp_path / "model" / "model.safetensors").open("ab") as file:
        file.write(b"x")
    assert "model.safetensors is damaged" in command(tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_transformers_the_error_says_how_to_get_it(exported, tmp_path, command, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert command(exported[2], tmp_path / "out").endswith("-e '.[export]'")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing_half_written(exported, tmp_path, command):
    size = (exported[3] / "model.safetensors").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))
    try:
        message = command(exported[2], tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "File too large" in message
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())
    assert not list(tmp_path.glob(".unfinished-*"))


def front_matter(out: Path) -> dict:
    return yaml.safe_load(re.match(r"---\n(.*?)---\n", (out / "README.md").read_text(), re.DOTALL)[1])


def test_the_card_says_where_the_model_comes_from_and_what_it_cannot_do(exported):
    _, ours, folder, out = exported
    card = ModelCard.load(out / "README.md")
    assert card.data.license == "cc-by-sa-3.0"
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.language == ["en"]
    assert card.data.datasets == ["Salesforce/wikitext"]
    assert card.data.tags == ["minilm", "character-level", "gpt2"]
    assert not card.data.eval_results
    for part in (
        "# MiniLM on wikitext-2\n",
        'origin: "hub:Salesforce/wikitext:wikitext-2-raw-v1"',
        'characters: {"train": 1234567}',
        'sha256: "ab12"',
        "The license above is the text's.\n",
        "No metrics of this model were found",
        "learning_rate: 0.0003",
        'activation: "relu"',
        checkpoint.read_info(folder).model_sha256,
        "It sees 25 characters at once",
        f"It knows {ours.vocab_size - 1} characters",
    ):
        assert part in card.text, part
    assert "WARNING" not in card.text


def test_the_sample_text_is_loud_and_an_unknown_language_is_not_claimed(tmp_path):
    save_model(tmp_path / "a", CONFIG, replace(SOURCE, origin="sample", fallback_for="wikitext-2"))
    export(tmp_path / "a", tmp_path / "a out")
    text = (tmp_path / "a out" / "README.md").read_text()
    assert "# MiniLM on the bundled sample text\n\n> **WARNING: " in text
    assert "datasets" not in front_matter(tmp_path / "a out")
    assert front_matter(tmp_path / "a out")["license"] == "mit"
    odd = 'file:my | `book`: "é".txt'
    save_model(tmp_path / "b", CONFIG, replace(SOURCE, dataset="book.txt", origin=odd))
    export(tmp_path / "b", tmp_path / "b out")
    assert not {"language", "datasets"} & set(front_matter(tmp_path / "b out"))
    assert front_matter(tmp_path / "b out")["license"] == "unknown"
    assert "name one above before you publish" in (tmp_path / "b out" / "README.md").read_text()
    lines = re.findall(r"```yaml\n(.*?)```", (tmp_path / "b out" / "README.md").read_text(), re.DOTALL)
    assert yaml.safe_load(lines[0])["origin"] == odd


@pytest.fixture
def project(exported, tmp_path):
    """A project with the exported model and an evaluation of it."""
    shutil.copytree(exported[2], tmp_path / "models" / "minilm")
    (tmp_path / "reports").mkdir()
    digest = checkpoint.read_info(exported[2]).model_sha256
    metrics = {"test_loss": 2.5, "test_perplexity": math.nan, "test_accuracy": 0.287, "ngram_loss": 1.7}
    (tmp_path / "reports" / "evaluation.json").write_text(json.dumps({"model_sha256": digest}))
    (tmp_path / "reports" / "metrics.json").write_text(json.dumps(metrics | {"of_a_later_version": 1.0}))
    return tmp_path


def test_metrics_come_from_the_projects_reports(project):
    assert export(project / "models" / "minilm", project / "out").endswith("README.md with 4 metrics")
    card = ModelCard.load(project / "out" / "README.md")
    (result,) = card.data.to_dict()["model-index"][0]["results"]
    assert result["dataset"]["type"] == "Salesforce/wikitext"
    assert result["dataset"]["config"] == "wikitext-2-raw-v1"
    found = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert found == {"loss": 2.5, "accuracy": 0.287}
    for line in ("| loss | 2.5 |", "| accuracy | 28.7 % |", "| n-gram loss | 1.7 |"):
        assert line in card.text


def test_metrics_of_another_model_are_left_out(project):
    (project / "reports" / "evaluation.json").write_text('{"model_sha256": "another"}')
    assert "no metrics" in export(project / "models" / "minilm", project / "out")
    assert "No metrics of this model were found" in (project / "out" / "README.md").read_text()
