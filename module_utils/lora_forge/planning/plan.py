"""The plan: agents × recipes × datasets × trainers -> runs. Reads the controller's files, touches no host."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import pathlib
import re
from collections.abc import Sequence
from typing import Any, Callable, Optional

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.adapters import store
from ansible.module_utils.lora_forge.agents import AGENTS, EVERYBODY
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planning import dataset, memory, recipe, rules, variants
from ansible.module_utils.lora_forge.planning.fleet import (
    Job,
    Lane,
    Trainer,
    assign_lanes,
    check_agents,
    check_gangs,
    default_agents,
    group_alike,
    parse_move,
    select_agents,
    trainers_for,
)
from ansible.module_utils.lora_forge.planning.recipe import Layer
from ansible.module_utils.lora_forge.text import canonical

LOCKS = ("requirements/trainer-cpu.txt", "requirements/trainer-cuda.txt")
_BIN_SIZE = 200  # conversations that Axolotl packs into a row at most, where a recipe does not say
_EXACT = 1000  # conversations that are packed one by one to count the rows
REHEARSAL = "rehearsal"  # the profile whose base model is made on the trainer


class Planner:
    """Plans runs from the files of a checkout.

    Args:
        root: The checkout, with configs/ and requirements/.
        output: Where adapters and placements are kept.
        overrides: Axolotl keys from ``-e '{"recipe": {...}}'``.
        keep: A version of Axolotl (``0.19``) whose adapters count as ready where nothing else has changed.
    """

    def __init__(self, root: pathlib.Path, output: pathlib.Path, overrides: dict[str, Any], keep: str = ""):
        self.root = root
        self.output = output
        self.overrides = overrides
        if keep and not _minor(keep):
            raise UserError(f"keep_axolotl is «{keep}»; it is a version of Axolotl, such as 0.19")
        self.keep = _minor(keep)
        self.warnings: list[str] = []
        self.axolotl = recipe.pinned_version(root / LOCKS[0], "axolotl")
        for lock in LOCKS[1:]:
            if recipe.pinned_version(root / lock, "axolotl") != self.axolotl:
                raise UserError(f"{LOCKS[0]} and {lock} pin different versions of axolotl; make both anew: make lock")
        try:
            self.schema = json.loads((root / "configs/schema.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"configs/schema.json cannot be read ({error}); make it anew with: make schema") from None
        self.sets: dict[tuple[str, str, int], dataset.DatasetFile] = {}
        self.pinned = {package for package in rules.PACKAGES if self.has_package(package)}
        self.origins: dict[str, dict[str, str]] = {}  # of each run: where each key of its recipe stands

    def has_package(self, package: str) -> bool:
        """Whether the trainers' locks have a package; the CPU lock is made of the CUDA one."""
        try:
            return bool(recipe.pinned_version(self.root / LOCKS[1], package))
        except UserError:
            return False

    def layer(self, name: str) -> Layer:
        return recipe.read_layer(self.root / name, name)

    def named_layer(self, folder: str, name: str, variable: str) -> Layer:
        """A profile or machine file by its name, with the known names in the error."""
        known = sorted(path.stem for path in (self.root / folder).glob("*.yml"))
        if name not in known:
            raise UserError(f"{variable} is «{name}», but {folder} holds: {', '.join(known)}")
        return self.layer(f"{folder}/{name}.yml")

    def merged_recipe(
        self, agent: str, profile: str, machine: str, variant: Optional[dict[str, Any]] = None
    ) -> dict[str, Any]:
        """The recipe of :meth:`merge_layers`."""
        return self.merge_layers(agent, profile, machine, variant)[0]

    def merge_layers(
        self, agent: str, profile: str, machine: str, variant: Optional[dict[str, Any]] = None
    ) -> tuple[dict[str, Any], dict[str, Layer], list[str]]:
        """The recipe of an agent, checked; the overrides of a sweep's variant are its last layer.

        Returns:
            The recipe, for each key the layer it comes from, and what is to be said of it.

        Raises:
            UserError: With everything that is wrong with it.
        """
        layers = [self.layer("configs/base.yml"), self.layer(f"configs/agents/{agent}.yml")]
        errors, rehearsed = [], None
        if profile:
            rehearsed = self.named_layer("configs/profiles", profile, "run_profile")
            layers.append(rehearsed)
        elif machine:
            layer = self.named_layer("configs/machines", machine, "trainer_machine")
            errors = recipe.machine_problems(layer, recipe.merge(layers)[0])
            layers.append(layer)
        layers.append(Layer("-e '{\"recipe\": …}'", self.overrides))
        if variant:
            layers.append(Layer("-e '{\"sweep\": …}'", variant))
        keys, origin = recipe.merge(layers)
        errors += recipe.problems(keys, origin, self.schema)
        # What contradicts itself is found in a rehearsal too, which would replace half of it.
        both = [recipe.merge(one for one in layers if one is not rehearsed), (keys, origin)]
        against = [said for one in both for said in recipe.contradictions(*one)]
        errors = errors or [*recipe.range_problems(keys, origin), *dict.fromkeys(against)]
        if profile != REHEARSAL:
            errors = errors or recipe.model_problems(keys, origin, layers)
            if str(keys.get("base_model")).startswith("/"):
                keys.pop("model_revision", None)  # a folder has none
        said = (
            []
            if errors
            else recipe.replacement_notes(layers, rehearsed) + rules.apply_rules(keys, origin, layers, self.pinned)
        )
        errors = errors or rules.problems(keys, origin, self.pinned)
        if errors:
            raise UserError("\n".join(errors))
        if keys.get("deepspeed"):
            keys["deepspeed"] = self.deepspeed(keys["deepspeed"])
        return keys, origin, said + rules.notes(keys, origin)

    def deepspeed(self, given: Any) -> Any:
        """DeepSpeed's configuration, from its file where one is named: no trainer has the files of a checkout.

        Raises:
            UserError: The file cannot be read, or the trainer's environment has no DeepSpeed.
        """
        if not self.has_package("deepspeed"):
            raise UserError(
                f"«deepspeed» needs a package that {LOCKS[1]} does not pin: add a line «deepspeed» to "
                f"{LOCKS[1].removesuffix('.txt')}.in, then make lock; or use fsdp_config, which needs nothing more"
            )
        if not isinstance(given, str):
            return given
        path = self.root / given
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"«deepspeed: {given}» must name a JSON file, from the checkout on: {path}: {error}"
            ) from None

    def read(self, path: pathlib.Path, use: str, sequence_len: int) -> dataset.DatasetFile:
        """Check a dataset file, once for each invocation."""
        key = (str(path), use, sequence_len)
        if key not in self.sets:
            self.sets[key] = dataset.check_file(path, use, sequence_len)
            self.warnings += self.sets[key].warnings
        return self.sets[key]

    def datasets(self, agent: str, keys: dict[str, Any], folder: pathlib.Path) -> list[dataset.DatasetFile]:
        """The checked files of an agent: its own, or for the shared adapter everybody's.

        Raises:
            UserError: A file is missing or breaks the contract.
        """
        length = int(keys["sequence_len"])
        named = [pathlib.Path(item["path"]) for item in keys.get("datasets", []) if "path" in item]
        train = named or dataset.find_files(folder, [agent], "train")
        val = dataset.find_files(folder, [agent], "val")
        if not train and agent == EVERYBODY:
            others = [name for name in AGENTS if name != EVERYBODY]
            train, val = dataset.find_files(folder, others, "train"), dataset.find_files(folder, others, "val")
            missing = [name for name in others if folder / f"{name}_train.jsonl" not in train]
            if train and missing:
                self.warnings.append(f"{agent} is trained without {', '.join(missing)}: no such file in {folder}")
        missing_named = [path for path in named if not path.is_file()]
        if missing_named or not train:
            looked = ", ".join(map(str, missing_named)) or str(folder / f"{agent}_train.jsonl")
            raise UserError(f"no dataset for {agent}: {looked} does not exist. -e datasets_dir=… says where to look")
        found = [self.read(path, "train", length) for path in train] + [self.read(path, "val", length) for path in val]
        self.warnings += dataset.check_lengths(found, length, keys.get("excess_length_strategy", "drop"))
        dataset.check_overlap([one for one in found if one.use == "train"], [one for one in found if one.use == "val"])
        return found

    def run(
        self,
        agent: str,
        trainer: Trainer,
        fresh: bool,
        moved: Callable[[str], bool],
        verify: bool,
        variant: Optional[dict[str, Any]] = None,
    ) -> dict[str, Any]:
        """Plan one agent on one trainer.

        Args:
            agent: The agent.
            trainer: Where it would train.
            fresh: Make a new attempt where the newest one is final.
            moved: From :func:`moving`: whether the trainer that an unfinished run was placed on is let go.
            verify: Hash the files of an adapter that is there.
            variant: Recipe overrides of a sweep.

        Returns:
            The run, as plan.json has it.
        """
        keys, origin, notes = self.merge_layers(agent, trainer.profile, trainer.machine, variant)
        self.warnings += [f"{agent}: {one}" for one in notes]
        sets = self.datasets(agent, keys, pathlib.Path(trainer.datasets_dir))
        self.adapt_to_dataset(agent, keys, sets)
        said, errors = rules.evaluation_problems(keys, origin, any(one.use == "val" for one in sets))
        if errors:
            raise UserError("\n".join(errors))
        self.warnings += [f"{agent}: {one}" for one in said]
        rehearsal = trainer.profile == REHEARSAL
        files = [{"use": one.use, "sha256": one.sha256} for one in sets]
        mark = recipe.fingerprint(keys, rehearsal, files, self.axolotl)
        run_id, state, why, placement = self.find_attempt(agent, mark, fresh, verify)
        axolotl = self.axolotl
        older = (
            {}
            if fresh or state in ("ready", "to attach")
            else self.older_adapters(agent, keys, rehearsal, files, verify)
        )
        if self.keep in older:
            axolotl, mark, (run_id, state, why, placement) = older[self.keep]
        elif older:
            minor, (version, _, (kept, *_)) = max(older.items(), key=lambda one: [*map(int, one[0].split("."))])
            words = f"{agent} has {kept}, of Axolotl {version}"
            if self.keep:
                raise UserError(f"keep_axolotl is {self.keep}, but {words}; -e keep_axolotl={minor} keeps that")
            self.warnings.append(
                f"{words}; the locks pin {self.axolotl} now. Nothing else has changed, and it is trained anew; "
                f"-e keep_axolotl={minor} keeps what there is"
            )
        placed = placement.get("trainer")
        if placed and state != "ready" and moved(str(placed)):
            state, why, placement = "to train", f"moved from {placed}", {}
        elif placed and placed != trainer.name and state != "ready":
            why = f"placed on {placed}"
        estimate: dict[str, Any] = {
            "tokens": sum(one.tokens for one in sets if one.use == "train"),
            "steps": estimate_steps(keys, sets),
            "work": estimate_work(keys, sets),
        }
        if not rehearsal:
            keys = recipe.split_batch(keys, trainer.gpus * trainer.hosts)
        needed = None if rehearsal else memory.estimate(keys)
        estimate |= {
            "memory_gib": needed,
            "memory_floor_gib": None if rehearsal else memory.floor(keys),
            "memory_classes": self.memory_by_class(agent, needed, trainer, variant),
        }
        if not rehearsal and state != "ready":
            self.warn_about_memory(agent, keys, trainer, estimate)
        keys = recipe.with_plugins(keys)
        self.origins[run_id] = {key: layer.where(key) for key, layer in origin.items()}
        options = (keys.pop("datasets", None) or [{}])[0]
        return {
            "run_id": run_id,
            "agent": agent,
            "name": f"{agent} {variants.variant_label(variant)}" if variant else agent,
            "variant": variant or {},
            "fingerprint": mark,
            "trainer": placement.get("trainer") or trainer.name,
            "placed": bool(placement.get("trainer")) and state != "ready",
            "lane": int(placement.get("lane") or 0),
            "state": state,
            "why": why,
            "rehearsal": rehearsal,
            "recipe": keys,
            "recipe_sha256": store.sha256_text(canonical(keys)),
            "axolotl": axolotl,
            "datasets": [
                {
                    "path": one.path,
                    "use": one.use,
                    "sha256": one.sha256,
                    "examples": one.examples,
                    "entry": dataset.axolotl_entry(one, options),
                }
                for one in sets
            ],
            "gpus": 1 if rehearsal else trainer.gpus,
            "hosts": list(trainer.members) or [trainer.name],
            "estimate": estimate,
        }

    def memory_by_class(
        self, agent: str, needed: Optional[float], trainer: Trainer, variant: Optional[dict[str, Any]]
    ) -> dict[str, float]:
        """GiB of GPU memory that an agent is thought to need with each machine class.

        Only where another class may be wanted: on a pod, whose GPU is not chosen yet, and where the trainer's own class
        is too small. Where nothing is known there is none.
        """
        usable = memory.usable_gib(trainer.machine)
        if needed is None or not (trainer.rented or (usable is not None and usable < needed)):
            return {}
        found: dict[str, float] = {}
        for path in sorted((self.root / "configs/machines").glob("*.yml")):
            with contextlib.suppress(UserError):  # in a class that nobody takes
                laid = recipe.split_batch(
                    self.merged_recipe(agent, "", path.stem, variant), trainer.gpus * trainer.hosts
                )
                size = memory.estimate(laid)
                found |= {} if size is None else {path.stem: size}
        return found

    def warn_about_memory(self, agent: str, keys: dict[str, Any], trainer: Trainer, estimate: dict[str, Any]) -> None:
        """Warn where the memory that is needed is not known, or more than the trainer's class of machine stands for."""
        needed, sizes, usable = estimate["memory_gib"], estimate["memory_classes"], memory.usable_gib(trainer.machine)
        if needed is None:
            why = memory.unknown_reason(keys)
            self.warnings.append(f"{keys['base_model']}: how much GPU memory a training needs is not known: {why}")
        elif usable is not None and usable < needed:
            fits = memory.fitting_machine(usable, sizes)
            self.warnings.append(
                f"{agent} on {trainer.name}: thought to need {needed:.1f} GiB of GPU memory (simulated, not measured), "
                f"and a card of {trainer.machine} has {usable:.1f} GiB or little more. "
                + (
                    f"With trainer_machine: {fits} it is {sizes[fits]:.1f} GiB"
                    if fits
                    else "No file of configs/machines/ makes it fit: take a larger GPU, or a shorter sequence_len"
                )
            )

    def older_adapters(
        self, agent: str, keys: dict[str, Any], rehearsal: bool, files: list[dict[str, str]], verify: bool
    ) -> dict[str, tuple[str, str, tuple[str, str, str, dict[str, Any]]]]:
        """What is ready of a recipe by other versions of Axolotl: major.minor -> version, fingerprint, attempt."""
        found: dict[str, tuple[str, str, tuple[str, str, str, dict[str, Any]]]] = {}
        for path in (self.output / "adapters" / agent).glob("*/manifest.json"):
            manifest = store.read_manifest(path.parent)
            version = str(manifest.versions.get("axolotl") or "") if manifest else ""
            minor = _minor(version)
            if minor and minor not in (_minor(self.axolotl), *found):
                mark = recipe.fingerprint(keys, rehearsal, files, minor)
                then = self.find_attempt(agent, mark, False, verify)
                if then[1] == "ready":
                    found[minor] = (version, mark, then)
        return found

    def known(self, agent: str, ways: list[list[Trainer]], *asked: Any) -> tuple[dict[str, Any], list[Trainer]]:
        """Plan one agent in the way in which there is something of it already, or else in the first one.

        Where hosts differ in profile or data, a run is another one on each; what was begun must hold.

        Args:
            agent: The agent.
            ways: From :func:`alike`.
            asked: What :meth:`run` takes besides.

        Returns:
            The run, a real one before a rehearsal, and the trainers of its way.
        """
        found, errors = [], []
        for hosts in ways:
            try:
                found.append((self.run(agent, hosts[0], *asked), hosts))
            except UserError as error:  # of no account as long as nobody has to train it there
                errors.append(error)
        if not found:
            raise errors[0]
        return min(found, key=lambda one: (not has_history(one[0]), has_history(one[0]) and one[0]["rehearsal"]))

    def find_attempt(self, agent: str, mark: str, fresh: bool, verify: bool) -> tuple[str, str, str, dict[str, Any]]:
        """Which attempt of a recipe is meant: its run_id, state, a reason, and how it was placed."""
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
            return store.integrity_error(folder / name(number), verify) if number else "never trained"

        placement = rundir.read_json(self.output / "runs" / f"{name(newest)}.json")
        flaw = there(newest)
        if fresh and newest and (flaw is None or placement.get("final")):
            return name(newest + 1), "to train", "a fresh attempt was asked for", {}
        if flaw is None:
            return name(newest), "ready", "", placement
        if not fresh and placement.get("final"):
            earlier = next((number for number in reversed(numbers[:-1]) if there(number) is None), None)
            if earlier:
                return name(earlier), "ready", f"{name(newest)} failed later", {}
        if placement and not placement.get("final"):
            return name(newest), "to attach", "launched before", placement
        if placement.get("state") in ("failed", "stopped"):
            return name(newest), "to resume", f"{placement['state']} before", placement
        reason = "" if flaw == "never trained" else flaw
        return name(max(newest, 1)), "to train", reason, placement

    def adapt_to_dataset(self, agent: str, keys: dict[str, Any], sets: list[dataset.DatasetFile]) -> None:
        """Warn where the schedule does not suit the data; switch off what Axolotl would die of, or learn nothing by."""
        val = [one for one in sets if one.use == "val"]
        share = 0.0 if val else float(keys.get("val_set_size", 0))
        train_tokens = sum(one.tokens for one in sets if one.use == "train")
        held_out = sum(one.tokens for one in val) if val else share * train_tokens
        if val:
            keys["val_set_size"] = 0
        elif share and sum(one.examples for one in sets) < 2:
            keys["val_set_size"] = 0
            self.warnings.append(f"{agent}: a single conversation cannot be split, so there is no evaluation")
        batch, rows = recipe.effective_batch(keys), estimate_rows(keys, sets)
        if not rows:
            raise UserError(
                f"{agent}: nothing is left to train on: of the conversations that fit into sequence_len, val_set_size "
                f"{keys.get('val_set_size', 0)} holds out all. Make it smaller"
            )
        if keys.get("sample_packing") and rows < batch:
            keys["sample_packing"] = keys["eval_sample_packing"] = False
            self.warnings.append(
                f"{agent}: packed into rows of {keys['sequence_len']} tokens this data makes about {rows}, and a step "
                f"takes {batch}, so that little of it would be learnt, or nothing. It is trained without packing, in "
                f"about {estimate_steps(keys, sets)} steps. More conversations are packed again"
            )
        steps = estimate_steps(keys, sets)
        if not steps:
            raise UserError(f"{agent}: num_epochs {keys.get('num_epochs', 1)} of this data is no step at all; raise it")
        warmup, evaluation = int(keys.get("warmup_steps", 0)), keys.get("eval_steps")
        better: dict[str, int] = {}
        notes = []
        if warmup * 2 >= steps and warmup > 1:
            better["warmup_steps"] = max(1, steps // 10)
            notes.append(f"warmup takes {warmup} of about {steps} steps")
        evaluated = bool(val or keys.get("val_set_size"))
        if evaluated and isinstance(evaluation, int) and evaluation > 1 and evaluation > steps:
            better["eval_steps"] = max(1, steps // 4)
            notes.append(f"no evaluation before the end falls within about {steps} steps (eval_steps {evaluation})")
        if better:
            self.warnings.append(
                f"{agent}: {'; '.join(notes)}. Values that suit this data: -e '{json.dumps({'recipe': better})}'"
            )
        if keys.get("eval_sample_packing", keys.get("sample_packing")):
            needed = 2 * recipe.effective_batch(keys) * int(keys["sequence_len"])  # twice, as tokens are estimated
            if held_out < needed:
                keys["eval_sample_packing"] = False


def _trained_lengths(keys: dict[str, Any], sets: list[dataset.DatasetFile]) -> list[int]:
    """Tokens of each conversation that is trained on, or held out of the training set; what is dropped left out."""
    strategy = keys.get("excess_length_strategy", "drop")
    return [length for one in sets if one.use == "train" for length in one.trained(strategy)]


def estimate_rows(keys: dict[str, Any], sets: list[dataset.DatasetFile]) -> int:
    """Rows of an epoch: packs of conversations, or conversations where they are not packed.

    Axolotl holds out ceil(share × n) of n conversations, as Hugging Face's train_test_split does.
    """
    lengths = _trained_lengths(keys, sets)
    if not any(one.use == "val" for one in sets):
        lengths = lengths[: len(lengths) - math.ceil(float(keys.get("val_set_size", 0)) * len(lengths))]
    if not keys.get("sample_packing"):
        return len(lengths)
    return _packs(lengths, int(keys["sequence_len"]), int(keys.get("sample_packing_bin_size") or _BIN_SIZE))


def _packs(lengths: list[int], room: int, most: int) -> int:
    """How many rows conversations are packed into: each goes into the first one that has room for it.

    As pack_group in axolotl/utils/samplers/multipack.py (0.21) does it, in another order of conversations. Of many
    conversations every second one is packed, every third, and so on, and the others are taken to be like these.

    Args:
        lengths: Tokens of each conversation.
        room: Tokens of a row.
        most: Conversations of a row.
    """
    every = math.ceil(len(lengths) / _EXACT)
    if every > 1:
        some = lengths[::every]
        return round(_packs(some, room, most) * len(lengths) / len(some))
    rows: list[list[int]] = []  # tokens and conversations that each can still take
    for length in lengths:
        fits = next((row for row in rows if row[0] >= length and row[1]), None)
        if fits is None:
            rows.append(fits := [room, most])
        fits[0] -= length
        fits[1] -= 1
    return len(rows)


def estimate_steps(keys: dict[str, Any], sets: list[dataset.DatasetFile]) -> int:
    """Optimizer steps of a run, estimated as Axolotl counts them.

    ``max_steps``, whatever the epochs are; else, packed, epochs × (micro batches of an epoch // accumulation), where
    the last micro batch is dropped unless it is full, and otherwise ceil(epochs × conversations / effective batch).
    From calculate_total_num_steps in axolotl/utils/trainer.py (0.21).
    """
    if keys.get("max_steps"):
        return int(keys["max_steps"])
    rows, epochs = estimate_rows(keys, sets), float(keys.get("num_epochs", 1))
    micro, accumulation = (int(keys.get(key, 1)) for key in recipe.BATCH)
    if keys.get("sample_packing"):
        return math.floor(max(rows // micro // accumulation, 1) * epochs)
    return math.ceil(epochs * rows / (micro * accumulation))


def estimate_work(keys: dict[str, Any], sets: list[dataset.DatasetFile]) -> int:
    """Tokens that a run puts through the model, evaluations left out: steps × effective batch × row.

    A packed row is ``sequence_len`` long; otherwise it is an example.
    """
    lengths, length = _trained_lengths(keys, sets), int(keys["sequence_len"])
    row = length if keys.get("sample_packing") else sum(lengths) / len(lengths)
    return round(estimate_steps(keys, sets) * recipe.effective_batch(keys) * min(row, length))


def _minor(version: str) -> str:
    """Major and minor of a version; empty where it is none."""
    found = re.match(r"\d+\.\d+(?![^.+])", version)
    return found.group() if found else ""


def together(warnings: list[str], agents: Sequence[str]) -> list[str]:
    """Warnings, each once: what is said of several agents in the same words is said of all of them at once."""
    said: dict[tuple[bool, str], list[str]] = {}
    for warning in warnings:
        agent, colon, words = warning.partition(": ")
        known = bool(colon) and agent in agents
        said.setdefault((known, words if known else warning), []).append(agent)
    return [f"{', '.join(dict.fromkeys(names))}: {words}" if known else words for (known, words), names in said.items()]


def has_history(run: dict[str, Any]) -> bool:
    """Whether there is something of a run already, be it an adapter, or that it was given up somewhere."""
    return run["state"] != "to train" or run["placed"] or bool(run["why"])


def make(
    root: pathlib.Path,
    output: pathlib.Path,
    wanted: Any,
    trainers: list[Trainer],
    overrides: dict[str, Any],
    fresh: bool = False,
    move: Any = False,
    verify: bool = False,
    variants: Sequence[dict[str, Any]] = ({},),
    keep: str = "",
) -> dict[str, Any]:
    """Plan everything.

    Args:
        root: The checkout.
        output: Where adapters and placements are kept.
        wanted: What ``-e role=…`` says; empty for all that the inventory declares.
        trainers: The trainers of the inventory.
        overrides: Axolotl keys from the command line.
        fresh: Make new attempts.
        move: Let go of earlier placements: of all, or of those on the named trainers.
        verify: Hash adapters that are there.
        variants: Recipe overrides of a sweep; every agent is trained with each of them.
        keep: See :class:`Planner`.

    Returns:
        ``runs``, ``warnings``, and ``origins``: of each run_id, where each key of its recipe stands.

    Raises:
        UserError: Anything that is wrong, before a host is touched.
    """
    if not trainers:
        raise UserError("the inventory holds no host to train on. See inventory/local.yml for the smallest one")
    trainers = [check_agents(trainer) for trainer in trainers]
    for trainer in trainers:
        if not trainer.root.startswith("/"):
            raise UserError(
                f"trainer_root of {trainer.name} is «{trainer.root}»; it must be an absolute path on that host"
            )
        if trainer.lanes < 1:
            raise UserError(f"{trainer.name} has no lane: it has fewer GPUs than run_gpus asks for")
    everybody = check_gangs(trainers)
    planner = Planner(root, output, overrides, keep)
    moved, left = parse_move(move, trainers, output)
    trainers = [trainer for trainer in everybody if trainer.name not in left]
    if not trainers:
        raise UserError(f"-e move={','.join(left)} leaves no host to train on; add one to the inventory")
    agents = select_agents(wanted) or default_agents(everybody, planner.warnings)
    by_name = {trainer.name: trainer for trainer in trainers}
    runs: dict[Job, dict[str, Any]] = {}
    only: dict[Job, set[str]] = {}
    for agent, number in itertools.product(agents, range(len(variants))):
        ways = group_alike(trainers_for(trainers, agent) or trainers[:1])
        run, hosts = planner.known(agent, ways, fresh, moved, verify, variants[number])
        if run["placed"] and run["trainer"] in by_name:  # where it is decides on its hosts, GPUs and machine keys
            there = planner.run(agent, by_name[run["trainer"]], fresh, moved, verify, variants[number])
            run = there | {"why": run["why"]}
        if run["state"] == "ready" and run["trainer"] not in by_name:
            run["trainer"] = hosts[0].name  # delivered; where it came from is gone
        if has_history(run):
            only[agent, number] = {trainer.name for trainer in hosts}
        twin = next((job for job, other in runs.items() if other["run_id"] == run["run_id"]), None)
        if twin:
            raise UserError(
                f"variants {twin[1] + 1} and {number + 1} of the sweep are the same training ({run['run_id']}): they "
                "differ in nothing that decides what is learnt"
            )
        runs[agent, number] = run
    weight = {job: run["estimate"]["work"] for job, run in runs.items() if run["state"] != "ready"}
    placed = {
        job: Lane(run["trainer"], run["lane"])
        for job, run in runs.items()
        if run["placed"] and (run["trainer"] in by_name or run["state"] in ("to attach", "to resume"))
    }
    for job, lane in placed.items():
        leader = next((trainer.name for trainer in trainers if lane.trainer in trainer.members), lane.trainer)
        if leader != lane.trainer:
            raise UserError(
                f"{runs[job]['run_id']} was launched on {lane.trainer} alone, which now trains in a gang that {leader} "
                "leads. Use the inventory of that time, or give the run up there and start it anew with -e move=true"
            )
        if lane.trainer not in by_name:
            raise UserError(
                f"{runs[job]['run_id']} was launched on {lane.trainer}, which this inventory does not hold. Use the "
                "inventory that does, or give the run up there and start on another trainer with "
                f"-e move={lane.trainer}"
            )
    for job, lane in assign_lanes(trainers, weight, placed, only, left).items():
        if lane.trainer != runs[job]["trainer"]:
            gone = runs[job]["trainer"] not in by_name  # nothing to attach to there, or it was refused above
            let_go = (lambda _: True) if gone else moved
            runs[job] = planner.run(job[0], by_name[lane.trainer], fresh, let_go, verify, variants[job[1]])
        runs[job]["lane"] = lane.number
    return {
        "runs": list(runs.values()),
        "warnings": together(planner.warnings, agents),
        "origins": planner.origins,
    }
