"""Gathers what the page shows: the report of a compilation, and what can be measured of its artifact."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgec.building.toolchain import host_triple
from edgec.devices.machine import Machine, observed
from edgec.html.answers import Answer, differing
from edgec.html.histograms import Histogram, float_histograms, layer_histograms
from edgec.quantisation.quantise import companions

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgec.data.samples import Array
    from edgec.passes.quantize.execution import Sample
    from edgec.quantisation.layer_errors import LayerError, LayerErrors
    from edgec.runtimes.python.session import StepProfile
    from edgec.tuning.roofline import Roofs

Progress = Callable[[str, int, int], None]

_ROUNDS = 30
_CHECKED = 8
"""Samples on which the outputs after each pass, and of each layer, are compared."""


@dataclass(frozen=True)
class Layer:
    """The steps of the program that begin with the same node.

    Attributes:
        name: the node's.
        kernel: the contract of the step with most MACs.
        bits: of what it reads: "int8", "int16" or "float".
        steps: how many there are.
        macs: multiply-adds.
        nbytes: the size of its steps' operands.
        microseconds: the fastest run, where that can be measured.
        share: of the whole inference.
        roof: its speed over what the roofs of this machine allow, 1 at best.
        error: what its quantisation costs.
    """

    name: str
    kernel: str
    bits: str
    steps: int
    macs: int
    nbytes: int
    microseconds: float | None = None
    share: float | None = None
    roof: float | None = None
    error: LayerError | None = None

    @property
    def kind(self) -> str:
        """What the kernel is, of its contract's name."""
        return self.kernel.split("_")[1] if "_" in self.kernel else self.kernel

    @property
    def rate(self) -> float | None:
        """G MAC/s."""
        return self.macs / self.microseconds / 1e3 if self.microseconds and self.macs else None

    @property
    def intensity(self) -> float:
        """MACs per byte."""
        return self.macs / self.nbytes if self.nbytes else 0.0


@dataclass(frozen=True)
class Variant:
    """One version of the model: how good it is, how fast on this machine, and its artifact's size."""

    name: str
    score: float | None
    ms: float | None
    nbytes: int | None


@dataclass(frozen=True)
class Material:
    """What a story is told of, beside the artifact.

    Attributes:
        model: the original graph, before any pass.
        samples: inputs of some runs, to measure errors and ranges on.
        shown: inputs of some runs, of which those are shown whose answers differ most.
        labels: the class of each of them.
    """

    model: ir.Model
    samples: Sequence[Sample] = ()
    shown: Sequence[Sample] = ()
    labels: Array | None = None

    @classmethod
    def load(
        cls,
        model: Path,
        *,
        shapes: Mapping[str, Sequence[int]] | None = None,
        calib: Path | None = None,
        eval: Path | None = None,
        preprocess: Path | None = None,
    ) -> Material:
        """The model and the samples of files: errors are measured on those of ``calib``, those of ``eval`` are shown.

        Raises:
            EdgecError: a file cannot be read, or a sample does not fit.
        """
        from edgec.calibration import load_calibration
        from edgec.graph import load_graph
        from edgec.quantisation.quantise import labels_of

        graph = load_graph(model, shapes=shapes)
        first, second = (load_calibration(each, graph, preprocess).samples if each else () for each in (calib, eval))
        return cls(graph, first or second, second or first, labels_of(eval, graph, preprocess) if eval else None)

    @property
    def few(self) -> Sequence[Sample] | None:
        """Samples to see the passes on; None where there are none."""
        return self.samples[:_CHECKED] or None


@dataclass
class Story:
    """Everything on the page; what could not be had is None or empty, and ``notes`` say why."""

    artifact: Path
    facts: Mapping[str, Any]
    layers: list[Layer] = field(default_factory=list)
    errors: LayerErrors | None = None
    roofs: Roofs | None = None
    machine: Machine | None = None
    variants: list[Variant] = field(default_factory=list)
    histograms: list[Histogram] = field(default_factory=list)
    answers: tuple[Answer, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)
    labelled: bool = False
    """Whether scores are accuracies."""

    @property
    def measures(self) -> bool:
        """Whether the artifact runs on this machine, where times mean something."""
        return bool(self.facts["target"] == "host")

    @property
    def runs(self) -> bool:
        """Whether it runs on this machine at all: a GPU's artifact does, on the processor where there is no GPU."""
        return self.measures or ("fallback" in self.facts and self.facts["triple"] == host_triple())


