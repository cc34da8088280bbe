"""What people read at the end of a training. Pure functions."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Optional

from ansible.module_utils.lora_forge.adapters.manifest import Manifest, Merit
from ansible.module_utils.lora_forge.evaluation.scores import Comparison, Score
from ansible.module_utils.lora_forge.planned_run import PlannedRun
from ansible.module_utils.lora_forge.planning.agents import listed
from ansible.module_utils.lora_forge.planning.run_record import RunRecord
from ansible.module_utils.lora_forge.text import duration, pair


def ready_lines(run: PlannedRun, manifest: Manifest, home: pathlib.Path, promoted: bool, message: str) -> list[str]:
    """Write the lines for an adapter that is there.

    Args:
        run: Its state tells whether the adapter was there before.
        manifest: The adapter's.
        home: The agent's folder of adapters.
        promoted: Whether ``latest`` points to it.
        message: What is to be said of that; empty for nothing.
    """
    agent, run_id = run.agent, run.run_id
    # As seen from the checkout, where output/ is unless somebody says otherwise.
    folder = "/".join(home.parts[-3:]) if home.parts[-3:-1] == ("output", "adapters") else str(home)
    if run.state == "ready":
        return [
            f"{agent} is ready already (same recipe, same data): {folder}/{run_id}. "
            "Nothing to do; -e fresh=true trains again.",
            *merit_lines(manifest.merit),
            *_missing_lines(manifest.merit, run_id, ", such as cases that were written or changed since"),
            *([] if promoted or not message else [f"  {message}"]),
        ]
    at = f"{folder}/latest → {run_id}" if promoted else f"{folder}/{run_id}"
    loss, steps = manifest.loss, manifest.steps
    figures = [f"{steps.reached} of {steps.planned} steps", pair("loss", loss.first, loss.last)]
    if loss.eval_last is not None:
        figures.append(pair("eval", loss.eval_first, loss.eval_last))
    if manifest.duration_s is not None:
        where = f" on {manifest.host.name}" if manifest.host.name else ""
        figures.append(f"trained in {duration(manifest.duration_s)}{where}")
    spent = manifest.cost
    figures.append(f"cost {spent.usd:.2f} USD" if spent.usd else f"cost {spent.words or 0}")
    lines = ["", f"{agent} is ready   {at}", "  " + "   ".join(figures), *([f"  {message}"] if message else [])]
    if steps.adapter is not None and steps.reached is not None and steps.adapter < steps.reached:
        best = pair("eval", loss.eval_adapter, None)
        lines.append(f"  the adapter is that of step {steps.adapter}, the best evaluated one: {best}")
    lines += merit_lines(manifest.merit) + _missing_lines(manifest.merit, run_id)
    counts = manifest.data
    if counts and (counts.longer or counts.dropped or counts.untrainable):
        cut = counts.longer - counts.dropped
        parts = [f"{cut} cut at sequence_len"] if cut > 0 else []
        parts += [f"{counts.dropped} dropped"] if counts.dropped else []
        parts += [f"{counts.untrainable} without an assistant token left, dropped"] if counts.untrainable else []
        lines.append(f"  of {counts.examples} examples ({counts.tokens:,} tokens): {', '.join(parts)}")
    if manifest.starts and manifest.starts > 1:
        lines.append(f"  started {manifest.starts} times: it resumed from its checkpoints")
    if manifest.is_rehearsal:
        real = (
            f"name your GPU host: ansible-playbook -i inventory/ssh.yml train.yml -e role={agent}"
            if run.trainer == "localhost"
            else "run the same command without run_profile=rehearsal and trainer_lock=trainer-cpu"
        )
        lines.append(f"  This was a rehearsal with a tiny random model. For the real one, {real}")
    return lines


def merit_lines(merit: Optional[Merit]) -> list[str]:
    """Say how an adapter does on its agent's cases; nothing where it has none.

    Args:
        merit: Of its manifest.
    """
    if merit is None:
        return []
    others = [f"base {scored(merit.base)}"] if merit.base.cases else []
    if merit.than.cases:
        others.append(f"{merit.against} {scored(merit.than)}: {verdict(merit.over_promoted)}")
    lines = [f"  cases  {scored(merit.score, interval=True)}   {'   '.join(others)}".rstrip()]
    if merit.unanswered:
        lines[0] += f"   {merit.unanswered} of {merit.cases} not answered"
    if merit.unchecked:
        lines[0] += f"   {merit.unchecked} not checked, for want of a judge"
    if merit.unjudged:
        lines.append(f"  {merit.unjudged} checks of answers have no verdict: {merit.why_unjudged}")
    if merit.unloadable:
        lines.append(f"  {merit.against} was not asked: {merit.unloadable}")
    if merit.over_promoted.lost:
        lines.append(f"  from right to wrong: {listed(merit.over_promoted.lost)}")
    if merit.broken:
        lines.append(f"  it does what is forbidden in: {listed(merit.broken)}")
    return lines


def not_evaluated_text(run: PlannedRun, why: str) -> str:
    """Say that a delivered adapter could not be evaluated, and what does it later; until then the gate waits.

    Args:
        run: The run that made it.
        why: What is wrong with its cases.
    """
    later = f"playbooks/evaluate.yml -e run_id={run.run_id}" if run.by_notes else "the next command"
    known = f"{run.run_id} is delivered, and not evaluated: {why.rstrip('.')}"
    return f"{known}. Once that is right, {later} evaluates it, and decides whether latest moves"


def delivered_text(promoted: bool, message: str) -> str:
    """Say of a delivered adapter what a webhook is told.

    Args:
        promoted: Whether ``latest`` points to it.
        message: What else is to be said of that; empty for nothing.
    """
    return ". ".join(filter(None, ("latest points to it" if promoted else "", message)))


def _missing_lines(merit: Optional[Merit], run_id: str, such_as: str = "") -> list[str]:
    if merit is None or not merit.unanswered:
        return []
    return [f"  to ask what is not answered{such_as}: ansible-playbook playbooks/evaluate.yml -e run_id={run_id}"]


def decision_text(manifest: Manifest, message: str) -> str:
    """Say what somebody has to know who decides whether an adapter is promoted: scores, and the command.

    Args:
        manifest: The adapter's.
        message: What became of ``latest``, and the command that moves it.
    """
    lines = [
        ", ".join(" ".join(part.split()) for part in line.strip().split("   ")) for line in merit_lines(manifest.merit)
    ]
    return f"{'; '.join(lines) or 'it was asked no cases'}. {message}"


def scored(score: Score, interval: bool = False) -> str:
    """Write a score, as «17 of 20 (64 to 95 %)»."""
    ends = interval_of(score)
    if not ends:
        return "–"
    return f"{score.right} of {score.cases}" + (f" ({ends})" if interval else "")


def interval_of(score: Score) -> str:
    """Write the 95 % interval of a score, as «64 to 95 %»; empty where there is none."""
    if score.share is None or score.low is None or score.high is None:
        return ""
    return f"{100 * score.low:.0f} to {100 * score.high:.0f} %"


def percent(share: Optional[float]) -> str:
    """Write a share, as «78 %»: 0 and 100 are none and all, and nothing that is near."""
    if share is None:
        return "–"
    return f"{share if share in (0, 1) else min(max(share, 0.01), 0.99):.0%}".replace("%", " %")


def share_of(score: Score) -> str:
    """Write a score in a cell of a table, as «78 % of 40»: with weights its share is more than a count."""
    return "–" if score.share is None else f"{percent(score.share)} of {score.cases}"


def verdict(over: Comparison) -> str:
    """Say what a comparison tells."""
    if over.verdict != "cannot tell":
        return f"{over.verdict} (p {over.p:.2g})"
    return f"cannot tell with {over.cases} cases; about {over.needed} would tell 10 points"


def failure_reason(run: PlannedRun, record: RunRecord) -> str:
    """Tell what went wrong with a run in this command; empty where nothing is known.

    Where a host of a gang failed, the first one knows no more than that it was stopped.

    Args:
        run: As it was planned.
        record: What is noted of it.
    """
    failures = record.failures_of(sorted(run.hosts, key=lambda host: host == run.trainer), run.planned_at)
    host, message = next(iter(failures.items()), ("", ""))
    return message if host in ("", run.trainer) or message.startswith(host) else f"{host}: {message}"


def is_under_way(run: PlannedRun, record: RunRecord) -> bool:
    """Tell whether a run that nobody waits for trains, as far as is known.

    Args:
        run: As it was planned.
        record: What is noted of it.
    """
    launched = record.hosts_of(run.hosts, run.planned_at)
    return not failure_reason(run, record) and 0 < len(launched) == len(run.hosts)


def under_way_line(run: PlannedRun) -> str:
    """Say of a run that nobody waits for where it is, and how to come back to it. It may have yet to begin."""
    again = "the same command without detach" if run.variant else "train.yml with the same options"  # of a sweep
    return f"{run.name} is launched on {run.trainer}; {again} watches and collects it"


def not_ready_lines(run: PlannedRun, record: RunRecord, wanted: str = "ready") -> list[str]:
    """Write the lines for a run that was wanted, and is not verified.

    Args:
        run: As it was planned.
        record: What is noted of it.
        wanted: What it is not.
    """
    lost = f"{run.trainer} was lost on the way; the same command goes on, -e move={run.trainer} goes elsewhere"
    reason = failure_reason(run, record).strip().splitlines() or [lost]
    return [f"{run.name} is not {wanted}: {run.run_id} on {run.trainer}: {reason[0]}"]


def tally_lines(runs: Sequence[PlannedRun], not_verified: Sequence[str], under_way: int = 0) -> list[str]:
    """Count how many of several runs are verified, and say what to do about the others.

    Args:
        runs: As they were planned.
        not_verified: Run ids that were wanted and are not verified.
        under_way: How many train, and nobody waits for them.
    """
    if len(runs) < 2 or not not_verified:
        return []
    counted = f"{len(runs) - len(not_verified) - under_way} of {len(runs)} are verified"
    counted += f", {under_way} train" if under_way else ""
    advice = "The same command goes on with the others; -e move=<trainer> starts what a lost trainer had on another one"
    return ["", f"{counted}. {advice}"]
