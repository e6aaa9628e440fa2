"""Every operator test of the installed ``onnx``, compiled and run: none wrong, most passed, the others refused."""

from __future__ import annotations

import pytest

from tests.onnx_backend import LEFT_OUT, PASSED, PINNED, REFUSED, WRONG, Outcome, passed_share, run_cases, table

LEAST_SHARE = 0.6
"""Of the cases that are not left out (see :mod:`tests.onnx_backend`): passed or pinned."""


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    return run_cases()


def test_no_case_is_wrong(outcomes: list[Outcome]) -> None:
    wrong = [outcome for outcome in outcomes if outcome.verdict == WRONG]
    assert not wrong, table(wrong)


def test_most_cases_pass(outcomes: list[Outcome]) -> None:
    assert len(outcomes) > 1000
    assert passed_share(outcomes) >= LEAST_SHARE, table(outcomes)


def test_few_cases_are_left_out(outcomes: list[Outcome]) -> None:
    """The rule for leaving out must not hollow out the share."""
    assert sum(outcome.verdict == LEFT_OUT for outcome in outcomes) < 0.2 * len(outcomes)


def test_most_cases_pass_without_pinning(outcomes: list[Outcome]) -> None:
    passed, pinned = (sum(outcome.verdict == verdict for outcome in outcomes) for verdict in (PASSED, PINNED))
    assert passed > 2 * pinned


def test_every_refusal_is_a_sentence(outcomes: list[Outcome]) -> None:
    refused = [outcome for outcome in outcomes if outcome.verdict == REFUSED]
    assert all(20 < len(outcome.detail) < 500 and "\n" not in outcome.detail for outcome in refused)
