"""Searches for the versions of a model that are worth having: pruning × quantisation × resolution, measured.

Points are compiled and their accuracy measured in worker processes (Dask, on this machine unless a scheduler is
named). What was evaluated stands in a ledger, a line of JSON each, and is never evaluated again: an exploration that
was stopped goes on where it was. Latencies are measured at the end, of all artifacts in turn, in one process; for a
board that is not here, instructions are counted on an emulator, or multiply-adds stand for the time.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgec.artifact import write_atomically
from edgec.errors import EdgecError
from edgec.exploration.front import Front, Point, Result, front_page, result_of

if TYPE_CHECKING:
    from edgec.devices.device import Emulator

Progress = Callable[[str, int, int], None]

PRUNE = (0.0, 0.2, 0.4)
BITS = ("none", "int8")
LEDGER = "ledger.jsonl"
_ROUNDS = 30
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Task:
    """What a worker needs; paths are the same for every worker.

    Attributes:
        model: the ONNX file.
        target: what to compile for.
        calib: samples to learn from.
        eval: labelled samples to measure on.
        preprocess: how images become inputs.
        shapes: pinned inputs.
        folder: where artifacts go.
    """

    model: str
    target: str
    calib: str | None
    eval: str
    preprocess: str | None
    shapes: dict[str, list[int]]
    folder: str


def explore(
    model: Path,
    target: str,
    output: Path,
    *,
    eval: Path,
    calib: Path | None = None,
    preprocess: Path | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    prune: Sequence[float] = PRUNE,
    bits: Sequence[str] = BITS,
    resolutions: Sequence[int] = (),
    budget: float = 1800.0,
    workers: int = 1,
    scheduler: str | None = None,
    command: str = "",
    progress: Progress | None = None,
) -> Front:
    """Evaluate points until all are done or the budget is spent, and write the front.

    Args:
        model: the ONNX file.
        target: a processor among ``edgec targets``.
        output: a folder: ``ledger.jsonl``, the artifacts, ``front.json`` and ``front.html``.
        eval: labelled samples.
        calib: samples to prune and quantise by; needed for every mode of ``bits`` but "none".
        preprocess: how images become inputs.
        shapes: pins dynamic inputs.
        prune: shares of the MACs to remove.
        bits: modes of quantisation.
        resolutions: heights and widths of a model with one image input whose size is dynamic.
        budget: seconds after which no further point is begun.
        workers: processes on this machine.
        scheduler: address of a Dask scheduler instead, whose workers see the same files.
        command: shown on the page.
        progress: told (what, done, total).

    Raises:
        EdgecError: a file or a choice does not fit, or Dask is not installed.
    """
    _require_dask()
    tell = progress or (lambda what, done, total: None)
    task = _task(model, target, output, eval, calib, preprocess, shapes or {})
    points = list(_points(prune, bits, resolutions, calib is not None, preprocess is not None))
    ledger = _Ledger(output / LEDGER)
    keys = {point: _key(task, point) for point in points}
    waiting = [point for point in points if not _is_done(ledger.results.get(keys[point]), output)]
    end = time.monotonic() + budget
    tell("points", len(points) - len(waiting), len(points))
    if waiting and time.monotonic() < end:
        with _client(workers, scheduler) as client:
            for done, result in enumerate(_evaluated(client, task, waiting, keys, end), 1):
                ledger.add(result)
                tell("points", len(points) - len(waiting) + done, len(points))
    found = [ledger.results[keys[point]] for point in points if keys[point] in ledger.results]
    results, unit = _with_costs(found, task, tell)
    front = Front(
        task.model, _sha256(model), target, unit, "top-1 accuracy, %", task.calib, task.preprocess, task.shapes,
        tuple(results),
    )  # fmt: skip
    front.save(output / "front.json")
    write_atomically({output / "front.html": front_page(front, command).encode()})
    return front


def evaluate_point(task: Task, point: Point, key: str) -> Result:
    """Compile a point and measure its accuracy; what a user can mend is the result's error."""
    try:
        return _evaluate(task, point, key)
    except EdgecError as error:
        return Result(key, point, error=str(error))


def _evaluate(task: Task, point: Point, key: str) -> Result:
    from edgec.compiler import compile
    from edgec.evaluation import evaluate

    preprocess = Path(task.preprocess) if task.preprocess else None
    options: dict[str, Any] = {"shapes": task.shapes, "prune": point.prune, "quantize": point.quantize}
    if point.prune or point.quantize != "none":
        options |= {"calib": task.calib, "preprocess": preprocess}
    path = _artifact(Path(task.folder), key)
    with _AtResolution(task, point, options) as recipe:
        compiled = compile(task.model, task.target, path, **options)
        # the integers of every target are the same, and this machine is the one that is here
        own = path
        if task.target != "host":
            own = compile(task.model, "host", path.with_suffix(".host.so"), **options).path
        found = evaluate(own, Path(task.eval), preprocess=recipe)
    if found.top1 is None:
        raise EdgecError(f"'{task.eval}' has no labels, and the front is drawn of accuracies; add an array 'labels'")
    macs = sum(step["macs"] for step in compiled.manifest["steps"])
    return Result(key, point, 100 * found.top1, compiled.report.artifact_bytes, macs)


