"""Finds the packages: three top-level folders install as sub-packages of tracekit.

A top-level package called `datasets` or `replay` would clash with other people's packages in
site-packages, so the folders are mapped below `tracekit` and none is listed by hand.
"""

from setuptools import find_packages, setup

INSIDE = ("probes", "replay", "datasets")

packages = find_packages(include=["tracekit", "tracekit.*"])
package_dir = {}
for folder in INSIDE:
    package_dir[f"tracekit.{folder}"] = folder
    packages += [f"tracekit.{name}" for name in find_packages(include=[folder, f"{folder}.*"])]

setup(packages=packages, package_dir=package_dir)
