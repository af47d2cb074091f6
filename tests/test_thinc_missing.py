"""`fastadam.thinc` without Thinc, or with another version: the error says what to install."""

import sys
from types import SimpleNamespace

import pytest


@pytest.fixture
def forgotten(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "thinc" or name.startswith("fastadam.thinc")]:
        monkeypatch.delitem(sys.modules, name)
    return monkeypatch


def test_not_installed(forgotten):
    forgotten.setitem(sys.modules, "thinc", None)
    with pytest.raises(ImportError, match=r"needs Thinc, which is not installed: pip install 'fastadam\[thinc\]'"):
        import fastadam.thinc  # noqa: F401


@pytest.mark.parametrize("version", ["8.2.5", "7.4.6", "9.1.1"])
def test_another_version(forgotten, version):
    forgotten.setitem(sys.modules, "thinc", SimpleNamespace(__version__=version))
    with pytest.raises(ImportError, match=rf"needs Thinc 8\.3 or newer, and older than 9, got {version}: pip install"):
        import fastadam.thinc  # noqa: F401
