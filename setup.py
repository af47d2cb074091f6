"""What pyproject.toml cannot say: a wheel has the sources of the kernels in a module as well.

fastadam.kernels.sources reads it where the *.py files are not installed.
"""

from pathlib import Path
from pprint import pformat

from setuptools import setup
from setuptools.command.build_py import build_py

KERNELS = Path(__file__).parent / "kernels"


class BuildWithSources(build_py):
    """Writes the module `packed_sources`: the name of a module -> its text."""

    def run(self):
        """Copy modules as always, and write that one."""
        super().run()
        if self.editable_mode:
            return
        names = {path: path.relative_to(KERNELS.parent).with_suffix("") for path in sorted(KERNELS.rglob("*.py"))}
        sources = {f"fastadam.{'.'.join(name.parts)}": path.read_text("utf-8") for path, name in names.items()}
        packed = Path(self.build_lib, "fastadam", "packed_sources.py")
        text = f"SOURCES = {pformat(sources, sort_dicts=False)}"
        packed.write_text(f'"""The sources of the kernels."""\n\n{text}\n', "utf-8")


setup(cmdclass={"build_py": BuildWithSources})
