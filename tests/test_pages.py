"""The pages, in a real browser: what they show, that nothing in a text runs, that they can be read."""

import json
import math
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image

from minilm.checkpoint import ModelInfo
from minilm.data.provenance import Source
from minilm.model.config import ModelConfig
from minilm.params import experiment_command
from minilm.report import html

EVIL = """<script>window.ran = 1</script><img src=x onerror="window.ran = 1">&amp;'"</pre></div>"""
SCHEMES = ("light", "dark")
HEADS = [[{"previous": 0.125, "induction": 0.0001}, {"previous": 0.75, "induction": 0.5}]]  # one layer of two


@pytest.fixture
def show(open_page, tmp_path):
    """Opens HTML in a tab."""

    def show(page: str, scheme="light", width=1200):
        (tmp_path / "page.html").write_text(page, encoding="utf-8")
        return open_page(tmp_path / "page.html", scheme, width)

    return show


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with the pictures, each as wide as its place in the page's order, times 100."""
    folder = tmp_path_factory.mktemp("pictures")
    for place, name in enumerate(html.PICTURES, 1):
        Image.new("RGB", (100 * place, 50), "white").save(folder / f"{name}.png")
    return folder


def surprisal(text, bits=None, candidates=None, dataset="a & b"):
    passage = {
        "first": 7000,
        "text": text,
        "bits": bits or [1.0] * len(text),
        "candidates": candidates or [[[character, 0.5], ["e", 0.25]] for character in text],
    }
    # As it is after a way through a file.
    evaluation = json.loads(json.dumps({"num_parameters": 446464, "surprisal": passage}))
    return html.surprisal_page(evaluation, dataset)


def report(
    pictures, *, fallback_for=None, dataset="wikitext-2", loss=2.5, samples=None, explored=True, **changed
):
    defaults = {"dataset": "wikitext-2", "steps": 200, "qk_norm": False, "prompt": "The "}
    characters = {"train": 997754, "validation": 9, "test": 1285622}
    data = Source(dataset, "hub:x/y", fallback_for, characters, "ab" * 32)
    environment = {"torch": "2.13.0", "threads": 2}
    given = {"prompt": "The ", "settings": {"top_k": 50}, "warnings": [], "samples": ["The cat"]}
    return html.report_page(
        info=ModelInfo(ModelConfig(260), {}, data, environment, "cd" * 32, "ef" * 32, "01" * 32),
        weights_bytes=1787000,
        training={"step": 200, "val_loss": 2.61, "best_step": 150, "best_val_loss": 2.59},
        metrics={
            "test_loss": loss,
            "test_bits_per_char": loss / math.log(2),
            "test_perplexity": math.exp(min(loss, 700)),
            "test_word_perplexity": 1.7e308,
            "test_accuracy": 0.287,
            "unknown_char_rate": 0.00001,
            "unigram_loss": 3.1,
            "ngram_loss": 2.0,
            "new_one": 1.5,
        },
        evaluation={"num_parameters": 446464, "ngram_order": 6, "heads": HEADS},
        samples=given | (samples or {}),
        kinds={
            "kind": ["letter", "space"],
            "loss": [2.6, 1.0],
            "accuracy": [0.25, 0.7],
            "characters": [1000000, 250000],
            "share": [0.8, 0.2],
        },
        pictures=pictures,
        params=defaults | changed,
        defaults=defaults,
        explored=explored,
    )


