"""The plan: agents × recipes × datasets × trainers -> runs. Reads the controller's files, touches no host."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Callable, Optional

from ansible.module_utils.lora_forge.adapters import store
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planned_run import Estimate, PlannedAnswers, PlannedCases, PlannedRun
from ansible.module_utils.lora_forge.planning import (
    answering,
    cases,
    dataset,
    jsonl,
    launch,
    memory,
    questions,
    recipe,
    recipe_problems,
    rehearsal,
    rules,
    spelling,
    steps,
    templates,
)
from ansible.module_utils.lora_forge.planning.agents import Agents, gone_sentence, kept_agents, listed
from ansible.module_utils.lora_forge.planning.attempts import Attempts
from ansible.module_utils.lora_forge.planning.fleet import (
    Fleet,
    Job,
    Lane,
    Move,
    Trainer,
    assign_lanes,
    check_agents,
    check_gangs,
    default_agents,
    group_alike,
    parse_move,
    trainers_for,
)
from ansible.module_utils.lora_forge.planning.layers import (
    Layer,
    merge,
    quote_value,
    read_layer,
    replacement_notes,
    value_problems,
)
from ansible.module_utils.lora_forge.planning.variants import variant_label
from ansible.module_utils.lora_forge.text import canonical

LOCKS = ("requirements/trainer-cpu.txt", "requirements/trainer-cuda.txt")
COLUMNS = ("agent", "run", "trainer", "examples", "~tokens", "~steps", "~GPU", "state")
REHEARSAL = "rehearsal"  # the profile whose base model is made on the trainer


@dataclasses.dataclass(frozen=True)
class Draft:
    """A run as it is planned before all lanes are assigned.

    Attributes:
        run: The run, on the trainer that comes first into question.
        only: The trainers on which it would be this same run, where it has a history; None where any will do.
    """

    run: PlannedRun
    only: Optional[frozenset[str]] = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that is planned.

    Attributes:
        runs: By agent, in the order in which they were asked for, and variant.
        warnings: What may not be meant, in sentences.
        origins: Of each run_id, where each key of its recipe stands.
        data: What dataset files hold besides plain turns, in a line for each.
    """

    runs: tuple[PlannedRun, ...]
    warnings: list[str] = dataclasses.field(default_factory=list)
    origins: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    data: tuple[str, ...] = ()


