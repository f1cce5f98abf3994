"""The explorer's data: what is in the page is what the files say, and no text in it is taken for HTML."""

import json
import re
import sys
import zlib
from base64 import b64decode

import numpy as np
import pytest

from helpers.models import randomized
from minilm import CharTokenizer, MiniGPT, ModelConfig, checkpoint
from minilm.data.provenance import Source
from minilm.errors import InputError
from minilm.report import html
from minilm.report.explorer import page
from minilm.report.explorer.__main__ import main
from minilm.report.explorer.page import explorer_page, model_data, quantized, read_weights, run_data

EVIL = "</script><script>window.ran = 1</script><!-- <script>"


def saved(folder, model, characters="abc <>/!-"):
    """The model in a folder, with a vocabulary of these characters."""
    data = Source(EVIL, "sample", None, {"train": 9, "validation": 9, "test": 9}, "ab" * 32)
    params, environment = {"steps": 11}, {"precision": "float32"}
    checkpoint.save(folder, model, CharTokenizer(characters), params, data, environment)
    return folder


@pytest.fixture
def tiny(tmp_path):
    return saved(tmp_path / "tiny", randomized(ModelConfig(10, 8, 16, 2, 2, tied_embeddings=False)))


def data_of(page: str) -> dict:
    """The JSON in a page, cut out where a browser ends the element."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script', page, re.S)[1])


def inflated(text: str, dtype: str):
    return np.frombuffer(zlib.decompress(b64decode(text)), dtype)


def of_run(film, step=11, prompt="a"):
    settings = {
        "temperature": 0.8,
        "top_k": 5,
        "top_p": 1.0,
        "min_p": 0.0,
        "max_new_tokens": 9,
        "sample_seed": 3,
    }
    return run_data(
        film,
        {"step": step},
        {
            "step": [4.0, 8.0, 11.0],
            "train_loss": [3.0, 2.0, 1.5],
            "val_loss": [3.5, 2.5, 2.0],
            "mfu": [0, 0, 0],
        },
        {"heads": [[{"previous": 0.5, "induction": 0.25}]], "surprisal": {"text": "a passage"}},
        {"prompt": prompt, "settings": settings, "samples": ["a sample", "another"]},
    )


def film_of(model, steps):
    """A film whose frames are the model's weights divided by the steps."""
    weights = model.state_dict().items()
    return {f"{step}/{name}": (tensor / step).half().numpy() for step in steps for name, tensor in weights}


def test_the_page_holds_the_very_weights_vocabulary_and_configuration(tiny):
    (found,) = data_of(explorer_page("T", [model_data(tiny)], {}))["models"]
    model, tokenizer = checkpoint.load(tiny)
    numbers = inflated(found["weights"], "<f4")
    assert found["tensors"].keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        shape, offset = found["tensors"][name].values()
        assert shape == list(tensor.shape)
        assert np.array_equal(numbers[offset : offset + tensor.numel()], tensor.numpy().ravel())
    assert len(numbers) == model.num_parameters
    assert found["vocabulary"] == ["\ufffd", *tokenizer.characters]
    assert ModelConfig(**found["config"]) == model.config


def test_the_frames_before_the_models_step_are_in_the_page(tiny):
    film = film_of(checkpoint.load(tiny)[0], (1, 4, 11))
    found = of_run(film)
    assert [frame["step"] for frame in found["film"]] == [1, 4]
    levels, scales = quantized(film_of(checkpoint.load(tiny)[0], [4]))
    assert np.array_equal(inflated(found["film"][1]["weights"], "i1"), levels)
    assert np.array_equal(np.frombuffer(b64decode(found["film"][1]["scales"]), "<f4"), scales)
    assert found["steps"] == 11
    assert found["loss"] == {"step": [4, 8, 11], "train_loss": [3, 2, 1.5], "val_loss": [3.5, 2.5, 2]}
    assert found["settings"]["seed"] == 3
    assert found["test_text"] == "a passage"
    # With keep: best the model is that of an earlier step.
    assert [frame["step"] for frame in of_run(film, step=4)["film"]] == [1]
    assert of_run({})["film"] == []


def test_a_long_film_begins_later(tiny, monkeypatch):
    film = film_of(checkpoint.load(tiny)[0], (1, 2, 4, 8))
    whole = of_run(film)["film"]
    monkeypatch.setattr(page, "LONGEST_FILM", sum(len(frame["weights"]) for frame in whole[1:]))
    assert of_run(film)["film"] == whole[1:]
    monkeypatch.setattr(page, "LONGEST_FILM", 0)
    assert of_run(film)["film"] == []


def test_rounding_keeps_each_row_within_half_a_level():
    rows = np.random.default_rng(2).normal(size=(6, 40)).astype(np.float16) * np.arange(6)[:, None]
    weights = {"b.weight": rows.astype(np.float16), "a.bias": np.float16([0.5, -2.0, 0.013])}
    levels, scales = quantized(weights)
    assert (len(levels), len(scales)) == (3 + 240, 1 + 6)
    assert np.abs(levels).max() == 31
    bias, matrix = levels[:3] * scales[0], levels[3:].reshape(6, 40) * scales[1:, None]
    assert np.abs(bias - weights["a.bias"]).max() <= 0.501 * scales[0]
    assert (np.abs(matrix - weights["b.weight"]).max(1) <= 0.501 * scales[1:]).all()
    assert not matrix[0].any()  # a row of zeros


