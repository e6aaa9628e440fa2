"""An artifact's manifest as text: written compactly, read with suspicion, since a file may come from anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from typing import Any

TABLES = ("steps", "memory", "fallback")
"""The manifest's lists of rows, which the artifact stores as tables."""
SHARED = "kernel"
"""The column of long texts that repeat, which a table lists once each."""
MOST = 2**63
"""Above every count, size and extent."""
DTYPES = frozenset({
    "bool", "float16", "float32", "float64", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
})  # fmt: skip

_GRID = {"scale": float, "zero_point": float}
"""What an input or output of integers has, too, if they stand for real numbers."""
_TENSOR = {"name": str, "shape": [int], "dtype": DTYPES, "kind": str}
_REQUIRED = {
    "abi": int, "arena_bytes": int, "arena_lower_bound": int, "cpu": str, "edgec": str, "features": [str], "name": str,
    "target": str, "triple": str, "weights_bytes": int, "inputs": [_TENSOR], "outputs": [_TENSOR],
    "steps": [{"name": str, "kernel": str, "macs": int}],
    "memory": [{"buffer": str, "offset": int, "bytes": int, "first": int, "last": int}],
    "versions": {},
}  # fmt: skip
_OPTIONAL = {
    "states": [_TENSOR], "tests": int, "widths": [int], "symbol": str, "coded_bytes": int, "code_bytes": int,
    "flash_bytes": int, "ram_bytes": int,
    "model": {"macs": int, "nodes": int, "opset": int, "parameters": int},
    "gpu": {"api": str, "storage": str, "kernels": int, "host_steps": int, "copies": int, "copied_bytes": int,
            "source_bytes": int},
}  # fmt: skip
"""What a manifest holds: a type, the values that there are, a list of what each entry is, or what an object has."""


def manifest_text(manifest: Mapping[str, Any]) -> bytes:
    """The manifest as an artifact stores it."""
    compact = {key: _as_table(value) if key in TABLES else value for key, value in manifest.items()}
    return json.dumps(compact, separators=(",", ":"), sort_keys=True).encode()


def parse_manifest(text: bytes) -> dict[str, Any]:
    """What :func:`manifest_text` made.

    Raises:
        ValueError: it is something else; says what is wrong.
    """
    try:
        stored = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(stored, dict):
        raise ValueError("it is no JSON object")
    manifest = {key: _as_rows(key, value) if key in TABLES else value for key, value in stored.items()}
    there = {key: kind for key, kind in _OPTIONAL.items() if key in manifest}
    for wrong in _mismatches(manifest, {**_REQUIRED, **there}, ""):
        raise ValueError(wrong)
    for entry in (*manifest["inputs"], *manifest["outputs"]):
        for wrong in _mismatches(entry, _GRID, entry["name"]) if entry.keys() & _GRID else ():
            raise ValueError(wrong)
    return manifest


def _mismatches(value: Any, kind: Any, where: str) -> Iterator[str]:
    """Where ``value`` is not of a kind, as in :data:`_REQUIRED`."""
    if isinstance(kind, dict):
        if not isinstance(value, dict):
            yield f"{where or 'it'} is no object"
            return
        for key, each in kind.items():
            place = f"{where}.{key}" if where else key
            yield from _mismatches(value[key], each, place) if key in value else [f"{place} is missing"]
    elif isinstance(kind, list):
        if not isinstance(value, list):
            yield f"{where} is no list"
            return
        for index, each in enumerate(value):
            yield from _mismatches(each, kind[0], f"{where}[{index}]")
    elif isinstance(kind, frozenset):
        if not isinstance(value, str) or value not in kind:
            yield f"{where} is none of {', '.join(sorted(kind))}"
    elif kind is int and not (type(value) is int and 0 <= value < MOST):
        yield f"{where} is no number from 0 on"
    elif kind is float and not (type(value) in (int, float) and isfinite(value)):
        yield f"{where} is no number"
    elif kind is str and not isinstance(value, str):
        yield f"{where} is no text"


def _as_table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows of equal keys as the artifact stores them: the keys once, and each :data:`SHARED` text once."""
    columns = list(rows[0]) if rows else []
    if SHARED not in columns:
        return {"columns": columns, "rows": [[row[column] for column in columns] for row in rows]}
    places = {text: place for place, text in enumerate(dict.fromkeys(row[SHARED] for row in rows))}
    short = [{**row, SHARED: places[row[SHARED]]} for row in rows]
    return {"columns": columns, SHARED: list(places), "rows": [[row[column] for column in columns] for row in short]}


def _as_rows(name: str, table: Any) -> list[dict[str, Any]]:
    try:
        rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
        texts = dict(enumerate(table.get(SHARED, ())))
        return [{**row, SHARED: texts[row[SHARED]]} for row in rows] if texts else rows
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{name} is no table") from error