class Planner:
    """Plans runs from the files of a checkout.

    Args:
        root: The checkout, with configs/ and requirements/.
        output: Where adapters and placements are kept.
        overrides: Axolotl keys from ``-e '{"recipe": {...}}'``.
        keep: A version of Axolotl (``0.19``) whose adapters count as ready where nothing else has changed.
        fresh: Make a new attempt where the newest one is final.
        verify: Hash the files of adapters that are there.
        say: Tells people what they wait for.
        agents: Those of the checkout, where they were read already.
        asks: Read cases. What stops runs, or shows their logs, must not be kept from it by them.
    """

    def __init__(
        self,
        root: pathlib.Path,
        output: pathlib.Path,
        overrides: dict[str, Any],
        keep: str = "",
        fresh: bool = False,
        verify: bool = False,
        say: Callable[[str], None] = lambda _: None,
        agents: Optional[Agents] = None,
        asks: bool = True,
    ):
        self.root, self.output = root, output
        self.asks = asks
        self.agents = agents or Agents(root)
        self.overrides = overrides
        self.warnings: list[str] = []
        self.axolotl = recipe.pinned_version(root / LOCKS[0], "axolotl")
        for lock in LOCKS[1:]:
            if recipe.pinned_version(root / lock, "axolotl") != self.axolotl:
                raise UserError(f"{LOCKS[0]} and {lock} pin different versions of axolotl; make both anew: make lock")
        self.schema = recipe.read_schema(root)
        self.attempts = Attempts(output, self.axolotl, keep, fresh, verify)
        self.layers: dict[str, Layer] = {}
        self.fine: set[str] = set()  # see recipe_problems.problems
        self.say = say
        self.contents: dict[tuple[str, str], dataset.Contents] = {}  # by path, and how it is read
        self.cases: dict[pathlib.Path, cases.Cases] = {}  # by their files
        self.listings: dict[pathlib.Path, dict[str, list[str]]] = {}  # of folders of datasets
        self.data: dict[str, None] = {}  # in the order in which it was found
        self.packages = {package for package in rules.PACKAGES if self.has_package(package)}
        self.origins: dict[str, dict[str, str]] = {}  # of each run: where each key of its recipe stands

    # --- recipes

    def has_package(self, package: str) -> bool:
        """Tell whether the trainers' locks have a package; the CPU lock is made of the CUDA one."""
        try:
            return bool(recipe.pinned_version(self.root / LOCKS[1], package))
        except UserError:
            return False

    def read_layer(self, name: str) -> Layer:
        """Read a file of the checkout as a layer of a recipe, once for each invocation."""
        if name not in self.layers:
            self.layers[name] = read_layer(self.root / name, name)
        return self.layers[name]

    def read_named_layer(self, folder: str, name: str, variable: str) -> Layer:
        """Read a profile or machine file by its name.

        Raises:
            UserError: There is no such file; with the names that there are.
        """
        known = sorted(path.stem for path in (self.root / folder).glob("*.yml"))
        if name not in known:
            raise UserError(f"{variable} is «{name}», but {folder} holds: {', '.join(known)}")
        return self.read_layer(f"{folder}/{name}.yml")

    def merged_recipe(
        self, agent: str, profile: str, machine: str, variant: Optional[dict[str, Any]] = None
    ) -> dict[str, Any]:
        """Return the recipe of :meth:`merge_layers` alone."""
        return self.merge_layers(agent, profile, machine, variant)[0]

    def base_layers(self, agent: str) -> list[Layer]:
        """Read the layers of an agent's recipe that stand in files of its own and of all agents."""
        return [self.read_layer("configs/base.yml"), *self.agents.layers(agent)]

    def command_layers(self, variant: Optional[dict[str, Any]]) -> list[Layer]:
        """Give the layers that come from the command line, the overrides of a sweep's variant last."""
        layers = [Layer("-e '{\"recipe\": …}'", self.overrides)]
        return layers + ([Layer("-e '{\"sweep\": …}'", variant)] if variant else [])

    def merge_layers(
        self, agent: str, profile: str, machine: str, variant: Optional[dict[str, Any]] = None
    ) -> tuple[dict[str, Any], dict[str, Layer], list[str]]:
        """Merge and check the recipe of an agent; the overrides of a sweep's variant are its last layer.

        Returns:
            The recipe, for each key the layer it comes from, and what is to be said of it.

        Raises:
            UserError: With everything that is wrong with it.
        """
        layers = self.base_layers(agent)
        errors, rehearsed = [], None
        if profile:
            rehearsed = self.read_named_layer("configs/profiles", profile, "run_profile")
            layers.append(rehearsed)
        elif machine:
            layer = self.read_named_layer("configs/machines", machine, "trainer_machine")
            errors = recipe_problems.machine_problems(spelling.respell(layer, self.schema)[0], merge(layers)[0])
            layers.append(layer)
        layers += self.command_layers(variant)
        if strange := [sentence for layer in self.command_layers(variant) for sentence in value_problems(layer)]:
            raise UserError("\n".join(strange))  # files were held to it as they were read
        spelt = [spelling.respell(layer, self.schema) for layer in layers]
        rehearsed = spelt[layers.index(rehearsed)][0] if rehearsed else None
        layers, notes = [layer for layer, _, _ in spelt], [note for _, said, _ in spelt for note in said]
        errors += [problem for _, _, said in spelt for problem in said]
        keys, origin = merge(layers)
        errors += recipe_problems.problems(keys, origin, self.schema, self.fine)
        # What a profile replaces is wrong all the same where nothing replaces it: in the training that costs something.
        real, places = merge(layer for layer in layers if layer is not rehearsed)
        replaced = {key: value for key, value in real.items() if key not in keys or keys[key] != value}
        if rehearsed:
            errors += recipe_problems.problems(replaced, places, self.schema, self.fine)
        both = [(real, places), (keys, origin)] if rehearsed else [(keys, origin)]
        for check in (recipe_problems.range_problems, recipe_problems.contradictions):
            errors = errors or [problem for merged in both for problem in check(*merged)]
        if not errors:
            errors = [problem for merged in both for problem in templates.problems(*merged)]
            if profile != REHEARSAL:
                errors += recipe_problems.model_problems(keys, origin, layers)
                if str(keys.get("base_model")).startswith("/"):
                    keys.pop("model_revision", None)  # a folder has none
            notes += replacement_notes(layers, rehearsed)
            notes += rules.apply_rules(keys, origin, self.packages)
            errors += rules.problems(keys, origin, self.packages)
        if errors:
            raise UserError("\n".join(dict.fromkeys(errors)))
        if keys.get("deepspeed"):
            keys["deepspeed"] = self.load_deepspeed(keys["deepspeed"])
        if keys.get("chat_template_jinja"):
            keys["chat_template_jinja"] = self.load_template(keys["chat_template_jinja"], origin["chat_template_jinja"])
        return keys, origin, notes + rules.notes(keys, origin)

    def load_deepspeed(self, given: Any) -> Any:
        """Return DeepSpeed's configuration, from its file where one is named: no trainer has the files of a checkout.

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

    def load_template(self, given: str, layer: Layer) -> str:
        """Return a chat template, from its file where one is named: on a trainer its name would be the template.

        Args:
            given: The template, or the path of its file, from the checkout on.
            layer: Where it stands.

        Raises:
            UserError: The file cannot be read.
        """
        if "{" in given or "\n" in given.strip():
            return given
        path = self.root / given.strip()
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "not UTF-8 text"
            raise UserError(
                f"{layer.where('chat_template_jinja')}: «chat_template_jinja: {quote_value(given)}» is no "
                f"template, and no file that can be read, from the checkout on: {path}: {why}"
            ) from None

    # --- data

    def check_file(
        self, path: pathlib.Path, use: str, sequence_len: int, options: Optional[dict[str, Any]] = None
    ) -> dataset.DatasetFile:
        """Check a dataset file, which is read once for each invocation and way to read it."""
        reading = dataset.reading_options(options or {})
        key = (str(path), canonical(reading))
        if key not in self.contents:
            self.contents[key] = dataset.read_contents(path, reading, self.say)
            self.warnings += self.contents[key].warnings
        return dataset.DatasetFile.of(self.contents[key], use, sequence_len, options)

    def find_datasets(self, agent: str, keys: dict[str, Any], folder: pathlib.Path) -> list[dataset.DatasetFile]:
        """Find and check the files of an agent: its own, or where it has none, those of the agents it learns from.

        Raises:
            UserError: A file is missing or breaks the contract.
        """
        length = int(keys["sequence_len"])
        paths = [os.path.expanduser(str(item["path"])) for item in keys.get("datasets", []) if item.get("path")]
        named = list(map(pathlib.Path, paths))
        train = named or dataset.find_files(folder, [agent], "train")
        val = dataset.find_files(folder, [agent], "val")
        others = self.agents.data_of(agent)
        if others and train and not self.agents.takes_all(agent):
            self.warnings.append(f"{agent} learns from {train[0]} alone: data_of is for where there is none")
        if others and not train:
            train, val = dataset.find_files(folder, others, "train"), dataset.find_files(folder, others, "val")
            found = set(train)
            without = [name for name in others if folder / f"{name}_train.jsonl" not in found]
            if train and without:
                self.warnings.append(f"{agent} is trained without {listed(without)}: no such file in {folder}")
        for path in paths:
            if not pathlib.Path(path).exists() and recipe.hub_dataset(path):
                raise UserError(
                    f"{agent}: «path: {path}» is no file here, and a dataset of the hub is not fetched. Download it, "
                    f"write its conversations as JSON lines into {folder / f'{agent}_train.jsonl'}, and take the path "
                    "out"
                )
        missing = [path for path in named if not path.is_file()] or ([] if train else [folder / f"{agent}_train.jsonl"])
        if missing:
            reasons = ", ".join(map(jsonl.missing_reason, missing))
            nor = f", nor one of {listed(others)}" if others and not named else ""
            raise UserError(f"no dataset for {agent}: {reasons}{nor}. -e datasets_dir=… says where to look")
        if folder not in self.listings:
            self.listings[folder] = dataset.list_folder(folder)
        self.warnings += dataset.overlooked(folder, agent, self.listings[folder].get(agent, ()))
        own, common = recipe.dataset_options(keys)
        said = own if named else [common] * len(train)
        train_files = [self.check_file(path, "train", length, options) for path, options in zip(train, said)]
        val_files = [self.check_file(path, "val", length, common) for path in val]
        strategy = keys.get("excess_length_strategy", "drop")
        self.warnings += dataset.check_lengths([*train_files, *val_files], length, strategy)
        dataset.check_overlap(train_files, val_files)
        self.data |= dict.fromkeys(dataset.describe_counts([*train_files, *val_files]))
        return [*train_files, *val_files]

    def find_cases(self, agent: str, folder: pathlib.Path, files: list[dataset.DatasetFile]) -> PlannedCases:
        """Find and check the cases of an agent, each file once.

        Args:
            agent: Who is asked.
            folder: Where cases lie.
            files: What it is trained on.

        Raises:
            UserError: What is no case in its file.
        """
        path = cases.find_file(folder, agent) if self.asks else None
        if path is None:
            if self.asks and not folder.is_dir() and str(folder) != Trainer.eval_dir:  # somebody has named it
                self.warnings.append(
                    f"{agent}: eval_dir is «{folder}», and there is no such folder: no cases are asked"
                )
            return PlannedCases()
        if path not in self.cases:
            self.cases[path] = cases.read(path)
            self.warnings += self.cases[path].warnings
        made = self.cases[path]
        trained = [pathlib.Path(file.path) for file in files if file.use == "train"]
        known = cases.known_cases(made.cases, trained)
        if known:
            self.warnings.append(
                f"{agent}: {path} asks what stands in the training data, too: {listed(known)}. That proves memory"
            )
        return PlannedCases(str(path), made.sha256, len(made.cases))

    def adapt_to_dataset(self, agent: str, keys: dict[str, Any], files: list[dataset.DatasetFile]) -> None:
        """Switch off what Axolotl would die of with this data, or learn nothing by; warn where a schedule is too long.

        Args:
            agent: Whose recipe.
            keys: The recipe, which is changed.
            files: Its data.

        Raises:
            UserError: The data makes no step.
        """
        val = [file for file in files if file.use == "val"]
        share = 0.0 if val else float(keys.get("val_set_size", 0))
        train_tokens = sum(file.tokens for file in files if file.use == "train")
        held_out = sum(file.tokens for file in val) if val else share * train_tokens
        if val:
            keys["val_set_size"] = 0
        elif share and sum(file.examples for file in files) < 2:
            keys["val_set_size"] = 0
            self.warnings.append(f"{agent}: a single conversation cannot be split, so there is no evaluation")
        batch, rows = recipe.effective_batch(keys), steps.estimate_rows(keys, files)
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
                f"about {steps.estimate_steps(keys, files)} steps. More conversations are packed again"
            )
        count = steps.estimate_steps(keys, files)
        if not count:
            raise UserError(f"{agent}: num_epochs {keys.get('num_epochs', 1)} of this data is no step at all; raise it")
        self.warnings += steps.schedule_warnings(agent, keys, count, evaluated=bool(val or keys.get("val_set_size")))
        if keys.get("eval_sample_packing", keys.get("sample_packing")):
            needed = 2 * recipe.effective_batch(keys) * int(keys["sequence_len"])  # twice, as tokens are estimated
            if held_out < needed:
                keys["eval_sample_packing"] = False

    def recipe_and_data(
        self, agent: str, trainer: Trainer, variant: Optional[dict[str, Any]]
    ) -> tuple[dict[str, Any], dict[str, Layer], list[dataset.DatasetFile], dict[str, Any]]:
        """Merge the recipe of an agent on a trainer, check its data, and adapt the one to the other.

        Returns:
            The recipe, for each key the layer it comes from, the data, and what is rehearsed.

        Raises:
            UserError: Either has a defect, or they do not go together.
        """
        keys, origin, notes = self.merge_layers(agent, trainer.profile, trainer.machine, variant)
        rehearsed: dict[str, Any] = {}
        if trainer.profile == REHEARSAL:
            real, _ = merge([*self.base_layers(agent), *self.command_layers(variant)])
            rehearsed, why = rehearsal.rehearse(real)
            rehearsal.adapt(keys, rehearsed)
            notes += [why] if why else []
        self.warnings += [f"{agent}: {note}" for note in notes]
        files = self.find_datasets(agent, keys, pathlib.Path(trainer.datasets_dir))
        self.adapt_to_dataset(agent, keys, files)
        notes, errors = rules.evaluation_problems(keys, origin, any(file.use == "val" for file in files))
        if errors:
            raise UserError("\n".join(errors))
        self.warnings += [f"{agent}: {note}" for note in notes]
        return keys, origin, files, rehearsed

    # --- estimates

    def estimate_run(
        self,
        agent: str,
        keys: dict[str, Any],
        files: list[dataset.DatasetFile],
        trainer: Trainer,
        variant: Optional[dict[str, Any]],
    ) -> Estimate:
        """Estimate what a run takes on a trainer.

        Args:
            agent: Who is trained.
            keys: The recipe, for one process.
            files: Its data.
            trainer: Where it would train.
            variant: Recipe overrides of a sweep.
        """
        estimate = Estimate(
            tokens=sum(file.tokens for file in files if file.use == "train"),
            steps=steps.estimate_steps(keys, files),
            work=steps.estimate_work(keys, files),
        )
        if trainer.profile == REHEARSAL:
            return estimate
        share = recipe.split_batch(keys, trainer.processes)
        needed = memory.estimate(share)
        return dataclasses.replace(
            estimate,
            memory_gib=needed,
            memory_floor_gib=memory.floor(share),
            memory_classes=self.estimate_memory_by_class(agent, needed, trainer, variant),
        )

    def estimate_memory_by_class(
        self, agent: str, needed: Optional[float], trainer: Trainer, variant: Optional[dict[str, Any]]
    ) -> dict[str, float]:
        """Estimate the GiB of GPU memory that an agent needs with each machine class.

        Only where another class may be wanted: on a pod, whose GPU is not chosen yet, and where the trainer's own class
        is too small. Where nothing is known there is none.
        """
        usable = memory.usable_gib(trainer.machine)
        if needed is None or not (trainer.rented or (usable is not None and usable < needed)):
            return {}
        sizes: dict[str, float] = {}
        for path in sorted((self.root / "configs/machines").glob("*.yml")):
            with contextlib.suppress(UserError):  # in a class that nobody takes
                keys = self.merged_recipe(agent, "", path.stem, variant)
                size = memory.estimate(recipe.split_batch(keys, trainer.processes))
                sizes |= {} if size is None else {path.stem: size}
        return sizes

    def warn_about_memory(self, agent: str, keys: dict[str, Any], trainer: Trainer, estimate: Estimate) -> None:
        """Warn where the memory that is needed is not known, or more than the trainer's class of machine stands for."""
        needed, sizes, usable = estimate.memory_gib, estimate.memory_classes, memory.usable_gib(trainer.machine)
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

    # --- runs

    def plan_run(
        self, agent: str, trainer: Trainer, move: Move, variant: Optional[dict[str, Any]] = None
    ) -> PlannedRun:
        """Plan one agent on one trainer.

        Args:
            agent: The agent.
            trainer: Where it would train.
            move: Which placements of unfinished runs are let go.
            variant: Recipe overrides of a sweep.

        Raises:
            UserError: What is wrong with recipe or data.
        """
        keys, origin, files, rehearsed = self.recipe_and_data(agent, trainer, variant)
        is_rehearsal = trainer.profile == REHEARSAL
        hashes = [{"use": file.use, "sha256": file.sha256} for file in files]
        known = keys | ({"rehearsed": rehearsal.identity(rehearsed)} if rehearsed else {})
        attempt, warnings = self.attempts.choose(agent, known, is_rehearsal, hashes)
        self.warnings += warnings
        attempt = attempt.settle(trainer.name, move)
        estimate = self.estimate_run(agent, keys, files, trainer, variant)
        if not is_rehearsal:
            keys = recipe.split_batch(keys, trainer.processes)
            if attempt.state != "ready":
                self.warn_about_memory(agent, keys, trainer, estimate)
        keys = recipe.with_plugins(keys)
        self.origins[attempt.run_id] = {key: layer.where(key) for key, layer in origin.items()}
        keys.pop("datasets", None)
        datasets = tuple(map(dataset.planned_dataset, files))
        errors = templates.data_problems(keys, origin, dataset.needs(datasets))
        if errors:
            raise UserError("\n".join(errors))
        run = PlannedRun(
            run_id=attempt.run_id,
            agent=agent,
            name=f"{agent} {variant_label(variant)}" if variant else agent,
            variant=variant or {},
            fingerprint=attempt.fingerprint,
            trainer=attempt.placed_on or trainer.name,
            placed=bool(attempt.placed_on) and attempt.state != "ready",
            lane=int(attempt.placement.get("lane") or 0),
            state=attempt.state,
            why=attempt.why,
            rehearsal=is_rehearsal,
            rehearsed=rehearsed | {"quantised": bool(keys.get("load_in_4bit"))} if rehearsed else {},
            recipe=keys,
            recipe_sha256=store.sha256_text(canonical(keys)),
            axolotl=attempt.axolotl,
            datasets=datasets,
            cases=self.find_cases(agent, pathlib.Path(trainer.eval_dir), files),
            gpus=1 if is_rehearsal else trainer.gpus,
            nodes=trainer.nodes,
            hosts=trainer.members or (trainer.name,),
            estimate=estimate,
        )
        return dataclasses.replace(run, estimate=dataclasses.replace(estimate, answers=self.open_answers(run, trainer)))

    def open_answers(self, run: PlannedRun, trainer: Trainer) -> PlannedAnswers:
        """Say what of a run's cases is to be answered at its end; nothing of one that is ready."""
        if run.state == "ready" or not run.cases.path:
            return PlannedAnswers()
        made = self.cases[pathlib.Path(run.cases.path)]
        made = questions.few_of(made) if run.rehearsal else made
        ask, asked, _ = questions.whom_to_ask(run, made, self.output, launch.base_model_path(run, trainer.root))
        return answering.planned_answers(ask, asked)

    def plan_where_begun(
        self, agent: str, ways: list[list[Trainer]], move: Move, variant: Optional[dict[str, Any]] = None
    ) -> tuple[PlannedRun, list[Trainer]]:
        """Plan one agent in the way in which there is something of it already, or else in the first one.

        Where hosts differ in profile or data, a run is another one on each; what was begun must hold.

        Args:
            agent: The agent.
            ways: From :func:`group_alike`.
            move: See :meth:`plan_run`.
            variant: See :meth:`plan_run`.

        Returns:
            The run, a real one before a rehearsal, and the trainers of its way.

        Raises:
            UserError: What is wrong in the first way, where the agent can be trained in none.
        """
        planned: list[tuple[PlannedRun, list[Trainer]]] = []
        errors = []
        for trainers in ways:
            try:
                planned.append((self.plan_run(agent, trainers[0], move, variant), trainers))
            except UserError as error:  # of no account as long as nobody has to train it there
                errors.append(error)
        if not planned:
            raise errors[0]
        return min(planned, key=lambda way: (not has_history(way[0]), has_history(way[0]) and way[0].rehearsal))


