"""What nvidia-smi says of the GPUs, and what is concluded from it."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest
from ansible.module_utils.lora_forge.planning.layers import read_layer
from ansible.module_utils.lora_forge.trainer import gpu, gpu_fitness
from ansible.module_utils.lora_forge.trainer.gpu_fitness import GpuRequirements
from ansible.module_utils.testing import patch_module_args

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMI = str(ROOT / "tests/fakes/nvidia-smi")
UUID = "GPU-5a1f0c3e-8a5b-4f0e-9a57-3d1c2b4e6f70"
SECOND = "GPU-c2b8e9d4-1f3a-4e6b-a7c5-9d0e8f7a6b5c"
A100 = "GPU 0, NVIDIA A100-SXM4-80GB"
SDPA = "Set attn_implementation: sdpa for this machine (configs/machines/), or take another GPU"
REPLACE = "or reboot; replace a rented host"


def load(path: pathlib.Path):
    spec = importlib.util.spec_from_file_location(f"loaded_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def ask(monkeypatch, tmp_path):
    """Provide a query of the shim, as a real process, for a word's answer; of the runs here it keeps the test's own."""

    def asker(word: str):
        monkeypatch.setenv("FAKE_GPU", word)
        answer = gpu.query(SMI, timeout=600)
        return {**answer, "runs": [where for where in answer["runs"] if where.startswith(str(tmp_path))]}

    return asker


@pytest.fixture
def script(tmp_path):
    """Provide a maker of programs that answer as the given shell text says."""

    def maker(text: str) -> str:
        path = tmp_path / "nvidia-smi"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return str(path)

    return maker


def card(**values):
    """Return a healthy A100, with some values changed."""
    return {
        "index": 0, "uuid": UUID, "name": "NVIDIA A100-SXM4-80GB", "memory_mib": 81920, "used_mib": 4,
        "free_mib": 81278, "compute_capability": "8.0", "ecc_errors": 0, "remap_pending": False,
        "remap_failure": False, "retired_pending": None, "recovery_action": "None", "mig": False, "use": 0,
        "fault": None,
        **values,
    }  # fmt: skip


def process(pid=4242, name="python", used=60000, run=None, uuid=UUID):
    return {"gpu_uuid": uuid, "pid": pid, "name": name, "used_mib": used, "run": run}


def found(*gpus, driver="580.95.05", processes=(), runs=(), error=None):
    return {"driver": driver, "gpus": list(gpus), "processes": list(processes), "runs": list(runs), "error": error}


# What is found


def test_a_healthy_a100(ask):
    assert ask("a100") == found(card())


def test_two_gpus(ask):
    assert ask("two") == found(card(), card(index=1, uuid=SECOND))


def test_what_a_gpu_does_not_have_is_none(ask):
    [t4] = ask("t4")["gpus"]
    assert (t4["name"], t4["compute_capability"], t4["memory_mib"]) == ("Tesla T4", "7.5", 15360)
    assert (t4["remap_pending"], t4["remap_failure"], t4["mig"], t4["retired_pending"]) == (None, None, None, False)


def test_what_an_old_driver_does_not_know_is_none(ask):
    answer = ask("old-driver")
    assert answer["driver"] == "535.161.08"
    assert answer["gpus"] == [card(recovery_action=None)]


def test_a_process_of_somebody_else(ask):
    answer = ask("busy")
    assert answer["processes"] == [process()]
    assert (answer["gpus"][0]["used_mib"], answer["gpus"][0]["free_mib"]) == (60004, 21278)


def test_names_with_commas_and_memory_that_is_not_told(script):
    program = script(
        f"""case "$1" in
        *gpu=*)
          echo '0, {UUID}, X, 580.95.05, 81920, [Insufficient Permissions], 7, [N/A], N/A,,[N/A],No,None,Disabled,[N/A]'
          echo 'WARNING: infoROM is corrupted at gpu 0000:01:00.0' ;;
        *) echo '{UUID}, 7, a, b, c, [N/A]'; echo '{UUID}, [Insufficient Permissions], x, 5' ;;
        esac"""
    )
    answer = gpu.query(program, timeout=600)
    assert answer["error"] is None
    [row] = answer["gpus"]
    assert (row["used_mib"], row["free_mib"], row["compute_capability"], row["ecc_errors"]) == (None, 7, None, None)
    assert (row["remap_pending"], row["remap_failure"]) == (None, None)
    assert answer["processes"] == [process(7, "a, b, c", None)]


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("none",
         "nvidia-smi found no GPU: the driver is there, but this host or container has been given no device. Start "
         "the container with its GPUs (docker run --gpus all), or take another host; a rented one that was stopped "
         "may come back without its GPU"),
        ("mismatch",
         "the NVIDIA driver was updated while it was loaded: its kernel module and its library are of different "
         "versions (Driver/library version mismatch). Reboot the host, or reload the nvidia kernel modules"),
    ],
)  # fmt: skip
def test_failures_in_words(ask, word, sentence):
    answer = ask(word)
    assert answer == found(driver=None, error=sentence)
    assert gpu_fitness.problems(answer, GpuRequirements(cuda="13.0")) == [sentence]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("echo NVIDIA-SMI has failed because it \"couldn't communicate with the NVIDIA driver\".; exit 9",
         "the NVIDIA driver's kernel module is not loaded. Load it (modprobe nvidia) or reboot; after a kernel "
         "update, install the driver again"),
        ("echo Failed to initialize NVML: Unknown Error; exit 255",
         "this container has lost its GPUs (Failed to initialize NVML: Unknown Error). Restart the container"),
        ("echo Unable to determine the device handle for GPU 0000:41:00.0: GPU is lost.; exit 15",
         "a GPU has fallen off the bus. Reboot the host; replace a rented one"),
        ("echo Unable to determine the device handle for GPU0000:01:00.0: Unknown Error; exit 255",
         "a GPU does not answer its driver (Unknown Error), as one does that has failed or has fallen off the bus. "
         "Reboot the host; replace a rented one"),
        ("echo No devices were found",  # as some drivers say it, and end with 0
         "nvidia-smi found no GPU: the driver is there, but this host or container has been given no device. Start "
         "the container with its GPUs (docker run --gpus all), or take another host; a rented one that was stopped "
         "may come back without its GPU"),
        ("echo Something new; exit 3", "{program} failed with exit code 3. It said: Something new"),
        ("exit 3", "{program} failed with exit code 3. It said: nothing"),
        ("echo Something new", "{program} named no GPU. It said: Something new"),
    ],
)  # fmt: skip
def test_other_failures(script, text, sentence):
    program = script(text)
    assert gpu.query(program, timeout=600)["error"] == sentence.format(program=program)


def test_no_program(tmp_path):
    program = str(tmp_path / "nvidia-smi")
    assert gpu.query(program, timeout=600)["error"] == (
        f"{program} is not here: no NVIDIA driver is installed. Install one, start the container with its GPUs "
        "(docker run --gpus all), or take a host that has a GPU"
    )
    (tmp_path / "nvidia-smi").touch()
    assert gpu.query(program, timeout=600)["error"] == (
        f"{program} cannot be started: Permission denied. Install the NVIDIA driver again"
    )


# What is concluded


def test_nothing_is_wrong_with_a_healthy_one(ask):
    every = GpuRequirements(cuda="13.0", count=1, memory_gib=79.3, bf16=True, tf32=True, varlen=True,
                   attention=("sdpa", "flash_attention_2"), lane=UUID)  # fmt: skip
    assert gpu_fitness.problems(ask("a100"), every) == []
    assert gpu_fitness.problems(ask("a100"), GpuRequirements()) == []


@pytest.mark.parametrize(
    ("driver", "cuda", "minimum"),
    [
        ("535.161.08", "13.0", "580.65.06"),
        ("580.65.05", "13.0", "580.65.06"),
        ("580.65.06", "13.0", None),
        ("580.126.9", "13.1", None),
        ("1000.0", "13.0", None),
        ("525.60.12", "12.8", "525.60.13"),
        ("535.161.08", "12.8", None),
        ("470.57.02", "", None),
    ],
)
def test_the_driver(driver, cuda, minimum):
    expected = (
        f"the NVIDIA driver is {driver}, and CUDA {cuda}, which the environment's torch is built with, needs {minimum} "
        f"or newer. Update the driver, or take a host with a newer one (RunPod: minCudaVersion {cuda})"
    )
    assert gpu_fitness.problems(found(card(), driver=driver), GpuRequirements(cuda=cuda)) == (
        [expected] if minimum else []
    )


def test_the_driver_is_not_told():
    assert gpu_fitness.problems(found(card(), driver=None), GpuRequirements(cuda="13.0")) == [
        "nvidia-smi does not tell the driver's version; CUDA 13.0 needs 580.65.06 or newer. Update it"
    ]


def test_a_cuda_that_nobody_noted():
    assert gpu_fitness.problems(found(card()), GpuRequirements(cuda="14.0")) == [
        "no minimum driver is noted for CUDA 14.0. Add it to CUDA in module_utils/lora_forge/trainer/gpu_fitness.py"
    ]


def test_the_count_and_the_lane(ask):
    assert gpu_fitness.problems(ask("a100"), GpuRequirements(count=2)) == [
        "this host has 1 GPU(s), and 2 are wanted. Take a host with more of them"
    ]
    assert gpu_fitness.problems(ask("two"), GpuRequirements(count=2)) == []
    assert gpu_fitness.problems(ask("a100"), GpuRequirements(lane="GPU-0")) == [
        f"there is no GPU GPU-0 on this host; it has {UUID} ({A100}). Name one of these"
    ]


def test_only_the_lane_is_checked():
    bad = found(card(ecc_errors=3), card(index=1, uuid=SECOND))
    assert gpu_fitness.problems(bad, GpuRequirements(lane=SECOND)) == []
    assert len(gpu_fitness.problems(bad, GpuRequirements(lane=UUID))) == 1
    assert len(gpu_fitness.problems(bad, GpuRequirements())) == 1


def test_too_little_memory(ask):
    assert gpu_fitness.problems(ask("t4"), GpuRequirements(memory_gib=20.0, floor_gib=14.7)) == [
        "GPU 0, Tesla T4: 14.6 GiB of memory, and the weights alone take 14.7 GiB. Take a larger GPU"
    ]
    assert (
        gpu_fitness.warnings(ask("t4"), GpuRequirements(memory_gib=20.0, floor_gib=14.7)) == []
    )  # it is refused already


def test_an_estimate_warns_and_refuses_nothing(ask):
    wanted = GpuRequirements(memory_gib=16.6, floor_gib=5.4)
    assert gpu_fitness.problems(ask("t4"), wanted) == []
    assert gpu_fitness.warnings(ask("t4"), wanted) == [
        "GPU 0, Tesla T4: 14.6 GiB of memory, and the training is thought to need 16.6 GiB (an estimate, not "
        "measured). It is tried; should it run out of memory, take a larger GPU, or a machine class with a smaller "
        "micro_batch_size (configs/machines/)"
    ]
    assert gpu_fitness.warnings(ask("t4"), GpuRequirements(memory_gib=14.5)) == []
    assert gpu_fitness.warnings(ask("t4"), GpuRequirements()) == []
    assert gpu_fitness.warnings(found(card(mig=True)), GpuRequirements(memory_gib=90)) == []  # a problem in itself


def test_a_gpu_of_nothing():
    tiny = found(card(memory_mib=1024, used_mib=0, free_mib=1023))
    assert gpu_fitness.problems(tiny, GpuRequirements()) == [
        f"{A100}: 1.0 GiB of memory, and no training fits into less than 1 GiB. Take a larger GPU"
    ]
    assert gpu_fitness.problems(tiny, GpuRequirements(floor_gib=0.9)) == []


def test_warnings_are_about_the_lane_alone():
    small = found(card(), card(index=1, uuid=SECOND, memory_mib=16384, used_mib=4, free_mib=15000))
    assert gpu_fitness.warnings(small, GpuRequirements(memory_gib=23.8, lane=UUID)) == []
    assert len(gpu_fitness.warnings(small, GpuRequirements(memory_gib=23.8, lane=SECOND))) == 1
    assert (
        gpu_fitness.warnings(found(card(used_mib=None)), GpuRequirements(memory_gib=23.8)) == []
    )  # a problem in itself


T4 = "GPU 0, Tesla T4: compute capability 7.5, and"
AMPERE = "or take an Ampere GPU or newer"


def test_the_default_recipe_on_a_t4(ask):
    """It is refused: transformers allows no tf32 there, torch emulates bf16, and its varlen attention begins at 8.0."""
    base = read_layer(ROOT / "configs/base.yml", "configs/base.yml").keys
    assert gpu_fitness.problems(ask("t4"), GpuRequirements(cuda="13.0", **gpu_fitness.recipe_requirements([base]))) == [
        f"{T4} bf16 needs 8.0 or newer. Set bf16: false and fp16: true for this machine (configs/machines/), {AMPERE}",
        f"{T4} tf32 needs 8.0 or newer. Set tf32: false for this machine (configs/machines/), {AMPERE}",
        f"{T4} attn_implementation: sdpa with sample_packing needs 8.0 or newer. Set sdpa_varlen: false for this "
        f"machine (configs/machines/), {AMPERE}",
    ]
    assert (
        gpu_fitness.problems(ask("a100"), GpuRequirements(cuda="13.0", **gpu_fitness.recipe_requirements([base]))) == []
    )
    tried = base | {"bf16": False, "fp16": True, "tf32": False, "sdpa_varlen": False}
    assert (
        gpu_fitness.problems(ask("t4"), GpuRequirements(cuda="13.0", **gpu_fitness.recipe_requirements([tried]))) == []
    )


@pytest.mark.parametrize(
    ("keys", "bf16"),
    [
        ({}, True), ({"bf16": "auto"}, True), ({"bf16": True}, True), ({"bf16": "full"}, True),
        ({"bf16": False}, False), ({"bf16": None}, False), ({"bf16": "auto", "fp16": True}, False),
        ({"bf16": True, "fp16": True}, True), ({"bf16": False, "bfloat16": True}, True),
    ],
)  # fmt: skip
def test_what_computes_in_bf16(keys, bf16):
    assert gpu_fitness.recipe_requirements([keys])["bf16"] is bf16


@pytest.mark.parametrize(
    ("keys", "varlen"),
    [
        ({}, True), ({"sdpa_varlen": True}, True), ({"sdpa_varlen": False}, False), ({"sample_packing": False}, False),
        ({"attn_implementation": "eager"}, False), ({"bf16": False}, False), ({"bf16": False, "fp16": True}, True),
        ({"bf16": False, "load_in_8bit": True}, True),
    ],
)  # fmt: skip
def test_what_packs_by_torchs_own_flash_attention(keys, varlen):
    assert (
        gpu_fitness.recipe_requirements([{"attn_implementation": "sdpa", "sample_packing": True} | keys])["varlen"]
        is varlen
    )


def test_one_recipe_that_asks_is_enough():
    quiet = {"bf16": False, "tf32": "auto"}
    assert (
        gpu_fitness.recipe_requirements([])
        == gpu_fitness.recipe_requirements([quiet])
        == {"bf16": False, "tf32": False, "varlen": False, "attention": ()}
    )
    packed = {"attn_implementation": "sdpa", "sample_packing": True, "tf32": True}
    flash = {"attn_implementation": "flash_attention_2", "bf16": False}
    assert gpu_fitness.recipe_requirements([quiet, packed, flash, flash]) == {
        "bf16": True, "tf32": True, "varlen": True, "attention": ("sdpa", "flash_attention_2"),
    }  # fmt: skip


def test_a_gpu_that_cuda_has_dropped():
    assert gpu_fitness.problems(found(card(compute_capability="7.0")), GpuRequirements(cuda="13.0")) == [
        f"{A100}: compute capability 7.0, and CUDA 13.0 needs 7.5 or newer. Take a newer GPU"
    ]
    assert gpu_fitness.problems(found(card(compute_capability="7.0")), GpuRequirements(cuda="12.6")) == []


def test_a_compute_capability_that_is_not_told():
    unknown = found(card(compute_capability=None))
    assert gpu_fitness.problems(unknown, GpuRequirements(attention=("sdpa",))) == []
    assert gpu_fitness.problems(unknown, GpuRequirements(bf16=True)) == [
        f"{A100}: the driver does not tell its compute capability; bf16 needs 8.0 or newer. Update the driver"
    ]


CAPABILITIES = ["7.5", "8.0", "8.9", "9.0", "10.0", "12.0", "12.1"]


@pytest.mark.parametrize(
    ("attention", "fits"),
    [
        ("eager", CAPABILITIES),
        ("sdpa", CAPABILITIES),
        ("xformers", CAPABILITIES),
        ("flex_attention", CAPABILITIES),
        ("flash_attention_2", CAPABILITIES[1:]),
        ("kernels-community/flash-attn2", CAPABILITIES[1:]),
        ("flash_attention_torch", CAPABILITIES[1:]),
        ("flash_attention_3", ["9.0"]),
        ("kernels-community/flash-attn3", ["9.0"]),
        ("kernels-community/flash-attn3@v1:flash_attn_varlen", ["9.0"]),
        ("flash_attention_4", ["9.0", "10.0"]),
        ("sage", ["8.0", "8.9", "9.0", "10.0", "12.0"]),
        ("kernels-community/sage-attention", ["8.0", "8.9", "9.0", "10.0", "12.0"]),
        ("fp8", ["9.0", "10.0", "12.0", "12.1"]),
        ("somebody/their-kernel", CAPABILITIES),  # not known, so not checked
    ],
)
def test_every_attention(attention, fits):
    good = [
        have
        for have in CAPABILITIES
        if not gpu_fitness.problems(found(card(compute_capability=have)), GpuRequirements(attention=(attention,)))
    ]
    assert good == fits


def test_the_words_on_attention(ask):
    assert gpu_fitness.problems(ask("t4"), GpuRequirements(attention=("flash_attention_2",))) == [
        "GPU 0, Tesla T4: compute capability 7.5, and attn_implementation: flash_attention_2 needs 8.0 or newer. "
        + SDPA
    ]
    assert gpu_fitness.problems(ask("a100"), GpuRequirements(attention=("flash_attention_3",))) == [
        f"{A100}: compute capability 8.0, and attn_implementation: flash_attention_3 needs 9.0 to 9.9. {SDPA}"
    ]


def test_uncorrected_errors(ask):
    reset = f"Reset it (nvidia-smi --gpu-reset -i 0) {REPLACE}"
    assert gpu_fitness.problems(ask("ecc"), GpuRequirements()) == [
        f"{A100}: 3 uncorrected memory error(s) since the driver was loaded. {reset}",
        f"{A100}: faulty memory waits to be taken out of use. {reset}",
    ]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"remap_failure": True}, "a faulty row of its memory could not be remapped. Replace the GPU or the host"),
        ({"retired_pending": True},
         f"faulty memory waits to be taken out of use. Reset it (nvidia-smi --gpu-reset -i 0) {REPLACE}"),
        ({"recovery_action": "Reboot"},
         "the driver asks for its recovery by «Reboot». Reset it (nvidia-smi --gpu-reset -i 0) " + REPLACE),
        ({"mig": True, "used_mib": None},
         "it is split by MIG, and a training would see a part of it. Switch MIG off (nvidia-smi -i 0 -mig 0), or take "
         "a host with a whole GPU"),
        ({"fault": "ERR!", "compute_capability": None, "memory_mib": None},
         "nvidia-smi has «ERR!» in place of what it asks it, so that the GPU or its driver has failed. Reset it "
         "(nvidia-smi --gpu-reset -i 0) " + REPLACE),
        ({"used_mib": None}, f"nvidia-smi does not tell its memory. Reset it (nvidia-smi --gpu-reset -i 0) {REPLACE}"),
        ({"memory_mib": None, "used_mib": None, "free_mib": None}, None),
        ({"recovery_action": None, "ecc_errors": None, "mig": None, "free_mib": None}, None),
    ],
)  # fmt: skip
def test_health(values, words):
    assert gpu_fitness.problems(found(card(**values)), GpuRequirements()) == ([f"{A100}: {words}"] if words else [])


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("ERR!, 4, 81278, 8.0", "ERR!"),
        ("81920, [Unknown Error], [Unknown Error], 8.0", "Unknown Error"),
        ("81920, 4, 81278, [GPU requires reset]", "GPU requires reset"),
        ("[N/A], [N/A], [N/A], 12.1", None),
    ],
)
def test_what_stands_in_place_of_a_value_of_a_gpu_that_has_failed(script, text, fault):
    row = f"0, {UUID}, X, 580.95.05, {text}, 0, No, No, [N/A], None, [N/A], [Unknown Error]"
    answer = gpu.query(script(f"case $1 in *gpu=*) echo '{row}';; esac"), timeout=600)
    assert answer["gpus"][0]["fault"] == fault
    assert bool(gpu_fitness.problems(answer, GpuRequirements())) == bool(fault)


def test_a_gpu_that_shares_the_hosts_memory_is_tried():
    gb10 = found(card(name="NVIDIA GB10", memory_mib=None, used_mib=None, free_mib=None, compute_capability="12.1"))
    wanted = GpuRequirements(cuda="13.0", memory_gib=20.0, floor_gib=9.0, bf16=True)
    assert gpu_fitness.problems(gb10, wanted) == []
    [said] = gpu_fitness.warnings(gb10, wanted)
    assert "does not tell its memory, as of a GPU that shares the host's (GB10, Jetson)" in said
    assert "thought to need 20.0 GiB" in said
    assert "should it run out of memory, end what else takes the host's (free -h)" in said


HOLDS = "process 4242 (python) holds 60000 MiB; 20.8 of 79.4 GiB are left"
TRIED = "It is tried; should it run out of memory, end what holds it, or take another GPU"


def thought(gib: str) -> str:
    return f"the training is thought to need {gib} GiB (an estimate, not measured)"


def test_somebody_else_leaves_less_than_the_weights(ask):
    wanted = GpuRequirements(memory_gib=40.0, floor_gib=20.9)
    assert gpu_fitness.problems(ask("busy"), wanted) == [
        f"{A100}: {HOLDS}, and the weights alone take 20.9 GiB. End what holds it, or take another GPU"
    ]
    assert gpu_fitness.warnings(ask("busy"), wanted) == []  # it is refused already
    assert gpu_fitness.problems(ask("busy"), GpuRequirements(memory_gib=40.0, floor_gib=20.7)) == []


def test_somebody_else_leaves_less_than_was_estimated(ask):
    wanted = GpuRequirements(memory_gib=23.8, floor_gib=5.4)
    assert gpu_fitness.problems(ask("busy"), wanted) == []
    assert gpu_fitness.warnings(ask("busy"), wanted) == [f"{A100}: {HOLDS}, and {thought('23.8')}. {TRIED}"]
    assert gpu_fitness.warnings(ask("busy"), GpuRequirements(memory_gib=20.0, floor_gib=5.4)) == []


def test_a_desktop_trains_beside_its_windows():
    """24 GB, of which 1.3 GiB show windows: less is left than was estimated, and it is tried."""
    windows = [process(1000 + number, "gnome-shell", 333) for number in range(4)]
    desktop = found(card(memory_mib=24564, used_mib=1332, free_mib=22740), processes=windows)
    wanted = GpuRequirements(memory_gib=22.5, floor_gib=5.4)
    assert gpu_fitness.problems(desktop, wanted) == []
    [said] = gpu_fitness.warnings(desktop, wanted)
    assert "process 1000 (gnome-shell) holds 333 MiB; process 1001" in said
    assert said.endswith(f"22.2 of 23.5 GiB are left, and {thought('22.5')}. {TRIED}")
    assert gpu_fitness.warnings(desktop, GpuRequirements(memory_gib=16.6, floor_gib=5.4)) == []


def test_somebody_else_and_no_estimate(ask):
    assert gpu_fitness.problems(ask("busy"), GpuRequirements()) == []
    assert gpu_fitness.warnings(ask("busy"), GpuRequirements()) == [f"{A100}: {HOLDS}. {TRIED}"]
    assert gpu_fitness.problems(ask("full"), GpuRequirements()) == [
        f"{A100}: process 4242 (python) holds 80600 MiB; 0.7 of 79.4 GiB are left, and no training fits into less than "
        "1 GiB. End what holds it, or take another GPU"
    ]
    small = found(card(used_mib=1020, free_mib=80262), processes=[process(used=1000)])
    assert gpu_fitness.problems(small, GpuRequirements()) == gpu_fitness.warnings(small, GpuRequirements()) == []


def test_a_run_of_ours_is_no_problem(ask):
    ours = ask("busy") | {"processes": [process(run="/runs/w")], "runs": ["/runs/w"]}
    assert gpu_fitness.problems(ours, GpuRequirements(memory_gib=75, floor_gib=70)) == []
    assert gpu_fitness.warnings(ours, GpuRequirements(memory_gib=75, floor_gib=70)) == []


HIDDEN = "are held by no process that can be seen from here (containers hide those of others)"


def test_memory_that_nobody_is_seen_to_hold(ask):
    assert gpu_fitness.problems(ask("hidden"), GpuRequirements(floor_gib=23.8)) == [
        f"{A100}: 60004 MiB {HIDDEN}; 20.8 of 79.4 GiB are left, and the weights alone take 23.8 GiB. End what holds "
        "it, or take another GPU"
    ]
    assert gpu_fitness.warnings(ask("hidden"), GpuRequirements(memory_gib=23.8)) == [
        f"{A100}: 60004 MiB {HIDDEN}; 20.8 of 79.4 GiB are left, and {thought('23.8')}. {TRIED}"
    ]


def test_hidden_memory_beside_a_live_run_is_taken_for_its_own(ask):
    beside = ask("hidden") | {"runs": ["/runs/w"]}
    assert gpu_fitness.problems(beside, GpuRequirements(memory_gib=75, floor_gib=70)) == []
    assert gpu_fitness.warnings(beside, GpuRequirements(memory_gib=75, floor_gib=70)) == []


def test_others_beside_a_run_of_ours():
    both = found(
        card(used_mib=60000, free_mib=21282),
        processes=[process(7, "axolotl", 20000, run="/runs/w"), process(8, "other", 30000)],
        runs=["/runs/w"],
    )
    assert gpu_fitness.problems(both, GpuRequirements(floor_gib=50)) == [
        f"{A100}: process 8 (other) holds 30000 MiB; 10000 MiB {HIDDEN}; 40.3 of 79.4 GiB are left, and the weights "
        "alone take 50.0 GiB. End what holds it, or take another GPU"
    ]
    assert gpu_fitness.problems(both, GpuRequirements(floor_gib=40)) == []


def test_a_process_whose_memory_is_not_told():
    secret = found(card(used_mib=60000, free_mib=21282), processes=[process(used=None)])
    assert gpu_fitness.problems(secret, GpuRequirements(floor_gib=50)) == [
        f"{A100}: process 4242 (python) holds an unknown amount of memory; 20.8 of 79.4 GiB are left, and the weights "
        "alone take 50.0 GiB. End what holds it, or take another GPU"
    ]
    ours = found(card(used_mib=60000, free_mib=21282), processes=[process(used=None, run="/r")], runs=["/r"])
    assert gpu_fitness.problems(ours, GpuRequirements(floor_gib=50)) == []


@pytest.mark.parametrize(
    ("text", "cuda"),
    [
        ("nvidia-cublas==13.1.1.3 \\\nnvidia-cuda-runtime==13.0.96 \\\n    --hash=sha256:0\n", "13.0"),
        ("nvidia-cuda-runtime-cu12==12.8.90 \\\n", "12.8"),
        ("torch==2.13.0+cpu \\\n    # via nvidia-cuda-runtime==13.0.96\n", None),
    ],
)
def test_the_cuda_of_a_lock(text, cuda):
    assert gpu_fitness.cuda_of_lock(text) == cuda


def test_the_cuda_of_our_locks():
    cuda = gpu_fitness.cuda_of_lock((ROOT / "requirements/trainer-cuda.txt").read_text())
    assert cuda is not None
    assert cuda.partition(".")[0] in gpu_fitness.CUDA, "note the minimum driver of this CUDA"
    assert gpu_fitness.cuda_of_lock((ROOT / "requirements/trainer-cpu.txt").read_text()) is None


# The module

CUDA_LOCK = str(ROOT / "requirements/trainer-cuda.txt")


@pytest.fixture
def module(monkeypatch, capsys):
    """Provide a run of gpu_info over the shim; it returns exit code and answer."""

    def runner(word: str, **arguments):
        monkeypatch.setenv("FAKE_GPU", word)
        with patch_module_args({"program": SMI, "timeout": 600, **arguments}), pytest.raises(SystemExit) as ended:
            load(ROOT / "library/gpu_info.py").main()
        return ended.value.code, json.loads(capsys.readouterr().out)

    return runner


def test_the_module_on_a_fit_host(module):
    code, answer = module("a100", lock=CUDA_LOCK, memory_gib=23.8, recipes=[{"tf32": True}], _ansible_check_mode=True)
    assert code == 0
    assert (answer["changed"], answer["problems"], answer["driver"]) == (False, [], "580.95.05")
    assert (answer["gpus"], answer["processes"], answer["warnings_found"]) == ([card()], [], [])


def test_the_module_passes_warnings_on(module):
    code, answer = module("t4", memory_gib=23.8, memory_floor_gib=5.4)
    assert (code, answer["problems"], len(answer["warnings_found"])) == (0, [], 1)


def test_the_lock_decides_which_driver_will_do(module):
    assert module("old-driver", lock=str(ROOT / "requirements/trainer-cpu.txt"))[0] == 0
    assert module("old-driver", lock="/not/there/yet")[0] == 0
    code, answer = module("old-driver", lock=CUDA_LOCK)
    assert (code, len(answer["problems"])) == (1, 1)
    assert "the NVIDIA driver is 535.161.08, and CUDA 13.0" in answer["msg"]


def test_the_module_refuses_with_every_problem(module):
    code, answer = module(
        "t4", lock=CUDA_LOCK, memory_gib=23.8, memory_floor_gib=14.7, recipes=[{"tf32": True, "bf16": False}]
    )
    assert code == 1
    assert answer["msg"] == "2 problem(s) with the GPU of this host:\n" + "\n".join(answer["problems"])
    assert ["tf32" in said for said in answer["problems"]] == [True, False]
    assert answer["gpus"][0]["name"] == "Tesla T4"


def test_the_module_only_looks(module):
    code, answer = module("none", required=False)
    assert (code, answer["changed"], len(answer["problems"]), answer["gpus"]) == (0, False, 1, [])


def test_the_shim_reads_its_word_from_the_environment_first():
    command = [SMI, "--query-gpu=name", "--format=csv,noheader,nounits"]
    plain = {name: value for name, value in os.environ.items() if name != "FAKE_GPU"}
    said = subprocess.run(command, env={**plain, "FAKE_GPU": "t4"}, capture_output=True, text=True, check=True).stdout
    assert said == "Tesla T4\n"
    if not pathlib.Path("/etc/fake-gpu").exists():
        assert subprocess.run(command, env=plain, capture_output=True, check=False).returncode == 6


# The words of gpu_check.py; that it computes is tested in tests/e2e


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("Unexpected error from cudaGetDeviceCount(). … Error 804: forward compatibility was attempted on non supported"
         " HW", "or take a host with a newer driver"),
        ("Error 802: system not yet initialized", "Start nvidia-fabricmanager"),
        ("CUDA error: no kernel image is available for execution on the device", "Take another GPU, or lock a torch"),
        ("CUDA error: CUDA driver version is insufficient for CUDA runtime version", "Update the driver"),
        ("The NVIDIA driver on your system is too old (found version 12020).", "Update the driver"),
        ("Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver",
         "there is no GPU here: no NVIDIA driver was found. Start the container with its GPUs"),
        ("CUDA out of memory. Tried to allocate 20.00 MiB.", "end it, or take another GPU"),
        ("CUDA error: uncorrectable ECC error encountered", "replace a rented host"),
        ("Torch not compiled with CUDA enabled", "trainer_lock: trainer-cuda"),
        ("Failed to find C compiler. Please specify via CC", "Install one (Debian, Ubuntu: gcc and libc6-dev;"),
        ("main.c:6:10: fatal error: Python.h: No such file or directory",
         f"Debian, Ubuntu: python{sys.version_info[0]}.{sys.version_info[1]}-dev; Fedora"),
        ("main.c:6:10: fatal error: 'Python.h' file not found", "which brings its own: trainer_python_download: true"),
        ("No module named 'torch'", "the environment is not whole (RuntimeError: No module named 'torch')"),
        ("No CUDA GPUs are available",
         "CUDA does not work on this host, even where nvidia-smi looks fine (RuntimeError: No CUDA GPUs are available)."
         " Such bad hosts are known: reboot it, and replace a rented one"),
    ],
)  # fmt: skip
def test_known_cuda_errors_become_sentences(said, words):
    sentence = load(ROOT / "roles/trainer/files/gpu_check.py").sentence(RuntimeError(said))
    assert words in sentence
    assert "\n" not in sentence


def test_the_check_without_an_environment_says_so_on_one_line(tmp_path):
    """Any Python without torch will do; an empty module in its place is as good."""
    (tmp_path / "torch.py").write_text("print('noise')\nimport no_such_module\n")
    command = [sys.executable, str(ROOT / "roles/trainer/files/gpu_check.py")]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"].startswith("the environment is not whole")
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr
