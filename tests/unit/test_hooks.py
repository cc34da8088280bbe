"""The user's own task files: where they are looked for, how they are run, and what they get."""

from __future__ import annotations

import pathlib
import re

from ansible.module_utils.lora_forge.controller import hooks


def make(folder: pathlib.Path, *names: str) -> str:
    (folder / "hooks").mkdir(parents=True)
    for name in names:
        (folder / "hooks" / f"{name}.yml").write_text("[]")
    return str(folder)


def test_a_hook_lies_beside_the_inventory(tmp_path: pathlib.Path) -> None:
    folder = make(tmp_path, "before_provision")
    assert hooks.hook_file(folder, "before_provision") == tmp_path / "hooks/before_provision.yml"
    assert hooks.hook_file(folder, "after_release") is None
    assert hooks.hook_file("", "before_provision") is None


def test_the_plan_tells_of_hooks_once_for_hosts_that_share_them(tmp_path: pathlib.Path) -> None:
    both, one = make(tmp_path / "a", *hooks.NAMES), make(tmp_path / "b", "after_release")
    assert hooks.hook_lines({"gpu-1": both, "gpu-2": one, "gpu-3": both, "gpu-4": str(tmp_path), "gpu-5": ""}) == [
        "  gpu-1, gpu-3: tasks of your own: hooks/before_provision.yml, hooks/after_release.yml",
        "  gpu-2: tasks of your own: hooks/after_release.yml",
    ]


def test_a_hook_runs_with_the_inventory_and_the_options_of_the_command() -> None:
    options = {
        "inventory": ("a.yml", "b.yml"), "extra_vars": ("role=witness", {"x": 1}),
        "remote_user": "ops", "private_key_file": None, "become": True, "become_user": "root",
        "forks": 50,
    }  # fmt: skip
    words = hooks.command("py", pathlib.Path("/t/hook.yml"), pathlib.Path("/t/v.json"), "gpu-1", options, False)
    assert words == [
        "py", "-m", "ansible", "playbook", "/t/hook.yml", r"--limit=~\Agpu\U0000002d1\Z", "--inventory", "a.yml",
        "--inventory", "b.yml", "--extra-vars", "role=witness", "--extra-vars", '{"x": 1}', "--extra-vars",
        "@/t/v.json", "--user", "ops", "--become-user", "root", "--become",
    ]  # fmt: skip
    assert hooks.command("py", pathlib.Path("h"), pathlib.Path("v"), "gpu-1", {}, True)[-1] == "--check"


def test_a_pattern_of_several_hosts_is_of_these_alone() -> None:
    found = re.compile(hooks.pattern("gpu-1", "~a|b").removeprefix("~"))
    assert [name for name in ("gpu-1", "~a|b", "gpu-10", "a", "b", "gpu-1|~a") if found.match(name)] == [
        "gpu-1",
        "~a|b",
    ]


def test_a_hook_gets_the_runs_and_on_a_pod_how_it_is_reached() -> None:
    runs = [{"run_id": "witness-0", "agent": "witness", "recipe": {"hub_token": "secret"}}]
    known = {"ansible_host": "1.2.3.4", "ansible_port": 2222, "run_plans": runs}
    expected = {"forge_runs": [{"run_id": "witness-0", "agent": "witness"}]}
    assert hooks.variables(known, runs) == expected
    reached = {"ansible_host": "1.2.3.4", "ansible_port": 2222}
    assert hooks.variables({**known, "pod_gpus": ["L40S"]}, runs) == expected | reached


def test_a_failure_is_the_line_that_says_so() -> None:
    text = "PLAY [x]\n\nTASK [stop it]\nfatal: [gpu-1]: FAILED! => no such service\n\nPLAY RECAP\n"
    assert hooks.failure(text) == "fatal: [gpu-1]: FAILED! => no such service"
    text = "[ERROR]: is it there?\nfatal: [gpu-1]: FAILED! =>\n...ignoring\n[ERROR]: no such service\nfatal: [gpu-1]: F"
    assert hooks.failure(text) == "[ERROR]: no such service"
    assert hooks.failure("odd\n") == "odd"
    assert hooks.failure("\n") == "it printed nothing"
