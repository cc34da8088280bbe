"""Write the measured part of docs/gpu.md from the JSON files of proof.py and speed.py; without any it says so.

python benchmarks/gpu/gpu_table.py [--results benchmarks/gpu/results] [--out docs/gpu.md]
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import statistics
from typing import Any, Optional

import curves
import flops
from forge import RESULTS, ROOT, import_forge, load

import_forge()
from ansible.module_utils.lora_forge.planning import memory  # noqa: E402

BEGIN, END = "<!-- measured: written by benchmarks/gpu/gpu_table.py -->", "<!-- end of what is measured -->"
NOTHING = "**Not measured.** Nothing here has run on a GPU yet, so there are no figures."
SPEEDUP, MFU, WITHIN = 1.5, 0.45, 0.15  # goals: times the baseline's tokens/s, MFU on an H100, error of the estimate
GIB = 2**30
NO_VARIANTS = ("proof", "ceiling", "gpu_check")  # files of results that are not speed.py's
HEAD = (
    "variant", "what it changes", "tokens/s", "× baseline", "MFU", "HFU", "peak GiB", "estimated GiB",
    "the same training?",
)  # fmt: skip


@dataclasses.dataclass
class Row:
    """A variant, over its repeats.

    Attributes:
        name: Of the variant.
        words: What it changes.
        same_training: It changes machine keys only.
        rates: Tokens a second of each repeat.
        mfu: Of each repeat.
        hfu: Of each repeat.
        peak: GiB of memory at most, the CUDA context included; None where it was not measured.
        estimate: GiB as the plan estimates them; None where it cannot.
        curves: Of the repeats.
        why_not: Why there are no figures.
        against: The variant that it is one change to.
        cards: UUIDs of the GPUs that it was measured on.
    """

    name: str
    words: str
    same_training: bool
    rates: list[float] = dataclasses.field(default_factory=list)
    mfu: list[float] = dataclasses.field(default_factory=list)
    hfu: list[float] = dataclasses.field(default_factory=list)
    peak: Optional[float] = None
    estimate: Optional[float] = None
    curves: list[curves.Curve] = dataclasses.field(default_factory=list)
    why_not: str = ""
    against: str = "baseline"
    cards: set[str] = dataclasses.field(default_factory=set)

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)


def shape(recipe: dict[str, Any]) -> Optional[flops.Shape]:
    """Return what the FLOPs of a recipe's model depend on; None where that is not known."""
    model = memory.find_model(recipe)
    if model is None:
        return None
    return flops.Shape(model.linear_weights(), model.vocab * model.hidden, model.layers, model.heads * model.head_dim)


def add(row: Row, found: dict[str, Any]) -> None:
    """Add one process's measurement to its variant's row."""
    steps = found["steps"][found["warmup"] :]
    seconds = sum(step["seconds"] for step in steps)
    load_of = flops.Load(*(sum(step[key] for step in steps) for key in ("tokens", "positions", "squares")))
    row.rates.append(load_of.tokens / seconds)
    model = shape(found["recipe"])
    if model is not None:
        again = memory.recomputes(found["recipe"])
        needed, computed = flops.model_flops(model, load_of), flops.hardware_flops(model, load_of, again)
        row.mfu.append(flops.share(needed, seconds, found["ceiling"]))
        row.hfu.append(flops.share(computed, seconds, found["ceiling"]))
    held = found.get("memory")
    if held:
        row.peak = max(row.peak or 0.0, (held["reserved"] + held["beside"]) / GIB)
    row.estimate = memory.estimate(found["recipe"])
    losses, data = (
        [step["loss"] for step in found["steps"]],
        [(step["tokens"], step["data"]) for step in found["steps"]],
    )
    row.curves.append(curves.Curve(losses, data, found["batch"]))
    row.cards.add(found["gpu"].get("uuid", ""))


