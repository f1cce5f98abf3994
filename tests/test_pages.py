"""The pages, in a real browser: what they show, that nothing in a text runs, that they can be read."""

import math
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image

from minilm import pages
from minilm.checkpoint import ModelCard
from minilm.data.provenance import Source
from minilm.model.gpt import ModelConfig

EVIL = """<script>window.ran = 1</script><img src=x onerror="window.ran = 1">&amp;'"</pre></div>"""
SCHEMES = ("light", "dark")


class Kind(NamedTuple):
    kind: str
    loss: float
    accuracy: float
    characters: int
    share: float


@pytest.fixture
def show(open_page, tmp_path):
    """Opens HTML in a tab."""

    def show(html: str, scheme="light", width=1200):
        (tmp_path / "page.html").write_text(html, encoding="utf-8")
        return open_page(tmp_path / "page.html", scheme, width)

    return show


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "loss.png"
    Image.new("RGB", (880, 550), "white").save(path)
    return path


def surprisal(text, bits=None, candidates=None):
    bits = [1.0] * len(text) if bits is None else bits
    candidates = [[(character, 0.5), ("e", 0.25)] for character in text] if candidates is None else candidates
    return pages.surprisal_page(text, bits, candidates, "a model & its text")


def report(picture, *, fallback_for=None, dataset="wikitext-2", loss=2.5, **changed):
    defaults = {"dataset": "wikitext-2", "steps": 200, "qk_norm": False, "prompt": "The "}
    config = ModelConfig(260)
    data = Source(
        dataset, "hub:x/y", fallback_for, {"train": 997754, "validation": 9, "test": 1285622}, "ab" * 32
    )
    return pages.report_page(
        card=ModelCard(config, {}, data, {"torch": "2.13.0", "threads": 2}, "cd" * 32),
        num_parameters=446464,
        weights_bytes=1787000,
        metrics={
            "test_loss": loss,
            "test_bits_per_char": loss / math.log(2),
            "test_perplexity": math.exp(min(loss, 700)),
            "test_word_perplexity": 1.7e308,
            "test_accuracy": 0.287,
            "unknown_char_rate": 0.00001,
            "new_one": 1.5,
        },
        baselines={"unigram model": 3.1, "6-gram model with back-off": 2.0},
        kinds=[Kind("letter", 2.6, 0.25, 1000000, 0.8), Kind("space", 1.0, 0.7, 250000, 0.2)],
        pictures={"loss_curves": picture},
        params=defaults | changed,
        defaults=defaults,
    )


# The WCAG's contrast of an element's text against what lies behind it, 1 to 21. The canvas turns any way of
# writing a colour into sRGB and lays half-transparent ones over each other.
CONTRAST = """element => {
  const layers = [];
  for (let e = element; e; e = e.parentElement) layers.unshift(getComputedStyle(e).backgroundColor);
  const context = new OffscreenCanvas(1, 1).getContext("2d");
  const luminance = colours => {
    for (const colour of colours) { context.fillStyle = colour; context.fillRect(0, 0, 1, 1); }
    const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const [low, high] = [luminance(layers), luminance([...layers, getComputedStyle(element).color])]
    .sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}"""


def contrasts(tab, selector):
    """Of all elements that fit the selector."""
    found = tab.eval_on_selector_all(selector, f"elements => elements.map({CONTRAST})")
    assert found, selector
    return found


def fits(tab):
    """Whether the page is no wider than its window."""
    return tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


