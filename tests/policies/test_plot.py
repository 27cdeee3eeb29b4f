"""The frontier as a picture: what is drawn, in which forms, and what is said when it cannot be."""

import re
import subprocess
import sys
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from policies.errors import PolicyError
from policies.plot import draw_frontier
from tests.serving import ROOT

PNG = b"\x89PNG\r\n\x1a\n"


def row(target: float, coverage: float = 0.0, reason: str | None = None) -> Mapping[str, Any]:
    """One row as a fit writes it, with a key of a later version besides."""
    certified = reason is None
    return {
        "target": target,
        "certified": certified,
        "coverage": coverage,
        "teacher_agreement": target + 0.01 if certified else None,
        "teacher_agreement_lower": target + 0.001 if certified else None,
        "threshold": 0.75 if certified else None,
        "reason": reason,
        "of_a_later_version": {},
    }


ROWS = [row(0.9, 0.98765), row(0.95, 0.84321), row(0.98, reason="no threshold <proves> 0.98 & more")]


class Table(HTMLParser):
    """The cells of a page's table, row by row, and every tag of the page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in {"th", "td"}:
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip("\n")


def drawn(svg: str) -> list[str]:
    """The texts of a picture: matplotlib draws letters as shapes and says in a comment what they spell."""
    return [text.strip() for text in re.findall(r"<!--(.*?)-->", svg)]


def page(tmp_path: Path, rows: list[Mapping[str, Any]], title: str = "policy", target: float | None = None) -> str:
    file = tmp_path / "frontier.html"
    draw_frontier(rows, file, title=title, target=target)
    return file.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["frontier.png", "FRONTIER.PNG"])
def test_png(tmp_path: Path, name: str) -> None:
    """A name ending in .png, in either case, gives a PNG file large enough to read."""
    draw_frontier(ROWS, tmp_path / name, title="policy", target=0.95)
    content = (tmp_path / name).read_bytes()
    assert content.startswith(PNG)
    assert int.from_bytes(content[16:20]) >= 1200  # pixels across


def test_svg(tmp_path: Path) -> None:
    """The picture has the title, the axes in percent, and for every certified target coverage and agreement."""
    draw_frontier(ROWS, tmp_path / "frontier.svg", title="Frontier of support", target=0.95)
    svg = (tmp_path / "frontier.svg").read_text(encoding="utf-8")
    assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    texts = drawn(svg)
    assert {"Frontier of support", "this policy's target: 95 %", "refused"} <= set(texts)
    assert {"90 %", "95 %", "98 %", "0 %", "100 %"} <= set(texts)
    assert {"98.8", "91.0", "84.3", "96.0"} <= set(texts)
    assert "99.0" not in texts  # a refused target has no figures


def test_rows_in_any_order(tmp_path: Path) -> None:
    """The order of the rows does not matter."""
    assert Table(page(tmp_path, ROWS[::-1])).rows == Table(page(tmp_path, ROWS)).rows


def test_page_has_the_numbers_as_a_table(tmp_path: Path) -> None:
    """An HTML page repeats every row as text, marks the policy's own target and gives the reason of a refusal."""
    table = Table(page(tmp_path, ROWS, target=0.95))
    assert table.rows[0] == ["Target", "Result", "Coverage", "Agreement", "Lower bound", "Threshold", "Reason"]
    assert table.rows[1] == ["90 %", "certified", "98.8 %", "91.00 %", "90.10 %", "0.7500", ""]
    assert table.rows[2][:3] == ["95 % this policy", "certified", "84.3 %"]
    assert table.rows[3][:2] == ["98 %", "refused"]
    assert table.rows[3][2:6] == ["-"] * 4
    assert table.rows[3][6].startswith("no threshold <proves> 0.98 & more")