def merge_warnings(warnings: list[str], agents: Sequence[str]) -> list[str]:
    """Give each warning once: what is said of several agents in the same words is said of all of them at once."""
    agents_of: dict[tuple[bool, str], list[str]] = {}
    for warning in warnings:
        agent, colon, words = warning.partition(": ")
        known = bool(colon) and agent in agents
        agents_of.setdefault((known, words if known else warning), []).append(agent)
    return [
        f"{listed(list(dict.fromkeys(names)))}: {words}" if known else words
        for (known, words), names in agents_of.items()
    ]


def has_history(run: PlannedRun) -> bool:
    """Tell whether there is something of a run already, be it an adapter, or that it was given up somewhere."""
    return run.state != "to train" or run.placed or bool(run.why)


def table_row(run: PlannedRun) -> tuple[str, ...]:
    """Show a run under COLUMNS."""
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


def check_trainers(
    trainers: Sequence[Trainer], agents: Agents, move: Any, output: pathlib.Path, outside: Collection[str] = ()
) -> Fleet:
    """Check the trainers of an inventory, and set those aside that are given up, or that a limit leaves out.

    Args:
        trainers: All of them.
        agents: Those of the checkout.
        move: What ``-e move=…`` says.
        output: Where placements are kept.
        outside: The hosts that a limit leaves out; a gang that holds one of them is left out with it.

    Raises:
        UserError: One of them cannot train, they make no gang, or none is left.
    """
    if not trainers:
        raise UserError("the inventory holds no host to train on. See inventory/local.yml for the smallest one")
    checked = [check_agents(trainer, agents) for trainer in trainers]
    for trainer in checked:
        if not trainer.root.startswith("/"):
            raise UserError(
                f"trainer_root of {trainer.name} is «{trainer.root}»; it must be an absolute path on that host"
            )
        if trainer.lanes < 1:
            raise UserError(f"{trainer.name} has no lane: it has fewer GPUs than run_gpus asks for")
    leaders = check_gangs(checked)
    let_go = parse_move(move, checked, output)
    left_out = tuple(trainer for trainer in leaders if {trainer.name, *trainer.members}.intersection(outside))
    within = [trainer for trainer in leaders if trainer not in left_out]
    if not within:
        whole = "; a gang trains with all of its hosts" if any(trainer.members for trainer in left_out) else ""
        raise UserError(
            f"--limit leaves no host to train on{whole}. Trainers: {listed([trainer.name for trainer in checked])}"
        )
    remaining = [trainer for trainer in within if trainer.name not in let_go.trainers]
    if not remaining:
        limit = " within --limit" if left_out else ""
        raise UserError(
            f"-e move={','.join(let_go.trainers)} leaves no host to train on{limit}; add one to the inventory"
            + (", or to the limit" if limit else "")
        )
    return Fleet(within, remaining, let_go, left_out)


