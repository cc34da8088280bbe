"""Start runs on their trainer, or attach to them: one question what is there, one transfer, one call that starts them.

What goes wrong with one of them is its own failure, and the others go on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import secrets
import shlex
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import ansible.module_utils
from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.template import trust_as_template

ROOT = pathlib.Path(__file__).resolve().parents[1]
# The path in ansible.cfg serves modules only; a plugin has to name it.
ansible.module_utils.__path__.append(str(ROOT / "module_utils"))
from ansible.module_utils.lora_forge import paths  # noqa: E402
from ansible.module_utils.lora_forge.adapters import store  # noqa: E402
from ansible.module_utils.lora_forge.controller import transfer  # noqa: E402
from ansible.module_utils.lora_forge.controller.actions import ForgeAction, load_actions  # noqa: E402
from ansible.module_utils.lora_forge.controller.checkpoints import carried_files  # noqa: E402
from ansible.module_utils.lora_forge.controller.display import show, tell  # noqa: E402
from ansible.module_utils.lora_forge.controller.notes import note  # noqa: E402
from ansible.module_utils.lora_forge.data import staging  # noqa: E402
from ansible.module_utils.lora_forge.errors import UserError, told_of  # noqa: E402
from ansible.module_utils.lora_forge.planned_run import Launched, PlannedRun  # noqa: E402
from ansible.module_utils.lora_forge.planning import launch, provisioning, questions  # noqa: E402
from ansible.module_utils.lora_forge.planning.run_record import (  # noqa: E402
    RunRecord,
    keep_launched,
    read_launched,
    read_record,
    update_record,
)
from ansible.module_utils.lora_forge.planning.turns import run_files  # noqa: E402
from ansible.module_utils.lora_forge.trainer import run_state  # noqa: E402
from ansible.module_utils.lora_forge.trainer.run_state import Observation  # noqa: E402

load_actions("transfer")

ENOUGH = 256 * paths.MIB  # bytes to be brought before the runs that need them are started


class Refused(UserError):
    """It is no failure of the run: another command has it, or another host of its gang cannot take part."""


class Turn:
    """A run on its way to its start.

    Args:
        run: The run.
        host: Where it starts.
        options: Those of its trainer.

    Attributes:
        seen: What its trainer said of it.
        files: What it needs there, as ``transfer`` takes it; empty where that is there.
        answer: What came of it; None while that is open.
        kept: The run as it was kept of an earlier launch, and as it is for this one; None where this keeps none.
    """

    def __init__(self, run: PlannedRun, host: str, options: launch.TrainerOptions):
        self.run, self.host, self.options = run, host, options
        self.seen = Observation("absent")
        self.files: list[dict[str, Any]] = []
        self.answer: dict[str, Any] | None = None
        self.kept: tuple[PlannedRun | None, PlannedRun] | None = None

    @property
    def run_dir(self) -> str:
        """The run directory on the trainer."""
        return launch.run_dir(self.run, self.options.root)

    @property
    def others(self) -> list[str]:
        """The other hosts of its gang."""
        return [host for host in self.run.hosts if host != self.host]

    @property
    def meets(self) -> bool:
        """Whether processes of several machines meet to train it, by a word that nobody can guess."""
        return bool(self.others) or self.run.nodes > 1

    @property
    def model(self) -> str:
        """The folder of a rehearsal's model, which is made where it trains; empty without one."""
        return launch.base_model_path(self.run, self.options.root) if self.run.rehearsal else ""

    def settle(self, changed: bool = False) -> None:
        """Note that it is launched, or needs no launch."""
        self.answer = {"changed": changed, "state": self.seen.state}

    def fail(self, message: str, refused: bool = False) -> None:
        """Note why it is not launched."""
        self.answer = {"failed": True, "msg": message, **({"refused": True} if refused else {})}


def still_open(turns: Iterable[Turn]) -> list[Turn]:
    """List those of which nothing is known yet."""
    return [turn for turn in turns if turn.answer is None]


