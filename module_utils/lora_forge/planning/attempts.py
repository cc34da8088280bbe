"""The attempts at a recipe: adapters that are there, runs that were launched, and which of them is meant."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re
from typing import Any, Optional

from ansible.module_utils.lora_forge.adapters import store
from ansible.module_utils.lora_forge.agents import first_attempt
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planning import recipe
from ansible.module_utils.lora_forge.planning.fleet import Move
from ansible.module_utils.lora_forge.planning.run_record import noted_runs, read_placements

_NUMBER = re.compile(r"(?:-(\d+))?")  # what follows in the name of a further attempt


def minor_version(version: str) -> str:
    """Return major and minor of a version; empty where it is none."""
    match = re.match(r"\d+\.\d+(?![^.+])", version)
    return match.group() if match else ""


@dataclasses.dataclass(frozen=True)
class Attempt:
    """Which attempt at a recipe is meant.

    Attributes:
        run_id: Its name.
        state: See :class:`PlannedRun`.
        why: Why it is in that state, for people; may be empty.
        placement: What output/runs/<run_id>.json holds of it; empty where it was never launched, or is let go.
        fingerprint: Of the recipe that it trains.
        axolotl: The version of Axolotl that the fingerprint holds.
    """

    run_id: str
    state: str
    why: str
    placement: dict[str, Any]
    fingerprint: str
    axolotl: str

    @property
    def placed_on(self) -> str:
        """The trainer that it was placed on; empty where there is none."""
        return str(self.placement.get("trainer") or "")

    def settle(self, trainer: str, move: Move) -> Attempt:
        """Return it as it is where it would go to a trainer: unless it is let go, it stays where it was placed.

        Args:
            trainer: Where it would go.
            move: Which placements are let go.
        """
        if not self.placed_on or self.state == "ready":
            return self
        if move.lets_go(self.placed_on):
            return dataclasses.replace(self, state="to train", why=f"moved from {self.placed_on}", placement={})
        return self if self.placed_on == trainer else dataclasses.replace(self, why=f"placed on {self.placed_on}")


class Attempts:
    """What an output folder holds of attempts.

    Args:
        output: Where adapters and placements are kept.
        axolotl: The version of Axolotl that the locks pin.
        keep: Another one (``0.19``) whose adapters count as ready where nothing else has changed; empty for none.
        fresh: Whether a new attempt is wanted where the newest one is final.
        verify: Hash the files of adapters that are there.

    Raises:
        UserError: ``keep`` is no version.
    """

    def __init__(self, output: pathlib.Path, axolotl: str, keep: str = "", fresh: bool = False, verify: bool = False):
        if keep and not minor_version(keep):
            raise UserError(f"keep_axolotl is «{keep}»; it is a version of Axolotl, such as 0.19")
        self.output = output
        self.axolotl = axolotl
        self.kept_version = minor_version(keep)
        self.fresh = fresh
        self.verify = verify

    @functools.cached_property
    def _noted(self) -> dict[str, list[str]]:
        """The runs that are noted, by the name of the first attempt; listed once, be there hundreds of agents."""
        noted: dict[str, list[str]] = {}
        for run_id in noted_runs(self.output):
            noted.setdefault(first_attempt(run_id), []).append(run_id)
        return noted

    def find(self, agent: str, fingerprint: str) -> Attempt:
        """Find the attempt at a recipe that is meant: an adapter that is there, a run to go on with, or a new one."""
        first = f"{agent}-{fingerprint[:12]}"
        folder = self.output / "adapters" / agent
        there = folder.iterdir() if folder.is_dir() else ()
        names = [path.name for path in there if path.name.startswith(first) and path.is_dir()]
        placements = read_placements(self.output, self._noted.get(first, ()))
        names += placements
        further = (_NUMBER.fullmatch(name, len(first)) for name in names)
        numbers = sorted({int(match.group(1) or 1) for match in further if match}) or [0]
        newest = numbers[-1]

        def name(number: int) -> str:
            return first if number <= 1 else f"{first}-{number}"

        def adapter_error(number: int) -> Optional[str]:
            return store.integrity_error(folder / name(number), self.verify) if number else "never trained"

        def attempt(number: int, state: str, why: str, placement: dict[str, Any]) -> Attempt:
            return Attempt(name(number), state, why, placement, fingerprint, self.axolotl)

        placement = placements.get(name(newest), {})
        error = adapter_error(newest)
        if self.fresh and newest and (error is None or placement.get("final")):
            return attempt(newest + 1, "to train", "a fresh attempt was asked for", {})
        if error is None:
            return attempt(newest, "ready", "", placement)
        if not self.fresh and placement.get("final"):
            earlier = next((number for number in reversed(numbers[:-1]) if adapter_error(number) is None), None)
            if earlier:
                return attempt(earlier, "ready", f"{name(newest)} failed later", {})
        if placement and not placement.get("final"):
            return attempt(newest, "to attach", "launched before", placement)
        if placement.get("state") in ("failed", "stopped"):
            return attempt(newest, "to resume", f"{placement['state']} before", placement)
        return attempt(max(newest, 1), "to train", "" if error == "never trained" else error, placement)

    def find_older(
        self, agent: str, keys: dict[str, Any], rehearsal: bool, files: list[dict[str, str]]
    ) -> dict[str, Attempt]:
        """Find what is ready of a recipe by other versions of Axolotl, by major.minor of that version."""
        ready: dict[str, Attempt] = {}
        for path in (self.output / "adapters" / agent).glob("*/manifest.json"):
            manifest = store.read_manifest(path.parent)
            version = str(manifest.versions.get("axolotl") or "") if manifest else ""
            minor = minor_version(version)
            if minor and minor not in (minor_version(self.axolotl), *ready):
                attempt = self.find(agent, recipe.fingerprint(keys, rehearsal, files, minor))
                if attempt.state == "ready":
                    ready[minor] = dataclasses.replace(attempt, axolotl=version)
        return ready

    def choose(
        self, agent: str, keys: dict[str, Any], rehearsal: bool, files: list[dict[str, str]]
    ) -> tuple[Attempt, list[str]]:
        """Choose between the attempt by the Axolotl of the locks, and an adapter of an older one that is to be kept.

        Args:
            agent: Who is trained.
            keys: The recipe, for one process.
            rehearsal: Whether a tiny random model is trained.
            files: Use and SHA-256 of each dataset file.

        Returns:
            The attempt, and warnings.

        Raises:
            UserError: There is something to keep, of another version than the one that was named.
        """
        attempt = self.find(agent, recipe.fingerprint(keys, rehearsal, files, self.axolotl))
        if self.fresh or attempt.state in ("ready", "to attach"):
            return attempt, []
        older = self.find_older(agent, keys, rehearsal, files)
        if not older:
            return attempt, []
        if self.kept_version in older:
            return older[self.kept_version], []
        minor, newest = max(older.items(), key=lambda item: [*map(int, item[0].split("."))])
        finding = f"{agent} has {newest.run_id}, of Axolotl {newest.axolotl}"
        if self.kept_version:
            raise UserError(f"keep_axolotl is {self.kept_version}, but {finding}; -e keep_axolotl={minor} keeps that")
        return attempt, [
            f"{finding}; the locks pin {self.axolotl} now. Nothing else has changed, and it is trained anew; "
            f"-e keep_axolotl={minor} keeps what there is"
        ]
