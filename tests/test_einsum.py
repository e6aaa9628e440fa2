"""Einsum against numpy, and how its equations are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from edgec.lowering.einsum import parse
from edgec.program import Conv
from tests import graphs
from tests.operators import compiled_outputs, node, normal
from tests.programs import program_of

EQUATIONS = {
    "ij,jk->ik": [(5, 7), (7, 3)],
    "ij,jk": [(5, 7), (7, 3)],
    "bij,bjk->bik": [(2, 5, 7), (2, 7, 3)],
    "bnqd,bnkd->bnqk": [(1, 3, 17, 8), (1, 3, 19, 8)],
    "ibnd,jbnd->bnij": [(4, 2, 3, 5), (6, 2, 3, 5)],
    "bhwc,hkc->bhwk": [(2, 3, 5, 7), (3, 6, 7)],
    "ij,jk->ki": [(5, 7), (7, 3)],
    "ij->ji": [(5, 7)],
    "ijk->k": [(3, 4, 5)],
    "ii->i": [(5, 5)],
    "ii": [(5, 5)],
    "iij,jk": [(3, 3, 4), (4, 5)],
    "i,j->ij": [(5,), (7,)],
    "i,i->": [(17,), (17,)],
    "ij,ij->ij": [(5, 7), (5, 7)],
    "ij,jk,kl->il": [(5, 6), (6, 7), (7, 3)],
    "abc,cd,ab->d": [(2, 3, 4), (4, 5), (2, 3)],
    "...ij,...jk->...ik": [(2, 1, 5, 7), (1, 3, 7, 4)],
    "a...b,b->...a": [(2, 3, 4, 5), (5,)],
    "...i -> ...": [(3, 4, 5)],
}


@pytest.mark.parametrize("dtype", ["float32", "int32", "float64"])
@pytest.mark.parametrize("equation", EQUATIONS)
def test_equations(equation: str, dtype: str, tmp_path: Path) -> None:
    inputs = {f"x{i}": normal(*shape, dtype=dtype) for i, shape in enumerate(EQUATIONS[equation])}
    wanted = np.einsum(equation, *inputs.values())
    found = compiled_outputs(einsum(equation, inputs, wanted.shape), inputs, tmp_path)["y"]
    assert found.dtype == wanted.dtype
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * float(np.abs(wanted).max()))


def einsum(equation: str, inputs: dict[str, np.ndarray], shape: tuple[int, ...]):
    kind = helper.np_dtype_to_tensor_dtype(next(iter(inputs.values())).dtype)
    model = graphs.build(
        [node("Einsum", " ".join(inputs), equation=equation)], {name: x.shape for name, x in inputs.items()}, ["y"],
        types=dict.fromkeys(inputs, kind),
    )  # fmt: skip
    # ONNX infers no shape for diagonals
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", kind, shape))
    return model


def test_batched_products_are_matrix_kernels() -> None:
    inputs = {"q": normal(1, 3, 17, 8), "k": normal(1, 3, 19, 8)}
    program = program_of(einsum("bnqd,bnkd->bnqk", inputs, (1, 3, 17, 19)))
    assert any(isinstance(step.kernel, Conv) for step in program.steps)


def test_transposing_computes_nothing() -> None:
    program = program_of(einsum("ij->ji", {"x": normal(5, 7)}, (7, 5)))
    assert len(program.steps) == 1, "the copy to the output"


def test_parsing() -> None:
    assert parse("ij, jk", [2, 2]) == ([("i", "j"), ("j", "k")], ("i", "k"))
    assert parse("...a,ab->b...", [3, 2]) == ([("...2", "...1", "a"), ("a", "b")], ("b", "...2", "...1"))
    assert parse("b...a", [2]) == ([("b", "a")], ("a", "b"))
