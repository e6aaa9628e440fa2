"""Cycles of a kernel on a processor that is not here: its instructions, times what LLVM's machine code analyser
(``llvm-mca``) says of its hottest loop.

The analyser knows pipelines, latencies and ports of the core, and takes every load to hit the nearest cache. So of two
plans with as many instructions, the one whose multiply-adds wait for each other costs more. It is no time: what memory
and branches cost is not in it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from edgec.targets.target import Target

COMMAND = "llvm-mca"
MODELS = {"generic": "cortex-a55"}
"""The core whose pipeline stands for one that LLVM has no model of."""
ITERATIONS = 100
_LABEL = re.compile(r"^(\.?\w+):")
_BRANCH = re.compile(r"^(?:b(?:\.\w+)?|cbn?z|tbn?z)\s.*?(\.?\w+)$")
_PATIENCE_SECONDS = 20


@dataclass(frozen=True)
class Analyser:
    """``llvm-mca`` for one processor.

    Attributes:
        triple: LLVM's name of the system.
        cpu: LLVM's name of the core.
        features: that the code uses.
    """

    triple: str
    cpu: str
    features: tuple[str, ...]

    def per_instruction(self, assembly: str) -> float:
        """Cycles an instruction of the hottest loop of a kernel, in the steady state.

        Args:
            assembly: of one function, as LLVM prints it.

        Raises:
            ValueError: the analyser does not take the code.
        """
        attributes = ",".join(f"+{feature}" for feature in self.features)
        command = [COMMAND, f"-mtriple={self.triple}", f"-mcpu={self.cpu}", f"-mattr={attributes}"]
        command += [f"-iterations={ITERATIONS}", "-instruction-info=0", "-resource-pressure=0"]
        try:
            done = subprocess.run(
                command, input=hot_loop(assembly), capture_output=True, text=True, check=False,
                timeout=_PATIENCE_SECONDS,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise ValueError(f"{COMMAND} did not end within {_PATIENCE_SECONDS} s") from error
        counts = dict(re.findall(r"^(Instructions|Total Cycles):\s+(\d+)$", done.stdout, re.MULTILINE))
        if done.returncode != 0 or len(counts) != 2:
            raise ValueError((done.stderr.strip().splitlines() or [f"{COMMAND} printed no cycles"])[0])
        return int(counts["Total Cycles"]) / int(counts["Instructions"])


def find_analyser(target: Target, cpu: str) -> tuple[Analyser | None, str]:
    """The analyser for code of ``target`` on the core ``cpu``; or None, and why there is none."""
    if shutil.which(COMMAND) is None:
        return None, f"costs are instructions alone, as {COMMAND} is not here to tell cycles: apt-get install llvm"
    analyser = Analyser(target.llvm_triple or target.triple, MODELS.get(cpu, cpu), target.features)
    try:
        analyser.per_instruction("nop\n")
    except ValueError as error:
        return None, f"costs are instructions alone, as {COMMAND} has no cycles for {cpu}: {error}"
    return analyser, ""


def functions(assembly: str) -> dict[str, str]:
    """The text of each function of ``assembly``, by its symbol."""
    found: dict[str, list[str]] = {}
    symbols = set(re.findall(r"^\s*\.type\s+(\w+),\s*[@%]function", assembly, re.MULTILINE))
    lines = found.setdefault("", [])
    for line in assembly.splitlines():
        label = _LABEL.match(line)
        if label and label[1] in symbols:
            lines = found.setdefault(label[1], [])
        lines.append(line)
    return {symbol: "\n".join(text) for symbol, text in found.items() if symbol}


def hot_loop(assembly: str) -> str:
    """Of the innermost loops the one of the most instructions, which does a whole tile; without loops, everything."""
    code = list(_code(assembly))
    loops = [(start, end) for start, end in _loops(code) if not any(start <= a and b < end for a, b in _loops(code))]
    if not loops:
        return _text(code)
    return max((_text(code[start : end + 1]) for start, end in loops), key=lambda text: text.count("\n"))


def _code(assembly: str) -> Iterator[str]:
    """Labels and instructions, without comments and directives."""
    for line in assembly.splitlines():
        text = line.split("//")[0].split("@")[0].strip()
        if text and (_LABEL.match(text) or not text.startswith(".")):
            yield text


def _loops(code: list[str]) -> list[tuple[int, int]]:
    """First and last place of every loop: from a label to a branch back to it."""
    places: dict[str, int] = {}
    found = []
    for place, text in enumerate(code):
        label, branch = _LABEL.match(text), _BRANCH.match(text)
        if label:
            places[label[1]] = place
        elif branch and branch[1] in places:
            found.append((places[branch[1]], place))
    return found


def _text(code: list[str]) -> str:
    """Instructions alone: what they branch to is not asked for."""
    return "".join(f"{text}\n" for text in code if not _LABEL.match(text))
