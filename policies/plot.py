"""A policy's frontier as a picture: coverage against target, as PNG, SVG or one self-contained HTML page.

matplotlib is an optional extra and is used through its object interface alone: no pyplot, and no style that
outlives the picture.
"""

import importlib
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from policies.errors import PolicyError

SUFFIXES = (".png", ".svg", ".html")

_SURFACE, _INK, _MUTED, _GRID, _LINE, _REFUSED = "#ffffff", "#1f2328", "#59636e", "#d8dee4", "#0a66c2", "#bc4c00"
# In a page each colour of the picture becomes a CSS variable, which has a second value for dark screens.
_VARIABLES = {
    _SURFACE: ("surface", "#0d1117"),
    _INK: ("ink", "#e6edf3"),
    _MUTED: ("muted", "#9198a1"),
    _GRID: ("grid", "#30363d"),
    _LINE: ("line", "#58a6ff"),
    _REFUSED: ("refused", "#f0883e"),
}
_INCHES = (9.0, 5.0)
_TITLE_CHARS = 75
_LABEL_GAP = 0.055  # of the axis: labels nearer to one another than this would touch


@dataclass(frozen=True)
class _Point:
    """One row of the frontier; `x` is where its target stands on the axis."""

    target: float
    x: float
    certified: bool
    coverage: float
    agreement: float | None
    lower: float | None
    threshold: float | None
    reason: str


def draw_frontier(rows: Sequence[Mapping[str, Any]], path: Path, *, title: str, target: float | None = None) -> None:
    """Draw a frontier into a file whose suffix says the form: `.png`, `.svg` or `.html`.

    `rows` are those of a policy's `frontier.json`, in any order: `target`, `certified`, `coverage`, and as far as they
    are known `teacher_agreement`, `teacher_agreement_lower`, `threshold` and `reason`; shares lie in 0..1. `target` is
    the policy's own, which is marked.

    Raises:
        PolicyError: an unknown suffix, no rows, matplotlib is not installed, or the file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise PolicyError(f"{path}: cannot be drawn: name a file that ends in .png, .svg or .html")
    if not rows:
        raise PolicyError(f"{path}: the frontier has no rows: nothing to draw")
    points = sorted((_point(row) for row in rows), key=lambda point: point.target)
    if suffix == ".html":
        content = _page(points, title, target, _picture(points, "", target, "svg").decode()).encode()
    else:
        content = _picture(points, title, target, suffix[1:])
    try:
        path.write_bytes(content)
    except OSError as error:
        raise PolicyError(f"{path}: cannot be written: {error.strerror or error}") from error


def _point(row: Mapping[str, Any]) -> _Point:
    certified = bool(row["certified"])
    return _Point(
        target=row["target"],
        x=_place(row["target"]),
        certified=certified,
        coverage=row["coverage"] if certified else 0.0,
        agreement=row.get("teacher_agreement"),
        lower=row.get("teacher_agreement_lower"),
        threshold=row.get("threshold"),
        reason=row.get("reason") or "",
    )


def _place(target: float) -> float:
    """Where a target stands: by the logarithm of the disagreement it allows, for 0.99 is twice as strict as 0.98."""
    return -math.log10(max(1 - target, 1e-6))


def _percent(share: float | None, digits: int = 1) -> str:
    return "" if share is None else f"{share * 100:.{digits}f} %"


def _picture(points: list[_Point], title: str, target: float | None, form: str) -> bytes:
    figure = _module("matplotlib.figure").Figure(figsize=_INCHES, dpi=160, layout="constrained", facecolor=_SURFACE)
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.15)  # inches
    axes = figure.add_subplot()
    shown = _apart(points, target)
    _draw_axes(axes, shown, [point.x for point in points] + ([] if target is None else [_place(target)]))
    _draw_points(axes, points, shown)
    if target is not None:
        _mark_target(axes, points, target)
    look = {"loc": "lower left", "bbox_to_anchor": (-0.01, 1.0), "ncols": 3, "frameon": False, "columnspacing": 1.6}
    axes.legend(fontsize=8.5, labelcolor=_MUTED, handletextpad=0.4, **look)
    if title:
        text = _printable(title)
        text = text if len(text) <= _TITLE_CHARS else text[: _TITLE_CHARS - 1] + "…"
        figure.suptitle(text, x=0.01, ha="left", fontsize=13, fontweight="bold", color=_INK, parse_math=False)
    buffer = io.BytesIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type")) if form == "svg" else None
    with warnings.catch_warnings():
        # A title may hold characters that the font lacks: a box in their place is better than no picture.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(buffer, format=form, metadata=metadata)
    return buffer.getvalue()


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise PolicyError(f"drawing needs matplotlib: pip install 'tracer-gateway[plot]' ({error})") from error


def _printable(text: str) -> str:
    """The text without line ends and control characters, which neither a title nor a page can hold."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _apart(points: list[_Point], target: float | None) -> list[_Point]:
    """The points that have room for figures of their own: the policy's target first, then from the left."""
    gap = _LABEL_GAP * max(points[-1].x - points[0].x, 1e-9)
    chosen: list[_Point] = []
    for point in sorted(points, key=lambda point: point.target != target):
        if all(abs(point.x - other.x) >= gap for other in chosen):
            chosen.append(point)
    return chosen


