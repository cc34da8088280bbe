"""The data of an agent: the files that it is trained and evaluated on, and its cases, found and checked."""

from __future__ import annotations

import os
import pathlib
from typing import Any, Callable, Optional

from ansible.module_utils.lora_forge.data import cases, dataset, jsonl
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planned_run import PlannedCases
from ansible.module_utils.lora_forge.planning import recipe
from ansible.module_utils.lora_forge.planning.agents import Agents, listed
from ansible.module_utils.lora_forge.planning.fleet import Trainer
from ansible.module_utils.lora_forge.text import canonical


class AgentData:
    """Datasets and cases on the controller, each file of which is read once.

    Args:
        agents: Those of the checkout.
        warnings: Gets what may not be meant, in sentences.
        say: Tells people what they wait for.

    Attributes:
        cases: What was read of them, by their files.
        described: What dataset files hold besides plain turns, a line for each, in the order in which it was found.
    """

    def __init__(self, agents: Agents, warnings: list[str], say: Callable[[str], None] = lambda _: None):
        self.agents, self.warnings, self.say = agents, warnings, say
        self.contents: dict[tuple[str, str], dataset.Contents] = {}  # by path, and how it is read
        self.cases: dict[pathlib.Path, cases.Cases] = {}
        self.listings: dict[pathlib.Path, dict[str, list[str]]] = {}  # of folders of datasets
        self.described: dict[str, None] = {}

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
        self.described |= dict.fromkeys(dataset.describe_counts([*train_files, *val_files]))
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
        path = cases.find_file(folder, agent)
        if path is None:
            if not folder.is_dir() and str(folder) != Trainer.eval_dir:  # somebody has named it
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
