"""Package discovery: the stages of the compiler are root folders that install under ``omnic.*``.

The map of root folders is ``tool.setuptools.package-dir`` in pyproject.toml; this file walks it so
that a new sub-package needs no entry of its own.
"""

import tomllib
from pathlib import Path

from setuptools import find_packages, setup


def packages() -> list[str]:
    """Return every package of the mapped root folders under its installed name."""
    with Path(__file__).with_name("pyproject.toml").open("rb") as file:
        folders: dict[str, str] = tomllib.load(file)["tool"]["setuptools"]["package-dir"]
    found: list[str] = []
    for name, folder in folders.items():
        found.append(name)
        found += [f"{name}.{inner}" for inner in find_packages(folder)]
    return found


setup(packages=packages())
