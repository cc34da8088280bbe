"""Whether two trainings are numerically the same: their data, and their loss curves. Pure functions."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

STEPS = 50  # that are compared
FACTOR = 3.0  # times the distance between repeats of the baseline that still counts as noise
FLOOR = 2**-8  # of the loss, which counts as noise in any case: bf16 has 8 significant bits
DRIFT = 5  # the last fifth of the steps must not have drifted away


@dataclasses.dataclass(frozen=True)
class Curve:
    """One training.

    Attributes:
        losses: The loss of each step, from the first on.
        data: What each step was trained on, as any value that is equal for equal data.
        batch: Sequences of a step.
    """

    losses: Sequence[float]
    data: Sequence[object]
    batch: int


def rms(values: Sequence[float]) -> float:
    """Return the root of the mean of the squares."""
    return math.sqrt(statistics.fmean(value * value for value in values))


def tolerance(baseline: Sequence[Curve], steps: int = STEPS) -> float:
    """Compute how far a loss curve may lie from the mean of the baseline's repeats and still be within its noise.

    The greater of FACTOR × the RMS distance of the repeats from their mean, over all repeats and steps, and FLOOR × the
    mean loss. Two repeats from one seed may agree to the last bit, while another order of the same sums never does:
    hence the floor, which is what bf16 rounds by.
    """
    means = [statistics.fmean(losses) for losses in zip(*(curve.losses[:steps] for curve in baseline))]
    apart = [loss - mean for curve in baseline for loss, mean in zip(curve.losses[:steps], means)]
    return max(FACTOR * rms(apart), FLOOR * statistics.fmean(means))


def differences(baseline: Sequence[Curve], candidate: Curve, steps: int = STEPS) -> list[str]:
    """Say why a training is not numerically the same as the baseline; empty when it is, as far as can be told.

    Args:
        baseline: Its repeats; two at least.
        candidate: The other training.
        steps: How many steps are compared; none has fewer.

    Returns:
        Sentences. It is the same when the effective batch and the data of every step are, when the RMS distance of the
        loss curve from the mean of the baseline's is within :func:`tolerance`, and when the mean distance over the last
        fifth of the steps is, too.
    """
    if len(baseline) < 2:
        return ["the baseline was not repeated, so its noise is not known"]
    short = min(len(curve.losses) for curve in (*baseline, candidate))
    if short < steps:
        return [f"only {short} of {steps} steps were compared"]
    found = []
    if candidate.batch != baseline[0].batch:
        found.append(f"the effective batch is {candidate.batch} instead of {baseline[0].batch}")
    moved = next(
        (step for step, (one, other) in enumerate(zip(baseline[0].data, candidate.data), 1) if one != other), None
    )
    if moved is not None and moved <= steps:
        found.append(f"from step {moved} on it is trained on other data")
    if not all(math.isfinite(loss) for loss in candidate.losses[:steps]):
        return [*found, "its loss is not finite"]
    means = [statistics.fmean(losses) for losses in zip(*(curve.losses[:steps] for curve in baseline))]
    apart = [loss - mean for loss, mean in zip(candidate.losses[:steps], means)]
    allowed = tolerance(baseline, steps)
    if rms(apart) > allowed:
        found.append(f"its loss is {rms(apart):.4f} off (RMS over {steps} steps); noise is {allowed:.4f}")
    drift = statistics.fmean(apart[-max(1, steps // DRIFT) :])
    if abs(drift) > allowed:
        found.append(f"its loss has drifted by {drift:+.4f} in the end; noise is {allowed:.4f}")
    return found
