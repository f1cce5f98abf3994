"""Draw docs/explorer.png and docs/film.webp from reports/explorer.html; run it as a script."""

import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

DOCS = Path(__file__).resolve().parents[2] / "docs"


def film(tab: Page) -> list[Image.Image]:
    """One picture for each frame of the training's film."""
    hidden = "nav, #film > :is(p, label, textarea) { display: none }"
    # The texts differ in length; the pictures must not.
    tab.add_style_tag(content=hidden + "#film-sample { height: 19em; overflow: hidden }")
    tab.set_viewport_size({"width": 1000, "height": 1300})
    tab.locator("#film").scroll_into_view_if_needed()
    last, pictures = int(tab.locator("#film-frame").get_attribute("max")), []
    tab.locator("#film-loss circle").nth(last).wait_for(timeout=60_000)  # all frames are measured
    for frame in range(last + 1):
        tab.fill("#film-frame", str(frame))
        tab.wait_for_selector("#film[aria-busy=false]", timeout=60_000)
        pictures.append(Image.open(io.BytesIO(tab.locator("#film").screenshot())).convert("RGB"))
    return pictures


with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
    tab = browser.new_page(viewport={"width": 1280, "height": 960}, reduced_motion="reduce")
    tab.goto((DOCS.parent / "reports/explorer.html").as_uri())
    tab.click("#tour-close")
    tab.click("#write-start")
    tab.wait_for_selector("#write-stop:disabled")
    tab.click("#written span:nth-child(23)")
    tab.wait_for_selector("#next[aria-busy=false] .marked")
    tab.screenshot(path=DOCS / "explorer.png")
    first, *others = film(tab)
    times = [1200] * len(others) + [5000]  # milliseconds of each frame
    first.save(DOCS / "film.webp", append_images=others, save_all=True, duration=times, loop=0)
