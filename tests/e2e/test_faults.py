"""Faults of hosts, connections and controllers, on real hosts over real SSH."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import tempfile
import time
from typing import Any, Callable

import pytest
import rundir
import sandbox
from partition import Partition
from seen import Seen

from .conftest import Controller, Host, eventually, hold, release, stand_in

Controllers = Callable[..., Controller]
Hosts = dict[str, Host]
SITE = "/etc/python3.13/sitecustomize.py"
# A container has the clock of its kernel, so it is set wrong for every Python process of the host: modules, supervisor
# and trainer. (libfaketime reaches further, but stalls multiprocessing.)
WRONG_CLOCK = "import time; right = time.time; time.time = lambda: right() - 86400"
SHORT = {"save_steps": 2, "eval_steps": 12, "warmup_steps": 1, "gradient_accumulation_steps": 1}
HELD = {**SHORT, "max_steps": 12, "plugins": ["hold.Hold"]}  # it waits where a test says so


def reaches(host: Host, run_id: str, step: int) -> None:
    """Let a training go on to a step, and wait until it is there."""
    hold(host.runs / run_id, step)
    eventually(lambda: host.step(run_id) == step, f"step {step} on {host.name}")


def test_ssh_dies_the_controller_is_killed_and_the_host_reboots(
    hosts: Hosts, controllers: Controllers, seen: Seen
) -> None:
    """One run on a machine with systemd, and everything around it fails."""
    vm, controller = hosts["vm"], controllers({"vm": {}}, **HELD)
    run_id = controller.plan("witness")
    hold(vm.runs / run_id, 2)
    first = controller.start("-e", "role=witness")
    first.says(r"started \(systemd")
    vm.sh("systemctl stop ssh; pkill '^sshd' || true")
    first.says("no connection for")
    assert rundir.read_json(vm.runs / run_id / "status.json")["state"] == "running"
    code, text = controller.play(playbook="playbooks/status.yml")
    assert code == 0, text
    assert controller.verdicts() == {run_id: "unknown"}
    assert f"{run_id}: vm does not answer: " in text
    vm.sh("systemctl start ssh")
    step = int(first.says(r"step +\d+/12").split()[1].partition("/")[0])
    assert vm.status(run_id)["starts"] == 1
    seen(
        "SSH dies right after the launch",
        "vm",
        f"the training went on; the controller rode it out, watching at step {step}",
    )

    reaches(vm, run_id, 4)
    first.kill()
    reaches(vm, run_id, 5)
    assert vm.status(run_id)["starts"] == 1
    second = controller.start("-e", "role=witness")
    second.says("attached to it")
    seen(
        "controller killed by SIGKILL while it watches",
        "vm",
        "the training went on, step 4 to 5; the same command attached",
    )

    # A user's own unit waits for the lane meanwhile. What it trains with is not the point.
    lin, other = hosts["lin"], controllers({"lin": {"run_module": "stub_axolotl"}}, max_steps=4, **SHORT)
    queued = other.plan("refinery")
    stand_in(lin.runs / queued)
    lin.sh("chown -R lin: /workspace/lin/runs")
    code, text = other.play("-e", "role=refinery", "-e", "detach=true")
    assert code == 0, text
    waiting = lin.status(queued)
    assert waiting["state"] == "queued"
    code, text = other.play("-e", "role=refinery", playbook="playbooks/status.yml")
    assert code == 0, text
    assert other.verdicts() == {queued: "queued"}
    code, text = controller.play(playbook="playbooks/status.yml")
    assert controller.verdicts()[run_id] == "running", text

    reaches(vm, run_id, 7)
    whole = vm.whole(run_id)
    vm.restart(grace=5)
    release(vm.runs / run_id)
    eventually(lambda: vm.status(run_id).get("starts") == 2, "the second start, by systemd alone")
    resumed = vm.status(run_id)["resumed_from"]
    assert resumed >= whole == 6
    eventually(lambda: lin.status(queued)["supervisor"] != waiting["supervisor"], "the user's unit to be back")
    assert second.wait() == 0, second.text()
    assert "systemd starts it again" in second.text() or "no connection for" in second.text()
    manifest = controller.manifest("witness")
    assert manifest["verdict"] == "verified"
    assert (manifest["steps"]["reached"], manifest["steps"]["planned"]) == (12, 12)
    assert [event["step"] for event in vm.events(run_id, "begin")] == [0, resumed]
    seen(
        "host reboot in mid-run, SIGTERM with a grace of 5 s",
        "vm",
        f"systemd resumed it at step {resumed} (last whole checkpoint {whole}); the controller watched on; verified",
    )
    code, text = other.play("-e", "role=refinery")
    assert code == 0, text
    assert other.manifest("refinery")["verdict"] == "verified"
    seen(
        "host reboot while a run of a user with lingering waits for its lane", "vm", "it came back by itself; verified"
    )


@pytest.mark.soak
def test_two_controllers_a_restart_a_cut_checkpoint_and_a_cut_transfer(
    hosts: Hosts, controllers: Controllers, seen: Seen
) -> None:
    """One run on a pod: launched twice at once, killed with the container, damaged, resumed, fetched in two pieces."""
    pod = hosts["pod"]
    pair = [controllers({"pod": {}}, **HELD) for _ in range(2)]
    run_id = pair[0].plan("deacon")
    hold(pod.runs / run_id, 5)
    both = [one.start("-e", "role=deacon", "-e", "detach=true") for one in pair]
    assert [one.wait() for one in both] == [0, 0], both[0].text() + both[1].text()
    assert [one.run_id("deacon") for one in pair] == [run_id, run_id]
    assert pod.supervisors() == 1
    reaches(pod, run_id, 5)
    assert pod.status(run_id)["starts"] == 1
    assert len(pod.events(run_id, "begin")) == 1
    seen(
        "two controllers launch the same run in the same second",
        "pod",
        "one supervisor, one training; both commands succeeded",
    )

    pod.restart(grace=5)
    assert pod.supervisors() == 0
    release(pod.runs / run_id)
    newest = pod.whole(run_id)
    with (pod.runs / run_id / f"output/checkpoint-{newest}/optimizer.pt").open("r+b") as file:
        file.truncate(100)
    whole = pod.whole(run_id)
    assert 0 < whole < newest
    (pod.runs / run_id / "status.json").write_text('{"schema_version": 99, "state": "of another version"}')
    code, text = pair[0].play("-e", "role=deacon")
    assert code == 0, text
    assert [event["step"] for event in pod.events(run_id, "begin")] == [0, whole]
    steps = pair[0].manifest("deacon")["steps"]
    assert (steps["reached"], steps["planned"]) == (12, 12)
    assert any(
        path.name.startswith(f"incomplete-checkpoint-{newest}") for path in (pod.runs / run_id / "output").iterdir()
    )
    seen(
        "container restart in mid-run (SIGKILL to both), newest checkpoint truncated, status.json of another version",
        "pod",
        f"the same command set checkpoint {newest} aside and resumed at step {whole}; verified",
    )

    # The other controller has nothing yet: its transfer is cut.
    limit = ("-e", '{"trainer_rsync_options": ["--bwlimit=20"]}')
    cut = pair[1].start("-e", "role=deacon", *limit)
    incoming = pair[1].output / "incoming" / run_id / "output/adapter_model.safetensors"
    eventually(lambda: incoming.exists() and incoming.stat().st_size > 30_000, "a part of the adapter")
    pod.sh("pkill -x rsync")
    assert cut.wait() != 0
    part = incoming.stat().st_size
    assert "the transfer with pod failed" in cut.text(), cut.text()
    assert "The same command goes on where it was cut" in cut.text()
    assert not (pair[1].output / "adapters/deacon/latest").exists()
    code, text = pair[1].play("-e", "role=deacon")
    assert code == 0, text
    assert pair[1].manifest("deacon")["verdict"] == "verified"
    assert len(pod.events(run_id, "begin")) == 2, "it was trained again"
    seen(
        "rsync cut half-way through the adapter",
        "pod",
        f"an error that names the host, nothing promoted, {part} bytes kept; the same command fetched the rest",
    )


@pytest.mark.soak
def test_a_newest_checkpoint_of_nuls_costs_its_steps_alone(hosts: Hosts, controllers: Controllers, seen: Seen) -> None:
    """Its size is right, and only reading it shows what a power cut has left."""
    pod, controller = hosts["pod"], controllers({"pod": {}}, **HELD)
    run_id = controller.plan("refinery")
    hold(pod.runs / run_id, 5)
    code, text = controller.play("-e", "role=refinery", "-e", "detach=true")
    assert code == 0, text
    reaches(pod, run_id, 5)
    pod.restart(grace=5)
    release(pod.runs / run_id)
    newest, output = pod.whole(run_id), pod.runs / run_id / "output"
    weights = output / f"checkpoint-{newest}/adapter_model.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))
    assert pod.whole(run_id) == newest, "its size tells"
    code, text = controller.play("-e", "role=refinery")
    assert code == 0, text
    begun = [event["step"] for event in pod.events(run_id, "begin")]
    assert len(begun) == 2
    assert 0 < begun[1] < newest
    assert list(output.glob(f"incomplete-checkpoint-{newest}-*"))
    assert controller.manifest("refinery")["verdict"] == "verified"
    seen(
        "power cut: the weights of the newest checkpoint are NULs, of the right size",
        "pod",
        f"Axolotl died on it; checkpoint {newest} was set aside, and the run resumed at step {begun[1]}; verified",
    )


@pytest.mark.soak
def test_a_slow_trainer_with_a_wrong_clock_holds_nobody_up(hosts: Hosts, controllers: Controllers, seen: Seen) -> None:
    """Free strategy: the fast one's adapter is on the controller while the slow one still trains."""
    bare = hosts["bare"]
    bare.sh(f"mv {SITE} /tmp/site.py; printf '%s' '{WRONG_CLOCK}' >{SITE}")
    try:
        # The fast one is Axolotl's stand-in: what is asked of it is that it was done before the other.
        agents: dict[str, Any] = {
            "pod": {"agents": ["mayor"], "run_module": "stub_axolotl"},
            "bare": {"agents": ["crew"]},
        }
        controller = controllers(agents, **{**HELD, "max_steps": 4})
        slow = controller.plan("crew,mayor")
        hold(bare.runs / slow, 1)
        stand_in(hosts["pod"].runs / controller.run_id("mayor"))
        played = controller.start("-e", "role=mayor,crew")
        played.says(r"crew-\w+ started \(process")
        latest = controller.output / "adapters/mayor/latest/manifest.json"
        eventually(latest.exists, f"the fast one's adapter, in\n{played.text()}")
        assert bare.status(slow)["state"] == "running"
        eventually(lambda: bare.step(slow) == 1, "the slow one's first step")
        clock = bare.events(slow, "begin")[0]["time"]
        release(bare.runs / slow)
        assert played.wait() == 0, played.text()
        assert controller.manifest("crew")["verdict"] == "verified"
        seen(
            "two trainers, one much slower",
            "pod, bare",
            "the fast one's adapter was delivered while the slow one stood at step 1 of 4; both verified",
        )

        away = latest.stat().st_mtime - clock
        assert away > 23 * 3600, "the clock was not wrong"
        code, text = controller.play("-e", "role=mayor,crew")
        assert code == 0
        assert "crew is ready already" in text
        seen(
            "clock of the host wrong by a day",
            "bare",
            f"verified and delivered with the clock {away / 3600:.0f} h behind; nothing to do the second time",
        )
    finally:
        bare.sh(f"mv /tmp/site.py {SITE}")


