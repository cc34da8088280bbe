"""Bring files to a trainer, or from it, by rsync over the connection that Ansible has open already."""

from __future__ import annotations

import pathlib
import re
import shlex
import tempfile
from typing import Any

import ansible.module_utils
from ansible.errors import AnsibleConnectionFailure

# The path in ansible.cfg serves modules only; a plugin has to name it.
ansible.module_utils.__path__.append(str(pathlib.Path(__file__).resolve().parents[1] / "module_utils"))
from ansible.module_utils.lora_forge.controller import transfer  # noqa: E402
from ansible.module_utils.lora_forge.controller.actions import ForgeAction, load_actions  # noqa: E402
from ansible.module_utils.lora_forge.controller.display import tell  # noqa: E402
from ansible.module_utils.lora_forge.errors import UserError, error_message  # noqa: E402

load_actions()


class ActionModule(ForgeAction):
    """``transfer``: library/actions/transfer.py says what it takes and returns."""

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Bring them, or say why not."""
        try:
            return self.pull(args) if args.get("from") else self.push(args)
        except AnsibleConnectionFailure as error:  # the first contact: «unreachable» would not be noted as a failure
            return {"failed": True, "lost": True, "msg": transfer.connection_error(self.host, str(error))}
        except (UserError, OSError) as error:
            return {"failed": True, "msg": error_message(error)}

    def push(self, args: dict[str, Any]) -> dict[str, Any]:
        """Lay the files out, and send what the trainer does not have."""
        dry, to = self._task.check_mode, str(args["to"])
        with tempfile.TemporaryDirectory(prefix="lora-forge-") as folder:
            tree = pathlib.Path(folder)
            transfer.build_tree(tree, args["files"])
            made = self.run_command("true" if dry else transfer.prepare_command(to, args["files"]))
            if made["rc"]:  # ssh makes a terminal here: errors come as output, and standard error holds ssh's farewell
                raise UserError(transfer.write_error(self.host, (made["stdout"] or made["stderr"]).strip()))
            if self._connection.transport == "local":
                copied = transfer.copy(tree, pathlib.Path(to), dry)
                return {"changed": bool(copied), "sent": copied, "bytes": 0}
            options = [
                "--recursive",
                "--copy-links",
                "--checksum",
                "--chmod=D700,F600",
                f"--partial-dir={transfer.PARTIAL}",
            ]
            options += ["--stats", *(["--dry-run"] if dry else [])]
            self.check_ssh()
            text = self.rsync(args, options, f"{tree}/", f"{self.remote()}{to}/")
        sent = re.findall(r"^<f\S* (.*)$", text, re.MULTILINE)
        count = int(re.sub(r"\D", "", next(iter(re.findall(r"^Total bytes sent: ([\d,.]+)", text, re.MULTILINE)), "0")))
        if sent:
            outcome = "would be staged" if dry else f"staged, {count:,} bytes sent"
            for line in [f"  {self.host}: {len(sent)} files {outcome}", *(f"      {path}" for path in sent if dry)]:
                tell(line, host=self.host)
        return {"changed": bool(sent), "sent": sent, "bytes": count}

    def pull(self, args: dict[str, Any]) -> dict[str, Any]:
        """Fetch the files, and nothing else; what is in the folder beside them goes."""
        self.check_ssh()
        to, limits = pathlib.Path(args["to"]), transfer.fetch_list(args["files"])
        exact, most = sum(limits.values()), int(args.get("max_bytes") or 0)
        transfer.prepare_fetch(to, limits, 0 if most else exact)
        source = f"{self.remote()}{args['from']}/"
        try:
            options = ["--inplace", "--files-from=-"]
            text = self.rsync(args, options, source, f"{to}/", limits, min(exact, most or exact))
        finally:
            transfer.check_arrived(self.host, to, limits)  # which says more than rsync does, where it was ended by it
        fetched = re.findall(r"^>f\S* (.*)$", text, re.MULTILINE)
        return {"changed": bool(fetched), "sent": [name for name in fetched if name in limits]}

    def check_ssh(self) -> None:
        """Check that files can go over the connection.

        Raises:
            UserError: They cannot.
        """
        transport = self._connection.transport
        if transport != "ssh":
            raise UserError(f"{self.host} is reached by «{transport}»; files go over ssh, or stay here (local)")

    def rsync_path(self) -> list[str]:
        """Return the option with which rsync runs there as the user as whom modules run, where become names one.

        Raises:
            UserError: It cannot.
        """
        become = self._connection.become
        if become is None:
            return []
        user = become.get_option("become_user", playcontext=self._play_context)
        if become.name != "sudo" or become.get_option("become_pass", playcontext=self._play_context):
            how = f"{become.name} with a password" if become.name == "sudo" else become.name
            raise UserError(
                f"{self.host}: files can be brought as {user} by sudo without a password only, and ansible_become uses "
                f"{how}. Log in as the user who is to own them, and drop ansible_become: lora-forge uses sudo "
                "by itself where it has to"
            )
        return ["--rsync-path", f"sudo -n -H -u {shlex.quote(str(user))} rsync"]

    def remote(self) -> str:
        """Return the trainer's name as rsync takes it."""
        host = str(self._connection.get_option("host"))
        return f"[{host}]:" if ":" in host else f"{host}:"

    def rsync(
        self,
        args: dict[str, Any],
        options: list[str],
        source: str,
        to: str,
        limits: dict[str, int] | None = None,
        total: int = 0,
    ) -> str:
        """Run rsync, and return what it prints.

        Args:
            args: Those of the action.
            options: Of rsync.
            source: From where.
            to: To where.
            limits: Of a fetch, the most bytes of each file.
            total: The most bytes of all.

        Raises:
            UserError: It failed, or a fetch would not end.
        """
        own = [] if limits is None else transfer.fetch_options(limits)
        command = [
            "rsync",
            "--rsh",
            shlex.join(self.ssh_command()),
            *self.rsync_path(),
            "--times",
            "--compress",
            "--out-format=%i %n",
        ]
        command += [f"--timeout={args.get('timeout', 60)}", *options, *args.get("options", []), *own, source, to]
        try:
            with self.transferring():
                if limits is None:
                    code, text, complaints, ended = transfer.run_bounded(command, "")
                else:
                    names, seconds = "".join(f"{name}\n" for name in limits), transfer.GRACE + total / transfer.SLOWEST
                    largest = max(limits.values(), default=0)
                    code, text, complaints, ended = transfer.run_bounded(
                        command, names, pathlib.Path(to), largest, total, seconds
                    )
        except FileNotFoundError:
            raise UserError(transfer.transfer_error(self.host, "rsync is not found on the controller")) from None
        if ended:
            raise UserError(f"the transfer with {self.host} was ended: {ended}. Look at what this trainer sends")
        if code:
            raise UserError(transfer.transfer_error(self.host, complaints.strip()[-2000:]))
        return text
