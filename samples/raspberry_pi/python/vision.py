"""Names what a camera or picture files show, or finds objects in them, with a model that edgec compiled.

    python vision.py MODEL.so --preprocess RECIPE.toml --labels LABELS.txt [--detect] photo.jpg ...
    python vision.py MODEL.so --preprocess RECIPE.toml --labels LABELS.txt --camera 640x480 --output live.jpg

Prints a line a picture, with the time of preparing and of inference, and at the end frames per second. With
``--output`` the results are drawn: into a folder a file NAME_seen.jpg for each picture, or into one file that every
frame of the camera replaces. Needs numpy, pillow, and edgert (on a board) or edgec; a camera needs picamera2.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from detection import find_boxes
from pictures import draw, load_recipe, make_input
from PIL import Image

try:
    from edgert import load
except ImportError:
    from edgec import load

BEST = 3
"""Classes that are told of a picture."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help="what edgec compile wrote")
    parser.add_argument("pictures", nargs="*", type=Path, help="picture files")
    parser.add_argument("--preprocess", type=Path, required=True, help="the recipe, as for edgec eval")
    parser.add_argument("--labels", type=Path, help="names of the classes, one a line")
    parser.add_argument("--detect", action="store_true", help="the model finds boxes, as FastestDet does")
    parser.add_argument("--threshold", type=float, default=0.65, help="the least score of a box")
    parser.add_argument("--camera", metavar="WIDTHxHEIGHT", help="read the camera instead of files")
    parser.add_argument("--frames", type=int, help="stop after so many frames of the camera")
    parser.add_argument("--output", type=Path, help="where drawn pictures go: a folder, or a file for the camera")
    parser.add_argument("--threads", type=int, default=1)
    parsed = parser.parse_intermixed_args()
    if bool(parsed.pictures) == bool(parsed.camera):
        parser.error("give picture files, or --camera WIDTHxHEIGHT")
    return parsed


def camera_frames(size: str) -> Iterator[tuple[str, Image.Image]]:
    """Frames of the board's camera, without end."""
    from picamera2 import Picamera2

    width, _, height = size.partition("x")
    with Picamera2() as camera:
        # picamera2 names formats by their order in a word: BGR888 is R, G, B in memory
        camera.configure(camera.create_video_configuration({"size": (int(width), int(height)), "format": "BGR888"}))
        camera.start()
        for number in itertools.count():
            yield f"frame {number}", Image.fromarray(camera.capture_array())


def file_frames(paths: list[Path]) -> Iterator[tuple[str, Image.Image]]:
    """The pictures in files."""
    for path in paths:
        with Image.open(path) as picture:
            yield path.name, picture.convert("RGB")


def probabilities(output: np.ndarray) -> np.ndarray:
    """The shares of the classes, float64; logits go through a softmax."""
    values = output.reshape(-1).astype(np.float64)
    if values.min() >= 0 and abs(values.sum() - 1) < 1e-3:
        return values
    shares = np.exp(values - values.max())
    return shares / shares.sum()


class Watcher:
    """A model, its recipe and its labels."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.recipe = options, load_recipe(options.preprocess)
        self.labels = options.labels.read_text(encoding="utf-8").splitlines() if options.labels else []
        self.session = load(options.model, threads=options.threads)
        (self.input,), (self.output, *_) = self.session.inputs, self.session.outputs
        if self.input.dtype != np.float32 or len(self.input.shape) != 4:
            raise ValueError(f"the model takes {self.input}, which is no picture of float32")
        if self.options.detect and (len(self.output.shape) != 4 or self.output.shape[1] < 6):
            raise ValueError(f"--detect needs an output [1, 5 + classes, rows, columns], and this is {self.output}")

    def name(self, label: int) -> str:
        """Of a class."""
        return self.labels[label] if label < len(self.labels) else str(label)

    def look(self, title: str, picture: Image.Image) -> Image.Image | None:
        """Run the model on a picture, tell what it found, and draw it where an output was asked for."""
        start = time.perf_counter()
        values = make_input(picture, self.recipe, self.input.shape)
        prepared = time.perf_counter()
        output = self.session.run({self.input.name: values})[self.output.name]
        done = time.perf_counter()
        lines, boxes = [], []
        if self.options.detect:
            objects = find_boxes(output, self.options.threshold)
            boxes = [(box, f"{self.name(box.label)} {box.score:.2f}") for box in objects]
            found = [f"{text} at {' '.join(f'{side:.3f}' for side in box.sides)}" for box, text in boxes]
        else:
            shares = probabilities(output)
            best = np.argsort(-shares, kind="stable")[:BEST]
            lines = found = [f"{self.name(int(label))} {shares[label]:.4f}" for label in best]
        times = f"prepared in {1e3 * (prepared - start):.2f} ms, inferred in {1e3 * (done - prepared):.2f} ms"
        print(f"{title}: {'; '.join(found) or 'nothing'} ({times})", flush=True)
        return draw(picture, lines, boxes) if self.options.output else None


def save(picture: Image.Image, path: Path) -> None:
    """Write a picture under its name only when it is complete."""
    part = path.with_name(f".{path.name}.part")
    picture.save(part, {".png": "PNG", ".ppm": "PPM"}.get(path.suffix.lower(), "JPEG"))
    part.replace(path)


def main() -> int:
    """Look at every picture."""
    options = arguments()
    watcher = Watcher(options)
    if options.output and not options.camera:
        options.output.mkdir(exist_ok=True)
    frames = camera_frames(options.camera) if options.camera else file_frames(options.pictures)
    start, count = time.perf_counter(), 0
    for title, picture in itertools.islice(frames, options.frames):
        drawn = watcher.look(title, picture)
        if drawn is not None:
            save(drawn, options.output if options.camera else options.output / f"{Path(title).stem}_seen.jpg")
        count += 1
    print(f"{count} pictures, {count / (time.perf_counter() - start):.1f} frames/s")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(0)
    except Exception as error:
        sys.exit(f"vision.py: {error}")
