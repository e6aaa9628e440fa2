"""Trains a small language model of bytes and writes it with its data: bytes_lm.onnx, bytes_eval.npz, bytes_calib.npz.

A decoder-only transformer (RMSNorm, rotary positions, SwiGLU) of a third of a million parameters, on text that ships
with Python itself: the help topics and the doc strings of the standard library. The ONNX file reads ``tokens`` int64
[1, length] from ``position`` int64 [1] on, with what it has seen before in the caches ``past.N.key`` and
``past.N.value`` [1, heads, context, width], and gives ``logits`` [1, length, 256] and the caches as ``present.N.…``.
One step of a generation pins the length at 1; a whole text is its length and empty caches.

    pip install -e ".[train]"
    python samples/models/train_lm.py                        # some twenty minutes on two cores
    python samples/models/train_lm.py --without-cache FILE   # what there is, for a whole context without caches

The seed and the thread count are fixed: the same torch release on the same kind of CPU writes the same weights.
"""

from __future__ import annotations

import argparse
import ast
import pydoc_data.topics
import sysconfig
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SEED = 7
VOCABULARY = 256
WIDTH, HEADS, LAYERS, HIDDEN, CONTEXT = 96, 4, 3, 224, 256
HEAD = WIDTH // HEADS
EPSILON = 1e-5
THETA = 10000.0
BATCH, STEPS, WARMUP, RATE = 16, 1800, 80, 8e-3
LATE = STEPS * 9 // 10
"""The step from which on texts of the whole context are read, and not of half of it."""
EVAL_WINDOWS = 48
CALIB_WINDOWS, CALIB_LENGTH = 4, 96
"""Texts to calibrate with, fed token by token, and how long they are."""
HELD_OUT = 10
"""One part of a document in so many is not trained on; half of those calibrate, the others evaluate."""
PART = 4096
"""Bytes of a part."""
OPSET = 24

Weights = Mapping[str, np.ndarray]


# ---- text -----------------------------------------------------------------------------------------------------