def gather(
    artifact: Path,
    facts: Mapping[str, Any],
    material: Material,
    progress: Progress | None = None,
    *,
    attempts: Sequence[ir.Model] = (),
    errors: LayerErrors | None = None,
) -> Story:
    """The story of ``artifact``.

    Args:
        artifact: what ``edgec compile`` wrote, with its companions.
        facts: its report as plain data, as in the JSON beside it.
        material: the model and the samples.
        progress: told (what, done, total).
        attempts: the models that the accuracy guard judged, the last of them taken.
        errors: what the layers' quantisation costs, where that is known already.

    Raises:
        EdgecError: a sample does not fit.
    """
    from edgec.quantisation.layer_errors import compare_artifact

    tell = progress or (lambda what, done, total: None)
    story = Story(artifact, facts, labelled=material.labels is not None)
    samples = list(material.samples)
    quantised = facts.get("quantisation")
    if quantised and samples:
        story.errors = errors or compare_artifact(artifact, samples[:_CHECKED], tell)
        tell("page", 0, 3)
        story.histograms = list(layer_histograms(_graph(companions(artifact)[1]), quantised["layers"], samples))
    elif samples:
        story.histograms = list(float_histograms(material.model, samples))
    steps: Sequence[StepProfile] = ()
    if story.measures:
        with observed() as observation:
            steps = _measure(story, attempts, samples)
        story.machine = observation.machine
    else:
        story.notes["time"] = _no_times(facts)
    tell("page", 1, 3)
    if "steps" in facts:
        story.layers = _layers(facts, steps, story)
    if material.shown:
        story.answers = _answers(story, material)
    else:
        story.notes["samples"] = "No samples were given; --calib, --eval or --check brings what is measured on them."
    tell("page", 2, 3)
    return story


def _no_times(facts: Mapping[str, Any]) -> str:
    """Why the page has no times."""
    if "fallback" in facts:
        return "No times: a GPU's steps are measured on the device, by edgec bench, with those of its processor beside."
    return (
        f"No times: the artifact is for {facts['target']}, and this machine is not. "
        "An emulator's time would say nothing of a board's."
    )


def _measure(story: Story, attempts: Sequence[ir.Model], samples: Sequence[Sample]) -> Sequence[StepProfile]:
    """Times of the steps and of the variants, and the roofs above them."""
    from edgec.benchmark import profile_steps, random_inputs
    from edgec.data.samples import specs
    from edgec.targets.target import load_target
    from edgec.tuning.roofline import measure_roofs

    facts = story.facts
    values = dict(samples[0]) if samples else random_inputs(specs(facts["inputs"]))
    story.roofs = measure_roofs(load_target("host"))
    story.variants = _variants(story, attempts, values)
    return profile_steps(story.artifact, values, _ROUNDS)


def _variants(story: Story, attempts: Sequence[ir.Model], values: Mapping[str, Array]) -> list[Variant]:
    """The artifact, beside the float model and whatever the guard tried before it was content."""
    from edgec.benchmark import latencies
    from edgec.compiler import compile

    facts = story.facts
    guard = (facts.get("quantisation") or {}).get("guard")
    with tempfile.TemporaryDirectory(prefix="edgec-report-") as folder:
        paths, names, scores = [], [], []
        if facts.get("quantisation"):
            floats = companions(story.artifact)[1]
            paths.append(compile(floats, "host", Path(folder) / "float.so").path)
            names.append("float")
            scores.append(guard["float_score"] if guard else None)
        tried = list(zip(attempts, guard["attempts"], strict=True))[:-1] if guard and attempts else []
        for index, (model, attempt) in enumerate(tried):
            paths.append(compile(model.clone(), "host", Path(folder) / f"{index}.so").path)
            names.append(_attempt_name(attempt["put_back"]))
            scores.append(attempt["score"])
        paths.append(story.artifact)
        names.append("this artifact")
        scores.append(guard["score"] if guard else None)
        times = latencies(paths, values, _ROUNDS)
        sizes = [path.stat().st_size for path in paths]
    return [Variant(*each) for each in zip(names, scores, times, sizes, strict=True)]


