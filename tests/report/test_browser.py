"""The page in a real browser, opened from disk: light, dark, on a phone, on paper; nothing of a run's text runs.

What a browser alone can tell: colours that the reader's choice of dark sets, whether a phone scrolls sideways, what is
printed of a folded part. Chromium is driven by its command line; the pictures are left in the test's directory.
"""

from __future__ import annotations

import html
import os
import re
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import pytest
from reference.small_reports import HOSTILE, everything, write_run

from metarec.report.finished import read_run
from metarec.report.pages import report
from metarec.report.style import DARK, LIGHT

# the page in a frame as wide as a phone (a window of chromium's is never narrower than 500), measured from outside
FRAME = """<!DOCTYPE html><html><body><iframe width="{width}" height="900" style="border:0" srcdoc="{page}"></iframe><script>
addEventListener('load', () => {{
  const page = document.querySelector('iframe').contentDocument, root = page.documentElement, said = document.body.dataset;
  said.width = root.clientWidth;
  said.sideways = root.scrollWidth > root.clientWidth;
  said.cut = [...page.querySelectorAll('svg text')].filter(text => {{
    const own = text.getBoundingClientRect(), all = text.closest('svg').getBoundingClientRect();
    return own.left < all.left - 1 || own.right > all.right + 1 || own.bottom > all.bottom + 1;
  }}).length;
}});
</script></body></html>"""


@pytest.fixture(scope="module")
def chromium() -> str:
    """The browser; without one the test is skipped, except in CI, where a page that nobody has opened must not pass."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    reason = "no chromium on this machine: apt-get install chromium"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    run = write_run(root / "run", extra=everything(), dataset=HOSTILE, user=HOSTILE, protocol={"leaky": True})
    (root / "report.html").write_text(report([read_run(run, "run")], defaults=lambda g, n: {}).html(), encoding="utf-8")
    return root / "report.html"


def browse(chromium: str, page: Path, *options: str) -> str:
    """What chromium prints, having opened `page` from disk."""
    command = [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
               f"--user-data-dir={page.parent / 'profile'}", *options, page.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def shot(
    chromium: str, page: Path, name: str, *options: str, size: str = "1000,800"
) -> tuple[int, int, tuple[int, ...]]:
    """Width, height and the colour of a corner of a screenshot."""
    target = page.parent / f"{name}.png"
    browse(chromium, page, f"--window-size={size}", f"--screenshot={target}", *options)
    return corner(target.read_bytes())


def corner(png: bytes) -> tuple[int, int, tuple[int, ...]]:
    """Width, height and the first pixel of a PNG (which every filter leaves as it is)."""
    width, height, depth, kind = struct.unpack(">IIBB", png[16:26])
    assert (png[:8], depth) == (b"\x89PNG\r\n\x1a\n", 8)
    data, at = b"", 8
    while at < len(png):
        size, chunk = struct.unpack(">I4s", png[at : at + 8])
        data += png[at + 8 : at + 8 + size] if chunk == b"IDAT" else b""
        at += 12 + size
    assert kind in (2, 6)
    return width, height, tuple(zlib.decompress(data)[1:4])


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def test_light_and_dark_are_the_readers_choice(chromium: str, page: Path) -> None:
    assert shot(chromium, page, "light") == (1000, 800, rgb(LIGHT["bg"]))
    assert shot(chromium, page, "dark", "--blink-settings=preferredColorScheme=0") == (1000, 800, rgb(DARK["bg"]))


def test_nothing_of_a_run_runs(chromium: str, page: Path) -> None:
    """The browser's own tree: the hostile names are text, the title is what was written, no image was asked for."""
    tree = browse(chromium, page, "--dump-dom", "--virtual-time-budget=2000")
    assert re.search(r"<title>&lt;script&gt;document.title='ran'&lt;/script&gt;", tree)
    assert "<script" not in tree and "<img" not in tree
    assert tree.count("<table>") > 10 and tree.count("<svg") > 8


def test_the_policy_stops_what_would_slip_through(chromium: str, page: Path) -> None:
    """A script put into the page by hand does not run either; the same page without the policy runs it."""
    text = page.read_text(encoding="utf-8")
    planted = page.with_name("planted.html")
    mark = "<script>document.documentElement.dataset.ran='yes'</script></body>"
    planted.write_text(text.replace("</body>", mark), encoding="utf-8")
    assert 'data-ran="yes"' not in browse(chromium, planted, "--dump-dom")
    open_page = re.sub(r"<meta http-equiv=.*?/>", "", text).replace("</body>", mark)
    planted.write_text(open_page, encoding="utf-8")
    assert 'data-ran="yes"' in browse(chromium, planted, "--dump-dom")


@pytest.mark.parametrize("width", [380, 1200])
def test_nothing_scrolls_sideways_and_no_label_is_cut(width: int, chromium: str, page: Path) -> None:
    assert shot(chromium, page, f"at_{width}", size=f"{width},900")[0] == width
    framed = page.with_name(f"frame_{width}.html")
    framed.write_text(FRAME.format(width=width, page=html.escape(page.read_text(encoding="utf-8"))), encoding="utf-8")
    tree = browse(chromium, framed, "--dump-dom", "--window-size=1300,1000", "--virtual-time-budget=2000")
    (body,) = re.findall(r"<body [^>]*>", tree)
    said = dict(re.findall(r'data-(\w+)="(\w+)"', body))
    assert said == {"width": f"{width}", "sideways": "false", "cut": "0"}


def test_it_prints(chromium: str, page: Path) -> None:
    target = page.parent / "report.pdf"
    browse(chromium, page, f"--print-to-pdf={target}", "--no-pdf-header-footer")
    assert target.read_bytes()[:5] == b"%PDF-"
    assert len(re.findall(rb"/Type\s*/Page\b", target.read_bytes())) >= 3
