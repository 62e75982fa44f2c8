"""Photographs the explorer and the report into docs/images: ``python scripts/doc_screenshots.py RUN``.

RUN is a finished run on digits. The pictures are of the real program, run here; needs playwright and a Chromium.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LAYER = "features.conv2.conv"


def open_layer(page: Any, view: str = "maps") -> None:
    page.locator(f'.node[data-layer="{LAYER}"]').click()
    page.wait_for_selector(f".layer h3:has-text('{LAYER}')")
    page.locator(f"#view-{view}").click()


def why(page: Any) -> None:
    page.locator("#missed button, .samples button").first.click()
    page.wait_for_selector("#verdict")
    page.locator("#cam").click()
    page.wait_for_selector("#why figure:nth-of-type(2)")
    open_layer(page)
    page.locator(".map").nth(7).hover()
    page.wait_for_selector(".input .box.core")


def number(page: Any) -> None:
    open_layer(page)
    page.locator(".map").nth(7).click()
    page.wait_for_selector("#total")
    for _ in range(13):
        page.locator("#tap-next").click()
    page.locator(".number").scroll_into_view_if_needed()


def excited(page: Any) -> None:
    open_layer(page, "excited")
    page.wait_for_selector(".view .box.core")


def change(page: Any) -> None:
    open_layer(page, "change")
    page.wait_for_selector("#changed .answers")
    page.locator("#change-kernel input").nth(12).fill("1.5")
    page.locator("#change-kernel input").nth(12).press("Tab")
    page.wait_for_load_state("networkidle")


def algorithms(page: Any) -> None:
    open_layer(page, "algorithms")
    page.wait_for_selector("td:has-text('vendor')")


def lesson(page: Any) -> None:
    page.evaluate("location.hash = 'play'")
    page.wait_for_selector("html[data-ready=play]")
    page.locator("button[data-row=B12]").click()
    page.wait_for_selector("#total")
    page.locator("#next").click()
    page.locator("#tap-next").click()


SHOTS: dict[str, tuple[Callable[[Any], None], str]] = {
    "why": (why, "body"),
    "number": (number, ".number"),
    "excited": (excited, ".layer"),
    "change": (change, ".layer"),
    "algorithms": (algorithms, ".layer"),
    "lesson": (lesson, "body"),
}


def keep(path: Path) -> None:
    """Few colours: these are drawings, and the repository stays small."""
    Image.open(path).convert("RGB").quantize(96).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1024:.0f} KB")


def main(run: str) -> None:
    command = [sys.executable, "-m", "convlens", "explore", run, "--no-browser"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        found = re.search(r"http://\S+", server.stderr.readline() if server.stderr else "")
        if found is None:
            raise SystemExit("convlens explore gave no address")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
            for name, (act, part) in SHOTS.items():
                page = browser.new_page(viewport={"width": 1240, "height": 860})
                page.goto(found[0])
                page.wait_for_selector("html[data-ready=look]")
                act(page)
                path = IMAGES / f"explorer_{name}.png"
                target = page if part == "body" else page.locator(part)
                target.screenshot(path=path)
                keep(path)
                page.close()
            page = browser.new_page(viewport={"width": 1100, "height": 820})
            page.goto((Path(run) / "report.html").resolve().as_uri())
            page.wait_for_selector("html[data-ready]")
            page.wait_for_timeout(500)
            page.screenshot(path=IMAGES / "report.png")
            keep(IMAGES / "report.png")
            browser.close()
    finally:
        server.terminate()
        server.wait(20)


if __name__ == "__main__":
    main(sys.argv[1])