def _attempt_name(put_back: Mapping[str, str]) -> str:
    if not put_back:
        return "int8 everywhere"
    counts = {bits: list(put_back.values()).count(bits) for bits in ("int16", "float")}
    listing = " and ".join(f"{count} in {bits}" for bits, count in counts.items() if count)
    return f"{listing}, the rest int8"


def _layers(facts: Mapping[str, Any], profile: Sequence[StepProfile], story: Story) -> list[Layer]:
    """The steps by the first node that they compute, in the order of the program."""
    groups: dict[str, list[int]] = {}
    for index, nodes in enumerate(facts["nodes"]):
        # a step that only moves data, for a GPU, computes no node
        groups.setdefault(nodes[0] if nodes else facts["steps"][index]["name"], []).append(index)
    precision = {layer["name"]: layer["bits"] for layer in (facts.get("quantisation") or {}).get("layers", ())}
    errors = {error.name: error for error in story.errors.layers} if story.errors else {}
    total = sum(step.min_ns for step in profile)
    found = []
    for name, places in groups.items():
        steps = [facts["steps"][place] for place in places]
        kernel = max(steps, key=lambda step: (step["macs"], "fill" not in step["kernel"]))["kernel"]
        macs, nbytes = sum(step["macs"] for step in steps), sum(facts["operand_bytes"][place] for place in places)
        ns = sum(profile[place].min_ns for place in places) if profile else None
        layer = Layer(
            name, kernel, precision.get(name) or _bits(kernel), len(places), macs, nbytes,
            ns / 1e3 if ns is not None else None, ns / total if ns is not None and total else None,
            error=errors.get(name),
        )  # fmt: skip
        found.append(_under_roof(layer, story.roofs))
    return found


def _bits(kernel: str) -> str:
    """The precision that a kernel's name tells."""
    kinds = {"u8": "int8", "s8": "int8", "uint8": "int8", "int8": "int8", "u16": "int16", "s16": "int16"}
    return kinds.get(kernel.split("_")[0], "float")


def _under_roof(layer: Layer, roofs: Roofs | None) -> Layer:
    bound = roofs.bound(_dtype(layer.kernel), layer.macs, layer.nbytes) if roofs and layer.macs else None
    return layer if bound is None or layer.rate is None else replace(layer, roof=layer.rate / bound)


def _dtype(kernel: str) -> str:
    """The dtype whose peak bounds a kernel; for 16-bit integers no peak is measured."""
    kinds = {"u8": "uint8", "s8": "uint8", "f32": "float32", "float32": "float32"}
    return kinds.get(kernel.split("_")[0], "")


def _answers(story: Story, material: Material) -> tuple[Answer, ...]:
    """What both make of the samples: the artifact itself where it runs here, else its model before it was compiled."""
    from edgec.passes.quantize.execution import ModelRunner
    from edgec.runtimes.python.session import Session

    original = ModelRunner(material.model)
    if story.runs:
        with Session(story.artifact, 1, fallback=None if story.measures else "cpu") as session:
            return differing(
                material.shown, material.labels, original.run, lambda s: list(session.run(dict(s)).values())
            )  # fmt: skip
    if not story.facts.get("quantisation"):
        return ()
    story.notes["answers"] = "The artifact's answers are those of its integer model in ONNX Runtime."
    integers = ModelRunner(_graph(companions(story.artifact)[2]))
    return differing(material.shown, material.labels, original.run, integers.run)


def _graph(path: Path) -> ir.Model:
    from edgec.graph import load_graph

    return load_graph(path)