class TestSurprisal:
    def test_shows_text_colours_and_the_mean(self, show):
        tab = show(surprisal("ab c\nd", [0.0, 1.2, 7.9, 30.0, 2.0, 0.9]))
        spans = tab.locator(".characters > span")
        assert spans.all_text_contents() == ["a", "b", " ", "c", "⏎", "d"]
        assert tab.eval_on_selector_all(".characters > span", "all => all.map(e => e.classList[0])") == [
            "b0", "b1", "b7", "b8", "b2", "b0",
        ]  # fmt: skip
        assert "7.00 bits" in tab.inner_text("body")
        tops = [spans.nth(index).bounding_box()["y"] for index in (4, 5)]
        assert tops[1] > tops[0] + 10, "no line break after ⏎"
        assert tab.problems == []

    def test_hover_shows_the_candidates(self, show):
        tab = show(surprisal("ab", [1.0, 3.32], [[("a", 0.5)], [("c", 0.5), (" ", 0.25), ("b", 0.1)]]))
        tooltip = tab.locator("#tooltip")
        assert tooltip.is_hidden()
        tab.hover(".characters > span:nth-child(2)")
        assert tooltip.is_visible()
        assert tooltip.locator("p").inner_text() == "b 3.32 bits (probability 10%)"
        rows = tooltip.locator("tr").all_inner_texts()
        assert [row.split() for row in rows] == [["c", "50%"], ["␣", "25%"], ["b", "10%"]]
        assert tooltip.locator("tr.true").count() == 1
        tab.mouse.move(0, 0)
        assert tooltip.is_hidden()
        assert tab.problems == []

    def test_keyboard_moves_through_the_text(self, show):
        tab = show(surprisal("abc"))
        tab.keyboard.press("Tab")
        assert tab.locator("#tooltip b").inner_text() == "a"
        tab.keyboard.press("ArrowRight")
        tab.keyboard.press("ArrowRight")
        tab.keyboard.press("ArrowRight")
        assert tab.locator("#tooltip b").inner_text() == "c"
        tab.keyboard.press("ArrowLeft")
        assert tab.locator("#tooltip b").inner_text() == "b"
        tab.keyboard.press("Escape")
        assert tab.locator("#tooltip").is_hidden()

    @pytest.mark.parametrize("position", ["first", "last"])
    def test_tooltip_stays_inside_a_narrow_window(self, show, position):
        tab = show(surprisal("word " * 300), width=390)
        assert fits(tab)
        span = getattr(tab.locator(".characters > span"), position)
        span.click()
        box = tab.locator("#tooltip").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= 800

    def test_text_and_candidates_are_never_run(self, show):
        evil = [(EVIL, 0.5), ("</script><script>window.ran = 1</script>", 0.1)]
        tab = show(surprisal(list(EVIL), candidates=[evil] * len(EVIL)))
        assert "".join(tab.locator(".characters > span").all_text_contents()) == EVIL
        tab.hover(".characters > span:nth-child(3)")
        assert tab.locator("#tooltip td").first.inner_text() == EVIL
        tab.wait_for_timeout(100)
        assert tab.evaluate("window.ran") is None
        assert tab.problems == []

    def test_strange_characters_are_shown_by_name(self, show):
        tab = show(surprisal("\0\ud800\u200b\t\r\u0301\N{REPLACEMENT CHARACTER}"))
        assert tab.locator(".characters > span").all_text_contents() == [
            "U+0000", "U+D800", "U+200B", "⇥", "U+000D", "◌\u0301", "\N{REPLACEMENT CHARACTER}",
        ]  # fmt: skip

    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_text_is_readable_at_every_colour(self, show, scheme):
        text = "abcdefghi" + "\n" * 9
        tab = show(surprisal(text, [*range(9), *range(9)]), scheme)
        assert min(contrasts(tab, ".characters > span")) >= 4.5
        assert min(contrasts(tab, "p, h1, a, .legend span")) >= 4.5
        tab.hover(".characters > span")
        assert min(contrasts(tab, "#tooltip p, #tooltip td")) >= 4.5
        colours = tab.eval_on_selector_all(
            ".legend span", "all => all.map(e => getComputedStyle(e).backgroundColor)"
        )
        assert len(set(colours)) == 9


class TestSamples:
    def test_report_takes_in_the_samples(self, show, picture, tmp_path):
        settings = {"temperature": 0.8, "stop": ""}
        fragment = pages.samples_fragment("The ", settings, ["The cat\n  sat", "The dog"], ["Oh & no"])
        (tmp_path / "samples.js").write_text(pages.samples_script(fragment))
        Image.new("RGB", (800, 300)).save(tmp_path / "attention.png")
        tab = show(report(picture))
        samples = tab.locator("#samples .sample")
        assert samples.all_text_contents() == ["The cat\n  sat", "The dog"]
        assert samples.locator("b").all_text_contents() == ["The ", "The "]
        assert tab.locator("#samples .warning").inner_text() == "Oh & no"
        assert "temperature 0.8, stop none" in tab.locator("#samples").inner_text().replace("\xa0", " ")
        assert "not here" not in tab.locator("#samples").inner_text()
        assert tab.evaluate("document.querySelector('#samples img').naturalWidth") == 800
        assert tab.problems == []

    def test_samples_are_never_run(self, show, picture, tmp_path):
        odd = EVIL + "\u2028\\\n\ud800`${1}"
        fragment = pages.samples_fragment(EVIL, {EVIL: EVIL}, [EVIL + odd], [EVIL])
        (tmp_path / "samples.js").write_text(pages.samples_script(fragment))
        Image.new("RGB", (800, 300)).save(tmp_path / "attention.png")
        tab = show(report(picture))
        tab.wait_for_timeout(100)
        assert tab.evaluate("window.ran") is None
        assert tab.evaluate("document.querySelector('.sample').textContent.startsWith('<script>')")
        assert tab.locator("#samples .warning").text_content() == EVIL
        assert tab.problems == []

    def test_without_samples_the_report_says_where_they_are(self, show, picture):
        tab = show(report(picture))
        text = "not here: see samples.txt beside this page; dvc repro sample writes it"
        assert tab.locator("#samples").inner_text() == text


