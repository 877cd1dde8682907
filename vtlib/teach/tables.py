"""Small tables, as HTML and as plain text."""

import html
from collections.abc import Sequence

import numpy as np
import torch

from vtlib.nn.checks import check_list
from vtlib.teach import figures

HERE = "here"
CLAIMS = "application/vnd.vtlib.claims+json"
"""Type of the part of an output that carries the rows of `claims` as data. No viewer knows it, so
each shows the HTML beside it (JupyterLab 4.6: its only renderers of JSON are for other types)."""
VERDICTS = {True: "holds", False: "does not hold"}
WHY = "Why it may differ:"


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
    markup = _markup(_escaped(names), [_escaped(row) for row in cells], numeric, caption)
    figures.publish({"text/html": markup, "text/plain": _plain(names, cells, numeric, caption)})


def _column_is_numeric(texts: list[str]) -> bool:
    return bool(texts) and all(_is_numeric(text) for text in texts if text)


def _escaped(texts: Sequence[str]) -> list[str]:
    return [html.escape(text) for text in texts]


def _markup(header, cells, numeric, caption) -> str:
    """The table as HTML. header, cells: HTML already; caption: plain text."""
    sides = ["right" if number else "left" for number in numeric]

    def line(row, first, other):
        tags = [first] + [other] * (len(row) - 1)
        parts = [
            f'<{tag} style="text-align:{side}">{text}</{tag.split()[0]}>'
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


# ------------------------------------------------------------------------------------------ claims


def claims(
    rows: Sequence[Sequence], slug: str | Sequence | None = None, where: str = HERE
) -> None:
    """Publish what a paper claims beside what came out here: the table that ends its section.

    It has three columns, claim | paper | here. The last begins with the verdict in words, and each
    reason becomes a sentence below. The output also carries the rows as data, which
    tools/claims.py gathers.

    ValueError for rows of another length, a verdict that is neither a bool nor words, slugs that
    are not one a row, and a `where` without a word.

    Args:
        rows: (claim, the paper's number, the number here, verdict) or the same and why the number
            here may differ. The verdict is True ("holds"), False ("does not hold") or words of
            your own ("a tie"); the reason may be None.
        slug: the paper's, or a list with one a row (None for no paper's). The section of a paper
            needs none: its heading is tagged with it.
        where: the heading of the last column, such as "on DINOv2" where a claim is looked at again
            on another model than the notebook's own.
    """
    rows = check_list(rows, "rows")
    if not isinstance(where, str) or not where.strip():
        raise ValueError(f"where={where!r}: needs the heading of a column, such as 'on DINOv2'")
    slugs = slug if isinstance(slug, (list, tuple)) else [slug] * len(rows)
    if len(slugs) != len(rows):
        raise ValueError(f"slug: got {len(slugs)} slugs for {len(rows)} rows, needs one a row")
    own = [{"where": where, "slug": slug} for slug in slugs]
    data = [_claim(row, f"rows[{i}]") | own[i] for i, row in enumerate(rows)]
    columns = ["claim", "paper", where]
    markup, plain = _claims_markup(columns, data), _claims_plain(columns, data)
    figures.publish({"text/html": markup, "text/plain": plain, CLAIMS: {"rows": data}})


def _claim(row: Sequence, name: str) -> dict:
    """A row as data. `holds` is None where the verdict is words of the author."""
    row = check_list(row, name)
    if len(row) not in (4, 5):
        raise ValueError(
            f"{name} has {len(row)} cells, needs 4 or 5: claim, the paper's number, the number"
            " here, verdict, and why it may differ if there is a reason"
        )
    claim, paper, here = (_cell(value).strip() for value in row[:3])
    if not claim:
        raise ValueError(f"{name}[0] is empty, needs the claim")
    holds, verdict = _verdict(row[3], f"{name}[3]")
    why = _cell(row[4]).strip() if len(row) == 5 else ""
    if why and why[-1] not in ".!?":
        why += "."
    data = {"claim": claim, "paper": paper, "here": here}
    return data | {"verdict": verdict, "holds": holds, "why": why}


def _verdict(verdict, name: str) -> tuple[bool | None, str]:
    if isinstance(verdict, (np.generic, torch.Tensor)) and np.ndim(verdict) == 0:
        verdict = verdict.item()
    if isinstance(verdict, bool):
        return verdict, VERDICTS[verdict]
    if not isinstance(verdict, str) or not verdict.strip():
        raise ValueError(f"{name}={verdict!r}: needs True, False or the verdict in words")
    return None, verdict.strip()


def _claims_markup(columns: list[str], data: list[dict]) -> str:
    cells, reasons = [], []
    for row in data:
        safe = {name: html.escape(row[name]) for name in ("claim", "paper", "here", "why")}
        verdict = f"<b>{html.escape(row['verdict'])}</b>"
        here = f"{verdict}: {safe['here']}" if row["here"] else verdict
        cells.append([safe["claim"], safe["paper"], here])
        if row["why"]:
            reasons.append(f"<li><i>{safe['claim']}</i>: {safe['why']}</li>")
    markup = _markup(_escaped(columns), cells, [False] * 3, None)
    return f"{markup}\n<p>{WHY}</p>\n<ul>{''.join(reasons)}</ul>" if reasons else markup


def _claims_plain(columns: list[str], data: list[dict]) -> str:
    cells, reasons = [], []
    for row in data:
        here = f"{row['verdict']}: {row['here']}" if row["here"] else row["verdict"]
        cells.append([row["claim"], row["paper"], here])
        if row["why"]:
            reasons.append(f"- {row['claim']}: {row['why']}")
    lines = [_plain(columns, cells, [False] * 3, None)]
    return "\n".join([*lines, WHY, *reasons] if reasons else lines)
