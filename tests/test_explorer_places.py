"""The explorer's film, its comparison of two models, and the places where it is opened, in a real browser."""

import math

import pytest

from helpers.explorer import TEXT, explored, ready, write, write_page
from minilm import CharTokenizer, MiniGPT, ModelConfig, checkpoint
from minilm.data.provenance import Source
from minilm.report.explorer.page import model_data


@pytest.fixture(scope="module")
def explorer(tmp_path_factory):
    """A model, its tokenizer, and what the page holds of it."""
    return explored(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(explorer):
    """What the page holds of the model."""
    return explorer[2]


@pytest.fixture
def show(open_page, tmp_path):
    """Opens the page of one or more models."""
    return lambda *models, tour=False, **how: ready(open_page(write_page(tmp_path, *models), **how), tour)


def test_film_shows_each_frame(show, data):
    tab = show(data)
    tab.locator("#film").scroll_into_view_if_needed()
    tab.wait_for_function("document.getElementById('film-sample').textContent.length === 164")
    trained = tab.locator("#film-sample").text_content()
    assert trained == tab.evaluate(
        "minilm.generate({prompt: 'the ', maxNewTokens: 160, temperature: 0.8, topK: 0, seed: 1337})"
    )
    assert tab.locator("#film-step").text_content() == "8 of 8"
    tab.fill("#film-frame", "0")
    assert tab.locator("#film-step").text_content() == "1 of 8"
    tab.wait_for_function("text => document.getElementById('film-sample').textContent !== text", arg=trained)
    # Weights of an eighth say almost nothing: the probabilities are nearly equal.
    assert float(tab.locator("#film-bars .value").first.text_content().split("\u00a0")[0]) < 15
    tab.fill("#film-frame", "2")
    tab.click("#film-play")
    tab.wait_for_function("document.getElementById('film-step').textContent === '8 of 8'")
    tab.wait_for_function("document.getElementById('film-play').textContent === 'Play'")
    assert tab.locator("#film-sample").text_content() == trained
    assert tab.locator("#film-loss circle").count() == 4
    tab.fill("#film-prompt", "")
    tab.wait_for_function("document.getElementById('film-sample').textContent === ''")
    assert tab.locator("#film-bars .row").count() == 0
    tab.fill("#film-prompt", "the ")
    tab.wait_for_function("text => document.getElementById('film-sample').textContent === text", arg=trained)
    assert tab.problems == []


def test_says_that_a_film_begins_late(show, data):
    assert show(data).locator("#film-beginning").text_content() == ""
    tab = show(data | {"film": data["film"][1:]})
    assert "before step 2 are left out" in tab.locator("#film-beginning").text_content()


def test_the_tour_is_offered_beside_what_it_speaks_of(show, data):
    tab = show(data, width=390, tour=True)
    card, panel = (tab.locator(part).bounding_box() for part in ("#tour", "#write"))
    assert card["y"] + card["height"] < panel["y"]
    tab.click("#tour-next")
    assert tab.evaluate("getComputedStyle(document.getElementById('tour')).position") == "fixed"


def test_compares_two_models(show, data, tmp_path):
    # The second knows no "q", so that its ids differ too.
    tokenizer = CharTokenizer.from_text(TEXT.replace("q", ""))
    other = MiniGPT(ModelConfig(tokenizer.vocab_size, 64, embed_dim=8, num_heads=1, num_layers=1)).eval()
    checkpoint.save(tmp_path / "b", other, tokenizer, {"steps": 3}, Source("b", "", None, {}, ""), {})
    tab = show(data | {"name": "a"}, data | model_data(tmp_path / "b") | {"name": "b", "heads": []})
    assert tab.locator("#film").is_hidden()
    tab.locator("#compare").scroll_into_view_if_needed()
    tab.fill("#compare-text", TEXT[:60])
    tab.wait_for_function("document.getElementById('compare-difference').children.length === 60")
    losses = tab.locator("#compare-models .readout").all_text_contents()
    # An untrained model finds all characters about equally likely.
    assert float(losses[1].split()[1]) == pytest.approx(math.log(tokenizer.vocab_size), abs=0.1)
    assert losses[0] != losses[1]
    assert "b: The model has never seen q" in tab.locator("#compare-note").text_content()
    assert tab.locator("#compare-table tr").count() == 9
    tab.select_option("#model", label="b")
    assert "1 layer of 1 attention head" in tab.locator("#summary").text_content()
    tab.wait_for_function("document.querySelectorAll('#heads button').length === 1")
    assert len(write(tab)) == 44
    assert tab.problems == []


def test_runs_in_the_frame_of_mlflow(show, data, open_page, tmp_path):
    """MLflow's artifact viewer shows a copy in a sandbox, where storage throws and links are forbidden."""
    show(data).close()
    (tmp_path / "viewer.html").write_text("<iframe sandbox='allow-scripts' width=1200 height=700></iframe>")
    tab = open_page(tmp_path / "viewer.html")
    tab.evaluate(
        """page => { document.querySelector("iframe").src =
            URL.createObjectURL(new Blob([page], {type: "text/html"})); }""",
        (tmp_path / "explorer.html").read_text(),
    )
    frame = tab.frame_locator("iframe")
    frame.locator("#tour-close").click()
    storage = "() => { try { localStorage } catch { return 'throws' } }"
    assert frame.locator("body").evaluate(storage) == "throws"
    frame.locator("#write-start").click()
    frame.locator("#written span:nth-child(44)").wait_for()
    frame.get_by_role("link", name="The film").click()
    frame.locator("#film-loss circle").nth(3).wait_for()
    assert tab.problems == []