def _draw_axes(axes: Any, shown: list[_Point], places: list[float]) -> None:
    axes.set_facecolor(_SURFACE)
    left, right = min(places), max(places)
    margin = 0.05 * (right - left) or 0.1
    axes.set_xlim(left - margin, right + margin)
    axes.set_ylim(-6, 109)
    axes.set_xticks([point.x for point in shown], [f"{point.target * 100:g} %" for point in shown])
    axes.set_yticks(range(0, 101, 20), [f"{share} %" for share in range(0, 101, 20)])
    axes.set_xlabel("Target: agreement with the teacher to be proved", color=_INK, fontsize=10, labelpad=8)
    axes.set_ylabel("Coverage: share of calls answered locally", color=_INK, fontsize=10, labelpad=8)
    axes.tick_params(colors=_GRID, labelcolor=_MUTED, labelsize=9)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_GRID)


def _draw_points(axes: Any, points: list[_Point], shown: list[_Point]) -> None:
    certified = [point for point in points if point.certified]
    refused = [point for point in points if not point.certified]
    style = {"markersize": 7 if len(shown) == len(points) else 4, "markeredgewidth": 1.6, "clip_on": False}
    if certified:
        # Where a target was refused, the line is broken.
        heights = [point.coverage * 100 if point.certified else math.nan for point in points]
        axes.plot([point.x for point in points], heights, color=_LINE, linewidth=2, zorder=2)
        at, heights = [point.x for point in certified], [point.coverage * 100 for point in certified]
        look = {"color": _LINE, "zorder": 3, **style}
        axes.plot(at, heights, "o", label="certified: coverage above, observed agreement below, in %", **look)
    if refused:
        look = {"markerfacecolor": _SURFACE, "markeredgecolor": _REFUSED, "zorder": 3, **style}
        axes.plot([point.x for point in refused], [0.0] * len(refused), "o", label="refused", **look)
    for point in shown:
        if point.certified:
            _write_figures(axes, point)


def _write_figures(axes: Any, point: _Point) -> None:
    # Coverage falls from left to right: above on the right and below on the left, the line does not run through.
    place = {"xy": (point.x, point.coverage * 100), "textcoords": "offset points", "zorder": 1.5}
    # A patch of the ground keeps grid and target line out of the digits.
    patch = {"boxstyle": "square,pad=0.1", "facecolor": _SURFACE, "edgecolor": "none"}
    bold = {"color": _INK, "fontsize": 8.5, "fontweight": "bold", "bbox": patch}
    axes.annotate(f"{point.coverage * 100:.1f}", xytext=(5, 7), **bold, **place)
    if point.agreement is not None:
        plain = {"color": _MUTED, "fontsize": 8, "ha": "right", "va": "top", "bbox": patch}
        axes.annotate(f"{point.agreement * 100:.1f}", xytext=(-5, -7), **plain, **place)


