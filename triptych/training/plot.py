"""Lines over two axes, as SVG: what the trainer's judges and the claims draw, and no more than that."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from html import escape


@dataclasses.dataclass(frozen=True)
class Frame:
    """Where a panel stands, and what it spans: (lowest, highest) of each axis."""

    left: float
    top: float
    x: tuple[float, float]
    y: tuple[float, float]
    width: float = 240.0
    height: float = 120.0

    def at(self, x: float, y: float) -> tuple[float, float]:
        across, up = ((v - low) / (high - low) for v, (low, high) in ((x, self.x), (y, self.y)))
        return round(self.left + across * self.width, 1), round(self.top + (1 - up) * self.height, 1)


def page(width: float, height: float, title: str, panels: Sequence[str]) -> str:
    said = escape(title)
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' font-family="sans-serif" font-size="10" fill="#24292f">',
        f'<title>{said}</title><rect width="100%" height="100%" fill="white"/>',
        f'<text x="20" y="24" font-size="14">{said}</text>', *panels, "</svg>", "",
    ])  # fmt: skip


def axes(frame: Frame, title: str, x_title: str = "") -> list[str]:
    """The frame, its grid and numbers; a title above (of what goes up), and one below (of what goes across)."""
    left, right, bottom = frame.left, frame.left + frame.width, frame.top + frame.height
    out = [f'<text x="{left}" y="{frame.top - 10}" font-size="12">{escape(title)}</text>']
    for value in ticks(*frame.y):
        _, y = frame.at(frame.x[0], value)
        out.append(f'<line x1="{left}" y1="{y}" x2="{right}" y2="{y}" stroke="#d8dee4"/>')
        out.append(f'<text x="{left - 6}" y="{y + 3:.1f}" text-anchor="end">{value:g}</text>')
    for value in ticks(*frame.x):
        out.append(f'<text x="{frame.at(value, frame.y[0])[0]}" y="{bottom + 14}" text-anchor="middle">{value:g}</text>')
    if x_title:
        out.append(f'<text x="{right}" y="{bottom + 30}" text-anchor="end" font-size="12">{escape(x_title)}</text>')
    out.append(f'<rect x="{left}" y="{frame.top}" width="{frame.width}" height="{frame.height}" fill="none" stroke="#8c959f"/>')
    return out


def path(frame: Frame, points: Sequence[tuple[float, float]]) -> str:
    """`points` of a polyline or a polygon."""
    return " ".join(f"{x},{y}" for x, y in (frame.at(*point) for point in points))


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers within [low, high]."""
    rough = (high - low) / about
    ten = 10.0 ** math.floor(math.log10(rough))
    step = next(ten * k for k in (1, 2, 5, 10) if ten * k >= rough)
    return [round(k * step, 12) + 0.0 for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