@contextlib.contextmanager
def own_failure(turn: Turn) -> Iterator[None]:
    """Note what goes wrong with one run as its failure. A connection that is lost is all runs'."""
    try:
        yield
    except AnsibleConnectionFailure:
        raise
    except Exception as error:  # whatever it is, it keeps no other run from its start
        reason = str(error) if isinstance(error, AnsibleError) else told_of(error)
        turn.fail(reason, isinstance(error, Refused))


class ActionModule(ForgeAction):
    """``start_runs``: library/actions/start_runs.py says what it takes and returns."""

    args: dict[str, Any]
    output: pathlib.Path
    datasets: dict[str, pathlib.Path]  # the canonical files that are at hand, by their SHA-256

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Start them, or say of each why not."""
        self.args, self.output, self.datasets = args, pathlib.Path(args["output"]), {}
        python = provisioning.environment_python(args["root"], provisioning.lock_path(ROOT, args["lock"]))
        options = launch.TrainerOptions.from_dict(args | {"python": python})
        turns = [Turn(run, self.host, options) for run in map(PlannedRun.from_dict, args["runs"])]
        try:
            missing = self.look(turns)
            with tempfile.TemporaryDirectory(prefix="lora-forge-") as folder:
                staged = pathlib.Path(folder) if self._task.check_mode else self.output  # which leaves no data behind
                for lot in self.lots(still_open(turns), missing, staged):
                    self.bring(lot, missing)
                    self.start(lot)
        except AnsibleConnectionFailure as error:  # «unreachable» would not be noted as a failure
            for turn in still_open(turns):
                turn.fail(transfer.connection_error(self.host, str(error)))
        except AnsibleError as error:
            for turn in still_open(turns):
                turn.fail(str(error))
        told = [{"run_id": turn.run.run_id, "agent": turn.run.agent, **(turn.answer or {})} for turn in turns]
        failures = [one for one in told if one.pop("failed", False)]
        launched = [one for one in told if "state" in one]
        return {"changed": any(one["changed"] for one in launched), "runs": launched, "failures": failures}

    # What is there

    def look(self, turns: Sequence[Turn]) -> set[str]:
        """Ask the trainer for all of them; settle those that need no start, and those that may not start.

        Returns:
            The models of rehearsals that are not there.
        """
        for turn in turns:
            record = read_record(self.output, turn.run.run_id)
            if record.is_delivered(turn.run.planned_at):  # by an earlier attempt on a pod
                turn.answer = {"changed": False, "state": "finished"}
        left = still_open(turns)
        if not left:
            return set()
        proofs = {f"{turn.model}/config.json": turn.model for turn in left if turn.model}
        asked = {"root": self.args["root"], "only": [turn.run.run_id for turn in left], "paths": [*proofs]}
        answer = self.run_module("trainer_info", asked)
        for turn in left if answer.get("failed") else ():
            turn.fail(answer["msg"])
        seen = {one["run_id"]: Observation.from_dict(one) for one in answer.get("runs", ())}
        for turn in still_open(turns):
            with own_failure(turn):
                if turn.run.run_id not in seen:
                    raise UserError(f"{self.host}: its answer to trainer_info says nothing of {turn.run.run_id}")
                turn.seen = seen[turn.run.run_id]
                self.meet(turn)
        return {proofs[path] for path in answer.get("missing", ()) if path in proofs}

    def meet(self, turn: Turn) -> None:
        """Attach to a run that lives, or is finished; see whether another one may start.

        Raises:
            UserError: It may not.
        """
        run, seen = turn.run, turn.seen
        if seen.state == "unknown":
            raise UserError(f"{run.run_id} is not started; nobody knows whether it runs: {seen.detail}")
        if seen.state in run_state.LIVING:
            tell(f"  {self.host}: {run.run_id} is {seen.state} already; attached to it", host=self.host)
        if seen.state in (*run_state.LIVING, "finished"):
            if not (self.note(turn, started=False).trainer or turn.meets or run.evaluates):
                self.place(turn)  # it was launched from another checkout, and this one is to find it, too
            turn.settle()
            return
        unfit = (self.args.get("refusals") or {}).get(run.run_id)
        if unfit:
            raise UserError(unfit)
        record = read_record(self.output, run.run_id)
        refused = record.failure(turn.others, run.planned_at)
        if refused:
            raise Refused(f"{run.run_id} is not started: {refused}")
        self.check_place(run, record)
        if len(run.hosts) > 1:
            turn.options = dataclasses.replace(turn.options, leader=self.address_of(run.hosts[0]))
        launch.check_rendezvous(run, turn.options)

    def address_of(self, host: str) -> str:
        """Return the address under which the hosts of a gang reach one of them, as the inventory has it."""
        known = self.task_vars["hostvars"][host]
        return str(known.get("run_address") or known.get("ansible_host") or host)

    def check_place(self, run: PlannedRun, record: RunRecord) -> None:
        """Refuse to start a second training: another command may have placed the run elsewhere since this one planned.

        Raises:
            Refused: It has.
        """
        there = record.taken_by(run.hosts[0], run.planned_at)
        if there:
            raise Refused(
                f"{run.run_id} is not started: another command has placed it on {there} meanwhile. Run this one again, "
                "and it attaches to it there"
            )

    def note(self, turn: Turn, started: bool) -> RunRecord:
        """Note that it was launched on this host, or attached to; returns the record."""
        change = partial(RunRecord.on_host, host=self.host, started=started)
        check = self._task.check_mode
        return note(self.output, turn.run, lambda record, now: change(record, now=now), check)[1]

    # What they need

    def lots(self, turns: Sequence[Turn], missing: set[str], staged: pathlib.Path) -> Iterator[list[Turn]]:
        """Prepare runs, and give them in their order as lots that are brought and started: all of them, where that is
        little. What comes in the first minutes trains while the rest is brought.
        """
        lot: list[Turn] = []
        known: set[str] = set()
        size = 0
        for turn in turns:
            with own_failure(turn):
                self.check_model(turn, missing)
                size += self.prepare(turn, staged)
            new = {str(file["src"]) for file in turn.files if file.get("src")} - known
            size += sum(os.path.getsize(path) for path in new if os.path.exists(path))
            known |= new
            lot.append(turn)
            if size > ENOUGH:
                yield lot
                lot, size = [], 0
        yield lot

    def check_model(self, turn: Turn, missing: set[str]) -> None:
        """Refuse to evaluate a rehearsal where its model, which is made of its data where it trains, is not.

        Raises:
            UserError: It is not there.
        """
        if turn.run.evaluates and turn.model in missing:
            raise UserError(
                f"{turn.run.evaluates} is a rehearsal, and the tiny model that it was rehearsed with is not on "
                f"{self.host} ({turn.model}). Evaluate it where it was trained, or rehearse here: "
                f"-e role={turn.run.agent} -e fresh=true"
            )

    def bring(self, turns: Sequence[Turn], missing: set[str]) -> None:
        """Bring what they need, what several need once; make the rehearsals' models that are missing."""
        self.send([turn for turn in still_open(turns) if turn.files])
        for model in sorted(missing) if not self._task.check_mode else ():
            users = [turn for turn in still_open(turns) if turn.model == model]
            if users and self.make_model(model, users):
                missing.discard(model)

    def prepare(self, turn: Turn, staged: pathlib.Path) -> int:
        """List what a run needs. One that takes a checkpoint along is sent by itself, as nobody may touch that then.

        Returns:
            The bytes that were sent.
        """
        run, check = turn.run, self._task.check_mode
        kept = self.output / "runs" / run.run_id  # what was fetched of it from an earlier trainer
        with contextlib.ExitStack() as held:
            if kept.is_dir() and not check:  # or another command puts a newer checkpoint in its place meanwhile
                held.enter_context(run_files(self.output, run.run_id, partial(tell, host=self.host)))
            step, carried = carried_files(kept, check)
            goes = carried if step > turn.seen.checkpoint["step"] else []
            turn.files = self.files(turn, kept, goes, staged)
            if not goes or check:
                return 0
            self.send([turn])
            turn.files = []
            return sum((kept / name).stat().st_size for name in goes)

    def files(self, turn: Turn, kept: pathlib.Path, goes: list[str], staged: pathlib.Path) -> list[dict[str, Any]]:
        """List the files that a run needs, as ``transfer`` takes them.

        Args:
            turn: The run.
            kept: What was fetched of it from an earlier trainer.
            goes: What of that it goes on from.
            staged: The output folder in which its data is written as it is trained on.
        """
        run, folder = turn.run, launch.run_dir(turn.run, ".")[2:]
        new = [dataset for dataset in run.datasets if dataset.sha256 not in self.datasets]
        with staging.staged(new, ROOT, staged) as written:
            self.datasets |= written
        files = launch.input_files(run, ROOT, self.axolotl_yml(turn), kept, goes, self.datasets)
        if self.host == run.hosts[0]:  # who leads a gang answers
            base_model = launch.base_model_path(run, turn.options.root)
            files += questions.question_files(
                run, folder, ROOT, self.output, base_model, warn=lambda words: show(warnings=[words], host=self.host)
            )
        if run.evaluates:
            files += questions.adapter_files(run, folder, self.output)
        return launch.arriving(files, folder)

    def send(self, turns: Sequence[Turn]) -> None:
        """Send the files of some runs in one transfer; where that fails, those of each, as it may be one's own fault.

        Raises:
            AnsibleConnectionFailure: The trainer is lost.
        """
        files = {file["path"]: file for turn in turns for file in turn.files}  # of one path they are the same
        if not files:
            return
        asked = {"files": [*files.values()], "to": self.args["root"], **self.args["transfer"]}
        sent = self.run_action("transfer", asked)
        if sent.get("lost"):
            raise AnsibleConnectionFailure(sent["msg"])
        if not sent.get("failed"):
            return
        for turn in turns:
            if len(turns) == 1:
                turn.fail(sent["msg"])
            else:
                self.send([turn])

    def make_model(self, model: str, turns: Sequence[Turn]) -> bool:
        """Make a rehearsal's model, whose tokenizer learns from the data, for the runs that train it; tell whether."""
        make = shlex.join(launch.tiny_model_command(turns[0].run, turns[0].options))
        made = self.run_command(f"umask 077; test -e {shlex.quote(model)}/config.json || {make}")
        if made["rc"] == 0:
            return True
        reason = (made["stdout"] or made["stderr"]).strip()[-2000:]  # over ssh errors are output, too
        for turn in turns:
            turn.fail(f"the rehearsal's model could not be made on {self.host}: {reason}")
        return False

    def axolotl_yml(self, turn: Turn) -> str:
        """Render axolotl.yml."""
        template = (ROOT / "templates/axolotl.yml.j2").read_text(encoding="utf-8")
        # Its own variables alone: for each expression Ansible walks over all that there are.
        variables = launch.template_variables(turn.run, turn.options.root, turn.options.wandb)
        return self._templar.copy_with_new_env(available_variables=variables).template(trust_as_template(template))

    # Their starts

    def start(self, turns: Sequence[Turn]) -> None:
        """Have the trainer start them in their order, in as few calls as the time for one allows."""
        asked: dict[str, dict[str, Any]] = {}
        given: dict[str, dict[str, Any]] = {}
        for turn in still_open(turns):
            with own_failure(turn):
                run = turn.run
                record = self.place(turn)
                planned = launch.plan_launch(run, self.host, turn.options)
                asked[run.run_id] = {**planned.as_dict(), "run_dir": turn.run_dir}
                theirs = {} if run.evaluates else self.args["secrets"]  # an evaluation logs nothing at W&B
                meeting = {launch.RENDEZVOUS: record.rendezvous} if turn.meets else {}
                given[run.run_id] = {**theirs, **meeting}
        while left := still_open(turns):
            names = [turn.run.run_id for turn in left]
            answer = self.run_module("training_runs", {
                "runs": [asked[name] for name in names], "secrets": {name: given[name] for name in names},
                "backend": self.args["backend"], "within": self._patience() / 2,
            })  # fmt: skip
            for turn in left if answer.get("failed") else ():
                turn.fail(answer["msg"])
            answers = {one["run_id"]: one for one in answer.get("runs", ())}
            for turn in still_open(left):
                if turn.run.run_id in answers:
                    with own_failure(turn):
                        self.conclude(turn, answers[turn.run.run_id])
            if len(still_open(left)) == len(left):
                raise AnsibleError(f"{self.host}: its answer to training_runs says nothing of {names[0]}")

    def place(self, turn: Turn) -> RunRecord:
        """Note that a run is launched on its trainer, and with what; returns the record.

        Raises:
            Refused: Another command has placed it elsewhere.
        """
        run, word, check = turn.run, secrets.token_hex(16) if turn.meets else "", self._task.check_mode

        def change(record: RunRecord, now: float) -> RunRecord:
            self.check_place(run, record)
            return record.launched(run.hosts[0], run.lane, now, rendezvous=word)

        record = update_record(self.output, run.run_id, change, check)[1]
        if self.host == run.hosts[0] and not (check or run.evaluates):  # who leads a gang keeps its adapter
            lock = provisioning.lock_path(ROOT, self.args["lock"])
            launched = Launched(turn.options.root, turn.options.python, store.sha256_file(lock))
            turn.kept = read_launched(self.output, run.run_id), dataclasses.replace(run, launched=launched)
            keep_launched(self.output, turn.kept[1])  # before its start, as this command may die in that
        return record

    def keep(self, turn: Turn, started: bool) -> None:
        """Keep the run as whoever started it has launched it: of two commands that was one, and the other attached."""
        if turn.kept is None:
            return
        before, own = turn.kept
        is_own = read_launched(self.output, turn.run.run_id) == own
        with contextlib.suppress(OSError):  # what is launched trains all the same
            if started and not is_own:
                keep_launched(self.output, own)
            elif not started and is_own and before is not None:
                keep_launched(self.output, before)

    def conclude(self, turn: Turn, answer: dict[str, Any]) -> None:
        """Tell, and note, what came of a start.

        Raises:
            UserError: It was not started, or is stopped again.
        """
        run, started = turn.run, bool(answer.get("changed"))
        if answer.get("refused"):
            raise UserError(answer["refused"])
        if not self._task.check_mode:
            self.keep(turn, started)
            if started:
                backend, attach, message = (answer.get(key) or "?" for key in ("backend", "attach_command", "message"))
                how = f"({backend}; attach: {attach})\n    {message}"
                done = "submitted" if backend == "slurm" else "started"
                tell(f"  {self.host}: {run.run_id} {done} {how}", host=self.host, ends=True)
            else:  # since this one looked
                tell(f"  {self.host}: {run.run_id} was started by another command; attached to it", host=self.host)
            # All hosts of a gang train, or none. Whichever fails from now on finds this noted, and stops the run here.
            record = self.note(turn, started)
            refused = record.failure(turn.others, run.planned_at) if started else ""
            if refused:
                stop = {"run_dir": turn.run_dir, "state": "stopped", "stop_timeout": turn.options.stop_timeout}
                try:
                    self.run_module("training_run", stop)
                except AnsibleConnectionFailure as error:  # what else was started is not noted yet
                    raise UserError(transfer.connection_error(self.host, str(error))) from None
                why = f"{run.run_id} is stopped again, as {', '.join(turn.others)} cannot take part: {refused}"
                raise Refused(why)
        turn.settle(started)
