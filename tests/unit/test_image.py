"""The training image: where its environments are found, what it is labelled with, how it is built."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import pathlib
import re
import shutil

import pytest
import rundir
import yaml
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.trainer import environment, gpu_fitness
from ansible.module_utils.lora_forge.version import VERSION

ROOT = pathlib.Path(__file__).resolve().parents[2]
CUDA_LOCK = ROOT / "requirements/trainer-cuda.txt"


def program(name):
    spec = importlib.util.spec_from_file_location(f"image_{name}", ROOT / f"image/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def build():
    return program("build")


@pytest.fixture
def lock(tmp_path):
    path = tmp_path / "trainer-x.txt"
    path.write_text("axolotl==0.19.0 \\\n    --hash=sha256:00\nnvidia-cuda-runtime==13.0.96\ntorch==2.13.0\n")
    return path


def furnish(home: pathlib.Path) -> pathlib.Path:
    (home / "bin").mkdir(parents=True)
    (home / "bin/python").touch()
    (home / environment.COMPLETE).touch()
    return home


@pytest.fixture
def adopt(lock, tmp_path):
    """Adopt; return what the environment of the lock then is: a folder's name, or None."""

    def adopted() -> str | None:
        if not environment.adopt(tmp_path / "root", lock, tmp_path / "image"):
            return None
        home = tmp_path / "root" / environment.environment_name(lock)
        assert environment.is_complete(home)
        return home.resolve().parents[1 if home.is_symlink() else 0].name

    return adopted


def test_an_environment_of_the_image_is_taken_once(adopt, lock, tmp_path):
    furnish(tmp_path / "image/env" / environment.environment_name(lock))
    assert [adopt(), adopt()] == ["image", "image"]
    assert not environment.ensure(tmp_path / "root", lock, "no uv is needed", "/no/python", "")


def test_what_is_whole_on_the_volume_stays(adopt, lock, tmp_path):
    furnish(tmp_path / "image/env" / environment.environment_name(lock))
    furnish(tmp_path / "root" / environment.environment_name(lock))
    assert adopt() == "root"


def test_what_was_cut_off_on_the_volume_makes_way(adopt, lock, tmp_path):
    furnish(tmp_path / "image/env" / environment.environment_name(lock))
    (furnish(tmp_path / "root" / environment.environment_name(lock)) / environment.COMPLETE).unlink()
    assert adopt() == "image"


def test_an_environment_of_another_lock_is_not_taken(adopt, lock, tmp_path):
    furnish(tmp_path / "image/env" / environment.environment_name(lock))
    lock.write_text(lock.read_text() + "# refreshed\n")
    assert adopt() is None
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("lacking", ["bin/python", environment.COMPLETE])
def test_what_was_not_built_to_its_end_is_not_taken(adopt, lock, tmp_path, lacking):
    (furnish(tmp_path / "image/env" / environment.environment_name(lock)) / lacking).unlink()
    assert adopt() is None


def test_a_link_into_an_image_that_is_gone_is_built_anew(adopt, lock, tmp_path):
    """A network volume, mounted in a pod of the image and later in one without."""
    baked = furnish(tmp_path / "image/env" / environment.environment_name(lock))
    adopt()
    shutil.rmtree(tmp_path / "image")
    uv = tmp_path / "uv"
    uv.write_text(
        '#!/bin/sh\n[ "$1" = venv ] || exit 0\nfor home; do :; done\nmkdir -p "$home/bin" && touch "$home/bin/python"\n'
    )
    uv.chmod(0o755)
    assert environment.ensure(tmp_path / "root", lock, str(uv), "/no/python", "")
    home = tmp_path / "root" / environment.environment_name(lock)
    assert environment.is_complete(home)
    assert not home.is_symlink()
    assert not baked.exists()


