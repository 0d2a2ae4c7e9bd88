"""A page, block by block: each call adds one below the last; `write` makes one HTML file of them."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from deit_fast import __version__

from .plots import Spec, javascript_bundle, vega_of
from .theme import FONT, css_variables

Cell = str | int | float | None
"""Of a table: text is shown as it is, a number with as many digits as it is worth, None as a dash."""
MARKS = {True: ("good", "✓"), False: ("bad", "✕"), None: ("open", "?")}


def inline(text: str) -> str:
    """Plain text as HTML; what stands between backticks is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def format_number(value: float) -> str:
    """23,880, 1,482.8 and 0.0123: no decimal from 10,000 up, one from 100 up, three significant digits below."""
    if isinstance(value, int) or abs(value) >= 10_000:
        return f"{value:,.0f}"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:,.3g}"


class Page:
    """A self-contained page. Text is plain: it is escaped, and `code` between backticks is set as code."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title, self.subtitle = title, subtitle
        self._blocks: list[str] = []
        self._headings: list[str] = []
        self._figures = 0

    def section(self, heading: str, text: str = "") -> None:
        """Opens a section; it is listed in the page's contents."""
        self._headings.append(heading)
        self._blocks.append(f'<h2 id="s{len(self._headings)}">{inline(heading)}</h2>')
        if text:
            self.text(text)

    def text(self, text: str) -> None:
        """A paragraph."""
        self._blocks.append(f'<p class="text">{inline(text)}</p>')

    def verdict(self, headline: str, good: bool | None, lines: Sequence[str] = (), share: float | None = None) -> None:
        """What the reader came for. good None: it cannot be said. share: reached / required, drawn as a bar."""
        kind, mark = MARKS[good]
        body = f'<div class="mark">{mark}</div><div><p class="headline">{inline(headline)}</p>'
        if share is not None:
            span = max(1.0, share) * 1.06
            body += (
                f'<div class="meter" role="img" aria-label="{share:.1%} of what is required">'
                f'<i style="width:{100 * share / span:.2f}%"></i><b style="left:{100 / span:.2f}%"></b></div>'
            )
        if lines:
            body += "<ul>" + "".join(f"<li>{inline(line)}</li>" for line in lines) + "</ul>"
        self._blocks.append(f'<section class="verdict {kind}">{body}</div></section>')

    def cards(self, cards: Sequence[tuple[str, str, str]]) -> None:
        """Figures worth a look of their own: (label, value, note)."""
        cells = (
            f'<div class="card"><span>{inline(label)}</span><strong>{inline(value)}</strong>'
            f"<small>{inline(note)}</small></div>"
            for label, value, note in cards
        )
        self._blocks.append(f'<div class="cards">{"".join(cells)}</div>')

    def figure(self, spec: Spec, caption: str) -> None:
        """A Vega-Lite drawing (see `plots`); it is as wide as the page. ValueError for what is none."""
        self._figures += 1
        # "</script>" in a label would end the script that holds it
        data = json.dumps(vega_of(spec), separators=(",", ":")).replace("<", "\\u003c")
        self._blocks.append(
            f'<figure><div class="plot" id="figure{self._figures}" role="img" aria-label="{html.escape(caption)}">'
            f'</div><script type="application/json">{data}</script><figcaption>{inline(caption)}</figcaption></figure>'
        )

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[Cell]], sortable: bool = True) -> None:
        """A table; numbers stand right. sortable: by a click on a heading. ValueError for a row of another length."""
        for row in rows:
            if len(row) != len(headings):
                raise ValueError(f"a row of {len(row)} cells under {len(headings)} headings: {list(row)}")
        classes = ["" if any(isinstance(row[i], str) for row in rows) else "n" for i in range(len(headings))]
        label = '<button type="button">{}</button>' if sortable else "{}"
        head = "".join(
            f'<th class="{kind}" scope="col">{label.format(inline(heading))}</th>'
            for kind, heading in zip(classes, headings, strict=True)
        )
        body = "".join(
            "<tr>" + "".join(_cell(cell, kind) for cell, kind in zip(row, classes, strict=True)) + "</tr>"
            for row in rows
        )
        kind = "sortable" if sortable else ""
        self._blocks.append(
            f'<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )

    def details(self, summary: str, text: str) -> None:
        """Text as it is, such as a configuration, folded away."""
        self._blocks.append(f"<details><summary>{inline(summary)}</summary><pre>{html.escape(text)}</pre></details>")

    def html(self) -> str:
        """The whole page."""
        bundle = f"<script>{javascript_bundle()}</script>" if self._figures else ""
        contents = "".join(f'<a href="#s{i}">{inline(h)}</a>' for i, h in enumerate(self._headings, start=1))
        made = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
        style = css_variables() + f":root{{--font:{FONT}}}" + _asset("page.css")
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
            f"<title>{html.escape(self.title)}</title><style>{style}</style></head><body><main>"
            f"<header><h1>{inline(self.title)}</h1><p>{inline(self.subtitle)}</p></header>"
            + (f"<nav>{contents}</nav>" if contents else "")
            + "\n".join(self._blocks)
            + f"<footer>deit_fast {__version__}, {made}. One file: nothing is loaded from elsewhere.</footer>"
            + f"</main>{bundle}<script>{_asset('page.js')}</script></body></html>\n"
        )

    def write(self, path: str | Path) -> Path:
        """Writes the page beside its place and moves it there, so that no half of a page is ever seen."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(self.html(), encoding="utf-8")
        partial.replace(path)
        return path


def _asset(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _cell(cell: Cell, kind: str) -> str:
    if cell is None:
        return f'<td class="{kind}" data-value="">–</td>'
    if isinstance(cell, str):
        return f'<td class="{kind}">{inline(cell)}</td>'
    return f'<td class="{kind}" data-value="{cell!r}">{format_number(cell)}</td>'
