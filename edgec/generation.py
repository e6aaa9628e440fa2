"""Text by a language model whose artifact keeps its cache: one token a run, greedy or drawn."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from edgec.artifact import read_manifest
from edgec.errors import EdgecError
from edgec.runtimes.python.session import Session, Tensor

BYTES = 256
"""A vocabulary of so many tokens is the bytes of UTF-8."""


class Tokenizer(Protocol):
    """How text becomes tokens, and they text again."""

    def encode(self, text: str) -> list[int]:
        """The tokens of ``text``."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of ``tokens``; what is no text in them is replaced or left out."""


class ByteTokenizer:
    """Tokens that are the bytes of UTF-8."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(tokens).decode(errors="replace")


class FileTokenizer:
    """A ``tokenizer.json``, as the `tokenizers` library writes it beside a model."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            EdgecError: there is no such file, it is none, or the library is missing.
        """
        try:
            from tokenizers import Tokenizer as Reader
        except ModuleNotFoundError as error:
            raise EdgecError("--tokenizer needs the tokenizers package; run: pip install 'edgec[text]'") from error
        if not path.is_file():
            raise EdgecError(f"there is no file '{path}'; --tokenizer takes the tokenizer.json of the model")
        try:
            self._reader = Reader.from_file(str(path))
        except Exception as error:  # the library raises nothing more special
            reason = " ".join(str(error).split())
            raise EdgecError(f"'{path}' is no tokenizer.json: {reason}") from error

    def encode(self, text: str) -> list[int]:
        return list(self._reader.encode(text).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._reader.decode(list(tokens)))


@dataclass(frozen=True)
class Generated:
    """What :func:`write` made.

    Attributes:
        tokens: those that were generated.
        text: of the prompt and these.
        prompt_tokens: how many the prompt had.
        ms_per_token: mean wall time of a run after the first token.
        state_bytes: what the artifact keeps between runs.
    """

    tokens: tuple[int, ...]
    text: str
    prompt_tokens: int
    ms_per_token: float
    state_bytes: int


@dataclass(frozen=True)
class _Decoder:
    """An opened language model: which tensor is what."""

    session: Session
    token: Tensor
    position: Tensor | None
    logits: Tensor

    @classmethod
    def of(cls, session: Session, path: Path) -> _Decoder:
        """By the shapes: the token is the integer input of one element with most axes, a position has fewer."""
        integers = [each for each in session.inputs if each.dtype.kind == "i" and int(np.prod(each.shape)) == 1]
        integers.sort(key=lambda each: -len(each.shape))
        if not integers or len(integers) > 2 or len(integers) != len(session.inputs) or len(session.outputs) != 1:
            inputs = ", ".join(map(str, session.inputs))
            raise EdgecError(
                f"{path} reads {inputs}, and a step of a generation reads one token and perhaps its position, and "
                "gives logits; pin the length at 1 with --shape and name its caches with --state when you compile it"
            )
        position = integers[1] if len(integers) > 1 else None
        return cls(session, integers[0], position, session.outputs[0])

    @property
    def vocabulary(self) -> int:
        return self.logits.shape[-1]

    def step(self, token: int, place: int) -> np.ndarray:
        """The logits [vocabulary] after ``token`` at ``place``."""
        inputs = {self.token.name: np.full(self.token.shape, token, self.token.dtype)}
        if self.position is not None:
            inputs[self.position.name] = np.full(self.position.shape, place, self.position.dtype)
        return self.session.run(inputs)[self.logits.name].reshape(-1)[-self.vocabulary :]


def generate(
    artifact: str | os.PathLike[str],
    prompt: str | bytes | Sequence[int],
    tokens: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    threads: int = 1,
    tokenizer: Tokenizer | None = None,
) -> Iterator[int]:
    """The tokens that follow ``prompt``, one after the other, as they are made.

    Args:
        artifact: a decoder that was compiled for this machine with its caches as states.
        prompt: text, or tokens; bytes are those of a vocabulary of bytes.
        tokens: how many to generate.
        temperature: what logits are divided by before a token is drawn; 0 takes the likeliest.
        seed: of the draws.
        threads: that share the work of a run.
        tokenizer: of a prompt that is text; by default bytes.

    Raises:
        EdgecError: the artifact is no such decoder, or prompt and tokens are more than its context.
    """
    path = Path(artifact)
    with Session(path, threads) as session:
        decoder, given = _start(session, path, prompt, tokens, tokenizer)
        generator = np.random.default_rng(seed)
        logits = np.empty(0)
        for place, token in enumerate(given):
            logits = decoder.step(token, place)
        for index in range(tokens):
            token = _chosen(logits, temperature, generator)
            yield token
            if index + 1 < tokens:
                logits = decoder.step(token, len(given) + index)


def write(
    artifact: Path, prompt: str, tokens: int, *, temperature: float = 0.0, seed: int = 0, threads: int = 1,
    tokenizer: Path | None = None,
) -> Generated:  # fmt: skip
    """:func:`generate` from the start to the end, as text: of bytes, or of a ``tokenizer.json``."""
    own = None if tokenizer is None else FileTokenizer(tokenizer)
    making = generate(
        artifact, prompt, tokens, temperature=temperature, seed=seed, threads=threads, tokenizer=own
    )  # fmt: skip
    first = next(making)
    start = time.perf_counter()
    made = (first, *making)
    seconds = time.perf_counter() - start
    states = read_manifest(artifact).get("states", [])
    kept = sum(int(np.prod(state["shape"])) * np.dtype(state["dtype"]).itemsize for state in states)
    codec = own or ByteTokenizer()
    given = codec.encode(prompt)
    text = codec.decode([*given, *made])
    return Generated(made, text, len(given), 1e3 * seconds / max(tokens - 1, 1), kept)


def _start(
    session: Session, path: Path, prompt: str | bytes | Sequence[int], tokens: int, tokenizer: Tokenizer | None
) -> tuple[_Decoder, list[int]]:
    """The decoder and the prompt's tokens, checked."""
    decoder = _Decoder.of(session, path)
    if isinstance(prompt, str | bytes) and tokenizer is None and decoder.vocabulary != BYTES:
        raise EdgecError(
            f"{path} has a vocabulary of {decoder.vocabulary} tokens, and text is tokens only where these are the 256 "
            "bytes; give the model's tokenizer.json with --tokenizer, or tokens to edgec.generate"
        )
    given = (tokenizer or ByteTokenizer()).encode(prompt) if isinstance(prompt, str) else list(prompt)
    if not given or tokens < 1:
        raise EdgecError("a generation needs a prompt of at least one token, and one or more to generate")
    if min(given) < 0 or max(given) >= decoder.vocabulary:
        raise EdgecError(f"the prompt has the token {max(given)}, and {path} knows 0 to {decoder.vocabulary - 1}")
    context = _context(path)
    if context is not None and len(given) + tokens - 1 > context:
        raise EdgecError(
            f"{len(given)} tokens of the prompt and {tokens} more exceed the {context} that {path} keeps; ask for "
            f"{max(context + 1 - len(given), 0)} or fewer"
        )
    return decoder, given


def _context(path: Path) -> int | None:
    """How many tokens the artifact's caches hold: the axis before the last; None where it keeps none."""
    lengths = {state["shape"][-2] for state in read_manifest(path).get("states", []) if len(state["shape"]) > 2}
    return min(lengths, default=None)


def _chosen(logits: np.ndarray, temperature: float, generator: np.random.Generator) -> int:
    if temperature <= 0:
        return int(logits.argmax())
    scaled = logits.astype(np.float64) / temperature
    shares = np.exp(scaled - scaled.max())
    return int(generator.choice(len(shares), p=shares / shares.sum()))
