"""The claims of all papers, and what came out here: gathered from the notebooks' outputs.

python tools/claims.py [NOTEBOOK ...]      print them as JSON

`teach.claims` leaves its rows as data in its output (vtlib/teach/tables.py).
"""

import json
import sys
from pathlib import Path

if __name__ == "__main__":  # as a script: the folder above tools/ holds the package
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.notebook import code_cells, number, paths, read
from tools.papers import sections
from vtlib.teach.tables import CLAIMS, HERE


def rows_of(cell):
    """The rows that the outputs of a cell carry, in order."""
    found = [output.get("data", {}).get(CLAIMS, {"rows": []}) for output in cell.outputs]
    return [dict(row) for data in found for row in data["rows"]]


def gather(files=()):
    """Every claim of the named notebooks, or of the course, in the order of reading.

    A list of dicts: `claim`, `paper` (its number), `here` (ours), `where` that is ("here" for the
    notebook's own model, "on DINOv2"), `verdict` in words, `holds` (True, False, or None where only
    words say it), `why` it may differ, `slug` of the paper (that of the row, else that of its
    section, else None), `notebook` ("01b") and `cell` ("c039").
    """
    found = []
    for path in paths(files):
        nb = read(path)
        section = {cell.id: slug for slug, cells in sections(nb).items() for cell in cells}
        for cell in code_cells(nb):
            place = {"notebook": number(path), "cell": cell.id}
            for row in rows_of(cell):
                row["slug"] = row["slug"] or section.get(cell.id)
                found.append({"where": HERE} | row | place)
    return found


if __name__ == "__main__":
    print(json.dumps(gather(sys.argv[1:]), indent=1, ensure_ascii=False))
