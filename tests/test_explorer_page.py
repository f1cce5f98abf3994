"""The explorer's page in a real browser: its panels, the places it is opened in, and that it asks nobody."""

import math
import re

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from torch.nn import functional as F

from helpers.explorer import EVIL, TEXT, explored, ready, write, write_page, written
from helpers.servers import server
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


def test_writes_what_the_settings_say_and_stops(show, data):
    tab = show(data)
    assert write(tab) == tab.evaluate(
        "minilm.generate({prompt: 'the ', maxNewTokens: 40, temperature: 0.8, topK: 0, seed: 1337})"
    )
    tab.wait_for_selector("#next[aria-busy=false]")
    end = written(tab)[-12:].replace(" ", "␣").replace("\n", "⏎")
    assert tab.locator("#next-place").text_content() == f"After {end}:"
    tab.fill("#length", "5000")
    tab.evaluate(  # in the page itself: a tiny model writes all before a click from outside arrives
        """() => new Promise(resolve => {
            const find = id => document.getElementById(id);
            const [text, start, stop] = ["written", "write-start", "write-stop"].map(find);
            new MutationObserver((_, observer) => {
                if (text.children.length <= 60) return;
                observer.disconnect();
                stop.click();
                resolve();
            }).observe(text, { childList: true });
            start.click();
        })"""
    )
    stopped = written(tab)
    # A generation with the same settings takes its turn after what is left of the stopped one.
    tab.evaluate("minilm.generate({prompt: 'the ', maxNewTokens: 5})")
    assert written(tab) == stopped
    assert len(stopped) < 5000
    assert tab.problems == []


def test_goes_back_to_a_character_and_takes_another_one(show, data):
    tab = show(data)
    text = write(tab)
    tab.locator("#written span").nth(10).click()
    assert tab.locator("#write-on").text_content() == "Write on from here"
    tab.wait_for_function("document.querySelectorAll('#next-bars .row').length > 0")
    other = tab.locator("#next-bars .row:not(.marked)").first
    sign = other.locator(".sign").text_content()
    other.click()
    signs = {"␣": " ", "⏎": "\n"}
    assert written(tab) == text[:10] + signs.get(sign, sign)
    tab.click("#write-on")
    tab.wait_for_function("document.getElementById('write-stop').disabled")
    assert written(tab).startswith(text[:10] + signs.get(sign, sign))
    assert len(written(tab)) == 10 + 1 + 40
    # Nothing comes before the first character.
    tab.locator("#written span").first.click()
    tab.wait_for_function("document.querySelectorAll('#next-bars .row').length === 0")
    assert "Nothing comes before" in tab.locator("#next-place").text_content()
    tab.locator("#written span").first.click()  # once more
    assert tab.locator("#write-on").text_content() == "Write on"


def test_sliders_act_at_once_and_name_what_they_cut_off(show, data):
    tab = show(data)
    tab.wait_for_function("document.querySelectorAll('#next-bars .row').length > 0")
    # Moves a slider to a value, five times; returns the shortest time, as others use the machine too.
    move = """([id, value]) => Math.min(...Array.from({length: 5}, () => {
        const slider = document.getElementById(id), before = performance.now();
        for (const moved of [slider.max, value]) {
            slider.value = moved;
            slider.dispatchEvent(new Event("input"));
            document.body.getBoundingClientRect();  // lays the page out
        }
        return performance.now() - before;
    }))"""
    cut = tab.locator("#next-bars .cut")
    for slider, value, reason in (("top-k", 2, "top_k"), ("top-p", 0.3, "top_p"), ("min-p", 0.5, "min_p")):
        before = tab.locator("#next-bars").inner_html()
        assert tab.evaluate(move, [slider, value]) < 50
        assert tab.locator("#next-bars").inner_html() != before
        assert reason in cut.all_text_contents()
        tab.evaluate(move, [slider, {"top-k": 99, "top-p": 1, "min-p": 0}[slider]])
        assert set(cut.all_text_contents()) <= {"never drawn"}
    tab.evaluate(move, ["temperature", 0])
    assert tab.locator("#next-rest").text_content().startswith("1 of ")
    assert tab.locator("#next-bars .value").first.text_content() == "100\u00a0%"


