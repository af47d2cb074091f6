"""Powers in the common subset of Python and C: the same bits on every device, whose libraries differ."""

from math import floor


def power(base, count):
    """`base` to the power of `count`, a whole number >= 0, by repeated squaring."""
    result = 1.0
    square = 1.0 * base
    left = 1.0 * count
    while left > 0.0:
        half = floor(left * 0.5)
        result = result * square if left - 2.0 * half > 0.0 else result
        square = square * square
        left = 1.0 * half
    return result