class TestReport:
    def test_is_whole_and_asks_no_network(self, show, picture, tmp_path):
        (tmp_path / "samples.js").write_text("")
        tab = show(report(picture, steps=2000))
        text = tab.inner_text("body")
        for part in (
            "446,464 parameters",
            "3.607",  # bits per character
            "28.7%",
            "0.72 bits a character more than the 6-gram model with back-off: it is 25% behind",
            "997,754 characters",
            "ab" * 32,
            "cd" * 32,
            "dvc exp run -S steps=2000",
            "2.13.0",
            "1.70e+308",
            "0.0010%",
            "new_one",
        ):
            assert part in text
        # All section headings are there, in order.
        assert tab.locator("h2").all_inner_texts() == [
            "Result", "All metrics", "Samples", "Curves and pictures", "Loss by kind of character", "Data",
            "Model", "How to reproduce it",
        ]  # fmt: skip
        assert tab.evaluate("document.querySelector('figure img').naturalWidth") == 880
        assert tab.get_attribute("a >> text=Surprise", "href") == "surprisal.html"
        assert tab.locator(".warning").count() == 0
        assert tab.problems == []

    def test_compares_the_models(self, show, picture):
        tab = show(report(picture, loss=1.5))
        rows = [row.split("\t") for row in tab.locator("table").first.locator("tbody tr").all_inner_texts()]
        assert [row[0] for row in rows] == [
            "guessing among 260 characters",
            "unigram model",
            "6-gram model with back-off",
            "this transformer",
        ]
        assert rows[0][1:] == ["5.561", "8.022", "260.00"]
        assert rows[-1][1:] == ["1.500", "2.164", "4.48"]
        assert "0.72 bits a character less" in tab.inner_text("body")
        assert "25% ahead" in tab.inner_text("body")
        assert "does as well as" in report(picture, loss=2.001)

    def test_warns_of_the_bundled_sample(self, show, picture):
        tab = show(report(picture, fallback_for="wikitext-2"))
        assert "BUNDLED SAMPLE TEXT" in tab.locator(".warning").inner_text()

    def test_nothing_is_run(self, show, picture, tmp_path):
        (tmp_path / "samples.js").write_text("")
        tab = show(report(picture, dataset=EVIL, fallback_for=EVIL, prompt=EVIL))
        tab.wait_for_timeout(100)
        assert tab.evaluate("window.ran") is None
        assert EVIL in tab.locator("h1").inner_text()
        assert tab.problems == []

    def test_is_the_same_for_the_same_run(self, picture):
        assert report(picture) == report(picture)

    @pytest.mark.parametrize("scheme", SCHEMES)
    @pytest.mark.parametrize("width", [1200, 390])
    def test_is_readable(self, show, picture, tmp_path, scheme, width):
        fragment = pages.samples_fragment("The ", {"top_k": 50}, ["The cat " + "x" * 300], ["careful"])
        (tmp_path / "samples.js").write_text(pages.samples_script(fragment))
        Image.new("RGB", (2000, 300)).save(tmp_path / "attention.png")
        tab = show(report(picture, fallback_for="wikitext-2", qk_norm=True), scheme, width)
        assert fits(tab)
        tab.click("summary")
        assert (
            min(contrasts(tab, "h1, h2, p, a, b, th, td, code, pre, dt, dd, figcaption, small, .sample"))
            >= 4.5
        )
        assert tab.locator("details tr.ours").all_inner_texts() == ["qk_norm\ttrue\tfalse"]

    def test_dark_is_dark(self, show, picture):
        backgrounds = [
            show(report(picture), scheme).evaluate("getComputedStyle(document.body).backgroundColor")
            for scheme in SCHEMES
        ]
        assert backgrounds == ["rgb(252, 252, 250)", "rgb(21, 23, 26)"]


def test_a_diverged_model_has_a_page_too(picture):
    assert "1.01e+304" in report(picture, loss=900.0)


@pytest.mark.parametrize(
    "value",
    [
        "The ", "a, b", 'say "so"', "it's", "back\\slash", 'end\\', '\\"', "a=b", "$HOME", "[x]",
        "{y: z}", "True", "null", "12", "torchrun --nproc-per-node 2", "data/my book.txt", "hub:owner/name",
        "", "ż", "a\nb",
    ],
)  # fmt: skip
def test_command_gives_hydra_the_very_value(value):
    command = pages.experiment_command({"prompt": value, "steps": 5}, {"prompt": None, "steps": 5})
    *start, override = shlex.split(command)
    assert start == ["dvc", "exp", "run", "-S"]
    parsed = OverridesParser.create().parse_override(override)
    assert parsed.key_or_group == "prompt"
    found = parsed.value()  # a string if it needs no quotes
    assert getattr(found, "text", found) == value


def test_command_writes_numbers_and_truth_as_yaml_does():
    params = {"learning_rate": 0.001, "qk_norm": True, "steps": 200}
    defaults = {"learning_rate": 0.0003, "qk_norm": False, "steps": 200}
    assert pages.experiment_command(params, defaults) == "dvc exp run -S learning_rate=0.001 -S qk_norm=true"
    assert pages.experiment_command(defaults, defaults) == "dvc exp run"


def test_templates_load_nothing_from_elsewhere():
    for template in (Path(pages.__file__).parent / "templates").iterdir():
        assert "//" not in template.read_text().replace("// ", ""), template