# The WCAG's contrast of an element's text against what lies behind it, 1 to 21. The canvas turns any way of
# writing a color into sRGB and lays half-transparent ones over each other.
CONTRAST = """element => {
  const layers = [];
  for (let e = element; e; e = e.parentElement) layers.unshift(getComputedStyle(e).backgroundColor);
  const context = new OffscreenCanvas(1, 1).getContext("2d");
  const luminance = colors => {
    for (const color of colors) { context.fillStyle = color; context.fillRect(0, 0, 1, 1); }
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
    def test_shows_text_colors_and_the_mean(self, show):
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
        tab = show(surprisal(EVIL, candidates=[evil] * len(EVIL), dataset=EVIL))
        assert "".join(tab.locator(".characters > span").all_text_contents()) == EVIL
        tab.hover(".characters > span:nth-child(3)")
        assert tab.locator("#tooltip td").first.inner_text() == EVIL
        tab.wait_for_load_state("networkidle")
        assert tab.evaluate("window.ran") is None
        assert tab.problems == []

    def test_other_scripts_run_as_they_are_written(self, show):
        hindi, hebrew = "नमस्ते\n", "שלום\n"
        tab = show(surprisal(hindi + hebrew + "abc"))
        text = tab.locator(".characters")
        assert text.inner_text().startswith("नमस्ते")  # without circles below the combining characters
        lefts = [tab.locator(".characters > span").nth(n).bounding_box()["x"] for n in (0, 7, 8, 12)]
        assert lefts[0] < 300 < lefts[2] < lefts[1], "Hebrew is not from the right"
        assert lefts[3] == lefts[0]
        tab.locator(".characters > span").nth(3).focus()
        assert tab.locator("#tooltip b").inner_text() == "\N{DOTTED CIRCLE}्"

    def test_strange_characters_are_shown_by_name(self, show):
        tab = show(surprisal("\0\ud800\u200b\t\r\u0301\N{REPLACEMENT CHARACTER}"))
        assert tab.locator(".characters > span").all_text_contents() == [
            "U+0000", "U+D800", "U+200B", "⇥", "U+000D", "\u0301", "\N{REPLACEMENT CHARACTER}",
        ]  # fmt: skip

    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_text_is_readable_at_every_color(self, show, scheme):
        text = "abcdefghi" + "\n" * 9
        tab = show(surprisal(text, [*range(9), *range(9)]), scheme)
        assert min(contrasts(tab, ".characters > span")) >= 4.5
        assert min(contrasts(tab, "p, h1, a, .legend span")) >= 4.5
        tab.hover(".characters > span")
        assert min(contrasts(tab, "#tooltip p, #tooltip td")) >= 4.5
        colors = tab.eval_on_selector_all(
            ".legend span", "all => all.map(e => getComputedStyle(e).backgroundColor)"
        )
        assert len(set(colors)) == 9


class TestReport:
    def test_is_whole_and_asks_no_network(self, show, pictures):
        tab = show(report(pictures, steps=2000))
        text = tab.inner_text("body")
        for part in (
            "446,464 parameters",
            "3.607",  # bits per character
            "28.7%",
            "0.72 bits per character more than the 6-gram model with back-off",
            "its loss is 25% higher",
            "997,754 characters",
            "ab" * 32,
            "cd" * 32,
            "those of step 200, with a validation loss of 2.610 nats per character",
            "the lowest was 2.590, at step 150",
            "dvc exp run -S steps=2000",
            "2.13.0",
            "1.70e+308",
            "0.0010%",
            "new_one",
            "1\tprevious character\t12.5%\t75.0%\n1\tinduction\t0.0%\t50.0%",
            "letter\t2.600\t25.0%\t1,000,000\t80.0%",
        ):
            assert part in text
        assert tab.locator("h2").all_inner_texts() == [
            "Result", "All metrics", "Samples", "Pictures", "What the heads look for",
            "Loss by kind of character", "Data", "Model", "How to reproduce it",
        ]  # fmt: skip
        widths = tab.eval_on_selector_all("figure img", "all => all.map(image => image.naturalWidth)")
        assert widths == [100, 200, 300, 400, 500]
        assert tab.get_attribute("a >> nth=0", "href") == "explorer.html"
        assert tab.get_attribute("a >> text=Surprisal", "href") == "surprisal.html"
        assert tab.locator(".warning").count() == 0
        assert tab.problems == []

    def test_compares_the_models(self, show, pictures):
        tab = show(report(pictures, loss=1.5))
        rows = [row.split("\t") for row in tab.locator("table").first.locator("tbody tr").all_inner_texts()]
        assert [row[0] for row in rows] == [
            "guessing among 260 characters",
            "unigram model (how often each character occurs)",
            "6-gram model with back-off",
            "this transformer",
        ]
        assert rows[0][1:] == ["5.561", "8.022", "260.00"]
        assert rows[-1][1:] == ["1.500", "2.164", "4.48"]
        assert "0.72 bits per character less" in tab.inner_text("body")
        assert "25% lower" in tab.inner_text("body")
        assert "does as well as" in report(pictures, loss=2.001)

    def test_shows_the_samples(self, show, pictures):
        samples = {
            "settings": {"temperature": 0.8, "stop": ""},
            "warnings": ["Oh & no"],
            "samples": ["The cat\n  sat", "The dog"],
        }
        tab = show(report(pictures, samples=samples))
        shown = tab.locator(".sample")
        assert shown.all_text_contents() == ["The cat\n  sat", "The dog"]
        assert shown.locator("b").all_text_contents() == ["The ", "The "]
        assert tab.locator(".warning").inner_text() == "Oh & no"
        assert 'The model was given "The " and continued it' in tab.inner_text("body")  # with its space
        assert 'temperature 0.8, stop ""' in tab.inner_text("body").replace("\xa0", " ")

    def test_warns_of_the_bundled_sample(self, show, pictures):
        tab = show(report(pictures, fallback_for="wikitext-2"))
        assert "BUNDLED SAMPLE TEXT" in tab.locator(".warning").inner_text()

    def test_nothing_is_run(self, show, pictures):
        odd = EVIL + "\u2028\\\n`${1}"
        samples = {"prompt": EVIL, "settings": {EVIL: EVIL}, "warnings": [EVIL], "samples": [EVIL + odd]}
        tab = show(report(pictures, dataset=EVIL, fallback_for=EVIL, samples=samples, prompt=EVIL))
        tab.wait_for_load_state("networkidle")
        assert tab.evaluate("window.ran") is None
        assert EVIL in tab.locator("h1").inner_text()
        assert tab.locator(".sample").text_content() == EVIL + odd
        assert tab.locator(".warning").last.text_content() == EVIL
        assert tab.problems == []

    @pytest.mark.parametrize("scheme", SCHEMES)
    @pytest.mark.parametrize("width", [1200, 390])
    def test_is_readable(self, show, pictures, scheme, width):
        samples = {"samples": ["The cat " + "x" * 300], "warnings": ["careful"]}
        tab = show(report(pictures, fallback_for="wikitext-2", samples=samples, qk_norm=True), scheme, width)
        assert fits(tab)
        tab.click("summary")
        readable = "h1, h2, h3, p, a, b, th, td, code, pre, dt, dd, figcaption, small, .sample"
        assert min(contrasts(tab, readable)) >= 4.5
        assert tab.locator("details tr.ours").all_inner_texts() == ["qk_norm\ttrue\tfalse"]
        background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == {"light": "rgb(252, 252, 250)", "dark": "rgb(21, 23, 26)"}[scheme]


def test_a_diverged_model_has_a_page_too(pictures):
    assert "1.01e+304" in report(pictures, loss=900.0)


def test_of_a_model_too_large_for_the_explorer_the_report_says_so(pictures):
    page = report(pictures, explored=False)
    assert "more than 10,000,000 parameters" in page
    assert "explorer.html" not in page


@pytest.mark.parametrize(
    "value",
    [
        "The ", "a, b", 'say "so"', "it's", "back\\slash", 'end\\', '\\"', "a=b", "$HOME", "[x]",
        "{y: z}", "True", "null", "12", "torchrun --nproc-per-node 2", "data/my book.txt", "hub:owner/name",
        "", "ż", "a\nb",
    ],
)  # fmt: skip
def test_command_gives_hydra_the_very_value(value):
    command = experiment_command({"prompt": value, "steps": 5}, {"prompt": None, "steps": 5})
    *start, override = shlex.split(command)
    assert start == ["dvc", "exp", "run", "-S"]
    parsed = OverridesParser.create().parse_override(override)
    assert parsed.key_or_group == "prompt"
    found = parsed.value()  # a string if it needs no quotes
    assert getattr(found, "text", found) == value


def test_command_writes_numbers_and_truth_as_yaml_does():
    params = {"learning_rate": 0.001, "qk_norm": True, "steps": 200}
    defaults = {"learning_rate": 0.0003, "qk_norm": False, "steps": 200}
    assert experiment_command(params, defaults) == "dvc exp run -S learning_rate=0.001 -S qk_norm=true"
    assert experiment_command(defaults, defaults) == "dvc exp run"


def test_templates_load_nothing_from_elsewhere():
    for template in (Path(html.__file__).parent / "templates").iterdir():
        assert "//" not in template.read_text().replace("// ", ""), template