def test_inside_shows_the_loss_and_what_a_part_is_worth(show, data, explorer):
    tab = show(data)
    text = "the quick brown fox"
    tab.fill("#inside-text", text)
    tab.wait_for_function("document.getElementById('attention-text').children.length === 19")
    gpt, tokenizer, _ = explorer
    ids = torch.from_numpy(tokenizer.encode(text).astype(np.int64))

    def loss():
        with torch.no_grad():
            return F.cross_entropy(gpt(ids[None, :-1])[0], ids[1:]).item()

    def shown():
        return float(re.search(r"Loss ([\d.]+)", tab.locator("#parts-loss").text_content())[1])

    assert shown() == pytest.approx(loss(), abs=6e-4)
    whole = shown()
    with torch.no_grad():
        last = F.cross_entropy(gpt(ids[None, :-1])[0, -1:], ids[-1:]).item() / math.log(2)
    assert f"{last:.2f} bits" in tab.locator("#surprise-place").text_content()
    tab.get_by_role("checkbox", name="Layer 1, MLP").uncheck()
    tab.wait_for_function("document.getElementById('parts-loss').textContent.includes('1 part off')")
    projection = gpt.blocks[0].mlp.projection
    kept = {name: value.clone() for name, value in projection.state_dict().items()}
    with torch.no_grad():
        projection.weight.zero_()
        projection.bias.zero_()
        assert shown() == pytest.approx(loss(), abs=6e-4)
        assert abs(shown() - whole) > 0.002
    projection.load_state_dict(kept)
    tab.get_by_role("checkbox", name="Layer 1, Head 1").uncheck()
    tab.wait_for_function("document.getElementById('parts-loss').textContent.includes('2 parts off')")
    tab.click("#parts-on")
    tab.wait_for_function("document.getElementById('parts-loss').textContent.includes('all parts on')")
    assert shown() == pytest.approx(loss(), abs=6e-4)
    # A line leads to each of the characters that are named.
    named = tab.locator("#attention-place").text_content().count(" before (")
    assert tab.locator("#attention-lines path").count() == named >= 3
    # The chosen place is the same in all parts; the head that looks most at the character before comes first.
    tab.locator("#surprise-text span").nth(4).click()
    assert tab.locator("#attention-text [aria-selected]").text_content() == "q"
    assert "head 2: q looks at" in tab.locator("#heat-map").get_attribute("aria-label")
    assert tab.locator("#lens-table tr").count() == 5
    assert tab.locator("#lens-table tr").first.text_content() == "readsthe␣q"
    assert tab.locator("#neighbor-of option:checked").text_content() == "q"


def test_says_what_it_does_not_know_or_cuts(show, data):
    tab = show(data)
    tab.fill("#inside-text", "")
    tab.wait_for_selector("#surprise", state="hidden")
    assert "nothing to show" in tab.locator("#inside-note").text_content()
    tab.fill("#inside-text", "ж" + TEXT[:50])
    tab.wait_for_function("document.getElementById('surprise-text').children.length === 51")
    note = tab.locator("#inside-note").text_content()
    assert "never seen ж" in note
    assert "32 characters at once" in note
    assert "without the first 19" in note
    assert tab.locator("#surprise-text .unknown").text_content() == "ж"
    assert tab.locator("#attention-text span").count() == 32
    for place, begins_later in ((18, True), (19, False)):
        tab.locator("#surprise-text span").nth(place).click()
        assert ("begin after it" in tab.locator("#surprise-place").text_content()) == begins_later
    tab.fill("#prompt", "")
    assert tab.locator("#write :is(#write-start, #write-on, #write-seed):disabled").count() == 3
    assert "at least one character" in tab.locator("#write-note").text_content()
    tab.fill("#prompt", "ж" * 40)
    write(tab)
    assert "without the first 8" in tab.locator("#write-note").text_content()
    tab.fill("#prompt", "x" + "the " * 50_000)
    assert write(tab).startswith("the the ")
    assert "Only the last 5000" in tab.locator("#write-note").text_content()
    assert tab.locator("#written span").count() == 5040
    tab.fill("#length", "-3")
    tab.fill("#seed", "1e99")
    write(tab)
    assert [tab.input_value(field) for field in ("#length", "#seed")] == ["1", "4294967295"]
    assert tab.problems == []


