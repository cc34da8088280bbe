"""Make docs/images/terminal-*.svg: what the terminal shows at some moments of real rehearsals (make pictures).

It types commands into a tmux of its own, in a checkout that has made no environment of a trainer yet, and takes down
the screen when it shows what the picture is about. The fleet is two pretended hosts on this machine.
"""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from rich.console import CONSOLE_SVG_FORMAT, Console
from rich.text import Text

ROOT = pathlib.Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
COLUMNS, ROWS = 118, 32
PATIENCE = 300  # seconds until a moment must have come
END = r"\$ *$"  # the prompt is there again
FLEET = """\
trainers:
  vars:
    ansible_connection: local
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
    run_profile: rehearsal
    trainer_lock: trainer-cpu
    trainer_gpu_required: false
    datasets_dir: examples/datasets
  hosts:
    gpu-1: {trainer_root: ROOT/.trainer, agents: [mayor]}
    gpu-2: {trainer_root: HOME/gpu-2, agents: [crew], run_lane_dir: HOME}
"""


class Moment(NamedTuple):
    """A picture.

    Attributes:
        name: The file's name, behind what all have in common.
        typed: What is typed before; "" where the last command goes on.
        shows: What the screen shows when the moment has come, as a regular expression.
        key: A key of tmux's that is pressed before.
    """

    name: str
    typed: str
    shows: str
    key: str = ""


MOMENTS = (
    Moment("error", "make train role=witnes", END),
    Moment("plan", "make plan role=witness", END),
    Moment("provision", "make train role=witness", r"(?s)Provision .*0:\d[3-9].*"),
    Moment("train", "", r"witness .* \d\d%"),
    Moment("ready", "", END),
    Moment("again", "make train role=witness", END),
    Moment("fleet", "ansible-playbook -i fleet.yml train.yml", r"(?s)(mayor|crew) .* \d\d%.*(mayor|crew) .* \d\d%"),
    Moment("interrupted", "", r"(?s)keeps running on.*" + END, "C-c"),
    Moment("status", "ansible-playbook -i fleet.yml playbooks/status.yml", END),
    Moment("failed", "ansible-playbook -i nohost.invalid, train.yml -e role=deacon -e run_profile=rehearsal"
           " -e trainer_lock=trainer-cpu -e datasets_dir=examples/datasets", END),
)  # fmt: skip


def tmux(*words: str) -> str:
    """Call the tmux of the pictures."""
    return subprocess.run(
        ["tmux", "-L", "lora-forge-pictures", *words], check=True, capture_output=True, text=True
    ).stdout


def draw(name: str, screen: str) -> None:
    """Write a screen as an SVG, without fonts from elsewhere.

    Args:
        name: The picture's.
        screen: What tmux shows, with its colours.
    """
    console = Console(
        record=True, width=COLUMNS, file=open(os.devnull, "w"), force_terminal=True, color_system="truecolor"
    )
    # A picture is of nobody's machine.
    for path, shown in ((ROOT, "~/lora-forge"), (pathlib.Path.home(), "~")):
        screen = screen.replace(str(path), shown)
    console.print(Text.from_ansi(screen), soft_wrap=True, end="\n\n")  # or the last line is cut at its foot
    look = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    IMAGES.mkdir(exist_ok=True)
    (IMAGES / f"terminal-{name}.svg").write_text(console.export_svg(title="lora-forge", code_format=look))


def main() -> None:
    """Take all pictures."""
    with tempfile.TemporaryDirectory() as home:
        (ROOT / "fleet.yml").write_text(FLEET.replace("ROOT", str(ROOT)).replace("HOME", home))
        (pathlib.Path(home) / "gpu-2").mkdir()
        (pathlib.Path(home) / "gpu-2/env").symlink_to(ROOT / ".trainer/env")
        shell = f"env -u MAKELEVEL -u MAKEFLAGS PS1='$ ' PATH={ROOT}/.venv/bin:{os.environ['PATH']} bash --norc"
        size = ("-x", str(COLUMNS), "-y", str(ROWS))
        tmux("-f", "/dev/null", "new-session", "-d", "-s", "screen", *size, "-c", str(ROOT), shell)
        try:
            for moment in MOMENTS:
                if moment.typed:
                    tmux("send-keys", "-t", "screen", "clear", "Enter")
                    time.sleep(1)
                    tmux("send-keys", "-t", "screen", moment.typed, "Enter")
                    time.sleep(1)
                if moment.key:
                    tmux("send-keys", "-t", "screen", moment.key)
                    time.sleep(1)
                deadline = time.monotonic() + PATIENCE
                while not re.search(moment.shows, tmux("capture-pane", "-p", "-t", "screen").rstrip()):
                    if time.monotonic() > deadline:
                        sys.exit(
                            f"{moment.name}: the screen does not show it\n" + tmux("capture-pane", "-p", "-t", "screen")
                        )
                    time.sleep(0.2)
                draw(moment.name, tmux("capture-pane", "-e", "-p", "-t", "screen").rstrip())
                print(IMAGES / f"terminal-{moment.name}.svg")
        finally:
            tmux("kill-server")
            (ROOT / "fleet.yml").unlink()


if __name__ == "__main__":
    main()