def test_the_layer_of_torch_stays_while_its_lines_of_the_lock_do():
    """Torch, Triton and CUDA with all their hashes, whatever happens to the other lines and to the comments."""
    large = program("environments").large
    text = CUDA_LOCK.read_text()
    found = large(text)
    names = re.findall(r"^([\w-]+)==", found, re.MULTILINE)
    assert {"torch", "triton", "nvidia-cublas", "nvidia-cudnn-cu13", "cuda-toolkit"} <= set(names)
    assert "axolotl" not in names
    assert "#" not in found
    for name in names:
        own = text.partition(f"\n{name}==")[2].partition("\n    # via")[0]
        assert f"\n{name}=={own}\n" in f"\n{found}"
        assert "--hash=sha256:" in own
    other = re.sub(r"^axolotl==.*$", r"axolotl==9.9.9 \\", text, flags=re.MULTILINE).replace("# via", "# by")
    assert other != text
    assert large(other) == found


UV = """#!/bin/sh
echo "$*" >>"$0.calls"
[ "$1" = venv ] || exit 0
for home; do :; done
mkdir -p "$home/bin" && touch "$home/bin/python"
"""


def test_the_environment_of_the_image_is_made_in_two_steps(lock, tmp_path, monkeypatch):
    made = program("environments")
    monkeypatch.setattr(made, "TRAINER", tmp_path / "image/trainer")
    monkeypatch.setattr(made, "ENVIRONMENTS", tmp_path / "image/env")
    uv = tmp_path / "uv"
    uv.write_text(UV)
    uv.chmod(0o755)
    monkeypatch.setattr(environment, "find_uv", lambda *arguments: str(uv))
    monkeypatch.setattr(environment, "interpreter", lambda *arguments: "/usr/bin/python3.13")
    part, hub = tmp_path / "large.txt", tmp_path / "hub.txt"
    part.write_text(made.large(lock.read_text()))
    hub.touch()
    assert made.main(["begin", "", "uv.txt", str(part)]) == 0
    assert not environment.adopt(tmp_path / "root", lock, tmp_path / "image")
    assert made.main(["end", "", "uv.txt", str(lock), str(hub)]) == 0
    for one in (lock, hub):
        assert environment.adopt(tmp_path / "root", one, tmp_path / "image")
    words = [line.split() for line in (tmp_path / "uv.calls").read_text().splitlines()]
    words = [one for one in words if one[0] != "cache" and "--dry-run" not in one]  # which only ask
    assert [(one[0], one[-1]) for one in words] == [
        ("venv", str(made.TRAINER)), ("pip", str(part)), ("pip", str(lock)),
        ("venv", str(made.ENVIRONMENTS / environment.environment_name(hub))), ("pip", str(hub)),
    ]  # fmt: skip
    assert all({"--require-hashes", "--verify-hashes"} & set(one) for one in words if one[0] == "pip")


def test_the_labels_come_from_the_lock(build, lock):
    labels = build.labels(lock, "nvidia/cuda:13.0.3@sha256:12")
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", labels.pop("org.opencontainers.image.revision"))
    assert labels.pop("org.opencontainers.image.version") == VERSION
    assert labels == {
        "org.opencontainers.image.base.name": "nvidia/cuda:13.0.3",
        "org.opencontainers.image.base.digest": "sha256:12",
        "lora-forge.axolotl": "0.19.0",
        "lora-forge.torch": "2.13.0",
        "lora-forge.cuda": "13.0",
        "lora-forge.lock": "trainer-x",
        "lora-forge.lock.sha256": hashlib.sha256(lock.read_bytes()).hexdigest(),
    }


def test_what_is_not_known_is_no_label(build, lock, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "revision", lambda: None)
    labels = build.labels(lock, "debian")
    assert "org.opencontainers.image.base.digest" not in labels
    assert "org.opencontainers.image.revision" not in labels


