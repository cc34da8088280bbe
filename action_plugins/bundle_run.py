"""Write one archive of a run for whoever helps. Where the trainer does not answer, it says what is missing."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import pathlib
import platform
import re
import time
from collections.abc import Iterable, Iterator
from typing import Any

import ansible.module_utils
from ansible.errors import AnsibleError
from ansible.template import trust_as_template

ROOT = pathlib.Path(__file__).resolve().parents[1]
# The path in ansible.cfg serves modules only; a plugin has to name it.
ansible.module_utils.__path__.append(str(ROOT / "module_utils"))
from ansible.module_utils.lora_forge import rundir  # noqa: E402
from ansible.module_utils.lora_forge.adapters import store  # noqa: E402
from ansible.module_utils.lora_forge.controller.actions import ForgeAction, load_actions  # noqa: E402
from ansible.module_utils.lora_forge.controller.display import show  # noqa: E402
from ansible.module_utils.lora_forge.data import jsonl  # noqa: E402
from ansible.module_utils.lora_forge.errors import UserError  # noqa: E402
from ansible.module_utils.lora_forge.planned_run import PlannedRun  # noqa: E402
from ansible.module_utils.lora_forge.planning import launch, provisioning  # noqa: E402
from ansible.module_utils.lora_forge.planning.run_record import read_record  # noqa: E402
from ansible.module_utils.lora_forge.pods.claims import Claims  # noqa: E402
from ansible.module_utils.lora_forge.results import bundle  # noqa: E402
from ansible.module_utils.lora_forge.results.bundle import Part  # noqa: E402
from ansible.module_utils.lora_forge.results.redaction import Secrets, known_secrets, secret_texts  # noqa: E402
from ansible.module_utils.lora_forge.version import describe_versions, git_facts  # noqa: E402

load_actions()

LOCKED = re.compile(r"^([A-Za-z0-9][\w.-]*)==([\w.+!-]+)", re.MULTILINE)


class ActionModule(ForgeAction):
    """``bundle_run``: library/actions/bundle_run.py says what it takes and returns."""

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Ask the trainer once, and write what is known."""
        run, output = PlannedRun.from_dict(args["run"]), pathlib.Path(args["output"])
        found, missing = self.ask(run, args)
        record = read_record(output, run.run_id)
        manifest = store.read_manifest(output / "adapters" / run.agent / run.run_id)
        secrets = Secrets(self.secrets(args, record.rendezvous))
        noted = {key: value for key, value in record.as_dict().items() if key != "rendezvous"}
        installed = found["environment"] if found and found["environment"]["packages"] else None
        parts = [
            Part("versions.txt", "lora-forge, Ansible, Python, and the trainer's lock", "sentence",
                 f"{describe_versions(git_facts(ROOT))}, {platform.platform()}"),
            Part("lock.json", "what the trainer's lock pins", "json", self.lock(args)),
            Part("installed.json", "what is installed in the trainer's environment", "json", installed),
            Part("axolotl.yml", "the recipe as Axolotl gets it", "recipe",
                 found.get("axolotl_yml") or self.axolotl_yml(run, args)),
            *self.sources(run),
            Part("plan.json", "the run as it was planned", "json", run.as_dict()),
            Part("record.json", "what the controller noted of it: places, ends, failures", "json",
                 noted),
            Part("claims.json", "the pods that were ordered for it", "json", self.claims(run, args)),
            Part("manifest.json", "of its adapter", "json", manifest.as_dict() if manifest else None),
            *self.told(found),
        ]  # fmt: skip
        title = f"{run.run_id} on {self.host}"
        try:
            files = bundle.compose(parts, missing, secrets, lambda: self.data(run), title)
        except UserError as error:
            missing = [*missing, f"{error}. So nothing could be held against the data: only what is short is there"]
            unknown = "Its data is not known here, so that only what is short is in this archive"
            files = bundle.compose(parts, missing, secrets, None, f"{title}. {unknown}")
        path = output / bundle.FOLDER / self.name(run)
        if not self._task.check_mode:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            rundir.write_bytes(path, bundle.packed(files, run.run_id, time.time()), 0o600)
        self.show(path, files)
        return {"changed": not self._task.check_mode, "path": str(path), "files": list(files), "missing": missing}

    def name(self, run: PlannedRun) -> str:
        """Name the archive; each host of a gang but the first has one of its own."""
        place = run.hosts.index(self.host) if self.host in run.hosts else 0
        return f"{run.run_id}.host-{place + 1}.tar.gz" if place else f"{run.run_id}.tar.gz"

    def show(self, path: pathlib.Path, files: dict[str, str]) -> None:
        """Say where it is, and what is in it."""
        verb = "would be" if self._task.check_mode else "is"
        lines = [f"    {line}".rstrip() for line in files["README.txt"].rstrip().split("\n")[1:]]
        show(lines=[f"  {path} {verb} written, for whoever helps:", *lines], host=self.host)

    # --- what the trainer knows

    def ask(self, run: PlannedRun, args: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Ask the trainer; return its answer, empty where there is none, and what is missing."""
        why = str(args.get("out_of_reach") or "")
        if not why:
            home = pathlib.PurePosixPath(provisioning.environment_python(args["root"], self.lock_path(args))).parents[1]
            asked = {"run_dir": launch.run_dir(run, args["root"]), "home": str(home)}
            try:
                answer = self.run_module("training_run_evidence", asked | {"stall_timeout": args["stall_timeout"]})
            except AnsibleError as error:
                answer = {"failed": True, "msg": str(error)}
            if not answer.get("failed"):
                return answer, self.gaps(answer)
            why = str(answer.get("msg") or "it failed")
        return {}, [f"everything that the trainer knows, as {self.host} could not be asked: {why}"]

    def gaps(self, answer: dict[str, Any]) -> list[str]:
        """Say what a trainer that answered does not have."""
        missing = []
        if answer["seen"]["state"] == "absent":
            missing.append(f"the run: nothing of it is on {self.host}")
        missing += [
            f"{name}.log: there is none, or it is empty"
            for name in ("train", "supervisor")
            if not answer[f"{name}_log"]
        ]
        if not answer["environment"]["packages"]:
            missing.append(f"installed.json: there is no environment {answer['environment']['name']}")
        return missing + ([f"the GPU: {answer['gpu']['error']}"] if answer["gpu"]["error"] else [])

    def told(self, found: dict[str, Any]) -> Iterator[Part]:
        """Yield what a trainer told."""
        if not found:
            return
        seen = dict(found["seen"])
        yield Part("events.jsonl", "the newest events of the training", "lines", seen.pop("events"))
        yield Part("status.json", "the supervisor's word, heartbeat and progress", "json", seen)
        yield Part("train.log", "the end of Axolotl's output, of known kinds of lines", "log", found["train_log"])
        yield Part("supervisor.log", "the end of the supervisor's", "log", found["supervisor_log"])
        machine = {
            "host": found["host"],
            "gpu": found["gpu"],
            "unit": [line for line in found["unit"].split("\n") if line],
        }
        yield Part(
            "host.json", "kernel, distribution, memory, disk, GPU, and systemd's or tmux's word", "json", machine
        )

    # --- what the controller knows

    def lock_path(self, args: dict[str, Any]) -> pathlib.Path:
        """Return where the trainer's lock lies."""
        return provisioning.lock_path(ROOT, args["lock"])

    def lock(self, args: dict[str, Any]) -> dict[str, Any]:
        """Return the name of the lock, its hash and what it pins."""
        data = self.lock_path(args).read_bytes()
        return {
            "name": args["lock"],
            "sha256": hashlib.sha256(data).hexdigest(),
            "packages": dict(LOCKED.findall(data.decode())),
        }

    def axolotl_yml(self, run: PlannedRun, args: dict[str, Any]) -> str:
        """Render axolotl.yml as a launch would; nothing where the recipe is not known."""
        if not run.recipe:
            return ""
        template = (ROOT / "templates/axolotl.yml.j2").read_text(encoding="utf-8")
        variables = launch.template_variables(run, args["root"], args["wandb"])
        return str(self._templar.copy_with_new_env(available_variables=variables).template(trust_as_template(template)))

    def sources(self, run: PlannedRun) -> Iterator[Part]:
        """Yield the files that the recipe is merged from, as they are now."""
        machine = str((self.task_vars or {}).get("trainer_machine") or "")
        for name, path in (
            ("base", "configs/base.yml"),
            ("agent", f"configs/agents/{run.agent}.yml"),
            ("machine", f"configs/machines/{machine}.yml" if re.fullmatch(r"[\w.-]+", machine) else ""),
        ):
            if path and (ROOT / path).is_file():
                text = (ROOT / path).read_text(encoding="utf-8", errors="replace")
                yield Part(f"recipe-{name}.yml", f"of the recipe: {path}", "recipe", text)

    def claims(self, run: PlannedRun, args: dict[str, Any]) -> list[dict[str, Any]]:
        """List the claims of the run's pods, without what names the account's machines."""
        folder = pathlib.Path(args["pods"])
        if not (folder / "claims").is_dir():
            return []
        claims = [claim.as_dict() for claim in Claims(folder).list_all() if run.run_id in claim.runs]
        return [{key: value for key, value in claim.items() if key not in ("owner", "machine")} for claim in claims]

    def data(self, run: PlannedRun) -> Iterable[bytes]:
        """Yield what the run is trained on, line by line.

        Raises:
            UserError: A file of it cannot be read, or its files are not known.
        """
        if not run.datasets:  # it is ready, or nothing is known of it but what was noted
            raise UserError(f"which files {run.run_id} was trained on is not known here")

        def lines(path: pathlib.Path) -> Iterator[bytes]:
            with jsonl.opened(path) as file:
                for _, line in jsonl.lines(path, file):
                    yield line

        return itertools.chain.from_iterable(lines(ROOT / dataset.path) for dataset in run.datasets)

    def secrets(self, args: dict[str, Any], *more: str) -> set[str]:
        """Collect the values of all secrets that this process knows."""
        known: dict[str, Any] = {}
        for name, value in (self.task_vars or {}).items():
            with contextlib.suppress(AnsibleError):
                if name not in ("hostvars", "vars") and any(secret_texts(value, str(name))):
                    known[str(name)] = self._templar.template(value)
        given = {f"secret_{number}_key": word for number, word in enumerate((args.get("url") or "", *more))}
        return known_secrets(os.environ) | known_secrets(known) | known_secrets(given)
