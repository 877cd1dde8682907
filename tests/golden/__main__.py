"""python -m tests.golden FOLDER [--known]: run every golden case below FOLDER, one line a case.

A case is a json beside a safetensors file (format: tests/golden/README.md). Ends non-zero when a
case fails or has no adapter; --known skips the cases without an adapter. Without FOLDER: the cases
that ship with the tests.
"""

import argparse
import pathlib
import sys

from .runner import find_cases, run_case

HERE = pathlib.Path(__file__).parent


def main(arguments=None):
    first = __doc__.split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=first)
    searched = "searched for cases, sub-folders included"
    parser.add_argument("folder", nargs="?", type=pathlib.Path, default=HERE, help=searched)
    parser.add_argument("--known", action="store_true", help="skip cases without an adapter")
    args = parser.parse_args(arguments)
    cases = find_cases(args.folder)
    if not cases:
        print(f"no golden cases (*.json with *.safetensors beside it) below {args.folder}")
        return 2
    bad = passed = skipped = 0
    for path in cases:
        result = run_case(path)
        if result.status == "no adapter" and args.known:
            skipped += 1
            continue
        print(result)
        passed += result.status == "ok"
        bad += result.status != "ok"
    print(f"{passed} passed, {bad} failed, {skipped} skipped (no adapter)")
    return 1 if bad or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