def _draft_run(planner: Planner, agent: str, variant: dict[str, Any], fleet: Fleet) -> Draft:
    """Plan a variant of an agent where it was placed, or else on the first trainer that takes it."""
    ways = group_alike(trainers_for(fleet.remaining, agent) or fleet.remaining[:1])
    run, trainers = planner.plan_where_begun(agent, ways, fleet.move, variant)
    by_name = fleet.by_name
    if run.placed and run.trainer in by_name:  # where it is decides on its hosts, GPUs and machine keys
        there = planner.plan_run(agent, by_name[run.trainer], fleet.move, variant)
        run = dataclasses.replace(there, why=run.why)
    if run.state == "ready":  # it came from whichever trainer it was placed on, and not from the first one
        run = dataclasses.replace(run, hosts=hosts_of(run.trainer, fleet))
    return Draft(run, frozenset(trainer.name for trainer in trainers) if has_history(run) else None)


def hosts_of(trainer: str, fleet: Fleet) -> tuple[str, ...]:
    """List the hosts on which the runs of a trainer lie, the leading one first; none where nobody may ask it.

    A host that belongs to a gang by now has its earlier runs to itself.

    Args:
        trainer: Its name; the inventory may not hold it any more, or a limit leave it out.
        fleet: The trainers.
    """
    for leader in fleet.leaders:
        if trainer == leader.name:
            return leader.members or (trainer,)
        if trainer in leader.members:
            return (trainer,)
    return ()


