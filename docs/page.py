"""A picture of the page that an endpoint serves, with one of its own examples answered.

    python docs/page.py http://127.0.0.1:8000 docs/images/page.png digits

Needs chromium and the extra `dev`.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SIZE = {"width": 1180, "height": 1040}
COLOURS = 128  # halves the file


def picture(url: str, task: str) -> Image.Image:
    """The upper part of the page after a click on an example of `task`."""
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    program = next(filter(None, map(shutil.which, NAMES)), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=sandbox)
        page = browser.new_page(viewport=SIZE, reduced_motion="reduce", color_scheme="light")
        page.goto(url)
        page.get_by_title(f"Try an example of {task}").first.click()
        page.locator("#result").wait_for()
        page.wait_for_timeout(1500)  # what grows has grown
        page.evaluate("scrollTo(0, 0)")
        found = Image.open(io.BytesIO(page.screenshot()))
        browser.close()
    return found.convert("RGB").quantize(COLOURS)


if __name__ == "__main__":
    url, path, task = sys.argv[1:]
    picture(url, task).save(Path(path), optimize=True)
