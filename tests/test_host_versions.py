"""A host that is missing, older or newer than what is supported: the import says what to install."""

import importlib
import re
import sys
from importlib.metadata import requires
from types import SimpleNamespace

import pytest

from fastadam.hosts import BELOW, LEAST

NEEDED = {
    "torch": "needs torch 2.7 or newer",
    "keras": "needs keras 3.8 or newer",
    "thinc": "needs thinc 8.3 or newer, and older than 9",
}


@pytest.fixture
def stand_in(monkeypatch):
    """Puts a module in the place of a host, None for none, and forgets its adapter."""

    def put(host, module):
        for name in list(sys.modules):
            if name == f"fastadam.{host}" or name.startswith(f"fastadam.{host}."):
                monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, host, module)

    return put


def refused(host, message):
    if host == "keras":
        pytest.importorskip("torch")  # it is looked for first
    with pytest.raises(ImportError, match=re.escape(message)):
        importlib.import_module(f"fastadam.{host}")


@pytest.mark.parametrize("host", NEEDED)
def test_not_installed(host, stand_in):
    stand_in(host, None)
    refused(host, f"fastadam.{host} {NEEDED[host]}, which is not installed: pip install 'fastadam[{host}]'")


def test_keras_without_torch(stand_in, monkeypatch):
    stand_in("keras", SimpleNamespace(__version__="3.15.1"))
    monkeypatch.setitem(sys.modules, "torch", None)
    message = "fastadam.keras needs torch 2.7 or newer, which is not installed: pip install 'fastadam[keras]'"
    with pytest.raises(ImportError, match=re.escape(message)):
        importlib.import_module("fastadam.keras")


OTHERS = [("torch", "2.6.0+cpu"), ("torch", "1.13.1"), ("keras", "2.15.0"), ("keras", "3.7.0")]
OTHERS += [("thinc", "8.2.5"), ("thinc", "7.4.6"), ("thinc", "9.1.1"), ("thinc", "10.0.0")]


@pytest.mark.parametrize(("host", "version"), OTHERS)
def test_another_version(host, version, stand_in):
    stand_in(host, SimpleNamespace(__version__=version))
    wanted = f"{host}>={LEAST[host]}" + (f",<{BELOW[host]}" if host in BELOW else "")
    refused(host, f"fastadam.{host} {NEEDED[host]}, got {version}: pip install '{wanted}'")


def test_a_folder_of_that_name(stand_in):
    stand_in("thinc", SimpleNamespace())
    refused("thinc", f"{NEEDED['thinc']}, got one without a version: pip install")


def test_a_host_that_lacks_something_says_so(tmp_path, monkeypatch, stand_in):
    (tmp_path / "thinc.py").write_text("import confection_that_is_missing")
    monkeypatch.syspath_prepend(tmp_path)
    stand_in("thinc", None)
    monkeypatch.delitem(sys.modules, "thinc")
    refused("thinc", "No module named 'confection_that_is_missing'")


def test_newer_versions_are_taken(monkeypatch):
    from fastadam.hosts import require

    for host, version in (("torch", "2.10.0a0+git1"), ("torch", "3.0"), ("keras", "3.15.1"), ("thinc", "8.10")):
        module = SimpleNamespace(__version__=version)
        monkeypatch.setitem(sys.modules, host, module)
        assert require(host, f"fastadam.{host}") is module


@pytest.mark.parametrize("host", NEEDED)
def test_the_extra_asks_for_the_same_versions(host):
    (line,) = [each for each in requires("fastadam") if re.match(rf"{host}\b.*extra == .{host}.$", each)]
    asked = set(re.findall(r"(>=|<)([\d.]+)", line.partition(";")[0]))
    assert asked == {(">=", LEAST[host])} | ({("<", BELOW[host])} if host in BELOW else set())