def documents() -> Iterator[tuple[str, str]]:
    """Name and text of every document."""
    for name, text in sorted(pydoc_data.topics.topics.items()):
        yield f"topic {name}", text
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        inner = path.relative_to(library).parts
        if {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"} & set(inner):
            continue
        text = "\n\n".join(_doc_strings(path))
        if len(text) > 200:
            yield "/".join(inner), text


def _doc_strings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield text


def split() -> dict[str, np.ndarray]:
    """The bytes of each split; which one a part of a document belongs to is decided by the document's name."""
    parts: dict[str, list[bytes]] = {"train": [], "calib": [], "eval": []}
    for name, text in documents():
        data = text.encode() + b"\n\n\n"
        for start in range(0, len(data), PART):
            place = zlib.crc32(f"{name} {start}".encode()) % (2 * HELD_OUT)
            parts[{0: "eval", 1: "calib"}.get(place, "train")].append(data[start : start + PART])
    return {name: np.frombuffer(b"".join(texts), np.uint8) for name, texts in parts.items()}


def windows(data: np.ndarray, count: int) -> np.ndarray:
    """int64 [count, CONTEXT + 1], spread evenly over ``data``."""
    starts = np.linspace(0, len(data) - CONTEXT - 1, count).astype(int)
    return np.stack([data[start : start + CONTEXT + 1] for start in starts]).astype(np.int64)


def steps(texts: np.ndarray) -> dict[str, np.ndarray]:
    """The inputs of successive steps through the beginnings of ``texts`` [count, length]: samples first."""
    tokens = texts[:, :CALIB_LENGTH].reshape(-1, 1, 1)
    position = np.tile(np.arange(CALIB_LENGTH, dtype=np.int64), len(texts))
    return {"tokens": tokens, "position": position[:, np.newaxis]}


# ---- model ----------------------------------------------------------------------------------------------------


def train(data: np.ndarray, held_out: np.ndarray) -> Weights:
    """Weights after training on the bytes ``data``; the loss on ``held_out`` windows is only printed."""
    import torch
    from torch import Tensor, nn
    from torch.nn import functional

    torch.manual_seed(SEED)
    torch.set_num_threads(1)

    def matrix(rows: int, columns: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(rows, columns) * rows**-0.5)

    parameters = nn.ParameterDict({"embedding": nn.Parameter(torch.randn(VOCABULARY, WIDTH) * 0.1)})
    for layer in range(LAYERS):
        for name in "qkv":
            parameters[f"{layer}_{name}"] = matrix(WIDTH, WIDTH)
        for name, shape in {"o": (WIDTH, WIDTH), "gate": (WIDTH, HIDDEN), "up": (WIDTH, HIDDEN)}.items():
            parameters[f"{layer}_{name}"] = matrix(*shape)
        parameters[f"{layer}_down"] = matrix(HIDDEN, WIDTH)
        for name in ("norm1", "norm2"):
            parameters[f"{layer}_{name}"] = nn.Parameter(torch.ones(WIDTH))
    parameters["norm"] = nn.Parameter(torch.ones(WIDTH))
    angles = torch.arange(CONTEXT)[:, None] * torch.from_numpy(frequencies())
    cosine, sine = angles.cos().float(), angles.sin().float()

    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        cos, sin = cosine[: x.shape[-2]], sine[: x.shape[-2]]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    def logits(tokens: Tensor) -> Tensor:
        x = parameters["embedding"][tokens]
        for layer in range(LAYERS):
            own = {name: parameters[f"{layer}_{name}"] for name in ("q", "k", "v", "o", "gate", "up", "down")}
            y = functional.rms_norm(x, (WIDTH,), parameters[f"{layer}_norm1"], EPSILON)
            q, k, v = ((y @ own[n]).unflatten(-1, (HEADS, HEAD)).transpose(1, 2) for n in "qkv")
            heads = functional.scaled_dot_product_attention(turned(q), turned(k), v, is_causal=True)
            x = x + heads.transpose(1, 2).flatten(2) @ own["o"]
            y = functional.rms_norm(x, (WIDTH,), parameters[f"{layer}_norm2"], EPSILON)
            x = x + (functional.silu(y @ own["gate"]) * (y @ own["up"])) @ own["down"]
        x = functional.rms_norm(x, (WIDTH,), parameters["norm"], EPSILON)
        return x @ parameters["embedding"].T

    def loss(found: Tensor, wanted: Tensor) -> Tensor:
        return functional.cross_entropy(found.flatten(0, 1), wanted.flatten())

    text, generator = torch.from_numpy(data.astype(np.int64)), torch.Generator().manual_seed(SEED)
    decayed = [p for p in parameters.values() if p.ndim > 1]
    others = [p for p in parameters.values() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda s: min((s + 1) / WARMUP, 0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * s / STEPS)))
    )
    for step in range(STEPS):
        length = CONTEXT // 2 if step < LATE else CONTEXT
        starts = torch.randint(len(text) - length - 1, (BATCH,), generator=generator)
        batch = torch.stack([text[start : start + length + 1] for start in starts])
        found = loss(logits(batch[:, :-1]), batch[:, 1:])
        optimiser.zero_grad()
        found.backward()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 0 or step == STEPS - 1:
            with torch.no_grad():
                seen = torch.from_numpy(held_out)
                unseen = loss(logits(seen[:, :-1]), seen[:, 1:])
                print(f"step {step}: train {found:.3f}, held out {unseen:.3f} nats a byte", flush=True)
    return {name: parameter.detach().numpy() for name, parameter in parameters.items()}


