"""One HTML page with everything in it: no other file, no script, no network."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from sepc_tf.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDEST = 1100  # pixels of a picture on the page

STYLE = """
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #1c2026; margin: 0 auto;
       max-width: 1140px; padding: 24px; background: #fff; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 40px 0 6px;
     border-bottom: 1px solid #d7dae0; padding-bottom: 4px; }
p { margin: 6px 0 12px; max-width: 75em; } .faint { color: #636b76; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 8px 0; }
th, td { padding: 3px 12px; text-align: right; border-bottom: 1px solid #e6e8ec; }
th { background: #f3f5f8; font-weight: 600; } th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; height: auto; } figure { margin: 12px 0 26px; }
figcaption { color: #3c434d; margin-bottom: 4px; }
.numbers { display: flex; flex-wrap: wrap; gap: 10px; margin: 14px 0; }
.numbers div { background: #f3f5f8; border-radius: 6px; padding: 8px 16px; }
.numbers b { display: block; font-size: 21px; }
nav a { margin-right: 14px; color: #2563a8; }
"""


class Page:
    """An HTML page that is written from top to bottom.

    Args:
        title: its heading.
        subtitle: a line below it.

    Example:
        >>> page = Page("Analysis", "of runs/demo")
        >>> page.section("Classes", "AP of each.")
        >>> page.table(["class", "AP"], [["cat", "41.2"]])
        >>> "<td>cat</td>" in page.html()
        True
    """

    def __init__(self, title: str, subtitle: str) -> None:
        self.title = title
        self.subtitle = subtitle
        self._sections = []
        self._parts = []

    def numbers(self, values: dict[str, str]) -> None:
        """A row of single numbers, each with its name."""
        cells = "".join(f"<div><b>{escape(v)}</b>{escape(k)}</div>" for k, v in values.items())
        self._parts.append(f'<div class="numbers">{cells}</div>')

    def section(self, title: str, text: str) -> None:
        """A heading and a paragraph."""
        name = f"section-{len(self._sections) + 1}"
        self._sections.append((name, title))
        self._parts.append(f'<h2 id="{name}">{escape(title)}</h2>\n<p>{escape(text)}</p>')

    def paragraph(self, text: str) -> None:
        """A paragraph."""
        self._parts.append(f"<p>{escape(text)}</p>")

    def table(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table of strings; the first column is aligned to the left."""
        head = "".join(f"<th>{escape(text)}</th>" for text in heads)
        body = "\n".join(
            "<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows
        )
        self._parts.append(
            f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"
        )

    def figure(self, png: bytes, alt: str) -> None:
        """A PNG picture, and what it shows for those who cannot see it."""
        self._parts.append(f"<figure>{_image('png', png, alt)}</figure>")

    def photograph(self, jpeg: bytes, caption: str) -> None:
        """A JPEG picture with a caption."""
        picture = _image("jpeg", jpeg, caption)
        self._parts.append(f"<figure><figcaption>{escape(caption)}</figcaption>{picture}</figure>")

    def html(self) -> str:
        """The whole page."""
        links = "".join(f'<a href="#{name}">{escape(text)}</a>' for name, text in self._sections)
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
            f"<title>{escape(self.title)}</title>\n<style>{STYLE}</style></head>\n<body>\n"
            f'<h1>{escape(self.title)}</h1>\n<p class="faint">{escape(self.subtitle)}</p>\n'
            f"<nav>{links}</nav>\n" + "\n".join(self._parts) + "\n</body></html>\n"
        )


def png_bytes(figure: Figure) -> bytes:
    """A figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def write_png(path: str | Path, figure: Figure) -> None:
    """Writes a figure; raises `OutputError` where that is not possible."""
    contents = png_bytes(figure)
    with replacing(path, needed=len(contents)) as file:
        file.write(contents)


def jpeg_bytes(picture: np.ndarray) -> bytes:
    """A picture, uint8 `[H, W, 3]`, as a JPEG file no wider than the page."""
    image = Image.fromarray(picture)
    if image.width > WIDEST:
        image = image.resize((WIDEST, round(image.height * WIDEST / image.width)))
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=88)
    return file.getvalue()


def _image(kind, contents, alt):
    encoded = base64.b64encode(contents).decode()
    return f'<img src="data:image/{kind};base64,{encoded}" alt="{escape(alt, quote=True)}">'
