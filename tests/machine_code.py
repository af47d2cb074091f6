"""Instructions in the listings of machine code, as regular expressions."""

import platform

import numpy as np

# Processor -> (vector instruction of each dtype, conversion to 16 bits by integers, fused multiply-add).
INSTRUCTIONS = {
    "x86": (
        {np.float32: r"\bv?{}ps\b", np.float64: r"\bv?{}pd\b"},
        r"\bv?psrld\b.*[xyz]mm",
        r"\bv?fn?m(add|sub)",
    ),
    "arm": (
        {np.float32: r"\bf{}(\.4s|\s+v\d+\.4s)", np.float64: r"\bf{}(\.2d|\s+v\d+\.2d)"},
        r"\b(u?shrn?2?|uzp2|u?sra|sri)(\.\w+|\s+v\d+\.)",
        r"\bfn?m(la|ls|add|sub)\b",
    ),
}
PACKED, SHIFTED, FUSED = INSTRUCTIONS["arm" if platform.machine() in ("arm64", "aarch64") else "x86"]
