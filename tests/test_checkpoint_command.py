"""`fastadam checkpoint`: what is in a file, and whether every byte is as it was saved."""

import numpy as np
import pytest
from checkpointing import HALVING, header_of, make, sealed, train
from typer.testing import CliRunner

import fastadam
from fastadam.commands import app


def shown(*arguments):
    """Exit status and output of the command, its lines joined."""
    result = CliRunner().invoke(app, ["checkpoint", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.safetensors"


def test_names_shapes_dtypes_bytes_steps_and_settings_are_shown(path):
    opt = make("NAdam", lr=HALVING, moment_dtype="float8", nonfinite="skip", seed=5)
    train(opt, range(3), lambda step: ("b",) if step else ())
    opt.save(path)
    status, output = shown(path)
    assert status == 0
    assert f"NAdam of fastadam {fastadam.__version__}, 6 parameters, {path.stat().st_size:,} bytes" in output
    for row in (
        "w.exp_avg_exponent (36,) uint8 36",
        "w.exp_avg (65, 70) uint8 4,550",
        "w (65, 70) float32 18,200 3",
        "b () float32 4 1 (2 not taken)",
        "none.exp_avg_sq (0, 3) float32 0",
    ):
        assert row in output
    for setting in ("momentum_decay=0.004", "of Exponential(", "group 0, 6 parameters", "nonfinite=skip", "codes=1"):
        assert setting in output
    assert "as it was saved" not in output


def test_every_byte_is_verified(path):
    make().save(path)
    assert shown(path, "--verify")[1].endswith("Every byte is as it was saved.")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    assert shown(path)[0] == 0
    status, output = shown(path, "--verify")
    assert status == 1
    assert output.endswith("damaged: #%22w%2Eexp_avg%22.exp_avg_sq")


def test_what_is_no_checkpoint_is_said_to_be_none(path):
    path.write_bytes(b"nothing of the kind")
    status, output = shown(path)
    assert status == 1
    assert "must begin with the length of its header" in output
    assert shown(path.parent)[0] == shown(path.parent / "missing")[0] == 2


def test_a_hostile_name_does_not_reach_the_terminal(path):
    fastadam.Adam({"w": np.ones(3)}).save(path)
    header, data = header_of(path.read_bytes())
    evil = "[bold red]\x1b[2J\n\u202e"
    text = header["__metadata__"]["fastadam"].replace('"optimizer":"Adam"', '"optimizer":"[link]\\u001b[2J"')
    header["__metadata__"]["fastadam"] = text.replace('"state":{"w"', '"state":{"[bold red]\\u001b[2J\\n\\u202e"')
    header["__metadata__"]["crc32"] = header["__metadata__"]["crc32"].replace('"w', '"[bold red]\\u001b[2J\\n\\u202e')
    renamed = {name.replace("w", evil) if name != "__metadata__" else name: entry for name, entry in header.items()}
    path.write_bytes(sealed(renamed, data))
    status, output = shown(path)
    assert status == 0
    assert not {"\x1b", "\u202e"} & set(output)
    assert "[bold red]\\x1b[2J\\n\\u202e" in output.replace(" ", "").replace("[boldred]", "[bold red]")