def _mark_target(axes: Any, points: list[_Point], target: float) -> None:
    label = f"this policy's target: {target * 100:g} %"
    axes.axvline(_place(target), color=_INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1, label=label)
    for point in points:
        if point.target == target:
            colour = _LINE if point.certified else _REFUSED
            ring = {"markersize": 14, "markerfacecolor": "none", "markeredgecolor": colour, "clip_on": False}
            axes.plot([point.x], [point.coverage * 100], "o", markeredgewidth=1.4, zorder=3, **ring)


def _page(points: list[_Point], title: str, target: float | None, svg: str) -> str:
    """One page that needs nothing else: the picture inline, and the same numbers as a table for who cannot see it."""
    drawing = svg[svg.index("<svg") :]
    for colour, (name, _) in _VARIABLES.items():
        drawing = drawing.replace(colour, f"var(--{name})")
    certified = sum(point.certified for point in points)
    summary = f"Coverage against target; {certified} of {len(points)} targets certified. The table has the numbers."
    drawing = drawing.replace("<svg", f'<svg role="img" aria-label="{escape(summary)}"', 1)
    return _PAGE.format(
        title=escape(_printable(title)),
        light=" ".join(f"--{name}: {colour};" for colour, (name, _) in _VARIABLES.items()),
        dark=" ".join(f"--{name}: {colour};" for name, colour in _VARIABLES.values()),
        drawing=drawing,
        rows="\n".join(_row(point, point.target == target) for point in points),
    )


def _row(point: _Point, own: bool) -> str:
    numbers = (
        _percent(point.coverage) if point.certified else "",
        _percent(point.agreement, 2),
        _percent(point.lower, 2),
        "" if point.threshold is None else f"{point.threshold:.4f}",
    )
    verdict = '<td class="yes">certified</td>' if point.certified else '<td class="no">refused</td>'
    cells = "".join(f'<td class="number">{number or "-"}</td>' for number in numbers)
    mark = ' <span class="own">this policy</span>' if own else ""
    head = f'<th scope="row">{point.target * 100:g} %{mark}</th>'
    return f"<tr>{head}{verdict}{cells}<td>{escape(_printable(point.reason))}</td></tr>"


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; {light} }}
@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}
body {{ margin: 2rem auto; max-width: 60rem; padding: 0 1rem; background: var(--surface); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }}
h1 {{ font-size: 1.4rem; overflow-wrap: anywhere; }}
figure {{ margin: 1.5rem 0; }}
figure svg {{ width: 100%; height: auto; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; }}
caption {{ text-align: left; color: var(--muted); padding-bottom: .5rem; }}
th, td {{ text-align: left; vertical-align: top; padding: .4rem .7rem; border-bottom: 1px solid var(--grid); }}
th {{ white-space: nowrap; }}
td:last-child {{ min-width: 15rem; }}
.number {{ text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }}
.yes {{ color: var(--line); }}
.no {{ color: var(--refused); }}
.own {{ border: 1px solid var(--line); border-radius: 1em; padding: 0 .5em; font-size: .8em; font-weight: normal; }}
</style>
</head>
<body>
<h1>{title}</h1>
<figure>
{drawing}</figure>
<div class="scroll">
<table>
<caption>What each target would give. Agreement and its lower bound are those of surrogate and teacher on the calls
answered locally.</caption>
<thead><tr><th scope="col">Target</th><th scope="col">Result</th><th scope="col" class="number">Coverage</th>
<th scope="col" class="number">Agreement</th><th scope="col" class="number">Lower bound</th>
<th scope="col" class="number">Threshold</th><th scope="col">Reason</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
</div>
</body>
</html>
"""