def draft_runs(
    planner: Planner, agents: Sequence[str], variants: Sequence[dict[str, Any]], fleet: Fleet
) -> dict[Job, Draft]:
    """Plan every variant of every agent, each as if it were alone.

    Args:
        planner: Has recipes, data and attempts.
        agents: Who is trained.
        variants: Recipe overrides of a sweep; one that is empty without.
        fleet: The trainers.

    Raises:
        UserError: What is wrong with a recipe or its data, or two variants are the same training.
    """
    drafts: dict[Job, Draft] = {}
    job_of: dict[str, Job] = {}
    for agent, number in itertools.product(agents, range(len(variants))):
        draft = _draft_run(planner, agent, variants[number], fleet)
        twin = job_of.setdefault(draft.run.run_id, (agent, number))
        if twin != (agent, number):
            raise UserError(
                f"variants {twin[1] + 1} and {number + 1} of the sweep are the same training ({draft.run.run_id}): "
                "they differ in nothing that decides what is learnt"
            )
        drafts[agent, number] = draft
    return drafts


def leave_alone(drafts: Mapping[Job, Draft], fleet: Fleet) -> tuple[dict[Job, Draft], list[str]]:
    """Leave out the runs that a limit does not reach: launched elsewhere, or taken by no trainer within it.

    Args:
        drafts: From :func:`draft_runs`.
        fleet: The trainers.

    Returns:
        The others, and a sentence on each kind of those that are left out.
    """
    elsewhere: dict[Job, str] = {}
    untaken: dict[Job, str] = {}
    for job, draft in drafts.items() if fleet.left_out else ():
        run = draft.run
        if run.state == "ready":
            continue
        if run.placed and run.state in ("to attach", "to resume") and run.trainer in fleet.untouched:
            elsewhere[job] = f"{run.run_id} on {run.trainer}"
        elif not trainers_for(fleet.remaining, run.agent) and not (run.placed and run.trainer in fleet.by_name):
            untaken[job] = run.agent
    sentences = []
    if elsewhere:
        sentences.append(
            f"left alone, as they were launched where --limit does not reach: {listed([*elsewhere.values()])}"
        )
    if untaken:
        names = listed(list(dict.fromkeys(untaken.values())))
        sentences.append(f"left alone, as every trainer within --limit declares other agents: {names}")
    return {job: draft for job, draft in drafts.items() if job not in elsewhere and job not in untaken}, sentences