def test_a_folder_without_git_has_no_revision(build, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert build.revision() is None


@pytest.mark.parametrize(("engine", "form"), [("docker", []), ("podman", ["--format", "docker"])])
def test_the_command(build, engine, form):
    given = argparse.Namespace(engine=engine, lock="trainer-cuda", base="b", name=None)
    words = build.command(given, ["--volume", "/w:/w:ro"])
    tag = f"lora-forge:{environment.environment_name(CUDA_LOCK)}"
    assert words[: 4 + len(form)] == [engine, "build", "--tag", tag, *form]
    assert words[4 + len(form) : 8 + len(form)] == ["--build-arg", "BASE=b", "--build-arg", "LOCK=trainer-cuda"]
    assert words[-3:] == ["--volume", "/w:/w:ro", str(ROOT)]
    for label, value in build.labels(CUDA_LOCK, "b").items():
        assert words[words.index(f"{label}={value}") - 1] == "--label"


@pytest.mark.parametrize(
    ("there", "runs", "chosen"),
    [
        (["docker", "podman"], True, "docker"),
        (["docker", "podman"], False, "podman"),
        (["docker"], False, "docker"),
        (["podman"], False, "podman"),
    ],
)
def test_docker_goes_first_where_it_runs(build, monkeypatch, tmp_path, there, runs, chosen):
    for name in there:
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {0 if runs else 1}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build.engine() == chosen


def test_one_that_builds_is_needed(build, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="neither docker nor podman is installed"):
        build.engine()


def test_a_lock_that_is_not_there_ends_it_in_a_sentence(build, capsys):
    assert build.main(["--engine", "podman", "--lock", "trainer-rocm"]) == 1
    assert "trainer-rocm.txt is missing" in capsys.readouterr().err


def test_unknown_options_go_on_in_their_order(build, monkeypatch, capsys):
    seen = []

    def run(words, **options):
        if words[0] == "git":
            raise OSError
        seen.append(words)
        return argparse.Namespace(returncode=0)

    monkeypatch.setattr(build.subprocess, "run", run)
    options = ["--no-cache", "--volume", "/a:/b", "--build-arg", "SSL_CERT_FILE=/x"]
    assert build.main(["--engine", "docker", "--name", "you/forge:1", *options]) == 0
    assert seen[0][-len(options) - 1 : -1] == options
    assert capsys.readouterr().out == "built you/forge:1\n"


def test_the_base_has_the_cuda_of_the_lock(build):
    tag = build.default("BASE").rpartition(":")[2]
    assert tag.startswith(gpu_fitness.cuda_of_lock(CUDA_LOCK.read_text()) + ".")


def test_the_image_has_the_python_and_the_folder_of_the_role(build):
    role = yaml.safe_load((ROOT / "roles/trainer/defaults/main.yml").read_text())
    assert role["trainer_python_version"] == ""
    assert "\nARG PYTHON=\n" in (ROOT / "Dockerfile").read_text()
    assert build.default("LOCK") == role["trainer_lock"]
    assert f" {environment.IMAGE}/gpu_check.py" in (ROOT / "image/healthcheck.sh").read_text()
    assert f" {environment.IMAGE}/\n" in (ROOT / "Dockerfile").read_text()


def test_the_health_check_knows_a_run_by_its_marker():
    assert f"'^{rundir.MARKER}='" in (ROOT / "image/healthcheck.sh").read_text()


def test_nothing_but_what_is_named_reaches_the_build():
    """The context is what .dockerignore lets through: every file that is copied, and no data, model or secret."""
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").replace("${LOCK}", "trainer-cuda")
    copied = [
        word
        for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE)
        for word in line.split()[:-1]
        if not word.startswith("--")
    ]
    assert len(copied) >= 8
    for name in copied:
        assert (ROOT / name).is_file()
        assert any(name.startswith(one) or pathlib.PurePath(name).match(one) for one in allowed), name
    assert all(one.startswith(("image/", "module_utils/", "requirements/", "roles/trainer/files/")) for one in allowed)
