"""Text by a language model whose artifact keeps its cache: one token a run, greedy or drawn."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgec.artifact import read_manifest
from edgec.errors import EdgecError
from edgec.runtimes.python.session import Session, Tensor

BYTES = 256
"""A vocabulary of so many tokens is the bytes of UTF-8."""


@dataclass(frozen=True)
class Generated:
    """What :func:`write` made.

    Attributes:
        tokens: those that were generated.
        text: of the prompt and these; None for a vocabulary that is not bytes.
        prompt_tokens: how many the prompt had.
        ms_per_token: mean wall time of a run after the first token.
        state_bytes: what the artifact keeps between runs.
    """

    tokens: tuple[int, ...]
    text: str | None
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
) -> Iterator[int]:
    """The tokens that follow ``prompt``, one after the other, as they are made.

    Args:
        artifact: a decoder that was compiled for this machine with its caches as states.
        prompt: text or bytes, for a vocabulary of bytes, or tokens.
        tokens: how many to generate.
        temperature: what logits are divided by before a token is drawn; 0 takes the likeliest.
        seed: of the draws.
        threads: that share the work of a run.

    Raises:
        EdgecError: the artifact is no such decoder, or prompt and tokens are more than its context.
    """
    path = Path(artifact)
    with Session(path, threads) as session:
        decoder, given = _start(session, path, prompt, tokens)
        generator = np.random.default_rng(seed)
        logits = np.empty(0)
        for place, token in enumerate(given):
            logits = decoder.step(token, place)
        for index in range(tokens):
            token = _chosen(logits, temperature, generator)
            yield token
            if index + 1 < tokens:
                logits = decoder.step(token, len(given) + index)


def write(artifact: Path, prompt: str, tokens: int, **options: Any) -> Generated:
    """:func:`generate` from the start to the end."""
    making = generate(artifact, prompt, tokens, **options)
    first = next(making)
    start = time.perf_counter()
    made = (first, *making)
    seconds = time.perf_counter() - start
    states = read_manifest(artifact).get("states", [])
    kept = sum(int(np.prod(state["shape"])) * np.dtype(state["dtype"]).itemsize for state in states)
    given = prompt.encode()
    text = (given + bytes(made)).decode(errors="replace")
    return Generated(made, text, len(given), 1e3 * seconds / max(tokens - 1, 1), kept)


def _start(
    session: Session, path: Path, prompt: str | bytes | Sequence[int], tokens: int
) -> tuple[_Decoder, list[int]]:
    """The decoder and the prompt's tokens, checked."""
    decoder = _Decoder.of(session, path)
    given = list(prompt.encode() if isinstance(prompt, str) else prompt)
    if isinstance(prompt, str | bytes) and decoder.vocabulary != BYTES:
        raise EdgecError(
            f"{path} has a vocabulary of {decoder.vocabulary} tokens, and text is tokens only where these are the 256 "
            "bytes; encode the prompt with the model's own tokenizer and call edgec.generate with its tokens"
        )
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
