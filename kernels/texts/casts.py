"""How a float32 becomes 16 or 8 bits and back: one text, in the common subset of Python and C.

On NumPy arrays these functions are the reference; the CPU kernel compiles them, and CUDA gets their statements as
device functions. Every local is assigned once, every operation on integers is one of uint32 and cast back to it.

float16 and bfloat16 are rounded to nearest even; infinity and NaN stay what they are. float64 is rounded to float32
first. The 8-bit codes belong to groups of elements, which share an exponent.
"""

from collections.abc import Callable

import numpy as np
from numpy import maximum, minimum, uint8, uint16, uint32, where


def bits_of(value):
    with np.errstate(over="ignore"):
        return np.asarray(value, np.float32).view(np.uint32)


def float_of(bits):
    return np.asarray(bits, np.uint32).view(np.float32)


def float32(value):
    return np.asarray(value, np.float32)


def from_bfloat16(half):
    return float_of(uint32(uint32(half) << 16))


def to_bfloat16(value):
    bits = bits_of(value)
    odd = uint32(uint32(bits >> 16) & 1)
    rounded = uint32(uint32(bits + 0x7FFF) + odd)
    quiet = uint32(bits | 0x400000)
    return uint16(uint32(uint32(where(value != value, quiet, rounded)) >> 16))


def dither_bfloat16(value, threshold):
    # Stochastic rounding: up if the half that is dropped, plus a threshold from 0 to 0xFFFF, carries over.
    bits = bits_of(value)
    raised = uint32(bits + threshold)
    quiet = uint32(bits | 0x400000)
    return uint16(uint32(uint32(where(value != value, quiet, raised)) >> 16))


def from_float16(half):
    size = uint32(uint32(half) & 0x7FFF)
    sign = uint32(uint32(uint32(half) & 0x8000) << 16)
    # The exponent is rebiased from 15 to 127; a subnormal is a multiple of 2**-24.
    normal = uint32(uint32(size << 13) + 0x38000000)
    subnormal = bits_of(float32(float32(size) * float32(2.0**-24)))
    special = uint32(uint32(size << 13) | 0x7F800000)
    finite = uint32(where(size < 0x400, subnormal, normal))
    return float_of(uint32(uint32(where(size < 0x7C00, finite, special)) | sign))


def to_float16(value):
    bits = bits_of(value)
    size = uint32(bits & 0x7FFFFFFF)
    sign = uint32(uint32(bits ^ size) >> 16)
    odd = uint32(uint32(size >> 13) & 1)
    # The exponent is rebiased from 127 to 15 and half of the last place added, modulo 2**32.
    normal = uint32(uint32(uint32(size + 0xC8000FFF) + odd) >> 13)
    # Adding 0.5 rounds a subnormal at its last place.
    subnormal = uint32(bits_of(float32(float_of(size) + float32(0.5))) - 0x3F000000)
    half = uint32(where(size < 0x38800000, subnormal, normal))
    finite = uint32(where(size < 0x47800000, half, uint32(0x7C00)))
    return uint16(uint32(uint32(where(size > 0x7F800000, uint32(0x7E00), finite)) | sign))


def canonical_bits(value):
    # Of all NaN, the one whose lower half is zero.
    bits = bits_of(value)
    nan = uint32(uint32(bits & 0x80000000) | 0x7FC00000)
    return uint32(where(value != value, nan, bits))


def upper_half(value):
    # bfloat16, rounded to nearest; ties away from zero, so that the lower half alone tells which way it was.
    return uint16(uint32(uint32(canonical_bits(value) + 0x8000) >> 16))


def lower_half(value):
    return uint16(uint32(canonical_bits(value) & 0xFFFF))


def join_halves(upper, lower):
    # The lower half counts from -0x8000 to 0x7FFF.
    low = uint32(lower)
    whole = uint32(uint32(uint32(upper) << 16) + low)
    return float_of(uint32(whole - uint32(uint32(low & 0x8000) << 1)))


# The generator of random words, as states name it.
WORDS = "spread128"
# Elements that share a hash: a chunk. They are those of one parameter, counted from its first.
CHUNK = 128


def hashed(number):
    # The finalizer "lowbias32" of C. Wellons.
    once = uint32(uint32(number ^ uint32(number >> 16)) * 0x7FEB352D)
    twice = uint32(uint32(once ^ uint32(once >> 15)) * 0x846CA68B)
    return uint32(twice ^ uint32(twice >> 16))