def _check_placement(run: PlannedRun, trainers: Iterable[Trainer]) -> None:
    """Refuse to plan a run that was launched where this inventory cannot reach it as it was.

    Raises:
        UserError: Its trainer is gone, or belongs to a gang now.
    """
    leader = next((trainer.name for trainer in trainers if run.trainer in (trainer.name, *trainer.members)), None)
    if leader is None:
        raise UserError(
            f"{run.run_id} was launched on {run.trainer}, which this inventory does not hold. Use the inventory that "
            f"does, or give the run up there and start on another trainer with -e move={run.trainer}"
        )
    if leader != run.trainer:
        raise UserError(
            f"{run.run_id} was launched on {run.trainer} alone, which now trains in a gang that {leader} leads. Use "
            "the inventory of that time, or give the run up there and start it anew with -e move=true"
        )


def place_runs(planner: Planner, drafts: Mapping[Job, Draft], fleet: Fleet) -> tuple[PlannedRun, ...]:
    """Give each run its lane, and plan anew what goes to another trainer than its draft.

    Args:
        planner: What made the drafts.
        drafts: From :func:`draft_runs`.
        fleet: The trainers.

    Raises:
        UserError: A run was launched where it cannot be reached, or no trainer takes an agent.
    """
    runs = {job: draft.run for job, draft in drafts.items()}
    by_name = fleet.by_name
    weight = {job: run.estimate.work for job, run in runs.items() if run.state != "ready"}
    placed = {
        job: run
        for job, run in runs.items()
        if run.placed and (run.trainer in by_name or run.state in ("to attach", "to resume"))
    }
    for run in placed.values():
        _check_placement(run, fleet.remaining)
    held = {job: Lane.of(run) for job, run in placed.items()}
    only = {job: draft.only for job, draft in drafts.items() if draft.only is not None}
    for job, lane in assign_lanes(fleet.remaining, weight, held, only, fleet.move.trainers).items():
        run = runs[job]
        if lane.trainer != run.trainer:
            gone = run.trainer not in by_name  # nothing to attach to there, or it was refused above
            move = Move(everywhere=True) if gone else fleet.move
            run = planner.plan_run(run.agent, by_name[lane.trainer], move, run.variant)
        runs[job] = dataclasses.replace(run, lane=lane.number)
    return tuple(runs.values())


