"""Fail the task of a worker of Ansible's that was killed, and end the workers of a command that was.

A play with ``strategy: free`` would wait for a dead worker for ever; and a worker whose command is gone would go on
watching, and note and tell what another command is there for by then.
"""

from __future__ import annotations

import functools
import os
import pathlib
import signal
import threading
import time
from typing import Any

import ansible.module_utils
from ansible.executor.process.worker import WorkerProcess
from ansible.executor.task_result import _RawTaskResult
from ansible.plugins.callback import CallbackBase

# The path in ansible.cfg serves modules only; a plugin has to name it.
ansible.module_utils.__path__.append(str(pathlib.Path(__file__).resolve().parents[1] / "module_utils"))
from ansible.module_utils.lora_forge.controller.threads import start_beside  # noqa: E402

DOCUMENTATION = """
name: dead_workers
type: aggregate
short_description: A task whose worker was killed fails
description:
  - Ansible runs each task of a host in a process of its own, a worker. The kernel kills one where memory runs out.
  - With C(strategy=free) Ansible looks for no dead worker, and would wait without an end. This has the task fail, so
    that the play goes on as after any failure.
  - A command that is killed leaves its workers behind. This ends them, with the programs that they have started.
"""

TICK = 1.0  # seconds between two looks
GRACE = 10.0  # seconds for a result that a worker has sent before it ended to be dealt with
PATIENCE = 30.0  # seconds for a message to get into the queue, whose lock a killed worker may have taken with it


def end_with(command: int) -> None:
    """End this worker once its command is gone, however that ended, on Linux and macOS alike.

    Args:
        command: The pid of the command, whose child this process is.
    """
    while os.getppid() == command:
        time.sleep(TICK / 4)
    if os.getpgrp() == os.getpid():  # Ansible gives each worker a session; what was detached has another one
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


class CallbackModule(CallbackBase):  # type: ignore[misc]
    """The callback; see its documentation."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "dead_workers"

    def __init__(self) -> None:
        super().__init__()
        self._over = threading.Event()
        self._workers: list[Any] = []  # that have begun, and of which no end was seen
        self._owed: set[tuple[str, str]] = set()  # hosts and tasks without a result

    def v2_playbook_on_start(self, playbook: Any) -> None:
        # No event of a callback's tells of a process; one may die at once, and Ansible closes those that have ended.
        start, close, run = WorkerProcess.start, WorkerProcess.close, WorkerProcess.run
        command = os.getpid()

        @functools.wraps(start)
        def start_seen(worker: Any) -> None:
            self._owed.add((worker._host.name, worker._task._uuid))
            start(worker)
            self._workers.append(worker)

        @functools.wraps(close)
        def close_seen(worker: Any) -> None:
            self._see(worker)
            close(worker)

        @functools.wraps(run)
        def run_with_it(worker: Any) -> None:
            start_beside(end_with, command)
            run(worker)

        WorkerProcess.start, WorkerProcess.close, WorkerProcess.run = start_seen, close_seen, run_with_it
        start_beside(self._watch)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        self._over.set()

    def v2_runner_on_ok(self, result: Any, **more: Any) -> None:
        self._owed.discard((result._host.name, result._task._uuid))

    v2_runner_on_failed = v2_runner_on_unreachable = v2_runner_on_skipped = v2_runner_on_ok

    def _watch(self) -> None:
        while not self._over.wait(TICK):
            for worker in list(self._workers):
                self._see(worker)

    def _see(self, worker: Any) -> None:
        """Look whether a worker has ended, and how; of each end once, whichever thread sees it."""
        try:
            how = worker.exitcode
        except ValueError:  # closed meanwhile, which the other thread has seen
            return
        if how is None:
            return
        try:
            self._workers.remove(worker)
        except ValueError:
            return
        if how:
            start_beside(self._fail, worker, how)

    def _fail(self, worker: Any, exitcode: int) -> None:
        """Send the result that a worker owes, in its place; Ansible's own thread would end at a second one."""
        host, task = worker._host, worker._task
        until = time.monotonic() + GRACE
        while time.monotonic() < until:
            if (host.name, task._uuid) not in self._owed or self._over.wait(TICK / 4):
                return
        how = signal.strsignal(-exitcode) if exitcode < 0 else f"with exit code {exitcode}"
        message = (
            f"the process of Ansible's that did «{task.get_name()}» for {host.name} on this machine was ended "
            f"({how}), as the kernel does where memory runs out. What trains goes on. The same command attaches to it"
        )
        owed = _RawTaskResult(host=host, task=task, return_data={"failed": True, "msg": message}, task_fields={})
        sending = start_beside(worker._final_q.send_task_result, owed)
        sending.join(PATIENCE)
        if sending.is_alive():  # no worker gets its result through any more: this command can only end
            self._display.error(message)
            os.kill(os.getpid(), signal.SIGTERM)
