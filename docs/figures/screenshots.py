"""Take the pictures of the report that the documentation shows, as PNG files beside this script.

`PYTHONPATH=tests python docs/figures/screenshots.py reports/example/report.html`. It needs
Chromium, and Pillow to store few colours.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from chromium import Chromium
from PIL import Image

WIDTH = 1100
SECTIONS = {"decide": 740, "front": 900, "modules": 700}  # id -> most pixels of its height
COLOURS = 64
# Scrolls a section to the top, without the bar that would cover it, and returns its height.
SHOW = """(() => {{ const part = document.getElementById("{}");
  document.querySelector("nav").style.position = "static";
  scrollTo(0, part.getBoundingClientRect().top + scrollY - 8);
  return part.offsetHeight + 16; }})()"""
WAIT = "new Promise((end) => setTimeout(end, 1500))"


def take(report: Path, folder: Path) -> None:
    """Write `report_ID.png` for each section.

    Args:
        report: the page.
        folder: gets the pictures.
    """
    with tempfile.TemporaryDirectory() as place, Chromium(Path(place)) as browser:
        for section, most in SECTIONS.items():
            browser.open(report, WIDTH, most)
            browser.run(SHOW.format(section))
            browser.run(WAIT)
            height = min(most, int(browser.run(SHOW.format(section))))
            path = folder / f"report_{section}.png"
            browser.picture(path)
            with Image.open(path) as picture:
                cut = picture.convert("RGB").crop((0, 0, WIDTH, height))
                cut.quantize(COLOURS).save(path, optimize=True)


if __name__ == "__main__":
    take(Path(sys.argv[1]), Path(__file__).resolve().parent)