def make(
    root: pathlib.Path,
    output: pathlib.Path,
    wanted: Any,
    trainers: Sequence[Trainer],
    overrides: dict[str, Any],
    fresh: bool = False,
    move: Any = False,
    verify: bool = False,
    variants: Sequence[dict[str, Any]] = ({},),
    keep: str = "",
    say: Callable[[str], None] = lambda _: None,
    agents: Optional[Agents] = None,
    outside: Collection[str] = (),
) -> Plan:
    """Plan everything.

    Args:
        root: The checkout.
        output: Where adapters and placements are kept.
        wanted: What ``-e role=…`` says; None for all that the inventory declares.
        trainers: The trainers of the inventory.
        overrides: Axolotl keys from the command line.
        fresh: Make new attempts.
        move: Let go of earlier placements: of all, or of those on the named trainers.
        verify: Hash adapters that are there.
        variants: Recipe overrides of a sweep; every agent is trained with each of them.
        keep: See :class:`Planner`.
        say: Tells people what they wait for.
        agents: Those of the checkout, where they were read already.
        outside: The hosts that a limit leaves out. Nothing is placed there, and what was launched there is left alone.

    Raises:
        UserError: Anything that is wrong, before a host is touched.
    """
    known = agents or Agents(root)
    fleet = check_trainers(trainers, known, move, output, outside)
    planner = Planner(root, output, overrides, keep, fresh, verify, say, known)
    selected = known.select(wanted, kept_agents(output)) or default_agents(
        fleet.leaders, known, planner.warnings, fleet.left_out
    )
    gone = [agent for agent in selected if agent not in known.names]
    if gone:
        raise UserError(f"{gone_sentence(gone[0])}. To train it, write that file again; {{}} in it will do")
    reached, sentences = leave_alone(draft_runs(planner, selected, variants, fleet), fleet)
    if sentences and not reached:
        raise UserError("\n".join(["nothing is to be done within --limit", *sentences]))
    planner.warnings += sentences
    runs = place_runs(planner, reached, fleet)
    return Plan(runs, merge_warnings(planner.warnings, selected), planner.origins, tuple(planner.data))