def rows(found: list[dict[str, Any]]) -> list[Row]:
    """Make one row for each variant, the baseline first, the fastest next, and what has no figures last.

    Args:
        found: The JSON files of speed.py for one GPU.

    Raises:
        ValueError: One was made with ``--tiny``: its figures mean nothing.
    """
    made: dict[str, Row] = {}
    for one in sorted(found, key=lambda one: (one["variant"], one["repeat"])):
        if one["tiny"]:
            raise ValueError("figures of --tiny are no measurement")
        row = made.setdefault(one["variant"], Row(one["variant"], one["words"], one["same_training"]))
        row.against = one.get("against", row.against)
        if one["status"] == "measured":
            add(row, one)
        else:
            row.why_not = f"{one['status']}: {one['reason'].splitlines()[-1]}"
    return sorted(made.values(), key=lambda row: (row.name != "baseline", not row.rates, -row.rate if row.rates else 0))


def same(row: Row, baseline: Optional[Row]) -> str:
    """Say whether a variant may become a default, in words: only «yes» means it.

    Where fewer than :data:`curves.STEPS` steps can be compared, what they say so far is no answer yet.
    """
    if row is baseline:
        return ""
    if not row.same_training:
        return "no: other training"
    if baseline is None or not row.curves or len(baseline.curves) < 2:
        return "not compared"
    longest = sorted(baseline.curves, key=lambda curve: -len(curve.losses))
    candidate = max(row.curves, key=lambda curve: len(curve.losses))
    steps = min(curves.STEPS, len(candidate.losses), len(longest[1].losses))
    found = curves.differences([one for one in longest if len(one.losses) >= steps], candidate, steps)
    if steps < curves.STEPS:
        return f"not yet: {'; '.join(found) or 'so far'} ({steps} of {curves.STEPS} steps)"
    return "no: " + "; ".join(found) if found else "yes"


def several(values: list[float], digits: int) -> str:
    """Write the median, and the values it is the median of."""
    if not values:
        return "–"
    each = f" ({', '.join(f'{value:,.{digits}f}' for value in values)})" if len(values) > 1 else ""
    return f"{statistics.median(values):,.{digits}f}{each}"


def table(made: list[Row]) -> list[str]:
    """Return the lines of a Markdown table."""
    baseline = next((row for row in made if row.name == "baseline" and row.rates), None)
    text = [
        f"| {' | '.join(HEAD)} |",
        "|" + "---|" * len(HEAD),
    ]
    for row in made:
        if not row.rates:
            text.append(f"| {row.name} | {row.words} | {row.why_not.replace('|', '/')} | – | – | – | – | – | – |")
            continue
        gain = f"{row.rate / baseline.rate:.2f}" if baseline else "–"
        other = next((one for one in made if one.name == row.against != "baseline" and one.rates), None)
        if other:
            gain += f" ({row.rate / other.rate:.2f} × {other.name})"
        peak = f"{row.peak:.1f}" if row.peak else "–"
        guess = "–" if row.estimate is None else f"{row.estimate:.1f}"
        if row.peak and row.estimate:
            guess += f" ({row.estimate / row.peak - 1:+.0%})"
        cells = [
            row.name,
            row.words,
            several(row.rates, 0),
            gain,
            several(row.mfu, 3),
            several(row.hfu, 3),
            peak,
            guess,
        ]
        text.append(f"| {' | '.join(cells)} | {same(row, baseline)} |")
    return text


