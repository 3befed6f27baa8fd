"""A report as data, rendered as Markdown and as one HTML page that needs no other file."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .tables import Table, to_markdown

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
td.best { font-weight: 600; }
img { max-width: 100%; image-rendering: auto; }
figure { margin: 1.5rem 0; }
figcaption, footer { color: #666; font-size: 13px; }
details img { image-rendering: pixelated; }
.wide { overflow-x: auto; }
"""


@dataclass(frozen=True)
class Picture:
    """A PNG in the folder of the report; `folded` ones are shown on a click, in HTML only."""

    file: str
    caption: str
    folded: bool = False


Block = Table | Picture | Sequence[str]


@dataclass(frozen=True)
class Section:
    """A heading with tables, pictures and lists of notes below it."""

    title: str
    blocks: tuple[Block, ...]


def markdown(title: str, sections: Sequence[Section]) -> str:
    """The report as Markdown that links the PNGs beside it."""
    parts = [f"# {title}"]
    for section in sections:
        texts = [text for block in section.blocks if (text := markdown_block(block))]
        if texts:
            parts += [f"## {section.title}", *texts]
    return "\n\n".join(parts) + "\n"


def markdown_block(block: Block) -> str:
    """One block; nothing for a folded picture."""
    if isinstance(block, Table):
        return to_markdown(block)
    if isinstance(block, Picture):
        return "" if block.folded else f"![{block.caption}]({block.file})"
    return "\n".join(f"- {line}" for line in block)


def page(title: str, sections: Sequence[Section], folder: Path) -> str:
    """The report as HTML with all PNGs of `folder` inside."""
    name = html.escape(title)
    body = [f"<h1>{name}</h1>"]
    for section in sections:
        body.append(f"<h2>{html.escape(section.title)}</h2>")
        body += [html_block(block, folder) for block in section.blocks]
    head = f'<meta charset="utf-8"><title>{name}</title><style>{STYLE}</style>'
    viewport = '<meta name="viewport" content="width=device-width">'
    content = "".join(body)
    return (
        f"<!doctype html><html lang=en><head>{head}{viewport}</head><body>{content}</body></html>\n"
    )


def html_block(block: Block, folder: Path) -> str:
    """One block."""
    if isinstance(block, Table):
        return html_table(block)
    if isinstance(block, Picture):
        text = html.escape(block.caption)
        image = f'<img alt="{text}" src="{inlined(folder / block.file)}">'
        if block.folded:
            return f"<details><summary>{text}</summary><figure>{image}</figure></details>"
        return f"<figure>{image}<figcaption>{text}</figcaption></figure>"
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in block) + "</ul>"


def html_table(table: Table) -> str:
    """A table with its best places marked."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.head)
    lines = []
    for i, row in enumerate(table.rows):
        cells = (
            f"<td{' class=best' if (i, j) in table.bold else ''}>{html.escape(text)}</td>"
            for j, text in enumerate(row)
        )
        lines.append("<tr>" + "".join(cells) + "</tr>")
    rows = "".join(lines)
    return f"<div class=wide><table><thead><tr>{head}</tr></thead>{rows}</table></div>"


def inlined(path: Path) -> str:
    """A PNG as a data URL."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
