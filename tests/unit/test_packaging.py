"""What a wheel holds: every package by discovery, the BPF programs, profiles and bundled traces."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"tracekit": "tracekit", "probes": "tracekit/probes", "replay": "tracekit/replay"}
FOLDERS |= {"datasets": "tracekit/datasets"}
DATA = {".c", ".h", ".toml", ".arrow", ".html", ".css", ".js", ".typed"}


def _tracked(folder: str) -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [Path(line) for line in listing.stdout.splitlines()]


def test_the_wheel_holds_every_module_and_data_file(tmp_path: Path) -> None:
    dist_cfg = tmp_path / "dist.cfg"  # build outside the source tree: ./build/lib keeps deleted modules
    dist_cfg.write_text(f"[build]\nbuild_base={tmp_path}/build\n[egg_info]\negg_base={tmp_path}\n")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            str(tmp_path),
            ".",
        ],
        cwd=ROOT,
        check=True,
        env={**os.environ, "DIST_EXTRA_CONFIG": str(dist_cfg)},
    )
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        f"{inside}/{path.relative_to(folder)}"
        for folder, inside in FOLDERS.items()
        for path in _tracked(folder)
        if (ROOT / path).exists() and (path.suffix == ".py" or path.suffix in DATA)
    }
    assert wanted - held == set()
    assert {name.split("/")[0] for name in held if ".dist-info" not in name} == {"tracekit"}