def test_the_keyboard_reaches_everything(show, data):
    tab = show(data, tour=True)
    tab.focus("#start-tour")
    tab.keyboard.press("Enter")
    for step in range(1, 6):
        assert tab.locator("#tour-title").text_content().startswith(f"{step} of 5")
        for _ in range(min(step, 2)):  # to Next; on the first step Back is disabled
            tab.keyboard.press("Tab")
        tab.keyboard.press("Enter")
    assert tab.locator("#tour").is_hidden()
    tab.keyboard.press("Enter")  # on the button that started it, which has the focus again
    tab.keyboard.press("Escape")
    assert tab.locator("#tour").is_hidden()
    tab.focus("#prompt")
    tab.keyboard.press("End")
    tab.keyboard.type("fox")
    for _ in range(3):  # length, seed, Write
        tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    tab.wait_for_function("document.getElementById('written').children.length === 47")
    tab.wait_for_selector("#write-start:focus ~ #write-stop:disabled")  # it can be pressed again
    tab.focus("#written")
    tab.keyboard.press("Home")
    tab.keyboard.press("ArrowRight")
    assert tab.locator("#written [aria-selected]").get_attribute("id") == "written-1"
    tab.keyboard.press("ArrowDown")
    assert tab.evaluate("document.querySelector('#written [aria-selected]').offsetTop") > tab.evaluate(
        "document.querySelector('#written').firstChild.offsetTop"
    )
    tab.wait_for_selector("#next[aria-busy=false]")  # with its bars, which are buttons
    # All that a mouse can use has a name for a screen reader, and shows that it has the focus.
    names = tab.evaluate("""() => {
        const all = document.querySelectorAll("button, input, select, textarea, a, [tabindex='0']");
        return [...all].filter(element => !element.disabled && element.checkVisibility()).map(element => {
            element.focus({focusVisible: true});
            const labels = [...(element.labels ?? [])].map(label => label.textContent).join("");
            const by = document.getElementById(element.getAttribute("aria-labelledby"))?.textContent;
            const name = element.ariaLabel || by || labels || element.textContent;
            return [element.outerHTML.slice(0, 80), name.trim(), getComputedStyle(element).outlineStyle];
        });
    }""")
    assert len(names) > 50
    assert [name for name in names if not name[1] or name[2] == "none"] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_a_telephone(show, data, scheme):
    tab = show(data, scheme=scheme, width=390)
    write(tab)
    tab.locator("#film").scroll_into_view_if_needed()
    tab.wait_for_function("document.getElementById('film-sample').textContent.length === 164")
    for part in ("html", "nav"):  # no link is out of sight
        assert tab.evaluate("part => document.querySelector(part).scrollWidth", part) == 390
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(251, 251, 249)") == (scheme == "light")


def test_text_is_never_run(show, data):
    evil = data | {"prompt": EVIL, "test_text": EVIL + TEXT, "name": EVIL}
    for models in ([evil], [evil, evil]):
        tab = show(*models)
        tab.fill("#inside-text", EVIL)
        assert EVIL in write(tab)
        tab.locator("#film, #compare").locator("visible=true").scroll_into_view_if_needed()
        tab.wait_for_selector("#film-sample:not(:empty), #compare-table:not(:empty)")
        assert tab.evaluate("window.ran") is None
        assert tab.locator("img").count() == 0
        assert tab.problems == []


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


def test_the_tour_hides_nothing_on_a_telephone(show, data):
    tab = show(data, width=390, tour=True)
    tab.emulate_media(reduced_motion="reduce")  # so that the page stands still after each step
    for _ in range(5):
        card, panel = (tab.locator(part).bounding_box() for part in ("#tour", ".toured"))
        assert 0 < card["y"] < card["y"] + card["height"] < panel["y"] < 800
        tab.click("#tour-next")


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


def test_runs_in_mlflows_viewer(show, data, browser, tmp_path):
    """MLflow shows a copy in a sandboxed frame, where storage throws and links are forbidden."""
    show(data).close()
    store = ("--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}")
    files = ("--artifacts-destination", str(tmp_path / "artifacts"))
    with server(tmp_path, "/health", "server", *store, *files, "--workers", "1") as address:
        client = MlflowClient(address)
        run_id = client.create_run("0").info.run_id
        client.log_artifact(run_id, tmp_path / "explorer.html")
        with browser.new_page() as tab:
            tab.goto(f"{address}/#/experiments/0/runs/{run_id}/artifacts/explorer.html")
            frame = tab.frame_locator("iframe")
            frame.locator("#tour-close").click()
            storage = "() => { try { localStorage } catch { return 'throws' } }"
            assert frame.locator("body").evaluate(storage) == "throws"
            frame.locator("#write-start").click()
            frame.locator("#written span:nth-child(44)").wait_for()
            frame.get_by_role("link", name="The film").click()
            frame.locator("#film-loss circle").nth(3).wait_for()
