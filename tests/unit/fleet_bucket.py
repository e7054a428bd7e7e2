"""An object store for tests: `bucket://` URLs for a folder that several processes share.

A Dask worker loads this with `--preload`; importing it makes the URLs known in this process.
"""

from __future__ import annotations

import os
from typing import Any

from fsspec import register_implementation
from fsspec.implementations.dirfs import DirFileSystem

ROOT = "TRACEKIT_TEST_BUCKET"
"""The environment variable with the folder that stands for the store."""


class Bucket(DirFileSystem):  # type: ignore[misc]
    """Everything below the folder, by URLs that no `open` of a local path would take."""

    protocol = "bucket"

    def __init__(self, **options: Any) -> None:
        super().__init__(path=os.environ[ROOT], target_protocol="file", auto_mkdir=True, **options)


register_implementation("bucket", Bucket, clobber=True)