def test_page_needs_nothing_else(tmp_path: Path) -> None:
    """A page holds its picture and its styles: no script, no link, no address to fetch from."""
    text = page(tmp_path, ROWS)
    assert not {"script", "link", "img", "iframe", "object", "image"} & Table(text).tags
    assert "svg" in Table(text).tags
    assert set(re.findall(r"https?://[^\s\"<]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "@import" not in text


def test_page_follows_light_and_dark(tmp_path: Path) -> None:
    """Every colour of the inline picture is a variable that a dark screen gives another value."""
    text = page(tmp_path, ROWS, target=0.95)
    picture = text[text.index("<svg") : text.index("</svg>")]
    assert not re.findall(r"(?:fill|stroke): #\w+", picture)
    dark = re.search(r"prefers-color-scheme: dark\) \{ :root \{(.*?)\}", text)
    assert dark is not None
    used = set(re.findall(r"var\((--\w+)\)", text))
    assert used
    assert used <= set(re.findall(r"(--\w+):", dark[1]))


def test_title_and_reasons_are_data(tmp_path: Path) -> None:
    """Markup and formulas in a title or a reason are shown as they are, in every form."""
    title = "<script>alert(1)</script> $\\frac{ & -- \x00\n策略"
    text = page(tmp_path, [row(0.9, reason="<img src=x>")], title=title)
    assert not {"script", "img"} & Table(text).tags
    assert "&lt;script&gt;alert(1)&lt;/script&gt; $\\frac{ &amp; --   策略" in text
    for suffix in ("svg", "png"):
        draw_frontier(ROWS, tmp_path / f"frontier.{suffix}", title=title)
    ElementTree.fromstring((tmp_path / "frontier.svg").read_bytes())


def test_refused_targets_stand_at_zero(tmp_path: Path) -> None:
    """A frontier that is refused throughout is drawn in the colour of refusal and has no line."""
    refused = page(tmp_path, [row(target, reason="too few") for target in (0.9, 0.95)], target=0.95)
    certified = page(tmp_path, ROWS[:2], target=0.95)
    pictures = [text[text.index("<svg") : text.index("</svg>")] for text in (refused, certified)]
    assert ["var(--refused)" in picture for picture in pictures] == [True, False]
    assert ["var(--line)" in picture for picture in pictures] == [False, True]
    assert "1 of" not in refused
    assert "0 of 2 targets certified" in refused


def test_many_targets_keep_their_labels_apart(tmp_path: Path) -> None:
    """Of a dense frontier every point is drawn and listed, and only as many are labelled as have room."""
    rows = [row(0.8 + i * 0.002, 0.9 - i * 0.005) for i in range(96)]
    text = page(tmp_path, rows, target=rows[50]["target"])
    assert len(Table(text).rows) == 97
    ticks = [label for label in drawn(text) if re.fullmatch(r"[89]\d(\.\d)? %", label)]
    assert 8 <= len(ticks) <= 20
    assert "90 %" in ticks


def test_one_row(tmp_path: Path) -> None:
    """One target alone, and a policy's target beside it, are drawn."""
    draw_frontier([row(0.95, 0.5)], tmp_path / "one.png", title="", target=None)
    draw_frontier([row(0.95, 0.5)], tmp_path / "two.png", title="", target=0.97)
    assert (tmp_path / "one.png").read_bytes().startswith(PNG)
    assert (tmp_path / "two.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("name", ["frontier.pdf", "frontier"])
def test_unknown_suffix(tmp_path: Path, name: str) -> None:
    """A file of another kind is an error that names those there are, and nothing is written."""
    with pytest.raises(PolicyError, match=re.escape("name a file that ends in .png, .svg or .html")):
        draw_frontier(ROWS, tmp_path / name, title="policy")
    assert not list(tmp_path.iterdir())


def test_no_rows(tmp_path: Path) -> None:
    """A frontier without rows is an error."""
    with pytest.raises(PolicyError, match="has no rows"):
        draw_frontier([], tmp_path / "frontier.png", title="policy")


def test_unwritable(tmp_path: Path) -> None:
    """A file that cannot be written is an error that names it."""
    file = tmp_path / "none" / "frontier.html"
    with pytest.raises(PolicyError, match=re.escape(f"{file}: cannot be written: No such file")):
        draw_frontier(ROWS, file, title="policy")


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where matplotlib is missing, the error says what to install."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(PolicyError, match=re.escape("pip install 'tracer-gateway[plot]'")):
        draw_frontier(ROWS, tmp_path / "frontier.png", title="policy")


def test_nothing_global(tmp_path: Path) -> None:
    """Importing the module loads no matplotlib, and drawing loads no pyplot."""
    code = (
        "import sys; from pathlib import Path; from policies.plot import draw_frontier\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"draw_frontier([{dict(ROWS[0])!r}], Path({str(tmp_path / 'a.svg')!r}), title='policy')\n"
        "assert 'matplotlib.figure' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=True)
