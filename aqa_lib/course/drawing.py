"""Compose an SVG from boxes, lines and text that are measured before they are drawn.

`[drawing] -> figures`. A picture brings its own card as background and follows the reader's light or dark theme by
itself: GitHub, JupyterLab, Colab and a static page each choose a page's theme differently, so what is drawn must be
legible on white and on black, whichever of its two themes is shown. Text that leaves its box or the card is an error.
"""

import html
from functools import cache
from pathlib import Path

import matplotlib
from PIL import ImageFont

WIDTH = 560  # units; text of 13 is 13 px where a page gives a picture 560 px
SHOWN = 720  # pixels, where there is room
SMALL, SIZE, LARGE = 12, 13, 15
# Okabe and Ito's colours, each as line, tint and text on a white card, then on a dark one.
HUES = {
    "blue": ("#0072B2", "#DCECF6", "#005A8C", "#56A9DC", "#173449", "#8CCBF2"),
    "orange": ("#D55E00", "#FBE7DA", "#A34700", "#F08A3C", "#4A2B16", "#FFB37D"),
    "yellow": ("#E69F00", "#FCF1D9", "#7A5400", "#E9B23C", "#453714", "#F5CF7C"),
    "green": ("#009E73", "#D9F1EA", "#006B4E", "#2FBF95", "#123F34", "#7FE0C3"),
    "pink": ("#CC79A7", "#F7E8F0", "#92406C", "#DB97BC", "#43293A", "#F0BDD8"),
    "grey": ("#8A8F98", "#EEF0F2", "#4B525B", "#8B949E", "#2A3038", "#C3CAD3"),
}
CARD, INK = ("#FFFFFF", "#161B22"), ("#1F2328", "#E6EDF3")
FONTS = {
    "": ("DejaVuSans.ttf", "Verdana, 'DejaVu Sans', 'Segoe UI', Helvetica, Arial, sans-serif"),
    "bold": ("DejaVuSans-Bold.ttf", ""),
    "mono": ("DejaVuSansMono.ttf", "'DejaVu Sans Mono', Menlo, Consolas, monospace"),
}


def style() -> str:
    """Return the style classes of a picture's elements, light and dark."""

    def colours(place: int) -> str:
        rules = [f".card{{fill:{CARD[place]};stroke:{HUES['grey'][3 * place]}}}", f"text,.ink{{fill:{INK[place]}}}"]
        rules += [f".line{{stroke:{INK[place]};fill:none}}"]
        for name, hue in HUES.items():
            line, tint, text = hue[3 * place : 3 * place + 3]
            rules += [f".{name}{{fill:{tint};stroke:{line}}}", f".{name}-solid{{fill:{line}}}"]
            rules += [f".{name}-line{{stroke:{line};fill:none}}", f"text.{name}-text{{fill:{text}}}"]
        return "".join(rules)

    text = f"text{{font:{SIZE}px {FONTS[''][1]}}}.bold{{font-weight:bold}}.mono{{font-family:{FONTS['mono'][1]}}}"
    return f"{text}{colours(0)}@media (prefers-color-scheme:dark){{{colours(1)}}}"


@cache
def _font(kind: str, size: int):
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf" / FONTS[kind][0], 4 * size)


def width(text: str, kind: str = "", size: int = SIZE) -> float:
    """Measure a text in DejaVu Sans, which is wider than nearly any font that a reader may have in its place.

    >>> width("two words") > width("words") > width("words", size=SMALL) > 0
    True
    """
    return _font(kind, size).getlength(text) / 4


def wrap(text: str, space: float, size: int = SIZE) -> list[str]:
    """Break a text into lines that are no wider than `space`.

    >>> wrap("one two three", 70)
    ['one two', 'three']
    """
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines[-1:] = [longer] if width(longer, size=size) <= space or not lines[-1] else [lines[-1], word]
    return lines


def _number(value: float) -> str:
    return f"{round(float(value), 1) + 0:g}"  # + 0: no minus zero


