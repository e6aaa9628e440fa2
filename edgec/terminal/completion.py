"""What the shell offers for an option's value when Tab is pressed."""

from __future__ import annotations


def targets(incomplete: str) -> list[str]:
    """The names that ``--target`` takes and that begin so."""
    from edgec.targets.formats import FORMATS
    from edgec.targets.fpga.board import board_names
    from edgec.targets.gpu.target import gpu_names
    from edgec.targets.target import target_names

    names = [*target_names(), *gpu_names(), *board_names(), *FORMATS]
    return [name for name in names if name.startswith(incomplete)]


def modes(incomplete: str) -> list[str]:
    """What ``--quantize`` takes and that begins so."""
    from edgec.quantisation.quantise import MODES

    return [mode for mode in MODES if mode.startswith(incomplete)]


def passes(incomplete: str) -> list[str]:
    """The passes whose names begin so; of several with commas between them the last is completed."""
    from edgec.passes.pipeline import pass_names

    chosen, comma, last = incomplete.rpartition(",")
    return [chosen + comma + name for name in pass_names() if name.startswith(last)]
