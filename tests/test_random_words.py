"""Rounding errors made by the random words: no drift, and sums that vary no more than with independent words."""

import numpy as np
import pytest
from oracle import toss, turn

from fastadam.kernels.texts import casts

BITS = {"p": 16, "fast": 16, "slow": 16, "slowest": 16, "fast code": 20, "slow code": 20, "slowest code": 20}
WORDS = {name: "low_word" if name == "p" else f"{name.split()[0]}_word" for name in BITS}
# Fractions of the spacing: any of each element, or one for all, which is the worst for sums of errors.
FRACTIONS = [None, 0.05, 0.3, 0.5]
names = pytest.mark.parametrize("name", BITS)
fractions = pytest.mark.parametrize("fraction", FRACTIONS)


def words(place, numbers):
    """Those of the elements with these numbers of a parameter."""
    chunks, indices = (numbers // 128 + place).astype(np.uint32), (numbers % 128).astype(np.uint32)
    with np.errstate(over="ignore"):
        return casts.random_word(chunks, indices)


def thresholds(name, word, turn):
    """From 0 to 1."""
    kind, bits = WORDS[name], BITS[name]
    multiple, expression = casts.TURNED[kind]
    turn = np.asarray(turn, np.uint32)
    with np.errstate(over="ignore"):
        turned = word * np.uint32(multiple) + eval(expression, {**vars(casts), "turn": turn, "toss": turn})
    return (turned % 2**bits if kind == "low_word" else turned >> np.uint32(32 - bits)) / 2.0**bits


def covariances(name, fraction):
    """(chunks, 128): that of the errors of element 0 and of element D on of a chunk, in terms of the variance of one.

    Exact for the place at which each chunk begins in its sequence, over all hashes: an element and its D-th neighbour
    have thresholds that are a fixed part of a turn apart.
    """
    starts = np.arange(128, dtype=np.uint32)
    sequence = np.stack([casts.spread(start + np.arange(128, dtype=np.uint32)) for start in starts])
    turns = thresholds(name, sequence, 0)
    apart = (turns - turns[:, :1]) % 1.0
    if fraction is None:
        # Half of the variance is of the fraction, which is each element's own.
        found = 0.5 * (1 - 6 * apart * (1 - apart))
    else:
        both = np.maximum(0.0, fraction - apart) + np.maximum(0.0, fraction + apart - 1.0)
        found = (both - fraction**2) / (fraction * (1 - fraction))
    found[:, 0] = 1.0
    return found


@names
@fractions
def test_sums_over_columns_vary_no_more_than_those_of_independent_words(name, fraction):
    mean = covariances(name, fraction).mean(axis=0)
    # In wider matrices the elements of a column lie in chunks of their own.
    for width in range(1, 128):
        apart = np.arange(width, 128, width)
        variance = 1.0 + np.sum(2 * (128 - apart) / 128 * mean[apart])
        assert variance < 1.05, width


@names
@fractions
def test_sums_over_rows_vary_no_more_than_those_of_independent_words(name, fraction):
    mean = covariances(name, fraction).mean(axis=0)
    for length in range(2, 129):
        apart = np.arange(1, length)
        assert 1.0 + np.sum(2 * (length - apart) / length * mean[apart]) < 1.05, length


def errors(name, fraction, place, turn, count):
    fractions = np.random.default_rng(place).random(count) if fraction is None else np.full(count, fraction)
    drawn = thresholds(name, words(place, np.arange(count)), turn)
    return (drawn < fractions) - fractions, 1 / 6 if fraction is None else fraction * (1 - fraction)


@names
@fractions
def test_errors_of_chunks_rows_columns_and_all_in_a_simulation(name, fraction):
    shapes = [(8_192, 3), (4_096, 10), (1_024, 26), (1_024, 60), (512, 64), (300, 100), (256, 1_000), (64, 4_096)]
    sums = {}
    for place in range(40):
        found, variance = errors(name, fraction, 77_777 * place, 9_876 * place, 2**18)
        parts = {"chunks": found.reshape(-1, 128).sum(1) / np.sqrt(128), "all": found.sum()[None] / 2**9}
        for rows, width in shapes:
            matrix = found[: rows * width].reshape(rows, width)
            parts[f"rows of {width}"] = matrix.sum(1) / np.sqrt(width)
            parts[f"columns of {width}"] = matrix.sum(0) / np.sqrt(rows)
        for part, each in parts.items():
            sums.setdefault(part, []).append(each / np.sqrt(variance))
    for part, each in sums.items():
        each = np.concatenate(each)
        noise = 4 * np.sqrt(2 / each.size)
        assert np.mean(each**2) < 1.1 + noise, part
        # No long tail: of a normal distribution, one in 10**8 is further away. Sums of a few rare errors are skewed.
        if fraction != 0.05:
            assert np.abs(each).max() < 5.7, part


@names
def test_elements_drift_by_less_than_a_thousandth_of_the_spacing_in_10000_steps(name):
    """In the root mean square; for first moments a single one may drift by twice that."""
    turn_of = toss if "fast" in name else turn
    turns = np.array([turn_of(step) for step in range(1, 10_001)])
    drifts = []
    for number in range(0, 64_000, 641):
        fraction = np.random.default_rng(number).random()
        (word,) = words(5, np.array([number]))
        drifts.append(((thresholds(name, word, turns) < fraction) - fraction).mean())
    # As independent thresholds, it would be 3.4e-3.
    assert np.sqrt(np.mean(np.square(drifts))) < (6e-4 if "fast" in name else 3e-4)
    assert np.abs(drifts).max() < (2e-3 if "fast" in name else 1e-3)


@names
def test_thresholds_are_uniform_over_steps(name):
    """Each element gets every threshold of 16 bits as often as any other."""
    for word in words(9, np.arange(100, 160, 7)):
        drawn = thresholds(name, word, np.arange(65_536))
        np.testing.assert_array_equal(np.bincount((drawn * 65_536).astype(int), minlength=65_536), 1)


@pytest.mark.parametrize("fraction", [0.05, 0.5])
def test_errors_of_two_seeds_and_of_two_buffers_are_not_correlated(fraction):
    kinds = ("p", "fast", "slow", "slowest")
    found = [errors(name, fraction, place, 40_503, 2**20)[0] for name in kinds for place in (5, 6, 2**31)]
    together = np.corrcoef(found)
    assert np.abs(together[np.triu_indices(len(found), 1)]).max() < 0.01
    # Nor are sums over chunks.
    sums = np.array([each.reshape(-1, 32).sum(1) for each in found])
    assert np.abs(np.corrcoef(sums)[np.triu_indices(len(found), 1)]).max() < 0.04


def test_independent_words_pass_the_same_measure_and_multiples_of_the_index_do_not(monkeypatch):
    def plain(place):
        return np.uint32(0x6A09E667) * place

    monkeypatch.setattr(casts, "spread", plain)
    with pytest.raises(AssertionError):
        test_sums_over_columns_vary_no_more_than_those_of_independent_words("p", 0.5)
    with pytest.raises(AssertionError):
        test_errors_of_chunks_rows_columns_and_all_in_a_simulation("p", 0.5)
