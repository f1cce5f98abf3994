"""Measure what reports/explorer.html takes in Chromium; run it as a script, when nothing else runs."""

import shutil
import statistics
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

PAGE = Path(__file__).resolve().parents[2] / "reports/explorer.html"
# Each is a function of milliseconds, until the browser has laid the result out.
PAINT = "() => performance.getEntriesByName('first-contentful-paint')[0].startTime"
WRITE = """length => new Promise(resolve => {
    const find = id => document.getElementById(id), start = performance.now();
    find("length").value = length;
    find("write-start").click();
    new MutationObserver(() => {
        if (!find("write-stop").disabled) return;
        document.body.getBoundingClientRect();
        resolve(performance.now() - start);
    }).observe(find("write-stop"), { attributes: true });
})"""
SURPRISE = """length => new Promise(resolve => {
    const input = document.getElementById("inside-text"), shown = document.getElementById("surprise-text");
    const start = performance.now();
    input.value = data.models[0].test_text.repeat(length).slice(0, length);
    input.dispatchEvent(new Event("input"));
    new MutationObserver(() => {
        if (shown.children.length !== length) return;
        document.body.getBoundingClientRect();
        resolve(performance.now() - start);
    }).observe(shown, { childList: true });
})"""
SLIDE = """([id, value]) => {
    const slider = document.getElementById(id), start = performance.now();
    slider.value = value;
    slider.dispatchEvent(new Event("input"));
    document.body.getBoundingClientRect();
    return performance.now() - start;
}"""
# To loss curve; next characters; attention of the last head; first and last characters of the sample.
FRAME = """async frame => {
    const find = id => document.getElementById(id), slider = find("film-frame"), times = [];
    const start = performance.now();
    const passed = () => (document.body.getBoundingClientRect(), times.push(performance.now() - start));
    const changed = element => new Promise(resolve => new MutationObserver((_, observer) => {
        observer.disconnect();
        resolve(passed());
    }).observe(element, { subtree: true, childList: true, characterData: true, attributes: true }));
    const parts = ["film-bars", "film-heads"].map(id => changed(find(id)));
    slider.value = frame;
    slider.dispatchEvent(new Event("input"));
    passed();
    await Promise.all(parts);
    await changed(find("film-sample"));
    while (find("film").ariaBusy === "true") await changed(find("film"));
    return times;
}"""


def measure(tab: Page) -> dict[str, float]:
    """Milliseconds by what takes them, medians where it was done several times."""
    times = {"first paint": tab.evaluate(PAINT)}
    tab.evaluate("minilm.ready")
    tab.wait_for_selector("#next[aria-busy=false]")
    tab.click("#tour-close")
    times["write 1,000 characters"] = statistics.median(tab.evaluate(WRITE, 1000) for _ in range(3))
    tab.wait_for_selector("#next[aria-busy=false]")
    for name, values in {
        "temperature": (0, 2, 1),
        "top-k": (2, 60, 30),
        "top-p": (0.1, 1, 0.5),
        "min-p": (0.5, 0, 0.1),
    }.items():
        times[f"slider {name}"] = statistics.median(tab.evaluate(SLIDE, [name, v]) for v in 3 * values)
    times["surprise of 2,000 characters"] = tab.evaluate(SURPRISE, 2000)
    tab.locator("#film").scroll_into_view_if_needed()
    last = int(tab.locator("#film-frame").get_attribute("max"))
    tab.locator("#film-loss circle").nth(last).wait_for()
    tab.wait_for_selector("#film[aria-busy=false]")
    frames = [tab.evaluate(FRAME, frame) for frame in range(last)]
    for part, name in enumerate(("loss", "next characters", "attention", "sample begins")):
        times[f"film: {name}"] = statistics.median(frame[part] for frame in frames)
    return times | {"film: sample ends": statistics.median(frame[-1] for frame in frames)}


with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.goto(PAGE.as_uri())
    print(f"{PAGE.stat().st_size:,} bytes in {browser.browser_type.name} {browser.version}")
    for name, milliseconds in measure(tab).items():
        print(f"{name:30}{milliseconds:10.1f} ms")