class _AtResolution:
    """Pins the image input to a point's resolution and scales the recipe of the images."""

    def __init__(self, task: Task, point: Point, options: dict[str, Any]) -> None:
        self._task, self._point, self._options = task, point, options
        self._written: Path | None = None

    def __enter__(self) -> Path | None:
        given = Path(self._task.preprocess) if self._task.preprocess else None
        if self._point.resolution is None:
            return given
        assert given is not None
        self._written = Path(self._task.folder) / f"preprocess-{self._point.resolution}-{os.getpid()}.toml"
        self._written.write_text(scaled_recipe(given, self._point.resolution), encoding="utf-8")
        self._options["shapes"] = pinned(Path(self._task.model), self._point.resolution)
        if "preprocess" in self._options:
            self._options["preprocess"] = self._written
        return self._written

    def __exit__(self, *_: object) -> None:
        if self._written is not None:
            self._written.unlink(missing_ok=True)


def scaled_recipe(path: Path, resolution: int) -> str:
    """The recipe of a folder of images with its crop at ``resolution``, and its resizing in proportion.

    Raises:
        EdgecError: the recipe does not end in a square.
    """
    from edgec.data.images import load_recipe

    recipe = load_recipe(path)
    crop, resize = recipe.crop, recipe.resize
    size = crop[0] if crop else resize if isinstance(resize, int) else resize[0] if resize else None
    if size is None:
        raise EdgecError(f"the recipe '{path}' has neither resize nor crop, which --resolution would change")
    values: dict[str, Any] = {
        "layout": recipe.layout, "order": recipe.order, "mean": list(recipe.mean), "scale": list(recipe.scale),
        "crop": resolution if crop else None,
    }  # fmt: skip
    if resize is not None:
        values["resize"] = round(resize * resolution / size) if isinstance(resize, int) else [resolution] * 2
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items() if value is not None)


