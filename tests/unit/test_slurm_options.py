"""What run_slurm may ask for, and what its times come to."""

from __future__ import annotations

import pytest
from ansible.module_utils.lora_forge.trainer import slurm_options

GIVEN = {"partition": "gpu", "gres": "gpu:1", "time": "12:00:00"}


@pytest.mark.parametrize(
    "given",
    [
        GIVEN,
        {"gres": "gpu:a100:1"},
        {"gres": "gpu:a100:1,shard:0"},
        {"gres": "gpu"},
        {"gres": "gpu:1(S:0-1,3)"},
        {"gres": "gpu:2080ti:1"},
        {"gres": "gpu:3090:1"},
        {"gres": "gpu:1g.10gb:1"},
        {"gres": "tmpdisk:3090,gpu:h100=1"},
        {"gpus": 1},
        {"gpus": "a100:1", "comment": "proj-7", "gres": "tmpdisk:100"},
        {**GIVEN, "time": "2-12"},
        {**GIVEN, "time": "90"},
        {**GIVEN, "time": "4:01"},
        {**GIVEN, "time": "0"},
        {**GIVEN, "time": "UNLIMITED"},
        {**GIVEN, "cpus": 8, "memory": "64G", "constraint": "a100|h100&nvlink", "nodelist": "c[1-2,7]"},
    ],
)
def test_what_a_job_may_ask_for(given):
    assert slurm_options.problems(given, 1) == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("gpu", "must be a mapping"),
        ({**GIVEN, "partiton": "gpu"}, "no «partiton»; did you mean «partition»"),
        ({**GIVEN, "wrap": "rm -rf /"}, "no «wrap»"),
        ({**GIVEN, "cpus_per_task": 8}, "no «cpus_per_task»; did you mean «cpus»?"),  # as sbatch calls it
        ({**GIVEN, "mem": "8G"}, "no «mem»; did you mean «memory»?"),
        ({**GIVEN, "account": "lab --wrap=x"}, "account is «lab --wrap=x»"),
        ({**GIVEN, "account": "--help"}, "account is «--help»"),
        ({**GIVEN, "account": ""}, "account is «»"),
        ({**GIVEN, "account": "lab\n#SBATCH"}, "account is"),
        ({**GIVEN, "gpus": 1}, "gres and gpus both ask for GPUs"),
        ({"gpus": "a100:2"}, "asks for 2 GPUs, and a run takes 1"),
        ({"gres": "gpu:3090"}, "asks for 3090 GPUs"),  # as Slurm reads it
        ({**GIVEN, "time": 43200}, "must stand in quotes"),  # YAML 1.1 reads 12:00:00 so
        ({**GIVEN, "time": "noon"}, "time is «noon»"),
        ({**GIVEN, "time": "4"}, "time is «4», and a job is told to end 180 s before"),
        ({**GIVEN, "time": "00:02:59"}, "it would come to nothing"),
        ({**GIVEN, "cpus": True}, "cpus must be text or a whole number"),
        ({**GIVEN, "cpus": ["8"]}, "cpus must be text or a whole number"),
        ({"partition": "gpu"}, "asks for no GPU, and a run takes 1 (run_gpus): set gres to 'gpu:1'"),
        ({**GIVEN, "gres": "gpu:2"}, "asks for 2 GPUs, and a run takes 1"),
    ],
)
def test_what_a_job_may_not_ask_for(given, words):
    assert words in "; ".join(slurm_options.problems(given, 1))


@pytest.mark.parametrize(
    ("time", "hours"),
    [("90", 1.5), ("90:36", 1.51), ("12:30:00", 12.5), ("2-00", 48), ("1-12:30", 36.5), ("1-00:00:36", 24.01),
     ("UNLIMITED", None), (None, None)],
)  # fmt: skip
def test_what_a_time_comes_to(time, hours):
    found = slurm_options.hours_of({"time": time} if time else {})
    assert found == (None if hours is None else pytest.approx(hours))


def test_a_rehearsal_needs_no_gpu():
    assert slurm_options.problems({}, 0) == []
    assert slurm_options.problems(GIVEN, 0) == []


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [("90", 5400), ("1:30", 90), ("12:00:00", 43200), ("2-12", 216000), ("1-0:30", 88200), ("1-0:0:5", 86405),
     ("0", None), ("INFINITE", None)],
)  # fmt: skip
def test_time_limits_are_read_as_slurm_reads_them(limit, seconds):
    assert slurm_options.seconds_of(limit) == seconds
