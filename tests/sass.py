"""The machine code of CUDA kernels: NVRTC makes it, NVIDIA's nvdisasm reads it, and no GPU runs it."""

import re
import shutil
import subprocess
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import cuda_program
from cupy_backends.cuda.libs import nvrtc

_LABEL = re.compile(r"^\s*(\.L_x_\d+|\$\S+):")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+)?\s*([A-Z][A-Z0-9_.]*)([^;]*);")

_COMPARISON = r"(U?ISETP|U?SEL|V?IMNMX3?|U?P?LOP3|MOV|BSSY|BSYNC)(\.|$)|IMAD\.MOV"


def _is_call(operation):
    return operation.startswith("CALL")


class Instruction(NamedTuple):
    """One of the machine: under which condition, which operation, on what."""

    condition: str | None
    operation: str
    rest: str


class Code(NamedTuple):
    """What a kernel was compiled to: its instructions, and which of them labels stand before."""

    instructions: list[Instruction]
    labels: dict[str, int]

    def count(self, pattern: str) -> int:
        """How many operations match."""
        return sum(re.match(pattern, each.operation) is not None for each in self.instructions)

    def path(self, rounds: int) -> list[str]:
        """The operations of a thread that goes round the loop so often, all of whose accesses are of four elements.

        It enters neither the slow paths of divisions and roots, which are called, nor the accesses one by one.
        """
        place, operations, backwards = 0, [], Counter[int]()
        while True:
            condition, operation, rest = self.instructions[place]
            operations.append(operation)
            if operation == "EXIT" and condition is None:
                return operations
            target = self._target(operation, rest)
            if target is None:
                place += 1
            elif target > place:
                place = target if condition is None or self._is_aside(place + 1, target) else place + 1
            else:
                backwards[place] += 1
                place = target if backwards[place] < rounds else place + 1

    def _target(self, operation, rest):
        """Where a branch leads, None for all else. Only parts of a warp take a BRA.DIV."""
        found = re.search(r"`\((\.L_x_\d+)\)", rest)
        return self.labels[found.group(1)] if found and operation in ("BRA", "BRA.U") else None

    def _is_aside(self, start, stop):
        """Whether these are a call, or accesses one by one: those of four elements are fewer; or comparisons alone.

        The last are those that find the largest of less than four elements.
        """
        operations = [each.operation for each in self.instructions[start:stop]]
        accesses = sum(operation.startswith(("LDG", "STG")) for operation in operations)
        if operations and all(re.match(_COMPARISON, operation) for operation in operations):
            return True
        return accesses >= 8 or (any(map(_is_call, operations)) and len(operations) < 12)


def disassembler() -> str | None:
    """Where nvdisasm is: of the CUDA toolkit, or of its wheel."""
    try:
        files = metadata.files("nvidia-cuda-nvdisasm") or []
    except metadata.PackageNotFoundError:
        return shutil.which("nvdisasm")
    return next(str(path.locate()) for path in files if path.name == "nvdisasm")


def codes(source: str, architecture: str, folder: Path) -> dict[str, Code]:
    """The machine code of each kernel of a CUDA `source`, by its name."""
    program = nvrtc.createProgram(source, "fastadam.cu", (), ())
    nvrtc.compileProgram(program, (*cuda_program.compiler_options(), f"-arch={architecture}"))
    # CuPy cuts off the last byte, as of a text.
    (folder / "kernels.cubin").write_bytes(nvrtc.getCUBIN(program) + b"\0")
    command = [str(disassembler()), "-c", "kernels.cubin"]
    text = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    return {name: _code(lines) for name, lines in _sections(text)}


def _sections(text):
    parts = re.split(r"^\s*\.section\s+\.text\.(\S+?),", text, flags=re.M)
    return [(name, lines) for name, lines in zip(parts[1::2], parts[2::2], strict=True)]


def _code(text):
    instructions, labels = [], {}
    for line in text.splitlines():
        label, found = _LABEL.match(line), _INSTRUCTION.match(line)
        if label:
            labels[label.group(1)] = len(instructions)
        elif found:
            instructions.append(Instruction(*found.groups()))
    return Code(instructions, labels)