def test_a_default_models_page_is_below_6_mb(tmp_path):
    """With a thousand characters, and weights that go as far as AdamW takes them: learning_rate a step."""
    model, generator = MiniGPT(ModelConfig(1001)), np.random.default_rng(1)
    folder = saved(tmp_path, model, "".join(map(chr, range(256, 1256))))
    film = {}
    for name, tensor in model.state_dict().items():
        move = generator.choice([-3e-4, 3e-4], tensor.shape)
        film |= {f"{2**i}/{name}": (tensor.numpy() + 2**i * move).astype(np.float16) for i in range(8)}
    page = explorer_page("T", [model_data(folder) | of_run(film, step=200)], {})
    assert len(data_of(page)["models"][0]["film"]) == 8  # as after 200 steps
    assert len(page.encode()) < 6e6


def test_no_text_is_taken_for_html(tiny, open_page, tmp_path):
    page = explorer_page(EVIL, [model_data(tiny) | of_run({}, prompt=EVIL)], {EVIL: EVIL})
    found = data_of(page)
    assert found["models"][0]["prompt"] == found["models"][0]["dataset"] == EVIL
    assert found["links"] == {EVIL: EVIL}
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    tab = open_page(tmp_path / "page.html")
    assert tab.evaluate("JSON.parse(document.getElementById('data').textContent).models[0].prompt") == EVIL
    assert tab.title() == EVIL
    assert tab.evaluate("window.ran") is None


def test_the_smallest_model_of_all_has_a_whole_page(open_page, tmp_path):
    """It reads one character at once, and was kept from before the last step."""
    folder = saved(tmp_path / "one", randomized(ModelConfig(10, 1, 8, num_heads=1, num_layers=1)))
    run = of_run(film_of(checkpoint.load(folder)[0], (1, 4, 11)), step=8, prompt="a\n\u0436")
    (tmp_path / "page.html").write_text(explorer_page("T", [model_data(folder) | run], {}), encoding="utf-8")
    tab = open_page(tmp_path / "page.html")
    tab.click("#tour-close")
    tab.click("#inside-repeat")
    tab.wait_for_function("document.getElementById('surprise-text').children.length === 2")
    tab.locator("#film").scroll_into_view_if_needed()
    tab.wait_for_function("document.querySelectorAll('#film-loss circle').length === 3")
    chart, line = (tab.locator(f"#film-loss {part}").bounding_box() for part in ("svg", ".train"))
    assert line["x"] + line["width"] <= chart["x"] + chart["width"]  # it goes to step 11
    assert tab.locator("#film-prompt").input_value() == "a\n\u0436"
    note = tab.locator("#film-note").text_content()
    assert note.startswith("The model has never seen \u23ce \u0436: ")
    assert "without the first 2" in note
    tab.wait_for_selector("#film-sample b")
    assert tab.locator("#film-sample b").text_content() == "\u0436"  # of a prompt, what it reads
    assert tab.problems == []


def test_a_model_too_large_has_no_explorer(tmp_path):
    folder = saved(tmp_path, MiniGPT(ModelConfig(10, 8, 1024, 2, 1)))
    with pytest.raises(InputError, match=r"has 12,6.* parameters; the explorer runs 10,000,000 at most"):
        model_data(folder)
    assert "more than 10,000,000 parameters" in html.no_explorer_page()


def compared(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["explorer", *map(str, arguments)])
    main()


def test_two_models_with_different_vocabularies_are_compared(tiny, tmp_path, monkeypatch, capsys):
    other = saved(tmp_path / "other", MiniGPT(ModelConfig(3, 16, 8, 2, 1)), "xy")
    out = tmp_path / "new" / "page.html"
    compared(monkeypatch, tiny, other, out)
    page = out.read_text(encoding="utf-8")
    assert capsys.readouterr().out == f"open {out}\n"
    assert [model["name"] for model in data_of(page)["models"]] == [str(tiny), str(other)]
    assert [len(model["vocabulary"]) for model in data_of(page)["models"]] == [10, 3]
    compared(monkeypatch, tiny, other, out)
    assert out.read_text(encoding="utf-8") == page


def test_a_missing_or_damaged_folder_is_one_line(tiny, tmp_path, monkeypatch):
    with pytest.raises(SystemExit) as caught:
        compared(monkeypatch, tiny, tmp_path / "none", tmp_path / "page.html")
    assert str(caught.value).startswith(f"error: {tmp_path / 'none'}: config.json is missing; ")
    (tiny / "tokenizer.json").write_text("{}")
    with pytest.raises(SystemExit) as caught:
        compared(monkeypatch, tiny, tiny, tmp_path / "page.html")
    assert "tokenizer.json is damaged or of another model" in str(caught.value)
    assert not (tmp_path / "page.html").exists()


def test_a_damaged_film_is_one_line(tmp_path):
    film = tmp_path / "film.safetensors"
    for content in (b"", b"no tensors"):
        film.write_bytes(content)
        with pytest.raises(
            InputError, match=r"film.safetensors is damaged: .*restores the last trained model"
        ):
            read_weights(film)
