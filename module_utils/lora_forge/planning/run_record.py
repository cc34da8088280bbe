"""What the controller notes of a run: output/runs/<run_id>.json. One place for what all commands and hosts must know.

Beside it lies output/launched/<run_id>.json: the run as it was planned when it was launched, its recipe with it. What
comes back from a trainer is held to that, whatever has become of recipe, data and inventory since.

The file says where the run was placed and how it ended, which hosts launched it, what went wrong, and what a webhook
was told. Two things last longer than a command: the placement, and what was told since the run was launched. The rest
counts for the command that noted it alone, which is told by the time of its plan (``planned_at``): a failure of
yesterday is no failure of today's command.
"""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Iterable
from typing import Any, Callable, Optional

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.adapters import store
from ansible.module_utils.lora_forge.agents import agent_of
from ansible.module_utils.lora_forge.json_record import JsonRecord
from ansible.module_utils.lora_forge.planned_run import PlannedRun
from ansible.module_utils.lora_forge.text import canonical

INCOMING = "incoming"  # below the output folder: adapters on their way from a trainer
LAUNCHED = "launched"  # below it, too: runs as they were launched
_PLACEMENT = ("run_id", "trainer", "lane", "state", "final", "detail")


@dataclasses.dataclass(frozen=True)
class RunRecord(JsonRecord):
    """A run, as output/runs/<run_id>.json holds it. All times are epoch seconds of the controller's clock.

    Attributes:
        run_id: Its name.
        trainer: The inventory name of the host that leads; empty before it was placed.
        lane: The number of its lane there.
        state: launched, finished, failed or stopped; empty before it was placed.
        final: Whether the state is one that the run stays in by itself.
        detail: Why, where its trainer does not know it, such as what is wrong with its adapter.
        noted_at: When that was noted.
        hosts: Of each host that launched it or attached to it: ``at``, and ``started`` (whether it was started there).
        failures: Of each host where it went wrong: ``at``, ``message``, and ``refused`` where it was not even tried, as
            another host of its gang had failed.
        notified: When each event was settled: a webhook was told, or it was no news.
        telling: Of each event that a command has begun to tell, and not settled, the id of its message.
        delivered_at: When its adapter was brought to the controller.
        rendezvous: By what word the hosts of a gang find each other, for this launch; nobody else is to know it.
    """

    run_id: str
    trainer: str = ""
    lane: int = 0
    state: str = ""
    final: bool = False
    detail: str = ""
    noted_at: float = 0.0
    hosts: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    failures: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    notified: dict[str, float] = dataclasses.field(default_factory=dict)
    telling: dict[str, str] = dataclasses.field(default_factory=dict)
    delivered_at: float = 0.0
    rendezvous: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Write it as the file holds it: without what is empty, but for the placement."""
        data = super().as_dict()
        return {key: value for key, value in data.items() if value or (key in _PLACEMENT and self.state)}

    def launched(self, trainer: str, lane: int, now: float, rendezvous: str = "") -> RunRecord:
        """Return it placed on a trainer; a webhook has not been told of anything since.

        Args:
            trainer: The host that leads.
            lane: The number of its lane there.
            now: Epoch seconds.
            rendezvous: A new word for a gang. The hosts of one launch have the first one's.
        """
        if (self.state, self.trainer, self.lane) == ("launched", trainer, lane) and not self.detail:
            return self if self.rendezvous or not rendezvous else dataclasses.replace(self, rendezvous=rendezvous)
        placed = dataclasses.replace(self, trainer=trainer, lane=lane, state="launched", final=False, detail="")
        placed = dataclasses.replace(placed, rendezvous=rendezvous)
        return dataclasses.replace(placed, noted_at=now, notified={}, telling={}, delivered_at=0.0)

    def taken_by(self, trainer: str, since: float) -> str:
        """Return the other trainer on which a command has placed it at or after a time; empty where none has.

        Args:
            trainer: The host that leads it by this command's plan.
            since: When that was made, in epoch seconds.
        """
        placed = self.state == "launched" and not self.final and self.noted_at >= since
        return self.trainer if placed and self.trainer != trainer else ""

    def on_host(self, host: str, started: bool, now: float) -> RunRecord:
        """Return it as one that a host launched, or attached to: what went wrong there before does not count."""
        hosts = {**self.hosts, host: {"at": now, "started": started}}
        record = dataclasses.replace(self.without_failures(host), hosts=hosts)
        # It may be started again before anybody saw how it ended: a standstill is news again.
        return record.without("stalled") if started else record

    def without(self, event: str) -> RunRecord:
        """Return it as if nobody had dealt with an event yet."""
        notified = {name: at for name, at in self.notified.items() if name != event}
        telling = {name: message for name, message in self.telling.items() if name != event}
        return dataclasses.replace(self, notified=notified, telling=telling)

    def without_failures(self, host: str) -> RunRecord:
        """Return it without what went wrong on a host."""
        return dataclasses.replace(
            self, failures={name: entry for name, entry in self.failures.items() if name != host}
        )

    def ended(self, state: str, trainer: str, now: float, detail: str = "") -> RunRecord:
        """Return it with its end: finished, failed or stopped.

        An adapter that is no good (failed, with a detail) stays so when somebody looks at the run's trainer again,
        which knows only that the run finished.
        """
        if self.detail and (self.state, state) == ("failed", "finished"):
            return self
        if (self.state, self.trainer, self.detail) == (state, trainer, detail):
            return self
        return dataclasses.replace(self, trainer=trainer, state=state, final=True, detail=detail, noted_at=now)

    def failed_on(self, host: str, message: str, now: float, refused: bool = False) -> RunRecord:
        """Return it with what went wrong on a host of this command."""
        failure = {"at": now, "message": message, **({"refused": True} if refused else {})}
        return dataclasses.replace(self, failures={**self.failures, host: failure})

    def settled(self, event: str, now: float) -> RunRecord:
        """Return it with an event that nobody has to tell of any more."""
        record = self.without(event)
        return dataclasses.replace(record, notified={**record.notified, event: now})

    def tells(self, event: str, message: str) -> RunRecord:
        """Return it with an event that a command begins to tell; where one has died of that, with that one's message.

        Args:
            event: What happened.
            message: The id of a new message.
        """
        return dataclasses.replace(self, telling={event: message, **self.telling})

    def is_settled(self, event: str, since: float = 0.0) -> bool:
        """Tell whether an event was settled at or after a time."""
        at = self.notified.get(event)
        return isinstance(at, (int, float)) and at >= since

    def owes(self, event: str) -> bool:
        """Tell whether it finished, and nobody has settled an event since its launch: who should have, died."""
        return self.state == "finished" and not self.is_settled(event)

    def failure(self, hosts: Iterable[str], since: float) -> str:
        """Return what went wrong on one of some hosts, at or after a time; empty where nothing did."""
        return next(iter(self.failures_of(hosts, since).values()), "")

    def failures_of(self, hosts: Iterable[str], since: float) -> dict[str, str]:
        """Map the hosts where something went wrong at or after a time to what it was: causes before consequences."""
        entries = sorted(_recent(self.failures, hosts, since), key=lambda item: bool(item[1].get("refused")))
        return {host: str(entry.get("message", "")) for host, entry in entries}

    def hosts_of(self, hosts: Iterable[str], since: float, started: bool = False) -> list[str]:
        """List the hosts that launched it or attached to it at or after a time; with ``started`` the former alone."""
        return [host for host, entry in _recent(self.hosts, hosts, since) if entry.get("started") or not started]

    def is_delivered(self, since: float) -> bool:
        """Tell whether its adapter was brought here at or after a time."""
        return self.delivered_at > 0 and self.delivered_at >= since


def _recent(entries: dict[str, Any], hosts: Iterable[str], since: float) -> list[tuple[str, dict[str, Any]]]:
    known = [(host, entries[host]) for host in hosts if isinstance(entries.get(host), dict)]
    return [(host, entry) for host, entry in known if isinstance(at := entry.get("at"), (int, float)) and at >= since]


def record_path(output: pathlib.Path, run_id: str) -> pathlib.Path:
    """Return where a run is noted.

    Args:
        output: The controller's output folder.
        run_id: The run.
    """
    return output / "runs" / f"{run_id}.json"


def read_record(output: pathlib.Path, run_id: str) -> RunRecord:
    """Read what is noted of a run; an empty record where nothing is.

    Args:
        output: The controller's output folder.
        run_id: The run.
    """
    return RunRecord.from_dict(rundir.read_json(record_path(output, run_id)) | {"run_id": run_id})


def leftovers(output: pathlib.Path, agent: str, run_id: str) -> list[pathlib.Path]:
    """List the folders of a run that nobody needs once its adapter is delivered: what was on its way, and checkpoints.

    Args:
        output: The controller's output folder.
        agent: Who was trained.
        run_id: The run.
    """
    partial = store.partial_folder(output / "adapters" / agent, run_id)
    return [output / INCOMING / run_id, output / "runs" / run_id, partial]


def noted_runs(output: pathlib.Path) -> list[str]:
    """List the runs of which there is a record, by their names.

    Args:
        output: The controller's output folder.
    """
    return sorted(path.stem for path in (output / "runs").glob("*.json"))


def read_placements(output: pathlib.Path, run_ids: Optional[Iterable[str]] = None) -> dict[str, dict[str, Any]]:
    """Read records as their files hold them, by run id; without those of runs that failed before they were placed.

    Args:
        output: The controller's output folder.
        run_ids: Which; by default all that are noted.

    Returns:
        Records, what is of a wrong type in them counting as not given; that of a damaged file is empty.
    """
    names = noted_runs(output) if run_ids is None else run_ids
    records = {run_id: rundir.read_json(record_path(output, run_id)) for run_id in names}
    return {
        run_id: RunRecord.from_dict(data | {"run_id": run_id}).as_dict() if data else {}
        for run_id, data in records.items()
        if not data or any(key in data for key in _PLACEMENT[1:])
    }


def update_record(
    output: pathlib.Path,
    run_id: str,
    change: Callable[[RunRecord, float], RunRecord],
    check: bool = False,
    now: Optional[float] = None,
) -> tuple[RunRecord, RunRecord]:
    """Change what is noted of a run. Hosts of one command do so at the same time, each in a process of its own.

    Args:
        output: The controller's output folder.
        run_id: The run.
        change: Makes the new record of the present one and the time.
        check: Write nothing.
        now: Epoch seconds; by default the present.

    Returns:
        The record before and after.
    """
    path, at = record_path(output, run_id), round(time.time() if now is None else now, 3)
    if check:
        before = read_record(output, run_id)
        return before, change(before, at)
    path.parent.mkdir(parents=True, exist_ok=True)
    with rundir.locked(path.parent / f".{run_id}.lock"):
        before = read_record(output, run_id)
        after = change(before, at)
        if after != before:
            rundir.write_json(path, after.as_dict(), 0o600 if after.rendezvous else 0o644)
    return before, after


def keep_launched(output: pathlib.Path, run: PlannedRun) -> None:
    """Keep a run as it is launched.

    Args:
        output: The controller's output folder.
        run: As it was planned, and with what it is launched.
    """
    path = output / LAUNCHED / f"{run.run_id}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    rundir.write_json(path, run.as_dict())


def read_launched(output: pathlib.Path, run_id: str) -> Optional[PlannedRun]:
    """Read a run as it was launched; None where that was not kept, or is damaged.

    Args:
        output: The controller's output folder.
        run_id: The run.
    """
    try:
        run = PlannedRun.from_dict(rundir.read_json(output / LAUNCHED / f"{run_id}.json"))
        sound = run.recipe_sha256 == store.sha256_text(canonical(run.recipe))
    except (TypeError, RecursionError):
        return None
    return run if sound and (run.run_id, run.agent) == (run_id, agent_of(run_id)) else None
