"""Draws a chart: JSON on stdin (``chart`` of bench/build_figures.py), a PNG on stdout. Runs in the image."""

from __future__ import annotations

import json
import sys
from typing import Any

from PIL import Image, ImageDraw, ImageFont

SCALE = 2  # pixels a unit: sharp on a screen of high resolution
WIDTH, MARGIN, COLUMNS, GAP = 960, 32, 2, 48
HEADER, LEGEND = 76, 34
TITLE, BAR, BETWEEN, MARK, AFTER = 28, 20, 7, 16, 16  # of a panel, in the order from its top
INK, FAINT, TRACK, WHITE = "#1f2430", "#667085", "#f0f2f5", "#ffffff"
COLOURS = {"plain": "#a3acb9", "uv": "#8f7ee7", "ours": "#0f8a74"}
ROOM = 78  # for the text of a value, right of the longest bar


def font(size: int) -> Any:
    return ImageFont.load_default(size * SCALE)


def height(panel: dict[str, Any]) -> int:
    """Units that a panel needs."""
    return TITLE + len(panel["bars"]) * (BAR + BETWEEN) + AFTER + (MARK if "mark" in panel else 0)


class Canvas:
    """Drawing in units instead of pixels."""

    def __init__(self, width: int, height: int) -> None:
        # White, not transparent: it is read on a dark page too.
        self.image = Image.new("RGB", (width * SCALE, height * SCALE), WHITE)
        self._draw = ImageDraw.Draw(self.image)

    def text(self, x: float, y: float, words: str, size: int, colour: str = INK, anchor: str = "lm") -> float:
        """Write; returns how wide it is."""
        self._draw.text((x * SCALE, y * SCALE), words, fill=colour, font=font(size), anchor=anchor)
        return float(self._draw.textlength(words, font=font(size))) / SCALE

    def box(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        corners = [x * SCALE, y * SCALE, (x + max(width, 1.5)) * SCALE - 1, (y + height) * SCALE - 1]
        self._draw.rounded_rectangle(corners, radius=min(3, width / 2) * SCALE, fill=colour)

    def line(self, x: float, top: float, bottom: float) -> None:
        """A dashed upright line."""
        y = top
        while y < bottom:
            self._draw.line([x * SCALE, y * SCALE, x * SCALE, min(y + 4, bottom) * SCALE], fill=INK, width=SCALE)
            y += 7


def draw_panel(canvas: Canvas, panel: dict[str, Any], x: float, y: float, width: float) -> None:
    canvas.text(x, y + TITLE / 2 - 2, panel["title"], 15)
    mark = panel.get("mark")
    values = [bar["value"] for bar in panel["bars"]] + ([mark["value"]] if mark else [])
    unit = (width - ROOM) / (max(values) or 1)
    top = y + TITLE
    for index, bar in enumerate(panel["bars"]):
        row = top + index * (BAR + BETWEEN)
        length = bar["value"] * unit
        canvas.box(x, row, width - ROOM, BAR, TRACK)
        canvas.box(x, row, length, BAR, COLOURS[bar["builder"]])
        # Right of the track, where no bar, no mark and no other text is.
        canvas.text(x + width, row + BAR / 2, bar["text"], 14, anchor="rm")
    if mark:
        bottom = top + len(panel["bars"]) * (BAR + BETWEEN) - BETWEEN + 4
        canvas.line(x + mark["value"] * unit, top - 3, bottom)
        canvas.text(x + mark["value"] * unit, bottom + 8, mark["text"], 12, FAINT, "mm")


def draw(chart: dict[str, Any]) -> Image.Image:
    rows = [chart["panels"][start : start + COLUMNS] for start in range(0, len(chart["panels"]), COLUMNS)]
    canvas = Canvas(WIDTH, HEADER + LEGEND + sum(max(map(height, row)) for row in rows) + MARGIN // 2)
    canvas.text(MARGIN, 32, chart["title"], 20)
    canvas.text(MARGIN, 58, chart["subtitle"], 14, FAINT)
    x = float(MARGIN)
    names = {bar["builder"]: bar["label"] for panel in chart["panels"] for bar in panel["bars"]}
    for builder in (one for one in COLOURS if one in names):
        canvas.box(x, HEADER + 4, 14, 14, COLOURS[builder])
        x += 22 + canvas.text(x + 20, HEADER + 11, names[builder], 14) + 20
    y, width = float(HEADER + LEGEND), (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) / COLUMNS
    for row in rows:
        for column, panel in enumerate(row):
            draw_panel(canvas, panel, MARGIN + column * (width + GAP), y, width)
        y += max(map(height, row))
    return canvas.image


draw(json.load(sys.stdin)).save(sys.stdout.buffer, "png", optimize=True)
