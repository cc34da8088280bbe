"""Follow a run until it is over, and deal with its end. Losing this process, or the connection, harms nothing."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import ansible.module_utils
from ansible import constants
from ansible.errors import AnsibleConnectionFailure

# The path in ansible.cfg serves modules only; a plugin has to name it.
ansible.module_utils.__path__.append(str(pathlib.Path(__file__).resolve().parents[1] / "module_utils"))
from ansible.module_utils.lora_forge import rundir  # noqa: E402
from ansible.module_utils.lora_forge.controller.actions import ForgeAction, load_actions  # noqa: E402
from ansible.module_utils.lora_forge.controller.checkpoints import fetch_checkpoint  # noqa: E402
from ansible.module_utils.lora_forge.controller.display import show, tell  # noqa: E402
from ansible.module_utils.lora_forge.controller.notes import note  # noqa: E402
from ansible.module_utils.lora_forge.controller.notify import notify  # noqa: E402
from ansible.module_utils.lora_forge.controller.retry import retry_until_connected  # noqa: E402
from ansible.module_utils.lora_forge.planned_run import PlannedRun  # noqa: E402
from ansible.module_utils.lora_forge.planning.launch import run_dir  # noqa: E402
from ansible.module_utils.lora_forge.planning.run_record import read_record  # noqa: E402
from ansible.module_utils.lora_forge.pods import costs, leash, spending  # noqa: E402
from ansible.module_utils.lora_forge.pods.claims import Claim, Claims  # noqa: E402
from ansible.module_utils.lora_forge.pods.costs import Budget  # noqa: E402
from ansible.module_utils.lora_forge.pods.spending import Caps  # noqa: E402
from ansible.module_utils.lora_forge.text import duration, pair, short  # noqa: E402
from ansible.module_utils.lora_forge.trainer import run_state, runs, saved  # noqa: E402

load_actions("transfer", "stop_run")

WAIT = 30  # seconds the trainer blocks for news; one round trip in that time
FINAL = ("finished", "failed", "stopped", "absent")
# Ansible prints all that a failure returns; these are left out.
LONG = ("progress", "checkpoint", "status", "facts", "token", "eta_seconds", "silent_for", "alive")
STOP_WITHIN = 180.0  # seconds for which a lost connection is waited for when a run has to be stopped
LEASH_EVERY = 300.0  # seconds between two looks at the pod's leash
UNLEASHED = 900.0  # seconds after which a training is ended whose pod nothing else would end
MEASURED = 3  # steps after which a pace counts as measured: the first ones warm up


def progress_figures(event: dict[str, Any], eta: float | None) -> dict[str, str]:
    """Return the figures of a log or eval event as they are written, by their names.

    Args:
        event: The event; an eval's loss has a name of its own.
        eta: Seconds to go, for the newest event.
    """
    figures = {}
    for key, name in (("loss", "loss"), ("eval_loss", "eval")):
        if event.get(key) is not None:
            figures[name] = pair(name, event[key], None)
    if event.get("tokens_per_second"):
        figures["speed"] = f"{short(event['tokens_per_second'])} tok/s"
    if eta is not None:
        figures["eta"] = f"eta {duration(eta)}"
    return figures


def line(agent: str, event: dict[str, Any], eta: float | None) -> str:
    """Return one line of progress.

    Args:
        agent: Whose.
        event: A log or eval event.
        eta: Seconds to go, for the newest event.
    """
    step, planned = event["step"], event["planned"]
    share = f"step {step:>{len(str(planned))}}/{planned} {step / max(planned, 1):4.0%}"
    return "  ".join([f"  {agent}  {share}", *progress_figures(event, eta).values()])


class Clock:
    """Epoch seconds as they were when it was made, and since then by the clock since boot.

    A wall clock that is set forward or back while a run is watched neither costs anything nor prolongs it.
    """

    def __init__(self) -> None:
        self.offset = time.time() - rundir.uptime()

    def now(self) -> float:
        """Return the time. It goes on while this machine sleeps, as pods do."""
        return self.offset + rundir.uptime()


class ActionModule(ForgeAction):
    """``watch``: library/actions/watch.py says what it takes and returns."""

    others: Sequence[PlannedRun] = ()  # what else this trainer has to do
    awaited: Sequence[str] = ()  # which of them end this watch when they end, by their ids
    asks = False  # whether it is an evaluation, whose steps are answers
    warned = False  # whether the warning about the losses was shown
    answers = 0, 0  # of its cases: given, and asked for
    asked, asked_at = 0, 0.0  # how often the trainer was asked, and when it was last, in seconds since boot
    capped = False  # whether it was told that the caps of all pods leave nothing
    leash_seen = math.inf  # when its pod's leash was asked last
    unleashed = math.inf  # since when something speaks against it

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Watch it to its end."""
        if self._task.check_mode:
            return {"changed": False, "skipped": True, "msg": "there is nothing to watch in check mode"}
        run, output = PlannedRun.from_dict(args["run"]), pathlib.Path(args["output"])
        self.others = [PlannedRun.from_dict(other) for other in args.get("others") or ()]
        # A run that was left for another one was looked at then: one that a host calls over, again and again, while it
        # goes on, is looked at once in a command, and not as often as there are runs that end.
        self.awaited = [name for name in args.get("awaited") or () if not self.left(name).exists()]
        self.run_dir, self.asks = run_dir(run, args["root"]), bool(run.evaluates)
        seen = self.follow(run, args, output / "runs" / run.run_id)
        if "first" in seen:
            return {"changed": False, "first": seen["first"]}
        answer = self.conclude(run, args, seen, output)
        return {key: value for key, value in answer.items() if not answer.get("failed") or key not in LONG}

    def follow(self, run: PlannedRun, args: dict[str, Any], kept: pathlib.Path) -> dict[str, Any]:
        """Watch until it is over, over budget, or an awaited one is; each new checkpoint is fetched where wanted.

        Args:
            run: The planned run.
            args: The task's.
            kept: The folder on the controller for what is fetched of it.
        """
        since, told = self.take_up(run.run_id)
        refused, unheard, goes_on = 0, math.inf, bool(since)
        budget = self.budget(args)
        clock, pace = Clock(), costs.Pace()
        self.leash_seen = clock.now()  # it was asked before anything was launched
        have = saved.newest_checkpoint(kept)["step"] if args["pull"] else None
        while True:
            seen = self.ask(run, args, since)
            if seen.get("failed"):
                return seen
            seen["eta_seconds"] = costs.claimed_seconds(seen["eta_seconds"])
            self.tell_others(seen.pop("others", {}))
            first = next((name for name in seen.pop("over", ()) if name in self.awaited), "")
            if goes_on:  # what was told of another one since then took its place, where it is drawn
                self.draw(run, seen["progress"])
                goes_on = False
            told = self.tell(run.name, seen, since, told, clock.now())
            since = seen["token"]
            del seen["events"]
            over = seen["state"] in FINAL or seen["state"] == "stalled"
            now, progress = clock.now(), seen["progress"]
            unheard = min(unheard, now) if seen["state"] == "unknown" else math.inf
            if now - unheard > float(args["unreachable_timeout"]):
                return self.unreachable(f"nothing of it is known for {duration(now - unheard)}: {seen['detail']}")
            eta = seen["eta_seconds"] if progress["measured"] >= MEASURED else None
            if progress["measured"] >= MEASURED:
                pace.see(now, progress["step"], progress["planned"])
            if budget:
                eta = budget.with_answers(eta, progress["ended"])
            breach = costs.budget_breach(budget, now, eta) if budget and not over else ""
            newest = seen["checkpoint"]
            missing = have is not None and newest["step"] > max(have, 0 if over else refused)
            if missing and seen["state"] != "finished" and not breach:
                if fetch_checkpoint(self, run, newest, self.run_dir, kept, args["transfer"]):
                    have = newest["step"]
                else:
                    refused = newest["step"]
            fault = "" if over or breach else self.find_fault(run.name, budget, now)
            if fault:
                return seen | {"breach": fault, "lived": True, "unleashed": True}
            if over or breach:
                lived = bool(breach and budget and costs.budget_breach(budget, now, None))
                return seen | ({"breach": breach, "lived": lived} if breach else {})
            if first:
                self.leave(run.run_id, since, told)
                return {"first": first}
            self.renew(run.name, budget, pace, now, eta)

    def left(self, run_id: str) -> pathlib.Path:
        """Return where it lies what this command has told of a run that it left, for when it comes back to it."""
        return pathlib.Path(constants.DEFAULT_LOCAL_TMP) / "watched" / f"{run_id}.json"

    def leave(self, run_id: str, since: str, told: run_state.Told) -> None:
        """Note what was told, so that it is not told again."""
        self.left(run_id).parent.mkdir(exist_ok=True)
        noted = {"since": since, "told": told.as_dict(), "warned": self.warned, "answers": self.answers}
        rundir.write_json(self.left(run_id), noted)

    def take_up(self, run_id: str) -> tuple[str, run_state.Told]:
        """Return the last token, and what was told; empty where this command has told nothing yet."""
        noted = rundir.read_json(self.left(run_id))
        self.left(run_id).unlink(missing_ok=True)
        if noted:
            self.warned, self.answers = noted["warned"], tuple(noted["answers"])
        return noted.get("since", ""), run_state.Told.from_dict(noted.get("told", {}))

    def budget(self, args: dict[str, Any]) -> Budget | None:
        """Return what the pod may cost, with the deadline that it has by now: an earlier watch may have renewed it."""
        if not args.get("budget"):
            return None
        budget = Budget.from_dict(args["budget"])
        noted = Claim.from_dict({**rundir.read_json(pathlib.Path(budget.claim)), "name": ""}).deadline
        return dataclasses.replace(budget, deadline=max(budget.deadline, noted or 0.0))

    def ask(self, run: PlannedRun, args: dict[str, Any], since: str) -> dict[str, Any]:
        """Ask the trainer once; a connection that stays lost is a failure with the state ``unreachable``."""
        asked = {
            "run_dir": self.run_dir,
            "since": since,
            "wait": WAIT if since else 0,
            "stall_timeout": args["stall_timeout"],
            "others": [run_dir(other, args["root"]) for other in self.others],
            "awaited": [run_dir(other, args["root"]) for other in self.others if other.run_id in self.awaited],
        }
        timeout = float(args["unreachable_timeout"])
        # From its second answer on a trainer gathers news for as long. One that does not is asked no more often for it.
        if self.asked > 1:
            time.sleep(max(0.0, self.asked_at + runs.SETTLE - rundir.uptime()))
        self.asked, self.asked_at = self.asked + 1, rundir.uptime()
        try:
            return retry_until_connected(
                partial(self.run_module, "training_run_info", asked),
                AnsibleConnectionFailure,
                timeout,
                lambda words: tell(f"  {run.name}  {words}", host=self.host),
            )
        except AnsibleConnectionFailure as error:
            return self.unreachable(f"no connection for {duration(timeout)}: {error}")

    def unreachable(self, words: str) -> dict[str, Any]:
        """Return the failure of a run of which nothing was heard for too long."""
        advice = "What runs there goes on; the same command attaches to it."
        return {"failed": True, "state": "unreachable", "msg": f"{words}\n{advice}"}

    def conclude(
        self, run: PlannedRun, args: dict[str, Any], seen: dict[str, Any], output: pathlib.Path
    ) -> dict[str, Any]:
        """Note how it ended, notify, and return the answer.

        A failure is told once, however often it is seen later. A run that a person stopped is no news.
        """
        state, told, progress = seen.get("state", ""), args["notify"], seen.get("progress")
        if seen.get("breach"):
            return self.stop_over_budget(run, args, seen)
        if self.asks and state == "absent" and read_record(output, run.run_id).is_delivered(run.planned_at):
            return seen | {"changed": False}  # another command has collected it, and deleted it there
        is_news = True
        if state in rundir.FINAL_STATES:
            leader = run.hosts[0]
            before, after = note(output, run, lambda record, now: record.ended(state, leader, now))
            is_news = before != after
        if state == "finished":
            return seen | {"changed": False}
        answer = seen if seen.get("failed") else seen | {"failed": True, "msg": self.trouble(run, seen)}
        if seen.get("failed") or state == "absent":  # nobody knows what became of it
            if not args["quiet"]:
                notify("failed", run, answer.get("msg", "it could not be watched"), told, since=run.planned_at)
            is_away = seen.get("detail", "").startswith(run_state.NO_FOLDER)  # and its disk may be back tomorrow
            if state == "absent" and run.by_notes and not is_away:  # which nothing plans any more: it is said once
                leader = run.hosts[0]
                lost = f"nothing of it was on {leader} any more"
                note(output, run, lambda record, now: record.ended("failed", leader, now, lost))
            return answer
        if state == "stalled":
            notify("stalled", run, seen["detail"], told, progress, since=0.0)
        if state in ("stalled", "stopped", "failed"):
            silent = state != "failed" or not is_news
            notify("failed", run, seen["detail"], told, progress, silent=silent)
        return answer | {"changed": False}

    def stop_over_budget(self, run: PlannedRun, args: dict[str, Any], seen: dict[str, Any]) -> dict[str, Any]:
        """Stop with a checkpoint, and fetch that: a pod may be released only when nothing is lost with it.

        A run that cannot be stopped although a cap is reached, and not just foreseen to be, is ended with its pod, as
        the leash would end it. The webhook is told in any case: what cannot be stopped goes on costing.
        """
        asked = {name: args[name] for name in ("run", "root", "output", "stop_timeout", "pull", "transfer")}
        lived, unleashed = seen.pop("lived", False), seen.pop("unleashed", False)
        try:
            stopped = retry_until_connected(
                partial(self.run_action, "stop_run", asked),
                AnsibleConnectionFailure,
                STOP_WITHIN,
                lambda words: tell(f"  {run.name}  {words}", host=self.host),
            )
        except Exception as error:  # whatever it is, the pod goes on costing
            stopped = {"failed": True, "msg": str(error)}
        answer = seen | {"failed": True, "changed": False, "kept": stopped.get("kept", False)}
        if stopped.get("failed"):
            outcome = (
                "Its pod is released, as its leash would do; the checkpoints that were fetched are kept"
                if lived
                else f"It goes on costing; playbooks/stop.yml -e role={run.agent} stops it, "
                f"playbooks/release.yml -e pod={run.hosts[0]} gives the pod up"
            )
            answer["spent"] = lived
            why = stopped.get("msg", "it failed")
            answer["msg"] = f"{run.run_id} could not be stopped ({why}), and {seen['breach']}. {outcome}"
        else:
            higher = "" if unleashed else "with a higher cap "
            outcome = (
                f"What there is was kept; {higher}the same command goes on from there"
                if answer["kept"]
                else "Its checkpoint could not be fetched, so the pod is kept"
            )
            if unleashed and not answer["kept"]:
                outcome += f", and nothing ends it by itself: playbooks/release.yml -e pod={run.hosts[0]} gives it up"
            step = stopped["checkpoint"]["step"]
            answer |= {
                "state": "stopped",
                "msg": f"{run.run_id} is stopped at step {step}: {seen['breach']}. {outcome}",
            }
        if not unleashed:
            notify("over_budget", run, answer["msg"], args["notify"], seen["progress"])
        notify("failed", run, answer["msg"], args["notify"], silent=not unleashed)
        return answer

    def renew(self, agent: str, budget: Budget | None, pace: costs.Pace, now: float, eta: Any) -> None:
        """Lengthen the pod's leash where steps that were seen ask for it and the caps allow it."""
        left = budget.with_answers(pace.seconds_left(now), ended=False) if budget else None
        deadline = costs.renewed_deadline(budget, now, left, eta) if budget else None
        if budget is None or deadline is None:
            return
        claim = pathlib.Path(budget.claim)
        claims, caps = Claims(claim.parents[1]), Caps(budget.max_usd_per_day, budget.max_usd_per_month)
        # Noted before it holds: what a pod may come to counts against the caps of all pods from here on.
        deadline, why = spending.renew(claims, claim.stem, deadline, budget.deadline, caps, now)
        if why and not (deadline is None and self.capped):
            what = "is not renewed" if deadline is None else "is renewed, but not for as long as it might take"
            tell(f"  {agent}  the pod's leash {what}: {why}", host=self.host)
        self.capped = deadline is None
        if deadline is None:
            return
        asked = {"root": budget.root, "pod": budget.pod, "deadline": deadline}
        try:
            answer = self.run_module("pod_leash", asked)
        except AnsibleConnectionFailure:
            return  # the next round tries again
        if answer.get("failed"):
            claims.renew(claim.stem, budget.deadline)
        else:
            budget.deadline = deadline
            pace.renewed(now)
            until = time.strftime("%H:%M", time.localtime(deadline))
            tell(f"  {agent}  the pod's leash is renewed to {until}", host=self.host)

    def find_fault(self, agent: str, budget: Budget | None, now: float) -> str:
        """Ask the pod's leash from time to time; say why the training must end with it, empty while it may go on.

        What speaks against it is told at once, and given time to mend.
        """
        if budget is None or now - self.leash_seen < LEASH_EVERY:
            return ""
        self.leash_seen = now
        try:
            answer = self.run_module("pod_leash", {"root": budget.root, "pod": budget.pod})
        except AnsibleConnectionFailure:
            return ""  # the next look at the run rides it out
        word = answer.get("leash")
        faults = leash.find_fault(word) if isinstance(word, dict) else {"machine": "its leash cannot be asked"}
        if not faults:
            self.unleashed = math.inf
            return ""
        why = next(iter(faults.values()))
        if self.unleashed == math.inf:
            self.unleashed = now
            patience = f"the training is stopped with a checkpoint unless that changes within {duration(UNLEASHED)}"
            show(warnings=[f"{agent} on {self.host}: {why}; {patience}"])
        return (
            f"{why}, so that nothing but this controller would end its pod" if now - self.unleashed >= UNLEASHED else ""
        )

    def tell(self, agent: str, seen: dict[str, Any], since: str, said: run_state.Told, now: float) -> run_state.Told:
        """Print what is new; return what was told by then."""
        if seen["state"] not in FINAL:
            words, said = said.after(seen["state"], seen["detail"], seen.get("nodes", ""), now)
            if words:
                tell(f"  {agent}  {words}", host=self.host)
        if seen["state"] == "running" and not since and not seen["events"]:
            wait = f"started; Axolotl takes about half a minute until its first {'answer' if self.asks else 'step'}"
            progress = 0, int(seen["progress"]["planned"] or 0)
            tell(f"  {agent}  {wait}", host=self.host, run=agent, progress=progress)
        warning = run_state.loss_warning(run_state.Progress.from_dict(seen["progress"]))
        if warning and not self.warned:
            tell(f"  {agent}  {warning}", host=self.host)
        self.warned = bool(warning)
        shown = [event for event in seen["events"] if event["event"] in ("log", "eval")]
        if not since:
            shown = shown[-3:]  # attached to a run that has a history
        for number, event in enumerate(shown, 1):
            self.tell_progress(agent, event, seen["eta_seconds"] if number == len(shown) else None)
        told = [event for event in seen["events"] if event["event"] == "answers" and event.get("asked")]
        for event in told[-1:]:
            answers = int(event.get("answered") or 0), int(event["asked"])
            if answers != self.answers:  # a long batch says the same again, as a sign of life
                figures = {"eta": "answers its cases"}  # in the place of what the training still took
                words = f"  {agent}  answers {answers[0]} of {answers[1]}"
                tell(words, host=self.host, run=agent, progress=answers, figures=figures)
            self.answers = answers
        for event in seen["events"]:
            if event["event"] == "begin" and event.get("step"):
                how = "goes on after {} answers" if self.asks else "resumed from step {}"
                tell(f"  {agent}  {how.format(event['step'])}", host=self.host)
            elif event["event"] == "wandb" and event.get("wanted", event.get("mode")) != event.get("mode"):
                what = "the run is recorded offline" if event["mode"] == "offline" else "nothing is recorded"
                tell(f"  {agent}  W&B could not be had at the start: {what}; train.log says why", host=self.host)
        return said

    def tell_progress(self, agent: str, event: dict[str, Any], eta: float | None) -> None:
        """Tell how far a training is."""
        figures = progress_figures(event, eta)
        progress = int(event["step"]), int(event["planned"])
        tell(line(agent, event, eta), host=self.host, run=agent, progress=progress, figures=figures)

    def tell_others(self, seen: dict[str, Any]) -> None:
        """Tell how far the other runs of the trainer are, where that is drawn; their turn to be watched comes."""
        for other in self.others:
            self.draw(other, seen.get(other.run_id) or {})

    def draw(self, run: PlannedRun, done: dict[str, Any]) -> None:
        """Tell how far a run is, where that is drawn, and nowhere else."""
        if done.get("step") is not None and done.get("planned"):
            progress, figures = (int(done["step"]), int(done["planned"])), progress_figures(done, None)
            tell(f"  {run.name}", host=self.host, run=run.name, progress=progress, figures=figures, passing=True)

    def trouble(self, run: PlannedRun, seen: dict[str, Any]) -> str:
        """Return what is wrong with a run that did not finish, and what to do about it, unless that is said already."""
        state, detail = seen["state"], seen["detail"]
        log = f"{self.run_dir}/train.log"
        # What was wrong with the host itself kept the training from its first word: its log has nothing of that.
        look = "" if detail.startswith("environment: ") else f"Look at {log} on the trainer. "
        advice = {
            "stalled": f"Look at {log}; stop it with playbooks/stop.yml, then the same command resumes it.",
            "stopped": "" if "the same command" in detail else "The same command resumes it.",
            "failed": f"{look}When the cause is gone, the same command resumes it.",
            "absent": "The same command starts it again." if run.variant or self.asks else "train.yml starts it.",
        }
        if run.by_notes:
            again = "With the recipe and data that it was launched with, train.yml goes on with it."
            lost = "It is not looked for any more."
            if detail.startswith(run_state.NO_FOLDER):
                lost = "Is its disk mounted? The same command looks for it again."
            advice |= {"stopped": again, "failed": look + again, "absent": lost}
        if "configuration" in detail:
            advice["failed"] = "Correct the recipe; starting it again unchanged would end the same way."
        archive = f"playbooks/logs.yml -e role={run.agent} -e bundle=true"
        helped = f"{archive} makes a file for whoever helps, without keys and without the data."
        said = [f"{run.run_id} is {state}: {detail}", advice.get(state, ""), helped if state == "failed" else ""]
        return "\n".join(filter(None, said))
