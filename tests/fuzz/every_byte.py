"""Every byte of every table and part of a small trace, some values each, all checksums made right again.

`python -m tests.fuzz.every_byte finished|smaller [STEP]` looks at each byte (or each STEP-th) and prints what
was neither read nor refused as it should be. A trace is laid out and read for each value: minutes.
"""

from __future__ import annotations

import sys
from collections import Counter

from tests.fuzz import seeds
from tests.fuzz.edits import resealed
from tests.fuzz.targets import read_whole
from tracekit.errors import TracekitError


def main(name: str, step: int = 1) -> int:
    """Return 1 if anything else than a right reading or a typed error with exit code 2 or 4 came."""
    seed: dict[str, bytes] = getattr(seeds, name)()
    inputs = refused = 0
    wrong: Counter[str] = Counter()
    for file, content in seed.items():
        if not file.endswith((".arrow", ".parquet")):
            continue
        for at in range(0, len(content), step):
            old = content[at]
            for new in {0, 255, old ^ 1, old ^ 0x80, (old + 1) & 255, (old - 4) & 255} - {old}:
                changed = content[:at] + bytes([new]) + content[at + 1 :]
                inputs += 1
                try:
                    read_whole(resealed({**seed, file: changed}))
                except TracekitError as error:
                    refused += 1
                    if error.exit_code not in (2, 4):
                        wrong[f"{file}: exit code {error.exit_code}: {error}"] += 1
                except Exception as error:
                    wrong[f"{file}, byte {at} = {new}: {type(error).__name__}: {error}"] += 1
    print(f"{name}: {inputs:,} inputs, {refused:,} refused, {wrong.total():,} wrong")
    for what, count in wrong.most_common(20):
        print(f"{count:6} {what}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(int, sys.argv[2:3])))
