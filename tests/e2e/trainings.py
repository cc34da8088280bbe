"""Train in several folders, one after the other: ``trainings.py <folder>…``. Runs in the trainer's environment.

Each folder holds an axolotl.yml, and gets a train.log and exit_code. Axolotl is imported once: each training is a fork
of the process that did, as its patches of classes would otherwise reach the next one.
"""

from __future__ import annotations

import os
import pathlib
import sys
import traceback


def main() -> None:
    import axolotl.cli.config
    import axolotl.cli.train
    import axolotl.common.datasets
    import axolotl.core.builders
    import axolotl.loaders
    import axolotl.train
    import axolotl.utils.data
    import axolotl.utils.trainer
    import bitsandbytes  # noqa: F401
    import peft  # noqa: F401

    for folder in map(pathlib.Path, sys.argv[1:]):
        child = os.fork()
        if not child:
            os.chdir(folder)
            log = os.open("train.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            code = 1
            try:
                sys.argv = ["train", "axolotl.yml"]
                axolotl.cli.train.do_cli("axolotl.yml")
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        (folder / "exit_code").write_text(str(os.waitstatus_to_exitcode(status)))


if __name__ == "__main__":  # datasets saves in a process that imports this file anew
    main()
