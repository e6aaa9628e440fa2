"""Everything that asks TVM to build something; no other module runs TVM passes or code generation.

Kernels arrive as ``tirx.PrimFunc`` whose parameters are raw pointers and int32, and leave as one object
file with plain C functions: no packed-function wrappers, no workspace calls, no TVM runtime.
"""

from __future__ import annotations

import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgec.building.lazy_tvm import load_tvm
from edgec.errors import EdgecError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgec.targets.target import Target

TVM_PAIR = {"apache-tvm": "0.27.0.post1", "apache-tvm-ffi": "0.1.14.post1"}
"""The pinned pair: newer ffi releases segfault in this TVM, older ones do not import."""


def check_pair() -> None:
    """Refuse a TVM pair other than :data:`TVM_PAIR`, before it can crash.

    Raises:
        EdgecError: naming the package, the version found and the command that mends it.
    """
    for package, wanted in TVM_PAIR.items():
        try:
            found = metadata.version(package)
        except metadata.PackageNotFoundError:
            found = "not installed"
        if found != wanted:
            pins = " ".join(f"'{name}=={version}'" for name, version in TVM_PAIR.items())
            raise EdgecError(
                f"edgec needs {package} {wanted} and found {found}, a pair that crashes while it compiles; "
                f"run: pip install {pins}"
            )


def build_object(functions: Mapping[str, Any], target: Target) -> bytes:
    """Compile kernels for ``target``.

    Args:
        functions: ``tirx.PrimFunc`` by symbol name.
        target: the CPU to build for.

    Returns:
        A relocatable ELF object with one C function per symbol.
    """
    module = build_module(functions, target)
    with tempfile.TemporaryDirectory(prefix="edgec-") as folder:
        path = Path(folder) / "kernels.o"
        module.write_to_file(str(path))
        return path.read_bytes()


def assembly(functions: Mapping[str, Any], target: Target) -> str:
    """The kernels' assembly, for reading and for llvm-mca."""
    return build_module(functions, target).inspect_source("asm")


def build_module(functions: Mapping[str, Any], target: Target) -> Any:
    """Lower and compile to a TVM runtime module (see :func:`build_object`)."""
    check_pair()
    tvm, tir = load_tvm(), load_tvm("tvm.tirx.transform")
    llvm = tvm.target.Target(target.llvm)
    module = tvm.IRModule({name: function.with_attr("global_symbol", name) for name, function in functions.items()})
    passes = [
        tir.BindTarget(llvm),
        tir.StmtSimplify(),
        tir.FlattenBuffer(),
        tir.NarrowDataType(32),
        tir.VectorizeLoop(True),
        tir.UnrollLoop(),
        tir.StmtSimplify(),
        tir.LowerIntrin(),
    ]
    lowered = tvm.transform.Sequential(passes)(module)
    return tvm.get_global_func("target.build.llvm")(lowered, llvm)
