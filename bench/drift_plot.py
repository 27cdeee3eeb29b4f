"""What `drift.py` saw as a picture: coverage and agreement over calls, a panel a scenario, moves as vertical lines."""

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.drift_tables import WINDOW

_INK, _MUTED, _GRID = "#1f2328", "#59636e", "#d8dee4"
_COVERAGE, _AGREEMENT, _EVENT, _STOP, _BACK = "#0a66c2", "#1a7f37", "#1f2328", "#bc4c00", "#0a66c2"
_WIDTH, _PANEL = 10.0, 2.3  # inches


def draw(scenarios: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw into a `.png` or `.svg` file. Exits where matplotlib is missing."""
    try:
        figures = importlib.import_module("matplotlib.figure")
    except ImportError:
        sys.exit("--plot needs matplotlib: pip install 'tracer-gateway[plot]'")
    size = (_WIDTH, _PANEL * len(scenarios) + 0.6)
    figure = figures.Figure(figsize=size, dpi=110, layout="constrained", facecolor="#ffffff")
    panels = figure.subplots(len(scenarios), 1, squeeze=False)[:, 0]
    for axes, found in zip(panels, scenarios.values(), strict=True):
        _panel(axes, found)
    panels[-1].set_xlabel(f"Calls; each point is over the last {WINDOW}", color=_INK, fontsize=9)
    look = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "ncols": 2, "frameon": False}
    panels[0].legend(fontsize=8, labelcolor=_MUTED, **look)
    figure.savefig(path, metadata=dict.fromkeys(("Date", "Creator")) if path.suffix == ".svg" else None)


def _panel(axes: Any, found: Mapping[str, Any]) -> None:
    numbers, coverage, agreement = zip(*found["curve"], strict=True)
    axes.plot(numbers, coverage, color=_COVERAGE, linewidth=1.6, label="coverage: answered locally")
    axes.plot(numbers, agreement, color=_AGREEMENT, linewidth=1.6, label="agreement of all answers")
    axes.axhline(0.95, color=_MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.axvline(found["event"], color=_EVENT, linewidth=1.6)
    for move in found["moves"]:
        back = move["new"] == "live" and not move["cause"].startswith("label withheld")
        axes.axvline(move["call"], color=_BACK if back else _STOP, linewidth=0.9, linestyle=":")
    for mark in found["marks"]:
        if mark["kind"] == "refit":
            axes.axvline(mark["call"], color=_MUTED, linewidth=0.9, linestyle="--")
    axes.set_title(found["title"], loc="left", fontsize=10, color=_INK)
    axes.set_ylim(-0.03, 1.05)
    axes.set_xlim(0, found["calls"])
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.tick_params(colors=_GRID, labelcolor=_MUTED, labelsize=8)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_GRID)
