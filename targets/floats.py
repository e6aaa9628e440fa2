"""How many bits a target's floats have, and how its name says so."""

from __future__ import annotations

FULL, HALF = "float32", "float16"

SUFFIX = "-fp16"
"""Ends the name of a target whose floats have 16 bits: GPUs store them so, processors compute in them, too."""