def test_hosts_that_are_not_as_they_should_be(hosts: Hosts, controllers: Controllers, seen: Seen) -> None:
    """Each is told in words that name the host and the remedy, and nothing is started."""
    bare, tiny = hosts["bare"], {"max_steps": 2, "save_steps": 2, "gradient_accumulation_steps": 1}

    def refused(fault: str, *words: str, trainers: dict[str, Any] | None = None) -> str:
        code, text = controllers(trainers or {"bare": {}}, **tiny).play("-e", "role=polecat")
        assert code != 0, text
        assert "Traceback" not in text
        for word in words:
            assert word in " ".join(text.split()), f"{fault}: «{word}» is not in\n{text}"
        assert bare.supervisors() == 0
        return text

    bare.sh("mkdir /tmp/keys; mv /etc/ssh/ssh_host_* /tmp/keys; ssh-keygen -qA; kill -HUP 1")
    own = {"bare": {"ansible_control_path_dir": tempfile.mkdtemp()}}  # a connection that is open asks for no key
    try:
        refused("host key", "bare", "REMOTE HOST IDENTIFICATION HAS CHANGED", "ssh-keygen -f", trainers=own)
        seen(
            "host key changed",
            "bare",
            "refused before anything was sent; ssh's words name the file and the line to look at",
        )
    finally:
        bare.sh("mv -f /tmp/keys/* /etc/ssh; rmdir /tmp/keys; kill -HUP 1")

    refused(
        "python",
        "bare",
        "/usr/bin/python2",
        "not found",
        trainers={"bare": {"ansible_python_interpreter": "/usr/bin/python2"}},
    )
    seen(
        "wrong remote Python",
        "bare",
        "refused; the message names the interpreter that is not there and the variable to set",
    )

    lacking = {"bare": {"trainer_python_version": "3.14", "trainer_root": "/workspace/bare-python"}}
    refused(
        "python of the environment",
        "bare",
        "no CPython 3.14 was found (on PATH, in /usr/bin, and where uv and pyenv keep theirs)",
        "-e trainer_python_download=true",
        trainers=lacking,
    )
    seen(
        "no Python for the environment",
        "bare",
        "refused; the message says where it was looked for, and names the option that lets uv fetch one",
    )

    refused(
        "root", "ann: ", "Permission denied", "Set trainer_root to", trainers={"ann": {"trainer_root": "/srv/forge"}}
    )
    seen("no right to write to trainer_root", "ann", "refused; the message names the folder and the variable to set")

    bare.sh("mv /usr/bin/rsync /tmp/rsync")
    try:
        refused("rsync", "the transfer with bare failed", "apt-get install rsync")
        seen("no rsync on the host", "bare", "refused; the message names the host and the package")
    finally:
        bare.sh("mv /tmp/rsync /usr/bin/rsync")


