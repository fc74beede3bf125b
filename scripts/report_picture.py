"""The README's picture of a report: judge the embedded model at two guidances, open the page in chromium, take its upper part.

    python scripts/report_picture.py [--out docs/results/report.png]        (2 minutes on two cores; needs Playwright and Debian's chromium)
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from triptych.app.judge import Request, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results/report.png"))
    parser.add_argument("--eyes")
    parser.add_argument("--detector")
    parser.add_argument("--n", type=int, default=100)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(Request(models=["emoji"], n=args.n, guidance=[1.0, 2.0, 4.0], report=folder, eyes=args.eyes, detector=args.detector))
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1360, "height": 900})
            page.goto((Path(folder) / "report.html").as_uri())
            top = shot(page, "#scores")
            side = shot(page, "#side")
            browser.close()
    side = side.crop((0, 0, side.width, min(side.height, 620)))
    both = Image.new("RGB", (max(top.width, side.width), top.height + side.height), "white")
    both.paste(top, (0, 0))
    both.paste(side, (0, top.height))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    both.quantize(160).save(args.out, optimize=True)
    print(f"{args.out}: {both.size}, {args.out.stat().st_size // 1000} kB")


def shot(page: object, selector: str) -> Image.Image:
    return Image.open(io.BytesIO(page.locator(selector).screenshot())).convert("RGB")  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
