"""Data flows one way: graph, passes, program, target, artifact, runtime; what comes first knows nothing of the rest."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

FOLDERS = {"edgec": "edgec", "passes": "edgec.passes", "runtimes": "edgec.runtimes", "targets": "edgec.targets"}
TOP = ("edgec.cli", "edgec.compiler", "edgec.terminal", "edgec.html")
"""What puts everything together: nothing below it may lean on it."""
PROGRAM = tuple(
    f"edgec.{name}"
    for name in ("scalar", "nest", "program", "reference", "lowering", "planning", "states")
)

FORBIDDEN = {
    "edgec.frontend": (*TOP, *PROGRAM, "edgec.graph", "edgec.passes", "edgec.targets", "edgec.runtimes"),
    "edgec.graph": (*TOP, *PROGRAM, "edgec.targets", "edgec.runtimes", "edgec.artifact"),
    "edgec.passes": (*TOP, *PROGRAM, "edgec.targets", "edgec.runtimes", "edgec.artifact"),
    **dict.fromkeys(PROGRAM, (*TOP, "edgec.targets", "edgec.runtimes", "edgec.artifact", "edgec.tvm_adapter")),
    "edgec.data": (*TOP, *PROGRAM, "edgec.graph", "edgec.passes", "edgec.targets", "edgec.runtimes"),
    "edgec.format": (*TOP, "edgec.graph", "edgec.passes", "edgec.devices", "edgec.tuning", "edgec.quantisation"),
    "edgec.devices": (*TOP, "edgec.graph", "edgec.passes", "edgec.tuning", "edgec.quantisation", "edgec.exploration"),
    "edgec.tuning": (*TOP, "edgec.graph", "edgec.passes", "edgec.quantisation", "edgec.exploration"),
    "edgec.targets": TOP,
    "edgec.targets.cpu": ("edgec.passes", "edgec.graph", "edgec.targets.gpu", "edgec.targets.fpga", "onnx", "onnx_ir"),
    "edgec.targets.gpu": ("edgec.passes", "edgec.graph", "edgec.targets.fpga", "onnx", "onnx_ir"),
    "edgec.targets.fpga": ("edgec.passes", "edgec.targets.cpu", "edgec.targets.gpu", "tvm"),
    "edgec.runtimes": (*TOP, *PROGRAM, "edgec.passes", "edgec.targets", "edgec.graph"),
    "edgec.runtimes.python": ("onnx", "onnx_ir", "tvm"),
}
"""By module, with all below it: what it may not import, with all below that."""
SHARED = ("edgec.lowering.window",)
"""Reads attributes of ONNX nodes, which the passes do as well."""


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the package, and its file."""
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            yield ".".join([package, *(part for part in parts if part != "__init__")]), path


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names that are imported when the code runs; what only the type checker reads is left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imports(node)


def is_below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


@pytest.mark.parametrize("part", FORBIDDEN)
def test_nothing_leans_on_what_comes_after_it(part: str) -> None:
    wrong = [
        f"{name} imports {imported}"
        for name, path in modules()
        if is_below(name, part)
        for imported in imports(ast.parse(path.read_text(encoding="utf-8")))
        if any(is_below(imported, each) for each in FORBIDDEN[part])
        and not any(is_below(imported, each) for each in SHARED)
    ]
    assert not wrong, "\n".join(wrong)


def test_rules_speak_of_modules_that_exist() -> None:
    names = {name for name, _ in modules()}
    listed = {
        *FORBIDDEN,
        *(each for group in FORBIDDEN.values() for each in group if each.startswith("edgec")),
        *SHARED,
    }
    assert listed <= names, listed - names


def test_an_import_is_found_wherever_it_stands() -> None:
    source = (
        "if TYPE_CHECKING:\n    import a\nelse:\n    import b\n"
        "def f():\n    from c.d import e\ntry:\n    import g\nexcept ImportError:\n    import h\n"
    )
    assert set(imports(ast.parse(source))) == {"c.d", "c.d.e", "g", "h"}
