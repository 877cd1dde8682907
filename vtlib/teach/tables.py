"""Small tables, as HTML and as plain text."""

import html
from collections.abc import Sequence

import numpy as np
import torch

from vtlib.nn.checks import check_list
from vtlib.teach import figures

CLAIM_COLUMNS = ["claim", "paper's number", "ours", "same direction?", "why it may differ"]


def _cell(value) -> str:
    if isinstance(value, (np.generic, torch.Tensor)) and np.ndim(value) == 0:
        value = value.item()
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def _is_numeric(text: str) -> bool:
    try:
        float(text.replace(",", "").rstrip("%x"))
    except ValueError:
        return False
    return True


def table(header: Sequence, rows: Sequence[Sequence], caption: str | None = None) -> None:
    """Publish a small table, as HTML (the first cell of a row is its heading) and as plain text.

    Floats are written with 4 significant digits, booleans as yes / no, None as an empty cell;
    format numbers yourself where that is not it. ValueError for a row that is too short or long.

    Args:
        header: names of the columns.
        rows: as many cells each: numbers (of NumPy or torch too), booleans, words, None.
        caption: a line above the table.
    """
    if caption is not None and not isinstance(caption, str):
        raise ValueError(f"caption={caption!r}: needs a string")
    names = [_cell(name) for name in check_list(header, "header")]
    cells = [check_list(row, f"rows[{i}]") for i, row in enumerate(check_list(rows, "rows"))]
    cells = [[_cell(value) for value in row] for row in cells]
    for i, row in enumerate(cells):
        if len(row) != len(names):
            raise ValueError(
                f"rows[{i}] has {len(row)} cells but the header has {len(names)} columns"
            )
    numeric = [_column_is_numeric([row[j] for row in cells]) for j in range(len(names))]
    markup = _markup(names, cells, numeric, caption)
    figures.publish({"text/html": markup, "text/plain": _plain(names, cells, numeric, caption)})


def _column_is_numeric(texts: list[str]) -> bool:
    return bool(texts) and all(_is_numeric(text) for text in texts if text)


def _markup(header, cells, numeric, caption) -> str:
    sides = ["right" if number else "left" for number in numeric]

    def line(row, first, other):
        tags = [first] + [other] * (len(row) - 1)
        parts = [
            f'<{tag} style="text-align:{side}">{html.escape(text)}</{tag.split()[0]}>'
            for text, tag, side in zip(row, tags, sides, strict=True)
        ]
        return f"<tr>{''.join(parts)}</tr>"

    column, heading = 'th scope="col"', 'th scope="row"'
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    head = f"<thead>{line(header, column, column)}</thead>"
    body = "".join(line(row, heading, "td") for row in cells)
    return f"<table>{title}{head}<tbody>{body}</tbody></table>"


def _plain(header, cells, numeric, caption) -> str:
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]

    def line(row):
        columns = zip(row, widths, numeric, strict=True)
        parts = [text.rjust(w) if number else text.ljust(w) for text, w, number in columns]
        return "  ".join(parts).rstrip()

    rule = "  ".join("-" * width for width in widths)
    title = [caption] if caption else []
    return "\n".join([*title, line(header), rule, *map(line, cells)])


def claims(rows: Sequence[Sequence]) -> None:
    """Publish the table that ends a paper's section.

    Each row: (claim, paper's number, ours, same direction?, why it may differ); the fourth cell is
    a bool (written yes / no) or words. ValueError for a row of another length.
    """
    rows = [check_list(row, f"rows[{i}]") for i, row in enumerate(check_list(rows, "rows"))]
    for i, row in enumerate(rows):
        if len(row) != len(CLAIM_COLUMNS):
            raise ValueError(
                f"rows[{i}] has {len(row)} cells, needs 5: claim, paper's number, ours,"
                " same direction, why it may differ"
            )
    table(CLAIM_COLUMNS, rows)
