"""Pods of RunPod as inventory hosts: the file declares them, one list call finds those that are live."""

from __future__ import annotations

DOCUMENTATION = r"""
name: runpod
short_description: Pods of RunPod, declared in a file, with the addresses of those that are live
description:
  - Every pod that the file declares is a host of the group C(trainers), live or not.
  - Those that this checkout has ordered, and that are there, get their address, port and id, and are in the group
    C(pods_live) too. They are found by one request.
  - Without E(RUNPOD_API_KEY) the declared hosts are all there is, with a warning. A request that fails is an error.
options:
  plugin:
    description: Marks the file as this plugin's.
    type: str
    required: true
    choices: [runpod]
  pods:
    description: Host names with their variables; C(pod_*) are options of the role pod.
    type: dict
    required: true
  vars:
    description: Variables of all of them.
    type: dict
    default: {}
  state_dir:
    description: Where claims, pinned host keys and the checkout's own key pair lie; .pods in the checkout.
    type: path
    env:
      - name: LORA_FORGE_PODS
  owner:
    description: Another owner's id, to see that one's pods from here; empty for this checkout.
    type: str
    default: ''
    env:
      - name: LORA_FORGE_OWNER
  api_url:
    description: Where the API is.
    type: str
    env:
      - name: RUNPOD_API_URL
"""

EXAMPLES = r"""
plugin: runpod
pods:
  pod-1:
  pod-2: {agents: [mayor]}
vars:
  pod_gpus: [NVIDIA L40S, NVIDIA A100-SXM4-80GB]
  pod_max_usd_per_hour: 2
"""

import os
import pathlib
import re
from collections.abc import Collection
from typing import Any

import ansible.module_utils
import yaml
from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin
from ansible.utils.display import Display

ROOT = pathlib.Path(__file__).resolve().parents[1]
# The path in ansible.cfg serves modules only; a plugin has to name it.
ansible.module_utils.__path__.append(str(ROOT / "module_utils"))
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.pods import runpod, ssh
from ansible.module_utils.lora_forge.pods.claims import Claims, parse_name
from ansible.module_utils.lora_forge.text import nearest

display = Display()
# Of a pod; it is part of the names of its files, and of its order.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_names(where: str, given: Collection[Any], known: Collection[str] = ()) -> None:
    """Refuse keys of a mapping that are no text, or are not known.

    Args:
        where: The file, and what of it, for messages.
        given: The keys.
        known: Those that there are; empty for any.

    Raises:
        UserError: One of them is none.
    """
    for name in given:
        if not isinstance(name, str):
            raise UserError(f"{where}: «{name}» stands there as a key, and YAML takes it for no text; put it in quotes")
        if known and name not in known:
            hint = nearest(name, known) or f"; it takes {', '.join(known)}"
            raise UserError(f"{where}: there is no key «{name}»{hint}")


class InventoryModule(BaseInventoryPlugin):
    """The plugin."""

    NAME = "runpod"

    def verify_file(self, path: str) -> bool:
        return super().verify_file(path) and path.endswith((".yml", ".yaml"))

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        super().parse(inventory, loader, path, cache)
        try:
            config = self._read_config_data(path)
            check_names(path, config, yaml.safe_load(DOCUMENTATION)["options"])
            self.add_declared_pods(path)
            if os.environ.get("RUNPOD_API_KEY"):
                self.add_live_pods()
            else:
                display.warning("RUNPOD_API_KEY is not set: which pods are live is not known")
        except UserError as error:
            raise AnsibleParserError(str(error)) from None

    @property
    def state_dir(self) -> pathlib.Path:
        named = self.get_option("state_dir")
        return pathlib.Path(named).expanduser().absolute() if named else ROOT / ".pods"

    def add_declared_pods(self, path: str) -> None:
        """Put the declared pods into the group ``trainers``.

        Raises:
            UserError: The file declares none, one with a name that cannot be, or an option that the role does not have.
        """
        declared, shared = self.get_option("pods"), self.get_option("vars")
        if not declared:
            raise UserError(f"{path}: «pods» names no pod")
        specs = yaml.safe_load((ROOT / "roles/pod/meta/argument_specs.yml").read_text(encoding="utf-8"))
        options = specs["argument_specs"]["main"]["options"]
        self.inventory.add_group("trainers")
        self.inventory.add_group("pods_live")
        check_names(f"{path}: pods", declared)
        check_names(f"{path}: vars", shared)
        for host, own in declared.items():
            if not _NAME.fullmatch(host):
                raise UserError(
                    f"{path}: pods: «{host}» cannot be the name of a pod; it is of letters, digits and . _ -, begins "
                    "with a letter or a digit, and has 100 of them at most"
                )
            if not isinstance(own or {}, dict):
                raise UserError(f"{path}: {host}: variables are expected, as in «{host}: {{agents: [mayor]}}»")
            check_names(f"{path}: {host}", own or {})
            variables = {**shared, **(own or {})}
            for name in variables:
                if name.startswith("pod_") and name not in options:
                    hint = nearest(name, options)
                    raise UserError(f"{path}: {host}: there is no option {name}{hint}")
            self.inventory.add_host(host, group="trainers")
            for name, value in variables.items():
                self.inventory.set_variable(host, name, value)
            for name, value in self.state_variables().items():
                self.inventory.set_variable(host, name, value)

    def state_variables(self) -> dict[str, str]:
        return {"pod_state_dir": str(self.state_dir), "pod_owner": self.get_option("owner")}

    def add_live_pods(self) -> None:
        """Give the pods that are live their addresses, and put them into the group ``pods_live``.

        Raises:
            UserError: RunPod could not be asked.
        """
        api = runpod.RunPod(os.environ["RUNPOD_API_KEY"], self.get_option("api_url") or "")
        claims = Claims(self.state_dir, self.get_option("owner"))
        claimed = {claim.name for claim in claims.list_all() if not claim.released_at}
        # What is claimed comes last, and so holds, where there is an orphan of the same host beside it.
        for pod in sorted(api.list_pods(), key=lambda pod: pod["name"] in claimed):
            owner, host = parse_name(pod["name"]) or ("", "")
            if owner != claims.owner or host not in self.inventory.hosts:
                continue
            address = runpod.ssh_address(pod)
            self.inventory.add_host(host, group="pods_live")
            facts = {"pod_id": pod["id"], "pod_status": pod["status"], "pod_usd_per_hour": pod.get("cost")}
            if address:
                key = self.inventory.get_host(host).vars.get("pod_ssh_key") or self.state_dir / "id_ed25519"
                access = ssh.SshAccess(self.state_dir / "known_hosts", pathlib.Path(str(key)).expanduser())
                facts |= ssh.connection_variables(address, pod["name"], access)
            for name, value in facts.items():
                self.inventory.set_variable(host, name, value)
