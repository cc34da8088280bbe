"""Train run directories one after another, each in a fork of one process that has imported everything.

Runs in the trainer's environment: ``train_families.py RUN_DIR …``. What a process of its own would spend on imports,
fifteen seconds of a core, is spent once. Each training is Axolotl's own command in its run directory, with the
project's plugin; what it prints goes to train.log, its exit code to exit.txt.
"""

from __future__ import annotations

import importlib
import os
import pathlib
import sys
import traceback

WARM = ("axolotl.cli.train", "axolotl.train", "axolotl.cli.config", "axolotl.common.datasets", "axolotl.core.builders")


def train(run_dir: pathlib.Path) -> int:
    """Train in a process that was forked for it; return its exit code."""
    os.chdir(run_dir)
    log = os.open("train.log", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    os.dup2(log, 1), os.dup2(log, 2)
    sys.path.insert(0, str(run_dir / "programs"))
    sys.argv = ["train"]
    try:
        sys.modules["axolotl.cli.train"].do_cli("axolotl.yml")
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush(), sys.stderr.flush()
    return 0


def main() -> None:
    for name in WARM:
        importlib.import_module(name)
    for name in sys.argv[1:]:
        run_dir = pathlib.Path(name)
        child = os.fork()
        if child == 0:
            os._exit(train(run_dir))
        (run_dir / "exit.txt").write_text(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))


if __name__ == "__main__":  # Axolotl starts helpers that import this file anew
    main()
