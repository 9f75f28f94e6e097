"""The pictures of long_clips.py: curves along a clip, and frames side by side."""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image, ImageDraw, ImageFont

from zs2.video.formats import Frames

TILE, GAP, TITLE = 96, 4, 16  # pixels of the sheet
WIDE, HIGH, LEFT, RIGHT, TOP, BOTTOM = 400, 240, 52, 12, 30, 40  # of a panel of the plot, and its margins
COLOURS = ("#1f5fa8", "#b35a12", "#4a7a3a", "#8a4fa3", "#555555")


def plot(metrics: dict[str, dict[str, list[float]]], frames: int) -> str:
    """A panel for each metric, with the curve of each variant over frames 1 … frames − 1, as SVG."""
    width, height = 2 * WIDE, TOP + HIGH * -(-len(metrics) // 2)
    parts = [f'<rect width="{width}" height="{height}" fill="#fff"/>']
    for colour, variant, x in zip(COLOURS, next(iter(metrics.values())), range(LEFT, width, 150), strict=False):
        parts.append(
            f'<path d="M{x} 15h24" stroke="{colour}" stroke-width="2"/><text x="{x + 30}" y="19">{variant}</text>'
        )
    for place, (title, curves) in enumerate(metrics.items()):
        x, y = place % 2 * WIDE, place // 2 * HIGH + TOP
        parts.append(f'<g transform="translate({x} {y})">{"".join(_panel(title, curves, frames))}</g>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12">{"".join(parts)}</svg>\n'
    )


def _panel(title: str, curves: dict[str, list[float]], frames: int) -> Iterator[str]:
    least, most = (extreme(extreme(curve) for curve in curves.values()) for extreme in (min, max))
    room, across, down = max(most - least, 1e-6), WIDE - LEFT - RIGHT, HIGH - TOP - BOTTOM
    yield f'<text x="{LEFT}" y="18" font-weight="600">{title}</text>'
    for share, anchor in ((0, "start"), (0.5, "middle"), (1, "end")):
        y = TOP + down * share
        yield f'<path d="M{LEFT} {y:.1f}h{across}" stroke="#ddd"/>'
        yield f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{most - room * share:.3g}</text>'
        x, frame = LEFT + across * share, 1 + (frames - 2) * share
        yield f'<text x="{x:.0f}" y="{HIGH - 22}" text-anchor="{anchor}">{frame:.0f}</text>'
    for colour, curve in zip(COLOURS, curves.values(), strict=False):
        places = ((LEFT + across * i / max(1, len(curve) - 1), most - value) for i, value in enumerate(curve))
        points = " ".join(f"{x:.1f},{TOP + down * below / room:.1f}" for x, below in places)
        yield f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"/>'


def sheet(clips: dict[str, Frames], at: list[int]) -> Image.Image:
    """A row for each variant: its frames, whose numbers are `at`."""
    step = TILE + GAP
    picture = Image.new("RGB", (step * len(at) + GAP, (step + TITLE) * len(clips)), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    for row, (variant, frames) in enumerate(clips.items()):
        top = row * (step + TITLE)
        for column, (frame, number) in enumerate(zip(frames, at, strict=True)):
            left = GAP + column * step
            draw.text((left, top + 1), variant if column == 0 else f"frame {number}", fill="black", font=font)
            picture.paste(Image.fromarray(frame).resize((TILE, TILE), Image.Resampling.LANCZOS), (left, top + TITLE))
    return picture