# Installs one package of all, and then waits to be killed.
SLOW_UV = """#!/bin/sh
if [ "$1 $2" = "pip sync" ] && [ ! -e /workspace/let-go ]; then
  {uv} pip install --quiet --no-deps --python "$5" packaging
  touch /workspace/reached
  exec sleep 4321
fi
exec {uv} "$@"
"""


def test_the_environment_install_is_killed(hosts: Hosts, controllers: Controllers, seen: Seen) -> None:
    bare = hosts["bare"]
    root = f"{sandbox.name()}-cut"
    (real,) = (bare.shared / "tools").glob("uv-*/bin/uv")
    (bare.disk / "slow-uv").write_text(SLOW_UV.format(uv=f"/shared/{real.relative_to(bare.shared)}"))
    (bare.disk / "slow-uv").chmod(0o755)
    trainer = {"trainer_root": f"/shared/{root}", "trainer_lock": "trainer-cuda", "trainer_uv": "/workspace/slow-uv"}
    controller = controllers({"bare": trainer}, max_steps=2)
    home = bare.shared / root / "env"
    played = controller.start("-e", "role=polecat", playbook="playbooks/provision.yml")
    eventually(lambda: (bare.disk / "reached").exists(), "a part of it")
    eventually(lambda: (bare.sh("pkill -9 -f '[s]leep 4321'", check=False), played.process.poll())[1], "the play ends")
    assert played.wait() != 0
    assert "the packages of trainer-cuda.txt could not be installed" in " ".join(played.text().split())
    (bare.disk / "let-go").touch()
    made = [path for path in home.iterdir() if path.is_dir()]
    assert len(made) == 1
    assert not (made[0] / ".complete").exists()
    part = sum(1 for _ in made[0].glob("lib/python3*/site-packages/*.dist-info"))
    code, text = controller.play("-e", "role=polecat", playbook="playbooks/provision.yml")
    assert code == 0, text
    assert (made[0] / ".complete").exists()
    whole = sum(1 for _ in made[0].glob("lib/python3*/site-packages/*.dist-info"))
    assert whole > part > 0
    shutil.rmtree(home.parent)
    seen(
        "environment install killed",
        "bare",
        f"an error; {part} of {whole} packages were not taken for whole, the same command made it anew",
    )