def pinned(model: Path, resolution: int) -> dict[str, list[int]]:
    """The shape of the model's only input with its dynamic height and width at ``resolution``, and batch 1.

    Raises:
        EdgecError: it has no such input.
    """
    import onnx

    graph = onnx.load(model, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    dims = [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim] if len(inputs) == 1 else []
    if len(dims) != 4 or sum(extent == 0 for extent in dims[1:]) != 2:
        raise EdgecError(
            f"--resolution is for a model with one image input whose height and width are dynamic, and '{model}' has "
            f"none; leave it out"
        )
    return {inputs[0].name: [dims[0] or 1, *(extent or resolution for extent in dims[1:])]}


def _task(
    model: Path, target: str, output: Path, eval: Path, calib: Path | None, preprocess: Path | None,
    shapes: Mapping[str, Sequence[int]],
) -> Task:  # fmt: skip
    """The task, its files looked at before any worker is."""
    from edgec.targets.target import Target, resolve_target

    if not isinstance(resolve_target(target), Target):
        raise EdgecError(f"edgec explore takes a processor of edgec targets, and {target} is none")
    for path in (model, eval, calib, preprocess):
        if path is not None and not path.exists():
            raise EdgecError(f"there is no file '{path}'; check the path")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EdgecError(f"the folder '{output}' cannot be made: {error.strerror}; choose another -o") from error
    texts = [None if path is None else str(path.resolve()) for path in (calib, preprocess)]
    pins = {name: list(shape) for name, shape in shapes.items()}
    return Task(str(model.resolve()), target, texts[0], str(eval.resolve()), texts[1], pins, str(output.resolve()))


def _points(
    prune: Sequence[float], bits: Sequence[str], resolutions: Sequence[int], calibrated: bool, images: bool
) -> Iterator[Point]:
    """All points, those that cost least to evaluate and tell most first.

    Raises:
        EdgecError: a choice is none, or needs what was not given.
    """
    from edgec.quantisation.quantise import MODES

    for mode in bits:
        if mode not in MODES:
            raise EdgecError(f"--bits takes {', '.join(MODES)}, and not '{mode}'")
    if not calibrated and any(mode != "none" for mode in bits):
        raise EdgecError("a quantisation learns from samples; give typical inputs with --calib PATH, or --bits none")
    if any(not 0 <= share <= 0.9 for share in prune):
        raise EdgecError(f"--prune takes shares from 0 to 0.9, and not {', '.join(f'{share:g}' for share in prune)}")
    if resolutions and not images:
        raise EdgecError("--resolution needs a folder of images with --preprocess, which can be scaled")
    for share in prune:
        for mode in bits:
            for resolution in resolutions or (None,):
                yield Point(share, mode, resolution)


class _Ledger:
    """The results of a file, one line each; a line that was cut short is passed over."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.results: dict[str, Result] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                result = result_of(json.loads(line))
            except (ValueError, TypeError, KeyError):
                continue
            self.results[result.key] = result

    def add(self, result: Result) -> None:
        """Keep a result."""
        self.results[result.key] = result
        cut = self._path.exists() and not self._path.read_bytes().endswith(b"\n")
        with self._path.open("a", encoding="utf-8") as file:
            file.write(("\n" if cut else "") + json.dumps(asdict(result)) + "\n")


def _is_done(result: Result | None, output: Path) -> bool:
    return result is not None and (result.error is not None or _artifact(output, result.key).exists())


def _artifact(folder: Path, key: str) -> Path:
    return folder / f"{key}.so"


def _key(task: Task, point: Point) -> str:
    """The digest of everything that decides a result: the files' contents, the choices, and the version."""
    files = [_sha256(Path(path)) if path else None for path in (task.model, task.calib, task.eval, task.preprocess)]
    what = [*files, task.target, task.shapes, asdict(point), metadata.version("edgec")]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


def _sha256(path: Path) -> str:
    """Of a file, or of the names and files of a folder."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    digest = hashlib.sha256()
    for each in sorted(path.rglob("*")):
        if each.is_file():
            digest.update(f"{each.relative_to(path)}\0".encode() + each.read_bytes())
    return digest.hexdigest()


def _require_dask() -> None:
    if importlib.util.find_spec("distributed") is None:
        raise EdgecError("edgec explore needs dask; run: pip install 'edgec[explore]'")


def _client(workers: int, scheduler: str | None) -> Any:
    """A Dask client: of the scheduler, or of processes on this machine."""
    from distributed import Client, LocalCluster

    if scheduler is None:
        cluster = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0", silence_logs=50)
        return Client(cluster)
    try:
        return Client(scheduler, timeout=10)
    except (OSError, ValueError) as error:
        raise EdgecError(f"no Dask scheduler answers at '{scheduler}': {error}; start one: dask scheduler") from error


def _evaluated(
    client: Any, task: Task, points: Sequence[Point], keys: Mapping[Point, str], end: float
) -> Iterator[Result]:
    """Results as they come; as many points are under way as there are workers, and none is begun after ``end``."""
    queue, running = list(points), dict[Any, Point]()
    while queue or running:
        slots = max(1, len(client.scheduler_info()["workers"])) - len(running)
        while queue and slots > 0 and time.monotonic() < end:
            point = queue.pop(0)
            running[client.submit(evaluate_point, task, point, keys[point], pure=False)] = point
            slots -= 1
        if not running:
            return
        time.sleep(_POLL_SECONDS)
        for future in [future for future in running if future.done()]:
            point = running.pop(future)
            failed = future.exception()
            if failed is None:
                yield future.result()
            else:
                yield Result(keys[point], point, error=f"the worker failed: {failed}")


def _with_costs(results: Sequence[Result], task: Task, tell: Progress) -> tuple[list[Result], str]:
    """The results with the cost of an inference, and its unit."""
    from edgec.artifact import read_manifest
    from edgec.benchmark import latencies, random_inputs
    from edgec.data.samples import specs
    from edgec.devices.counting import CLOCK_CALLS, count_instructions
    from edgec.devices.device import EMULATORS, QemuDevice
    from edgec.targets.target import load_target

    good = [result for result in results if result.error is None]
    paths = [_artifact(Path(task.folder), result.key) for result in good]
    inputs = [random_inputs(specs(read_manifest(path)["inputs"])) for path in paths]
    triple, unit, costs = load_target(task.target).triple, "M MACs", [(result.macs or 0) / 1e6 for result in good]
    if task.target == "host":
        unit = "ms"
        tell("latencies", 0, 1)
        groups: dict[str, list[int]] = {}
        for index, values in enumerate(inputs):
            groups.setdefault(str({name: array.shape for name, array in values.items()}), []).append(index)
        for places in groups.values():
            times = latencies([paths[place] for place in places], inputs[places[0]], _ROUNDS)
            for place, ms in zip(places, times, strict=True):
                costs[place] = ms
    elif triple in CLOCK_CALLS and _has_emulator(EMULATORS[triple]):
        unit = "M instructions"
        for index, (path, values) in enumerate(zip(paths, inputs, strict=True)):
            tell("instructions", index, len(paths))
            costs[index] = count_instructions(path, values, QemuDevice()).instructions / 1e6
    measured = {result.key: replace(result, cost=cost) for result, cost in zip(good, costs, strict=True)}
    return [measured.get(result.key, result) for result in results], unit


def _has_emulator(emulator: Emulator) -> bool:
    try:
        emulator.require()
    except EdgecError:
        return False
    return True
