"""Run by a test with the python of another environment: python run_cells.py NOTEBOOK COUNT.

Executes the first cells of a notebook there, 0 for all, and prints their text as JSON.
"""

import json
import sys

import nbformat
from nbclient import NotebookClient

nb = nbformat.read(sys.argv[1], as_version=4)
cells = [cell for cell in nb.cells if cell.cell_type == "code"][: int(sys.argv[2]) or None]
nb.cells = [*cells, nbformat.v4.new_code_cell("import vtlib; print(vtlib.__file__)")]
here = {"metadata": {"path": "."}}
NotebookClient(nb, timeout=120, kernel_name="python3", resources=here).execute()
print(json.dumps(["".join(o.get("text", "") for o in cell.outputs) for cell in nb.cells]))
