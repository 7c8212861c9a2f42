"""Package discovery, and the kernel library of the platform in wheels.

The stages of the compiler are root folders that install under ``omnic.*``.  The map of root folders is
``tool.setuptools.package-dir`` in pyproject.toml; this file walks it so that a new sub-package needs no entry of its
own.  A wheel carries the compiled kernel library where a C compiler is found (the extra ``native-build``, or the
system's); an editable installation and a wheel without it compile it at first use.
"""

import importlib.util
import shutil
import sys
import tomllib
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def folders() -> dict[str, str]:
    """Return package name -> root folder."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        found: dict[str, str] = tomllib.load(file)["tool"]["setuptools"]["package-dir"]
    return found


def packages() -> list[str]:
    """Return every package of the mapped root folders under its installed name."""
    found: list[str] = []
    for name, folder in folders().items():
        found.append(name)
        found += [f"{name}.{inner}" for inner in find_packages(folder)]
    return found


def load(name: str, folder: Path) -> None:
    """Import the package ``name`` from a folder that is not where Python would look."""
    places = [str(folder)]
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=places)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


class BuildWithKernels(build_py):
    """Copies the packages, and with them the kernel library."""

    def run(self) -> None:
        """Copy, then build; without a compiler say so and go on."""
        super().run()
        if self.editable_mode:
            return
        sys.path.insert(0, str(ROOT))
        load("omnic.runtime", ROOT / folders()["omnic.runtime"])
        from omnic.errors import MissingExtraError
        from omnic.runtime.kernels.build import build

        try:
            built = build()
        except MissingExtraError as error:
            self.warn(f"the wheel carries no compiled kernels: {error.message}; {error.hint}")
            return
        into = Path(self.build_lib) / "omnic" / "runtime" / "kernels" / "lib" / built.triple
        into.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(built.shared, into / built.shared.name)


class PlatformWheel(bdist_wheel):
    """Names the platform in the wheel's file name when it carries a compiled library."""

    def get_tag(self) -> tuple[str, str, str]:
        """Any Python 3 of this platform, or of any."""
        carried = Path(self.bdist_dir) / "omnic" / "runtime" / "kernels" / "lib"
        if not carried.is_dir():
            return super().get_tag()
        self.root_is_pure = False
        return "py3", "none", super().get_tag()[2]


setup(packages=packages(), cmdclass={"build_py": BuildWithKernels, "bdist_wheel": PlatformWheel})
