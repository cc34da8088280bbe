"""Proof on a GPU: the production recipe of an agent trains to a verified adapter, through a SIGKILL in the middle.

    python benchmarks/gpu/proof.py --work /tmp/proof [--max-steps 20] [--seconds 540] [--tiny]

The project's own planner makes the plan, with two overrides: the path of a random model of Qwen2.5-7B's shape, and
max_steps. The real supervisor (backend ``process``) starts the real Axolotl with the real plugin. After a whole
checkpoint, and a step beyond it, supervisor and training are killed with SIGKILL, and started again as the same
command does it. The run must resume from the checkpoint, its loss must fall, it must reach its end, and its adapter
must pass the verifier.

It needs no Ansible: run it by the Python that has torch and Axolotl. It can be cut off at any time. After ``--seconds``
it ends with status 3, and ends the training as hard as the SIGKILL before did, so that the GPU is free for what
follows; the same command resumes it from its newest checkpoint. ``--tiny`` does all this with the rehearsal's recipe on
a CPU.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import signal
import sys
import tempfile
import time
from typing import Any

import random_model
import yaml
from forge import AGAIN, RESULTS, ROOT, end, environment, facts, import_forge, load, make_idle, save, used_mib
from forge import results as results_folder

import_forge()
from ansible.module_utils.lora_forge import rundir  # noqa: E402
from ansible.module_utils.lora_forge.adapters import store  # noqa: E402
from ansible.module_utils.lora_forge.controller import transfer  # noqa: E402
from ansible.module_utils.lora_forge.data import staging  # noqa: E402
from ansible.module_utils.lora_forge.planned_run import PlannedRun  # noqa: E402
from ansible.module_utils.lora_forge.planning import fleet, launch, memory  # noqa: E402
from ansible.module_utils.lora_forge.planning.layers import merge  # noqa: E402
from ansible.module_utils.lora_forge.planning.planner import Planner  # noqa: E402
from ansible.module_utils.lora_forge.trainer import launching, run_state, runs  # noqa: E402
from ansible.module_utils.lora_forge.trainer.run_state import Observation  # noqa: E402

MAX_STEPS = 20  # a checkpoint every 4, a report every 10: at 10 there is a step beyond a checkpoint, at 20 another loss
OVERRIDDEN = {"base_model", "model_revision", "max_steps"}  # a folder has no revision


class Proof:
    """One run in a folder of its own.

    Args:
        work: The folder; what an earlier call left there is continued.
        agent: Whose recipe.
        max_steps: How many steps.
        tiny: The rehearsal's recipe, on the CPU.
    """

    def __init__(self, work: pathlib.Path, agent: str, max_steps: int, tiny: bool):
        self.work, self.tiny = work, tiny
        self.model = random_model.folder(work, tiny)
        trainer = fleet.Trainer(
            "here", profile="rehearsal" if tiny else "", datasets_dir=str(ROOT / "examples/datasets")
        )
        overrides = {"base_model": str(self.model), "max_steps": max_steps}
        planner = Planner(ROOT, work / "output", overrides)
        self.plan = planner.plan_run(agent, trainer, fleet.Move()).as_dict()
        self.untouched(planner, agent, trainer)
        self.run_dir = work / "runs" / self.plan["run_id"]
        self.notes = load(work / "notes.json")

    def untouched(self, planner: Planner, agent: str, trainer: fleet.Trainer) -> None:
        """Make sure that nothing else differs from the recipe as it stands in configs/, but what every plan adapts."""
        names = ["configs/base.yml", f"configs/agents/{agent}.yml"]
        if trainer.profile:
            names.append(f"configs/profiles/{trainer.profile}.yml")
        production = merge(planner.recipes.read_layer(name) for name in names)[0]
        planned = self.plan["recipe"]
        self.changed = {
            key: [production.get(key), planned.get(key)]
            for key in sorted(production.keys() | planned.keys())
            if production.get(key) != planned.get(key)
        }
        beyond = self.changed.keys() - OVERRIDDEN - {"val_set_size", "eval_sample_packing"}  # the plan's, for this data
        if beyond:
            raise SystemExit(f"the recipe differs in {', '.join(sorted(beyond))} from the one in configs/")

    def prepare(self) -> None:
        """Have the model, and the GPU to itself, unless its training goes on there."""
        random_model.provide(self.work, self.tiny)
        if not self.tiny and not rundir.run_processes(self.run_dir):
            make_idle(self.work)

    def stage(self) -> None:
        """Lay out datasets and run directory as the role ``run`` does, by its own functions."""
        variables = launch.template_variables(PlannedRun.from_dict(self.plan), str(self.work), "disabled")
        sets = {key: variables[key] for key in ("datasets", "test_datasets") if variables[key]}
        keys = {**variables["recipe"], "base_model": str(self.model), **sets}
        run, text = PlannedRun.from_dict(self.plan), yaml.safe_dump(keys, sort_keys=True)
        with tempfile.TemporaryDirectory() as tree, staging.staged(run.datasets, ROOT, self.work) as data:
            files = launch.input_files(run, ROOT, text, self.run_dir, [], data)
            transfer.build_tree(pathlib.Path(tree), files)
            transfer.copy(pathlib.Path(tree), self.work)

    def start(self) -> bool:
        """Start the supervisor, or attach; return whether something was started."""
        variables = environment(self.tiny)
        kept = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
        variables.pop("PYTHONPATH")  # only what the machine itself needs; the supervisor adds the run directory
        if kept:
            variables["PYTHONPATH"] = os.pathsep.join(kept)
        run = PlannedRun.from_dict(self.plan)
        started = launching.Launch(
            command=[sys.executable, "-m", "axolotl.cli.train", "axolotl.yml"],
            lane="cpu-proof" if self.tiny else "gpu-proof",
            lane_dir=str(self.work),
            environment=variables,
            prepared=launch.prepared_path(run, str(self.work)),
            facts=launch.run_facts(run, "here"),
        )
        return bool(launching.start(self.run_dir, started, {}, "process")["changed"])

    def stopped(self, *_: Any) -> None:
        """Stop on SIGTERM: the training leaves the card, as at the deadline; the same command goes on."""
        end(self.run_dir)
        raise SystemExit(AGAIN)

    def note(self, **what: Any) -> None:
        self.notes.update(what)
        save(self.work / "notes.json", self.notes)

    def kill_in_the_middle(self, seen: Observation) -> None:
        """Kill once, when a step beyond a whole checkpoint has been trained."""
        step, whole = seen.progress.step or 0, seen.checkpoint["step"]
        if "killed_at" in self.notes or not whole or seen.state != "running":
            return
        events, _ = rundir.read_events(self.run_dir / "metrics.jsonl")
        beyond = max((event["step"] for event in events if event["event"] == "log"), default=0)
        if beyond > whole:  # by the log, which is written every logging_steps
            end(self.run_dir)
            whole = rundir.last_complete(self.run_dir / "output")  # another one may have been written meanwhile
            begins = sum(event["event"] == "begin" for event in rundir.read_events(self.run_dir / "metrics.jsonl")[0])
            self.note(killed_at=max(step, beyond, whole), checkpoint=whole, begins=begins)
            print(f"  SIGKILL at step {self.notes['killed_at']}; the newest checkpoint is of step {whole}", flush=True)

    def follow(self, deadline: float) -> Observation:
        """Watch until the run is over, killing it once; return the last snapshot of it.

        Args:
            deadline: Monotonic seconds after which it is ended.
        """
        shown = None
        while True:
            seen = runs.observe(self.run_dir)
            self.note(peak_mib=max(self.notes.get("peak_mib") or 0, used_mib() or 0) if not self.tiny else None)
            self.kill_in_the_middle(seen)
            word = f"{seen.state}, step {seen.progress.step} of {seen.progress.planned}"
            if word != shown:
                shown = word
                print(f"  {time.strftime('%H:%M:%S')} {word}", flush=True)
            if "killed_at" in self.notes and "again_at" not in self.notes:
                assert self.start()
                self.note(again_at=time.time())
            elif seen.state not in run_state.LIVING:
                return seen
            if time.monotonic() > deadline:
                end(self.run_dir)
                print(f"the time is up at step {seen.progress.step}. The same command resumes the training")
                raise SystemExit(AGAIN)
            time.sleep(1)

    @staticmethod
    def rising(first: Any, last: Any) -> list[str]:
        """List what is wrong with the loss, from its first to its last report."""
        if isinstance(first, float) and isinstance(last, float) and last < first:
            return []
        return [f"the loss did not fall: {first} in the beginning, {last} in the end"]

    def conclude(self, seen: Observation) -> dict[str, Any]:
        """Verify the adapter, and say what was proven."""
        problems = [] if seen.state == "finished" else [f"the run is {seen.state}: {seen.detail}"]
        verified: dict[str, Any] = {}
        if not problems:
            verified = store.verify(self.run_dir / "output", self.plan["recipe"], self.run_dir / rundir.EXPECTED)
            problems += verified["problems"]
        events, _ = rundir.read_events(self.run_dir / "metrics.jsonl")
        begins = [event["step"] for event in events if event["event"] == "begin"]
        if "killed_at" not in self.notes:
            problems.append("it was over before it could be killed; give it more steps")
        elif begins[self.notes["begins"] :][:1] != [self.notes["checkpoint"]]:
            problems.append(f"it began at steps {begins}, and did not resume from {self.notes['checkpoint']}")
        done = seen.progress
        problems += self.rising(done.loss_first, done.loss)
        return {
            "proven": not problems,
            "problems": problems,
            "tiny": self.tiny,
            "agent": self.plan["agent"],
            "recipe_sha256": self.plan["recipe_sha256"],
            "changed": self.changed | {"base_model": [self.changed["base_model"][0], self.model.name]},
            "steps": {"reached": done.step, "planned": done.planned},
            "begins": begins,
            "killed": {key: self.notes.get(key) for key in ("killed_at", "checkpoint")},
            "loss": {key: getattr(done, key) for key in ("loss_first", "loss", "eval_first", "eval_loss")},
            "tokens_per_second": done.tokens_per_second,
            "lora": {key: verified.get(key) for key in ("rank", "modules", "parameters")},
            "memory_gib": {
                "estimated": memory.estimate(self.plan["recipe"]),
                "used_on_the_card": round(self.notes["peak_mib"] / 1024, 2) if self.notes.get("peak_mib") else None,
            },
            "verdict": "verified" if not problems else seen.state,
            **facts(),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=pathlib.Path, required=True, help="a folder with 40 GB of room")
    parser.add_argument("--agent", default="witness")
    parser.add_argument("--max-steps", type=int, default=MAX_STEPS)
    parser.add_argument("--seconds", type=float, default=540, help="after which it ends, with status 3")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS, help="where the JSON goes")
    parser.add_argument("--tiny", action="store_true", help="the rehearsal's recipe on a CPU; proves this program only")
    given = parser.parse_args()
    deadline = time.monotonic() + given.seconds
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    path = results_folder(given, work) / "proof.json"
    proof = Proof(work, given.agent, given.max_steps, given.tiny)
    signal.signal(signal.SIGTERM, proof.stopped)
    proof.prepare()
    proof.stage()
    if "killed_at" not in proof.notes or "again_at" in proof.notes:
        proof.start()
    found = proof.conclude(proof.follow(deadline))
    save(path, found)
    print("proven" if found["proven"] else "NOT PROVEN: " + "; ".join(found["problems"]), f"({path})")
    steps = found["steps"]
    print(f"  {steps['reached']} of {steps['planned']} steps, begun at {found['begins']}, {found['loss']}")
    raise SystemExit(0 if found["proven"] else 1)


if __name__ == "__main__":
    main()
