"""Build hook: a real wheel carries the assets of data/ as vtlib/assets/.

An editable install reads data/ where it is.
"""

from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LEFT_OUT = {".py", ".pyc", ".ipynb"}  # the scripts that rebuild the assets stay in the repository
FETCHED = "real"  # other people's weights, which `make real` wrote


def assets(root: Path) -> dict[str, str]:
    """Map each file of `root/data` that belongs into the wheel to its path inside the wheel."""
    data = root / "data"
    files = (p for p in sorted(data.rglob("*")) if p.is_file())
    shown = (p for p in files if not any(q.startswith(".") for q in p.relative_to(data).parts))
    own = (p for p in shown if p.relative_to(data).parts[0] != FETCHED)
    kept = (p for p in own if p.suffix not in LEFT_OUT)
    return {str(p): f"vtlib/assets/{p.relative_to(data).as_posix()}" for p in kept}


class AssetsHook(BuildHookInterface):
    def initialize(self, version, build_data):
        if version == "editable":
            return
        build_data["force_include"].update(assets(Path(self.root)))
