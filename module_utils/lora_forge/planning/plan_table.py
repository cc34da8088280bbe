"""What is shown of a plan: a row for each run, who trains where, and whom Ansible does not get to."""

from __future__ import annotations

from collections.abc import Sequence

from ansible.module_utils.lora_forge.planned_run import PlannedRun
from ansible.module_utils.lora_forge.planning.fleet import Lane, Trainer
from ansible.module_utils.lora_forge.text import short

COLUMNS = ("agent", "run", "trainer", "examples", "~tokens", "~steps", "~GPU", "state")
NAMED = 8  # runs of a cluster that a line names


def table_row(run: PlannedRun) -> tuple[str, ...]:
    """Show a run under COLUMNS."""
    if run.evaluates:
        return _evaluation_row(run)
    if run.by_notes and not run.recipe:  # to stop it, or to show its logs: what it trains on is not known
        return (run.name, run.run_id, run.trainer, "–", "–", "–", "–", f"{run.state} ({run.why})")
    tokens, memory_gib = run.estimate.tokens, run.estimate.memory_gib
    gpu = "–" if run.rehearsal else "?" if memory_gib is None else f"{memory_gib} GiB"
    why = f" ({run.why})" if run.why else ""
    kind = run.rehearsed.get("config", {}).get("model_type", "qwen3")
    tiny = f" (rehearsal: tiny {kind}, CPU)" if run.rehearsal else ""
    return (
        run.name,
        run.run_id,
        run.trainer,
        str(sum(file.examples for file in run.datasets if file.use == "train")),
        f"{round(tokens / 1000)} k" if tokens > 999 else str(tokens),
        str(run.estimate.steps),
        gpu,
        f"{run.state}{why}{tiny}",
    )


def _evaluation_row(run: PlannedRun) -> tuple[str, ...]:
    """Show an evaluation, which has no data of its own."""
    gib, count = run.estimate.memory_gib, run.estimate.steps
    # Of what stops runs, and shows their logs, nothing is known of one but what was noted.
    gpu = "–" if run.rehearsal or not run.recipe else "?" if gib is None else f"{gib} GiB"
    why = f" ({run.why})" if run.why else ""
    state = f"{run.state}: {count} answers{why}" if count else f"{run.state}{why}"
    state = "all answers are known" if run.state == "ready" else state
    return (run.agent, run.run_id, run.trainer, "–", "–", "–", gpu, state)


def describe_queues(runs: Sequence[PlannedRun], trainers: Sequence[Trainer] = ()) -> list[str]:
    """Say who trains where, one line a lane, or a cluster; of hosts of one's own nothing where one run is alone.

    Args:
        runs: The planned runs.
        trainers: Where they train, for what Slurm decides.
    """
    clusters = {trainer.name: trainer for trainer in trainers if trainer.slurm}
    jobs: dict[str, list[PlannedRun]] = {}
    queues: dict[Lane, list[PlannedRun]] = {}
    for run in runs:
        if run.state != "ready" and run.trainer in clusters:
            jobs.setdefault(run.trainer, []).append(run)
        elif run.state != "ready":
            queues.setdefault(Lane.of(run), []).append(run)
    said = [_describe_jobs(clusters[name], submitted) for name, submitted in jobs.items()]
    if sum(map(len, queues.values())) + sum(map(len, jobs.values())) < 2:
        return said
    with_several = {lane.trainer for lane in queues if lane.number}
    lines = []
    for lane, queue in sorted(queues.items()):
        where = f"{lane.trainer} lane {lane.number + 1}" if lane.trainer in with_several else lane.trainer
        names = ", ".join(run.name for run in queue) + (", one after the other" if len(queue) > 1 else "")
        lines.append(f"{where}: {names}; {_size(queue)}")
    return lines + said


def _describe_jobs(trainer: Trainer, runs: Sequence[PlannedRun]) -> str:
    """Say what Slurm is asked for, and the most that it may come to. It alone decides which runs start when.

    A run that is attached to has its job, and is asked for no more.
    """
    names = ", ".join(run.name for run in runs[:NAMED])
    names += f" and {len(runs) - NAMED} more" if len(runs) > NAMED else ""
    together = f", {trainer.lanes} at once at most" if len(runs) > trainer.lanes else ""
    nodes = runs[0].nodes
    size = f" of {nodes} nodes" if nodes > 1 else ""
    new = [run for run in runs if run.state != "to attach"]
    several = f"{len(new)} jobs{size} for Slurm to start as it has room{together}"
    jobs = [several] if len(new) > 1 else [f"a job{size} for Slurm" for _ in new]
    if len(new) < len(runs):
        jobs.append(f"{len(runs) - len(new)} launched before" if new else "launched before")
    if all(run.rehearsal for run in new):
        most = ""
    elif trainer.gpu_hours is None:
        most = "; no time in run_slurm: a job may take as long as its partition lets it"
    else:
        hours = trainer.gpu_hours * nodes / trainer.nodes  # an evaluation takes one, wherever trainings take several
        each = f" each, {hours * len(new):.4g} in all" if len(new) > 1 else ""
        most = f"; {hours:.4g} GPU hours at most{each}, unless it is requeued"
    return f"{trainer.name}: {names} ({'; '.join(jobs)}); {_size(runs)}{most}"


def _size(runs: Sequence[PlannedRun]) -> str:
    """Say how much is to do; of evaluations, which are planned among themselves, in answers."""
    if runs[0].evaluates:
        return f"{sum(run.estimate.steps for run in runs)} answers"
    return f"about {short(sum(run.estimate.work for run in runs))} tokens to train on"


def busy_hosts(runs: Sequence[PlannedRun]) -> list[str]:
    """List the hosts that have work, in the order of the plan.

    Args:
        runs: The planned runs.
    """
    return list(dict.fromkeys(host for run in runs if run.state != "ready" for host in run.hosts))


def fork_limit_warning(runs: Sequence[PlannedRun], forks: int) -> list[str]:
    """Warn of hosts that Ansible does not reach while it works on others; nothing where it reaches all.

    Args:
        runs: The planned runs.
        forks: How many hosts it works on at once.
    """
    hosts = busy_hosts(runs)
    late = hosts[forks:]
    if not late:
        return []
    named = ", ".join(late[:3]) + (f" and {len(late) - 3} more" if len(late) > 3 else "")
    return [
        f"{len(hosts)} hosts have work, and Ansible works on {forks} at once: nothing is launched on {named} "
        f"before others are done. -f {len(hosts)} works on all of them; -e detach=true launches and does not wait"
    ]
