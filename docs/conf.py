"""The documentation site; `scripts/docs.sh` builds it."""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]

from _pages import api, guides, settings, tables  # noqa: E402

project = "SEPC-TF"
html_title = "SEPC-TF"
extensions = ["myst_parser"]
exclude_patterns = ["_pages"]
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False


def _write_pages(app):
    """Writes the pages that are made of the source to docs/generated, where they have changed."""
    pages = {
        "settings": settings.page(),
        "detectors": tables.page(),
        **dict(api.pages()),
        **{f"guide_{p.stem}": guides.markdown(p.read_text()) for p in DOCS.glob("guides/*.py")},
    }
    folder = DOCS / "generated"
    folder.mkdir(exist_ok=True)
    for file in folder.glob("*.md"):
        if file.stem not in pages:
            file.unlink()
    for name, text in pages.items():
        file = folder / f"{name}.md"
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")


def setup(app):
    app.connect("builder-inited", _write_pages)