def frequencies() -> np.ndarray:
    """Radians per position of each pair of a head's elements, float32 [HEAD / 2]."""
    return (THETA ** (-np.arange(HEAD // 2) / (HEAD // 2))).astype(np.float32)


# ---- export ---------------------------------------------------------------------------------------------------


class Writer:
    """An ONNX graph of the model, under construction."""

    def __init__(self, weights: Weights, cached: bool) -> None:
        self.weights, self.cached = weights, cached
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def constant(self, name: str, array: np.ndarray) -> str:
        self.constants.setdefault(name, array)
        return name

    def integers(self, *values: int) -> str:
        return self.constant("_".join(["int", *map(str, values)]).replace("-", "m"), np.array(values, np.int64))

    def add(self, op: str, inputs: list[str], name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def product(self, x: str, weight: str, name: str) -> str:
        return self.add("MatMul", [x, self.constant(f"{weight}_weight", self.weights[weight])], name)

    def norm(self, x: str, weight: str, name: str) -> str:
        scale = self.constant(f"{weight}_scale", self.weights[weight])
        return self.add("RMSNormalization", [x, scale], name, epsilon=EPSILON)

    def turned(self, x: str, name: str) -> str:
        """Rotary positions: pairs (first half, second half) of a head's elements, turned by their angles."""
        half = self.constant("halves", np.array([HEAD // 2, HEAD // 2], np.int64))
        first, second = f"{name}_first", f"{name}_second"
        self.nodes.append(helper.make_node("Split", [x, half], [first, second], f"{name}_split", axis=-1))
        parts = []
        for part, other, op, label in ((first, second, "Sub", "a"), (second, first, "Add", "b")):
            straight = self.add("Mul", [part, "cosine"], f"{name}_{label}_cos")
            crossed = self.add("Mul", [other, "sine"], f"{name}_{label}_sin")
            parts.append(self.add(op, [straight, crossed], f"{name}_{label}"))
        return self.add("Concat", parts, name, axis=-1)

    def positions(self) -> None:
        """``cosine`` and ``sine`` [length, HEAD / 2], and the ``mask`` [length, keys]: 0, or −1e9 for what is later."""
        shape = self.add("Shape", ["tokens"], "tokens_shape", start=1, end=2)
        length = self.add("Squeeze", [shape], "length")
        steps = self.add("Range", [self.scalar(0), length, self.scalar(1)], "steps")
        places = self.add("Add", [steps, "position"], "places") if self.cached else steps
        column = self.add("Unsqueeze", [places, self.integers(1)], "rows")
        reals = self.add("Cast", [column], "real_rows", to=TensorProto.FLOAT)
        angles = self.add("Mul", [reals, self.constant("frequencies", frequencies())], "angles")
        self.add("Cos", [angles], "cosine")
        self.add("Sin", [angles], "sine")
        keys = self.constant("keys", np.arange(CONTEXT, dtype=np.int64)) if self.cached else places
        seen = self.add("LessOrEqual", [keys, column], "seen")
        bounds = [self.constant("nothing", np.float32(0)), self.constant("never", np.float32(-1e9))]
        self.add("Where", [seen, *bounds], "mask")

    def scalar(self, value: int) -> str:
        return self.constant(f"scalar_{value}", np.array(value, np.int64))

    def layer(self, x: str, index: int) -> str:
        name = f"layer{index}"
        normal = self.norm(x, f"{index}_norm1", f"{name}_norm1")
        heads = {}
        for part in "qkv":
            flat = self.product(normal, f"{index}_{part}", f"{name}_{part}")
            split = self.add("Reshape", [flat, self.integers(0, 0, HEADS, HEAD)], f"{name}_{part}_split")
            heads[part] = self.add("Transpose", [split], f"{name}_{part}_heads", perm=[0, 2, 1, 3])
        query, key, value = self.turned(heads["q"], f"{name}_query"), self.turned(heads["k"], f"{name}_key"), heads["v"]
        if self.cached:
            key, value = (
                self.add("TensorScatter", [f"past.{place}", part, "position"], f"present.{place}", axis=-2)
                for place, part in ((f"{index}.key", key), (f"{index}.value", value))
            )
        turned = self.add("Transpose", [key], f"{name}_keys", perm=[0, 1, 3, 2])
        scores = self.add("MatMul", [query, turned], f"{name}_products")
        scaled = self.add("Mul", [scores, self.constant("scale", np.float32(HEAD**-0.5))], f"{name}_scores")
        masked = self.add("Add", [scaled, "mask"], f"{name}_masked")
        shares = self.add("Softmax", [masked], f"{name}_shares", axis=-1)
        mixed = self.add("MatMul", [shares, value], f"{name}_mixed")
        joined = self.add("Transpose", [mixed], f"{name}_joined", perm=[0, 2, 1, 3])
        flat = self.add("Reshape", [joined, self.integers(0, 0, WIDTH)], f"{name}_flat")
        x = self.add("Add", [x, self.product(flat, f"{index}_o", f"{name}_o")], f"{name}_attended")
        return self.feed_forward(x, index)

    def feed_forward(self, x: str, index: int) -> str:
        name = f"layer{index}"
        normal = self.norm(x, f"{index}_norm2", f"{name}_norm2")
        gate, up = (self.product(normal, f"{index}_{part}", f"{name}_{part}") for part in ("gate", "up"))
        gated = self.add("Mul", [self.add("Swish", [gate], f"{name}_swish"), up], f"{name}_gated")
        return self.add("Add", [x, self.product(gated, f"{index}_down", f"{name}_down")], f"{name}_result")

    def model(self) -> onnx.ModelProto:
        self.positions()
        x = self.add("Gather", [self.constant("embedding", self.weights["embedding"]), "tokens"], "embedded")
        for index in range(LAYERS):
            x = self.layer(x, index)
        x = self.norm(x, "norm", "final")
        head = self.add("Transpose", ["embedding"], "head", perm=[1, 0])
        self.add("MatMul", [x, head], "logits")
        length = "length" if self.cached else CONTEXT
        cache = [1, HEADS, CONTEXT, HEAD]
        kinds = [f"{i}.{kind}" for i in range(LAYERS) for kind in ("key", "value")] if self.cached else []
        tensor = helper.make_tensor_value_info
        integers = {"tokens": [1, length], **({"position": [1]} if self.cached else {})}
        graph = helper.make_graph(
            self.nodes,
            "bytes_lm",
            [
                *(tensor(name, TensorProto.INT64, shape) for name, shape in integers.items()),
                *(tensor(f"past.{kind}", TensorProto.FLOAT, cache) for kind in kinds),
            ],
            [
                tensor("logits", TensorProto.FLOAT, [1, length, VOCABULARY]),
                *(tensor(f"present.{kind}", TensorProto.FLOAT, cache) for kind in kinds),
            ],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=11)
        onnx.checker.check_model(made, full_check=True)
        return made


def weights_in(path: Path) -> Weights:
    """The weights of an ONNX file that this script wrote."""
    arrays = {each.name: numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}
    return {name.removesuffix("_weight").removesuffix("_scale"): array for name, array in arrays.items()}


def main() -> None:
    """Train, and write the model and its data beside this file; or write what there is without caches."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--without-cache", type=Path, metavar="FILE", help="write the trained model without caches")
    chosen = parser.parse_args().without_cache
    folder = Path(__file__).parent
    if chosen is not None:
        onnx.save(Writer(weights_in(folder / "bytes_lm.onnx"), cached=False).model(), chosen)
        return
    parts = split()
    print({name: len(data) for name, data in parts.items()})
    held_out = windows(parts["eval"], EVAL_WINDOWS)
    weights = train(parts["train"], held_out)
    onnx.save(Writer(weights, cached=True).model(), folder / "bytes_lm.onnx")
    np.savez_compressed(folder / "bytes_eval.npz", text=held_out.astype(np.uint8))
    np.savez_compressed(folder / "bytes_calib.npz", **steps(windows(parts["calib"], CALIB_WINDOWS)))


if __name__ == "__main__":
    main()