def goals(made: list[Row], gpu: str) -> list[str]:
    """Say in sentences which goals are met.

    Args:
        made: The rows.
        gpu: The name of the GPU; a share of the ceiling is a goal for an H100 alone.
    """
    baseline = next((row for row in made if row.name == "baseline" and row.rates), None)
    if baseline is None:
        return ["- The baseline was not measured, so no goal can be judged."]
    proven = [row for row in made if row.rates and same(row, baseline) == "yes"]
    best = max([baseline, *proven], key=lambda row: row.rate)
    gain, mfu = best.rate / baseline.rate, statistics.median(best.mfu) if best.mfu else 0.0
    text = [
        f"- At least {SPEEDUP} × the baseline, the same training: {_met(gain >= SPEEDUP)}, {gain:.2f} × ({best.name}).",
        f"- MFU at least {MFU} on an H100: {_met(mfu >= MFU)}, {mfu:.3f} ({best.name})."
        if "H100" in gpu
        else f"- MFU: {mfu:.3f} ({best.name}); the goal of {MFU} is one for an H100.",
    ]
    off = {row.name: row.estimate / row.peak - 1 for row in made if row.rates and row.peak and row.estimate}
    if off:
        worst = max(off, key=lambda name: abs(off[name]))
        met = _met(abs(off[worst]) <= WITHIN)
        text.append(
            f"- The estimate of memory within {WITHIN:.0%} of the peak: {met}, at worst {off[worst]:+.0%} ({worst})."
        )
    return text


def _met(met: bool) -> str:
    return "met" if met else "not met"


def proof_line(found: dict[str, Any]) -> str:
    """Say in a sentence what proof.py found."""
    if not found:
        return "The proof has not been run."
    if not found["proven"]:
        return f"**Not proven:** {'; '.join(found['problems'])}."
    killed, changed = found["killed"], ", ".join(f"`{key}`" for key in found["changed"])
    loss = found["loss"]
    return (
        f"**Proven:** the recipe of `{found['agent']}`, with {changed} changed, "
        f"trained {found['steps']['reached']} steps to a verified adapter of {found['lora']['parameters']:,} weights; "
        f"killed with SIGKILL at step {killed['killed_at']}, resumed from step {killed['checkpoint']}; "
        f"the loss fell from {loss['loss_first']:.3f} to {loss['loss']:.3f}."
    )


def section(folder: pathlib.Path) -> str:
    """Write the text for one GPU."""
    proof, ceiling = load(folder / "proof.json"), load(folder / "ceiling.json")
    found = [load(path) for path in sorted(folder.glob("*.json")) if path.stem not in NO_VARIANTS]
    about: dict[str, Any] = next((one for one in (proof, ceiling, *found) if one.get("gpu")), {})
    versions = ", ".join(f"{name} {version}" for name, version in about.get("versions", {}).items())
    text = [f"### {about.get('gpu', {}).get('name') or folder.name}", ""]
    driver = about.get("gpu", {}).get("driver_version", "?")
    text += [f"{about.get('date', '')}; commit {about.get('commit') or '?'}; driver {driver}; {versions}.", ""]
    text += [proof_line(proof), ""]
    if ceiling:
        text += [f"Ceiling: {ceiling['flops_per_second'] / 1e12:,.0f} TFLOP/s in a bf16 product on this card.", ""]
    if not found:
        return "\n".join([*text, "Speed was not measured.", ""])
    made = rows(found)
    cards = len(set().union(*(row.cards for row in made)))
    if cards > 1:
        text += [f"Measured on {cards} cards of this name; each share is of the ceiling of its own card.", ""]
    return "\n".join([*text, *table(made), "", *goals(made, about.get("gpu", {}).get("name", "")), ""])


def write(results: pathlib.Path, out: pathlib.Path) -> None:
    """Put what is measured between the marks of a document; the rest of it is written by hand."""
    text = out.read_text(encoding="utf-8")
    before, mark, rest = text.partition(BEGIN)
    if not mark or END not in rest:
        raise SystemExit(f"{out} has no lines «{BEGIN}» and «{END}»")
    folders = [path for path in sorted(results.glob("*")) if any(path.glob("*.json"))] if results.is_dir() else []
    body = "\n".join(section(folder) for folder in folders) or NOTHING + "\n"
    out.write_text(f"{before}{BEGIN}\n\n{body}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    print(f"{out}: {len(folders)} GPU(s)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "docs/gpu.md")
    given = parser.parse_args()
    write(given.results, given.out)


if __name__ == "__main__":
    main()