@pytest.mark.soak
def test_packets_vanish_in_each_phase(hosts: Hosts, controllers: Controllers, seen: Seen) -> None:
    """Nothing refuses, nothing answers: each command says so in its own time, and the training goes on."""
    pod, state, port = hosts["pod"], sandbox.hosts_state(), sandbox.port(2)
    known = f"-o UserKnownHostsFile={state}/known_hosts -o StrictHostKeyChecking=yes -o HostKeyAlias=[127.0.0.1]:{port}"
    with Partition(port) as way:
        # As an inventory may have it, whose own words take the place of others.
        own = "-C -o ControlMaster=auto -o ControlPersist=60s"
        via = {"ansible_port": way.port, "ansible_ssh_common_args": known, "ansible_ssh_args": own}
        controller = controllers({"pod": {**via, "trainer_answer_timeout": 30}}, **HELD)
        run_id = controller.plan("witness")
        hold(pod.runs / run_id, 2)
        first = controller.start("-e", "role=witness")
        first.says(r"step +2/12")
        way.vanish()
        began, took = time.monotonic(), {}
        first.says("no answer for")
        took["watch"] = time.monotonic() - began
        first.says("no connection for")  # the shared connection is dead, and ssh has noticed that
        took["watch, trying again"] = time.monotonic() - began
        reaches(pod, run_id, 4)
        for phase, agent, playbook in (
            ("status", "witness", "playbooks/status.yml"), ("stop", "witness", "playbooks/stop.yml"),
            ("provision", "mayor", "train.yml"), ("logs", "witness", "playbooks/logs.yml"),
        ):  # fmt: skip
            began = time.monotonic()
            code, text = controller.play("-e", f"role={agent}", playbook=playbook)
            took[phase] = time.monotonic() - began
            assert "does not answer" in text or "did not answer" in text, text
            assert (code == 0) == (phase == "status"), text
        assert pod.status(run_id)["state"] == "running"
        way.heal()
        release(pod.runs / run_id)
        assert first.wait() == 0, first.text()
    assert controller.manifest("witness")["verdict"] == "verified"
    assert [event["step"] for event in pod.events(run_id, "begin")] == [0]
    told = ", ".join(f"{phase} {seconds:.0f} s" for phase, seconds in took.items())
    seen(
        "packets vanish, neither refused nor answered",
        "pod",
        f"the training went on; told after: {told}; the first command watched on, verified",
    )


