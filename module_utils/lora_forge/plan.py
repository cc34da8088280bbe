"""The plan: agents × recipes × datasets × trainers -> runs. Reads the controller's files, touches no host."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import re
from typing import Any, Optional

from ansible.module_utils.lora_forge import adapter, dataset, memory, recipe, rundir
from ansible.module_utils.lora_forge.errors import ForgeError
from ansible.module_utils.lora_forge.recipe import AGENTS, EVERYBODY, Layer

LOCKS = ("requirements/trainer-cpu.txt", "requirements/trainer-cuda.txt")


REHEARSAL = "rehearsal"  # the profile whose base model is made on the trainer


@dataclasses.dataclass(frozen=True)
class Trainer:
    """A trainer as the inventory declares it.

    Attributes:
        name: Its inventory name.
        profile: A file of configs/profiles/, or empty.
        machine: A file of configs/machines/, or empty.
        datasets_dir: Where the datasets of the agents it trains lie on the controller.
        agents: The agents it is meant for; empty for any.
        root: Where everything lies on it.
    """

    name: str
    profile: str = ""
    machine: str = ""
    datasets_dir: str = "output/datasets"
    agents: tuple[str, ...] = ()
    root: str = "/workspace/lora-forge"


def select_agents(wanted: Any) -> list[str]:
    """The agents that ``-e role=…`` names: one, several (a list, or with commas), or ``all``.

    Raises:
        ForgeError: Nothing is named, or there is no such agent.
    """
    names = wanted if isinstance(wanted, list) else [part.strip() for part in str(wanted or "").split(",")]
    names = [str(name) for name in names if str(name)]
    if not names:
        raise ForgeError(f"say which agent to train: -e role=witness. Agents: {', '.join(AGENTS)}, or all")
    if names == ["all"]:
        return list(AGENTS)
    for name in names:
        if name not in AGENTS:
            hint = recipe.nearest(name, AGENTS) or "."
            raise ForgeError(f"there is no agent «{name}»{hint} Agents: {', '.join(AGENTS)}".replace("  ", " "))
    return list(dict.fromkeys(names))


class Planner:
    """Plans runs from the files of a checkout.

    Args:
        root: The checkout, with configs/ and requirements/.
        output: Where adapters and placements are kept.
        overrides: Axolotl keys from ``-e '{"recipe": {...}}'``.
    """

    def __init__(self, root: pathlib.Path, output: pathlib.Path, overrides: dict[str, Any]):
        self.root = root
        self.output = output
        self.overrides = overrides
        self.warnings: list[str] = []
        self.axolotl = recipe.pinned(root / LOCKS[0], "axolotl")
        for lock in LOCKS[1:]:
            if recipe.pinned(root / lock, "axolotl") != self.axolotl:
                raise ForgeError(f"{LOCKS[0]} and {lock} pin different versions of axolotl; make both anew: make lock")
        try:
            self.schema = json.loads((root / "configs/schema.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ForgeError(f"configs/schema.json cannot be read ({error}); make it anew with: make schema") from None
        self.sets: dict[tuple[str, str, int], dataset.Summary] = {}

    def layer(self, name: str) -> Layer:
        return recipe.read_layer(self.root / name, name)

    def named_layer(self, folder: str, name: str, variable: str) -> Layer:
        """A profile or machine file by its name, with the known names in the error."""
        known = sorted(path.stem for path in (self.root / folder).glob("*.yml"))
        if name not in known:
            raise ForgeError(f"{variable} is «{name}», but {folder} holds: {', '.join(known)}")
        return self.layer(f"{folder}/{name}.yml")

    def merged(self, agent: str, profile: str, machine: str) -> dict[str, Any]:
        """The recipe of an agent, checked.

        Raises:
            ForgeError: With everything that is wrong with it.
        """
        layers = [self.layer("configs/base.yml"), self.layer(f"configs/agents/{agent}.yml")]
        errors = []
        if profile:
            layers.append(self.named_layer("configs/profiles", profile, "run_profile"))
        elif machine:
            layer = self.named_layer("configs/machines", machine, "trainer_machine")
            errors = recipe.machine_problems(layer, recipe.merge(layers)[0])
            layers.append(layer)
        layers.append(Layer("-e '{\"recipe\": …}'", self.overrides))
        keys, origin = recipe.merge(layers)
        errors += recipe.problems(keys, origin, self.schema)
        errors = errors or recipe.range_problems(keys, origin)
        if profile != REHEARSAL:
            errors = errors or recipe.model_problems(keys, origin, layers)
            if str(keys.get("base_model")).startswith("/"):
                keys.pop("model_revision", None)  # a folder has none
        if errors:
            raise ForgeError("\n".join(errors))
        return keys

    def read(self, path: pathlib.Path, use: str, sequence_len: int) -> dataset.Summary:
        """Check a dataset file, once for each invocation."""
        key = (str(path), use, sequence_len)
        if key not in self.sets:
            self.sets[key] = dataset.check(path, use, sequence_len)
            self.warnings += self.sets[key].warnings
        return self.sets[key]

    def datasets(self, agent: str, keys: dict[str, Any], folder: pathlib.Path) -> list[dataset.Summary]:
        """The checked files of an agent: its own, or for the shared adapter everybody's.

        Raises:
            ForgeError: A file is missing or breaks the contract.
        """
        length = int(keys["sequence_len"])
        named = [pathlib.Path(item["path"]) for item in keys.get("datasets", []) if "path" in item]
        train = named or dataset.find(folder, [agent], "train")
        val = dataset.find(folder, [agent], "val")
        if not train and agent == EVERYBODY:
            others = [name for name in AGENTS if name != EVERYBODY]
            train, val = dataset.find(folder, others, "train"), dataset.find(folder, others, "val")
            missing = [name for name in others if folder / f"{name}_train.jsonl" not in train]
            if train and missing:
                self.warnings.append(f"{agent} is trained without {', '.join(missing)}: no such file in {folder}")
        missing_named = [path for path in named if not path.is_file()]
        if missing_named or not train:
            looked = ", ".join(map(str, missing_named)) or str(folder / f"{agent}_train.jsonl")
            raise ForgeError(f"no dataset for {agent}: {looked} does not exist. -e datasets_dir=… says where to look")
        found = [self.read(path, "train", length) for path in train] + [self.read(path, "val", length) for path in val]
        self.warnings += dataset.check_lengths(found, length, keys.get("excess_length_strategy", "drop"))
        dataset.check_overlap([one for one in found if one.use == "train"], [one for one in found if one.use == "val"])
        return found

    def run(self, agent: str, trainer: Trainer, fresh: bool, move: bool, verify: bool) -> dict[str, Any]:
        """Plan one agent on one trainer.

        Args:
            agent: The agent.
            trainer: Where it would train.
            fresh: Make a new attempt where the newest one is final.
            move: Let go of the trainer an unfinished run was placed on.
            verify: Hash the files of an adapter that is there.

        Returns:
            The run, as plan.json has it.
        """
        keys = self.merged(agent, trainer.profile, trainer.machine)
        sets = self.datasets(agent, keys, pathlib.Path(trainer.datasets_dir))
        self.suit(agent, keys, sets)
        rehearsal = trainer.profile == REHEARSAL
        files = [{"use": one.use, "sha256": one.sha256} for one in sets]
        mark = recipe.fingerprint(keys, rehearsal, files, self.axolotl)
        run_id, state, why, placed = self.attempt(agent, mark, fresh, verify)
        if placed and placed != trainer.name and not move and state != "ready":
            why = f"placed on {placed}"
        options = (keys.pop("datasets", None) or [{}])[0]
        train = [one for one in sets if one.use == "train"]
        return {
            "run_id": run_id,
            "agent": agent,
            "fingerprint": mark,
            "trainer": trainer.name if move or not placed else placed,
            "state": state,
            "why": why,
            "rehearsal": rehearsal,
            "recipe": keys,
            "recipe_sha256": adapter.sha256_text(recipe.canonical(keys)),
            "axolotl": self.axolotl,
            "datasets": [
                {
                    "path": one.path,
                    "use": one.use,
                    "sha256": one.sha256,
                    "examples": one.examples,
                    "entry": dataset.entry(one, options),
                }
                for one in sets
            ],
            "estimate": {
                "tokens": sum(one.tokens for one in train),
                "steps": estimate_steps(keys, sets),
                "memory_gib": None if rehearsal else memory.estimate(keys),
            },
        }

    def attempt(self, agent: str, mark: str, fresh: bool, verify: bool) -> tuple[str, str, str, Optional[str]]:
        """Which attempt of a recipe is meant: its run_id, state, a reason, and where it was placed."""
        first = f"{agent}-{mark[:12]}"
        folder = self.output / "adapters" / agent
        pattern = re.compile(rf"^{re.escape(first)}(?:-(\d+))?$")
        names = [path.name for path in folder.glob(f"{first}*") if path.is_dir()] if folder.is_dir() else []
        names += [path.stem for path in (self.output / "runs").glob(f"{first}*.json")]
        numbers = sorted({int(match.group(1) or 1) for match in map(pattern.match, names) if match}) or [0]
        newest = numbers[-1]

        def name(number: int) -> str:
            return first if number <= 1 else f"{first}-{number}"

        def there(number: int) -> Optional[str]:
            return adapter.missing(folder / name(number), verify) if number else "never trained"

        placement = rundir.read_json(self.output / "runs" / f"{name(newest)}.json")
        flaw = there(newest)
        if fresh and newest and (flaw is None or placement.get("final")):
            return name(newest + 1), "to train", "a fresh attempt was asked for", None
        if flaw is None:
            return name(newest), "ready", "", placement.get("trainer")
        if not fresh and placement.get("final"):
            earlier = next((number for number in reversed(numbers[:-1]) if there(number) is None), None)
            if earlier:
                return name(earlier), "ready", f"{name(newest)} failed later", None
        if placement and not placement.get("final"):
            return name(newest), "to attach", "launched before", placement.get("trainer")
        if placement.get("state") in ("failed", "stopped"):
            return name(newest), "to resume", f"{placement['state']} before", placement.get("trainer")
        reason = "" if flaw == "never trained" else flaw
        return name(max(newest, 1)), "to train", reason, placement.get("trainer")

    def suit(self, agent: str, keys: dict[str, Any], sets: list[dataset.Summary]) -> None:
        """Warn where the schedule does not suit the data; switch off what Axolotl would die of."""
        steps = estimate_steps(keys, sets)
        warmup, evaluation = int(keys.get("warmup_steps", 0)), keys.get("eval_steps")
        better: dict[str, int] = {}
        notes = []
        if warmup * 2 >= steps and warmup > 1:
            better["warmup_steps"] = max(1, steps // 10)
            notes.append(f"warmup takes {warmup} of about {steps} steps")
        if isinstance(evaluation, int) and evaluation > 1 and evaluation > steps:
            better["eval_steps"] = max(1, steps // 4)
            notes.append(f"no evaluation before the end falls within about {steps} steps (eval_steps {evaluation})")
        if better:
            self.warnings.append(
                f"{agent}: {'; '.join(notes)}. Values that suit this data: -e '{json.dumps({'recipe': better})}'"
            )
        val = [one for one in sets if one.use == "val"]
        share = 0.0 if val else float(keys.get("val_set_size", 0))
        train_tokens = sum(one.tokens for one in sets if one.use == "train")
        held_out = sum(one.tokens for one in val) if val else share * train_tokens
        if val:
            keys["val_set_size"] = 0
        elif share and sum(one.examples for one in sets) < 2:
            keys["val_set_size"] = 0
            self.warnings.append(f"{agent}: a single conversation cannot be split, so there is no evaluation")
        if keys.get("eval_sample_packing", keys.get("sample_packing")):
            needed = 2 * recipe.effective_batch(keys) * int(keys["sequence_len"])  # twice, as tokens are estimated
            if held_out < needed:
                keys["eval_sample_packing"] = False


def estimate_steps(keys: dict[str, Any], sets: list[dataset.Summary]) -> int:
    """Optimizer steps of a run, estimated.

    With packing, epochs × ceil(ceil(tokens / sequence_len) / (micro batch × accumulation)); without, examples
    in the place of packs. ``max_steps`` caps it.
    """
    train = [one for one in sets if one.use == "train"]
    kept = 1.0 if any(one.use == "val" for one in sets) else 1 - float(keys.get("val_set_size", 0))
    if keys.get("sample_packing"):
        rows = math.ceil(kept * sum(one.tokens for one in train) / int(keys["sequence_len"]))
    else:
        rows = math.ceil(kept * sum(one.examples for one in train))
    steps = math.ceil(math.ceil(rows / recipe.effective_batch(keys)) * float(keys.get("num_epochs", 1)))
    return min(steps, int(keys["max_steps"])) if keys.get("max_steps") else steps


def place(agents: list[str], trainers: list[Trainer], weight: dict[str, int], placed: dict[str, str]) -> dict[str, str]:
    """Spread agents over trainers: where they are already, then where they are declared, then by load.

    Longest first onto the least loaded trainer.

    Args:
        agents: Who is to be trained.
        trainers: At least one.
        weight: Estimated tokens of each agent.
        placed: Trainers of unfinished runs.

    Raises:
        ForgeError: No trainer takes an agent.
    """
    load = {trainer.name: 0 for trainer in trainers}
    chosen = {}
    for agent in sorted(agents, key=lambda name: (-weight.get(name, 0), name)):
        declared = [trainer.name for trainer in trainers if agent in trainer.agents]
        open_to = declared or [trainer.name for trainer in trainers if not trainer.agents]
        if placed.get(agent) in load:
            open_to = [placed[agent]]
        if not open_to:
            raise ForgeError(f"no trainer takes {agent}: every one declares other agents; add it to one of them")
        chosen[agent] = min(open_to, key=lambda name: (load[name], list(load).index(name)))
        load[chosen[agent]] += weight.get(agent, 0)
    return chosen


def make(
    root: pathlib.Path,
    output: pathlib.Path,
    wanted: Any,
    trainers: list[Trainer],
    overrides: dict[str, Any],
    fresh: bool = False,
    move: bool = False,
    verify: bool = False,
) -> dict[str, Any]:
    """Plan everything.

    Args:
        root: The checkout.
        output: Where adapters and placements are kept.
        wanted: What ``-e role=…`` says.
        trainers: The trainers of the inventory.
        overrides: Axolotl keys from the command line.
        fresh: Make new attempts.
        move: Let go of earlier placements.
        verify: Hash adapters that are there.

    Returns:
        ``runs`` and ``warnings``.

    Raises:
        ForgeError: Anything that is wrong, before a host is touched.
    """
    agents = select_agents(wanted)
    if not trainers:
        raise ForgeError("the inventory holds no host to train on. See inventory/local.yml for the smallest one")
    for trainer in trainers:
        if not trainer.root.startswith("/"):
            raise ForgeError(
                f"trainer_root of {trainer.name} is «{trainer.root}»; it must be an absolute path on that host"
            )
    planner = Planner(root, output, overrides)
    by_name = {trainer.name: trainer for trainer in trainers}
    runs = {}
    for agent in agents:
        home = next((t for t in trainers if agent in t.agents), trainers[0])
        runs[agent] = planner.run(agent, home, fresh, move, verify)
        if runs[agent]["state"] == "ready" and runs[agent]["trainer"] not in by_name:
            runs[agent]["trainer"] = home.name  # delivered; where it came from is gone
    weight = {agent: run["estimate"]["tokens"] for agent, run in runs.items() if run["state"] != "ready"}
    placed = {agent: run["trainer"] for agent, run in runs.items() if run["state"] in ("to attach", "to resume")}
    for agent, name in placed.items():
        if name not in by_name and not move:
            raise ForgeError(
                f"{runs[agent]['run_id']} was launched on {name}, which this inventory does not hold. Use the "
                "inventory that does, or give the run up there and start on another trainer with -e move=true"
            )
    spread = place(agents, trainers, weight, {} if move else placed)
    for agent, name in spread.items():
        if name != runs[agent]["trainer"] and runs[agent]["state"] != "ready":
            gone = runs[agent]["trainer"] not in by_name  # nothing to attach to there, or it was refused above
            runs[agent] = planner.run(agent, by_name[name], fresh, move or gone, verify)
    return {"runs": [runs[agent] for agent in agents], "warnings": list(dict.fromkeys(planner.warnings))}