class Drawing:
    """A picture of WIDTH by `height` units. title, description: what a reader who cannot see it is told."""

    def __init__(self, title: str, description: str, height: float):
        self.title, self.description, self.height, self.parts = title, description, height, []

    def add(self, tag: str, kind: str, **attributes) -> None:
        """Add an element with a class; numbers are written to a tenth."""
        values = {key.replace("_", "-"): value for key, value in attributes.items()}
        written = [f'{k}="{v if isinstance(v, str) else _number(v)}"' for k, v in values.items()]
        self.parts.append(" ".join([f'<{tag} class="{kind}"', *written]) + "/>")

    def text(self, x, y, text, kind="", hue="", size=SIZE, anchor="start", space=None) -> None:
        """Write a line with its baseline at y. kind: "", "bold" or "mono"; space: the width that it may have."""
        wide = width(text, kind, size)
        left = x - {"start": 0, "middle": wide / 2, "end": wide}[anchor]
        if wide > (space or WIDTH) or left < 8 or left + wide > WIDTH - 8 or not 8 < y < self.height - 4:
            raise ValueError(f"{self.title}: {text!r} is {wide:.0f} wide and does not fit at ({x:g}, {y:g}).")
        classes = " ".join(filter(None, [kind, f"{hue}-text" if hue else ""]))
        extra = f' class="{classes}"' if classes else ""
        extra += f' style="font-size:{size}px"' if size != SIZE else ""
        extra += f' text-anchor="{anchor}"' if anchor != "start" else ""
        written = html.escape(text, quote=False)
        self.parts.append(f'<text x="{_number(x)}" y="{_number(y)}" xml:space="preserve"{extra}>{written}</text>')

    def lines(self, x, y, texts, step=17, **style) -> None:
        """Write lines one below the other, the first one's baseline at y."""
        for place, text in enumerate(texts):
            self.text(x, y + step * place, text, **style)

    def paragraph(self, x, y, text, space, step=17, size=SIZE) -> None:
        """Write a text in lines no wider than `space`."""
        self.lines(x, y, wrap(text, space, size), step, size=size)

    def rectangle(self, x, y, w, h, hue="grey", round=6, thick=1.5) -> None:
        self.add("rect", hue, x=x, y=y, width=w, height=h, rx=round, stroke_width=thick)

    def bar(self, x, y, w, h, hue) -> None:
        """Fill a rectangle; a negative height goes upwards."""
        self.add("rect", f"{hue}-solid", x=x, y=min(y, y + h), width=w, height=abs(h))

    def box(self, x, y, w, h, *texts, hue="grey", kind="", head="bold", size=SIZE) -> None:
        """Draw a box with lines in its middle, the first in `head`."""
        self.rectangle(x, y, w, h, hue)
        step = size + 4
        first = y + h / 2 - step * (len(texts) - 1) / 2 + size * 0.36
        for place, text in enumerate(texts):
            style = {"kind": kind if place else head, "size": size, "anchor": "middle", "space": w - 4}
            self.text(x + w / 2, first + step * place, text, **style)

    def line(self, *points, hue="", dashed=False, thick=1.5) -> None:
        """Join points (x, y, x, y, ...) by straight lines."""
        pairs = " ".join(f"{_number(x)},{_number(y)}" for x, y in zip(points[::2], points[1::2], strict=True))
        dashes = {"stroke_dasharray": "5 4"} if dashed else {}
        self.add("polyline", f"{hue}-line" if hue else "line", points=pairs, stroke_width=thick, **dashes)

    def arrow(self, *points, hue="", thick=1.5) -> None:
        """Join points and put a head on the last one."""
        (x0, y0), (x1, y1) = points[-4:-2], points[-2:]
        long = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
        dx, dy = (x1 - x0) / long, (y1 - y0) / long
        back = x1 - 8 * dx, y1 - 8 * dy
        self.line(*points[:-2], *back, hue=hue, thick=thick)
        corners = (x1, y1, back[0] - 4 * dy, back[1] + 4 * dx, back[0] + 4 * dy, back[1] - 4 * dx)
        pairs = " ".join(f"{_number(x)},{_number(y)}" for x, y in zip(corners[::2], corners[1::2], strict=True))
        self.add("polygon", f"{hue}-solid" if hue else "ink", points=pairs)

    def mark(self, x, y, good: bool) -> None:
        """Draw a tick or a cross, which differ in form as well as in colour."""
        if good:
            self.line(x - 6, y, x - 2, y + 5, x + 6, y - 6, hue="blue", thick=3)
        else:
            self.line(x - 5, y - 5, x + 5, y + 5, hue="orange", thick=3)
            self.line(x - 5, y + 5, x + 5, y - 5, hue="orange", thick=3)

    def svg(self) -> str:
        """Return the picture's file."""
        high = _number(self.height)
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {high}" width="{SHOWN}" '
                f'height="{_number(SHOWN * self.height / WIDTH)}" role="img" aria-labelledby="title desc">',
                f'<title id="title">{html.escape(self.title, quote=False)}</title>',
                f'<desc id="desc">{html.escape(self.description, quote=False)}</desc>',
                f"<style>{style()}</style>",
                f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{_number(self.height - 1)}" rx="8"/>',
                *self.parts,
                "</svg>",
                "",
            ]
        )
