"""Screenshot of the demo's report, in Debian's chromium: docs/images/report.png.

make demo && python scripts/screenshot_report.py
"""

import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import sync_playwright

from sepstop.report.html import write_page

ROOT = Path(__file__).parents[1]
WIDTH = 1080


def main() -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("needs a Chromium: apt-get install chromium")
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        page = Path(folder) / "report.html"
        write_page([ROOT / "runs" / "demo" / "run"], page)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": WIDTH, "height": 1900})
        tab.goto(page.as_uri())
        slider = tab.get_by_role("slider")
        for key in ("Home", "ArrowRight"):  # the second checkpoint, compared with the pick
            slider.press(key)
        tab.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
        tab.wait_for_timeout(1000)  # the points move
        below = tab.locator("#run-1-criteria").bounding_box()
        assert below is not None
        clip = {"x": 0.0, "y": 0.0, "width": float(WIDTH), "height": below["y"] - 6}
        tab.screenshot(path=ROOT / "docs" / "images" / "report.png", clip=clip)
        browser.close()


if __name__ == "__main__":
    main()