def test_behind_a_jump_host(hosts: Hosts, controllers: Controllers, tmp_path: pathlib.Path) -> None:
    """Modules and rsync take the same way: ordinary Ansible variables, an ordinary ssh configuration."""
    command = ["podman", "inspect", "--format", "{{.NetworkSettings.IPAddress}}", f"{sandbox.name()}-bare"]
    address = subprocess.check_output(command, text=True).strip()
    state = sandbox.hosts_state()
    config = tmp_path / "ssh_config"
    config.write_text(
        f"Host *\n  IdentityFile {state}/key\n  UserKnownHostsFile {state}/known_hosts\n  StrictHostKeyChecking yes\n"
        f"Host jump\n  HostName 127.0.0.1\n  Port {sandbox.port(1)}\n  User root\n"
        f"Host {address}\n  ProxyJump jump\n  HostKeyAlias [127.0.0.1]:{sandbox.port(3)}\n"
    )
    way = {"ansible_host": address, "ansible_port": 22, "ansible_ssh_common_args": f"-F {config}"}
    (hosts["bare"].disk / "bare-jump").mkdir()
    (hosts["bare"].disk / "bare-jump/env").symlink_to("/shared/env")
    controller = controllers({"bare": {**way, "trainer_root": "/workspace/bare-jump"}})
    code, text = controller.play("-e", "role=polecat", playbook="playbooks/provision.yml")
    assert code == 0, text
    assert "files staged" in text