def first_spread(word):
    # Where the elements of a chunk with this hash begin in the sequence of `spread`.
    return uint32(hashed(uint32(word + 0x9E3779B9)) & 127)


def quadratic(place):
    return uint32(place * uint32(uint32(place * 30) + 1))


def spread_at(value):
    return uint32(uint32(value & 127) * 0x3E160200)


def spread(place):
    # j + 30 j**2 takes every value modulo 128, and every value of one residue modulo 2**k at places of one residue; the
    # second factor makes of it an odd number of 128ths of a turn in the lower 16 bits, in bits 8 to 23 and in the
    # upper ones. So the thresholds of a chunk are spread evenly over all sizes, as are those at every 2nd, 4th ... of
    # its elements. As the sequence begins anywhere, thresholds any other distance apart are not correlated.
    return spread_at(quadratic(place))


def random_word(chunk, index):
    # `chunk` is the place of the parameter plus the number of the chunk, `index` that of the element in the chunk.
    first = hashed(chunk)
    return uint32(first + spread(uint32(first_spread(first) + index)))


# Random words of an element by the names that formats have for them: a multiple of `random_word`, and what it is turned
# on by from step to step.
TURNED = {
    "low_word": (1, "turn"),
    "slow_word": (1, "uint32(turn << 16)"),
    "fast_word": (256, "uint32(toss << 16)"),
    "slowest_word": (513, "uint32(turn << 16)"),
}


def size_of(value):
    # The bits of the absolute value, which are ordered as the values are.
    return uint32(bits_of(value) & 0x7FFFFFFF)


def shared_exponent(largest, octaves):
    # For a group whose largest absolute value has these bits, with codes for so many octaves below; 255 where that is
    # not finite.
    exponent = uint32(largest >> 23)
    finite = uint32(uint32(maximum(exponent, uint32(octaves))) - octaves)
    return uint8(uint32(where(exponent < 255, finite, uint32(255))))


def first_code(exponent):
    # What is to be added to a code to make it the upper 12 bits of a float32: 3 of them of the fraction.
    return uint32(uint32(exponent) << 3)


def lowest(first):
    # Offset added to |value| before encoding: it gives zero the code 0 and spaces the codes near zero evenly. In a
    # group with a non-finite value it is infinite, so the whole group decodes to infinity or NaN.
    return float_of(uint32(first << 20))


def decode_unsigned(code, first):
    return float_of(uint32(uint32(uint32(code) << 20) + uint32(first << 20))) - lowest(first)


def decode_signed(code, first):
    # Masked after the shift: as a byte, compilers would widen it once more.
    sign = uint32(uint32(uint32(code) << 24) & 0x80000000)
    return float_of(uint32(bits_of(decode_unsigned(uint32(uint32(code) & 0x7F), first)) | sign))


def splice(upper, lower):
    # The lower 12 bits of one above the upper 20 of the other.
    return uint32(uint32(upper << 20) | uint32(lower >> 12))


def encode_size(size, first, word):
    # The code in the upper 12 bits, rounded stochastically to the codes on both sides: by the upper 20 bits of a word,
    # which are the threshold.
    return uint32(bits_of(float32(size + lowest(first))) + splice(uint32(0 - first), word))


def encode_signed(value, first, word):
    bits = bits_of(value)
    size = float_of(uint32(bits & 0x7FFFFFFF))
    code = uint32(encode_size(size, first, word) >> 20)
    return uint8(uint32(code | uint32(uint32(bits >> 24) & 0x80)))


def encode_unsigned(value, first, word):
    # What is positive does not become zero: all bits of a number that is not subnormal are more than the code 1.
    least = uint32(minimum(bits_of(value), uint32(0x100000)))
    return uint8(uint32(uint32(maximum(encode_size(value, first, word), least)) >> 20))


# In the order in which they call one another.
CASTS: tuple[Callable, ...] = (
    from_bfloat16,
    to_bfloat16,
    dither_bfloat16,
    from_float16,
    to_float16,
    canonical_bits,
    upper_half,
    lower_half,
    join_halves,
    hashed,
    first_spread,
    quadratic,
    spread_at,
    spread,
    random_word,
    size_of,
    shared_exponent,
    first_code,
    lowest,
    decode_unsigned,
    decode_signed,
    splice,
    encode_size,
    encode_signed,
    encode_unsigned,
)
