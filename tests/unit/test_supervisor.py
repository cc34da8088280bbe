"""What the supervisor reads in the end of a training's log."""

from __future__ import annotations

import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "roles/run/files"))

import supervisor  # noqa: E402

FRAME = 'Traceback (most recent call last):\n  File "/env/axolotl/cli/train.py", line 120, in do_cli\n    train()\n'
CAUSED = "\n\nThe above exception was the direct cause of the following exception:\n\n"
MEANWHILE = "\n\nDuring handling of the above exception, another exception occurred:\n\n"
LEAK = '\nnanobind: leaked 1 functions!\n - leaked function ""\nnanobind: this is likely caused by a bug.\n'


def told(text: str) -> str:
    return supervisor.told(supervisor.failures(text))


@pytest.mark.parametrize("name", ["RuntimeError", "datasets.exceptions.DatasetNotFound", "KeyboardInterrupt", "my.Own"])
def test_the_last_exception_is_told_whatever_its_name_and_whatever_follows(name: str) -> None:
    text = f"[2026-11-29 13:26:00,142] [INFO] starting\n{FRAME}{name}: it is so{LEAK}wandb: synced\n"
    assert told(text) == f"{name}: it is so"


def test_what_an_exception_came_of_is_told_beside_it() -> None:
    worker = (
        f'multiprocess.pool.RemoteTraceback: \n"""\n{FRAME}ValueError: Column(/a) was specified twice in row 29\n"""'
    )
    text = f"{worker}{CAUSED}{FRAME}ValueError: see above{CAUSED}{FRAME}DatasetGenerationError: not generated{LEAK}"
    assert told(text) == (
        "DatasetGenerationError: not generated (because of ValueError: Column(/a) was specified twice in row 29)"
    )
    assert told(f"{FRAME}KeyError: 'a'{MEANWHILE}{FRAME}OSError: b") == "OSError: b (because of KeyError: 'a')"


def test_a_cause_that_is_repeated_by_what_it_led_to_is_told_once() -> None:
    assert told(f"{FRAME}ValueError: x{CAUSED}{FRAME}RuntimeError: it failed: ValueError: x") == (
        "RuntimeError: it failed: ValueError: x"
    )


def test_an_exception_of_several_lines_is_told_whole_and_no_line_of_the_log_with_it() -> None:
    pydantic = "pydantic_core.ValidationError: 1 validation error for Config\n  Value error, a and b [type=value_error]"
    after = "\n[2026-11-29 13:26:00,142] [INFO] [axolotl] bye\n"
    assert told(f"{FRAME}{pydantic}{after}") == pydantic
    assert told(f"{FRAME}A: b\n  0%|          | 0/4 [00:00<?, ?it/s]\n") == "A: b"
    assert len(told(FRAME + "A: " + "many\n" * 50).splitlines()) == supervisor.MESSAGE


@pytest.mark.parametrize(
    "aside",
    [
        f"Exception ignored in: <function Pool.__del__ at 0x7f>\n{FRAME}AttributeError: no pool",
        f"Exception in thread Thread-3:\n{FRAME}AttributeError: no thread",
        f"{FRAME}torch.distributed.elastic.multiprocessing.errors.ChildFailedError: ",
    ],
)
def test_what_did_not_end_the_training_is_not_told(aside: str) -> None:
    assert told(f"{FRAME}RuntimeError: why\n{aside}\n") == "RuntimeError: why"


CHILD = "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n====\nprograms/gang.py FAILED\n"
AFTERMATH = {
    "the meeting was on the node of the one that failed": (
        'Traceback (most recent call last):\n  File "/env/torch/c10d_rendezvous_backend.py"'
        ", line 114, in _call_store\n    return getattr(self._store, store_op)(*args, **kwargs)\n"
        "torch.distributed.DistNetworkError: failed to recv, got 0 bytes"
        f"{CAUSED}{FRAME}torch.distributed.elastic.rendezvous.api.RendezvousConnectionError: "
        "The connection to the C10d store has failed. See inner exception for details."
    ),
    "srun has ended who was left": (
        f"{FRAME}torch.distributed.elastic.multiprocessing.api.SignalException: Process 4711 got signal: 15"
    ),
    "gloo": (
        f"{FRAME}RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] "
        "Connection closed by peer [10.88.3.4]:41822"
    ),
    "NCCL": (
        f"{FRAME}torch.distributed.DistBackendError: NCCL error in: /pytorch/NCCLUtils.cpp:93, remote process "
        "exited or there was a network error, NCCL version 2.27.5\n"
        "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely."
    ),
}


@pytest.mark.parametrize("after", AFTERMATH.values(), ids=AFTERMATH)
def test_what_a_failure_brought_upon_others_is_told_only_where_nothing_else_is(after: str) -> None:
    assert told(f"{FRAME}RuntimeError: why\n{FRAME}{CHILD}{after}\n{FRAME}{CHILD}") == "RuntimeError: why"
    assert told(f"{after}\n{FRAME}RuntimeError: why\n") == "RuntimeError: why"
    alone = told(f"{after}\n")
    assert alone.partition(" (because")[0].split("\n")[0] in after.splitlines()


def test_of_two_failures_the_later_one_counts() -> None:
    assert told(f"{FRAME}ImportError: no kernel, going on\nLoading\n{FRAME}RuntimeError: why") == "RuntimeError: why"


def test_the_processes_of_a_gang_name_their_rank_before_each_line() -> None:
    text = "".join(f"[rank1]: {line}\n" for line in f"{FRAME}torch.OutOfMemoryError: CUDA out of memory".splitlines())
    assert told(text) == "torch.OutOfMemoryError: CUDA out of memory"


def test_without_a_traceback_the_last_lines_are_told_without_the_noise_of_the_end() -> None:
    assert told("killed by its owner\n") == ""
    assert supervisor.last_words("token: secret\nRuntimeError: it is so\nbye") == "RuntimeError: it is so\nbye"
    assert supervisor.last_words(f"one\rtwo\n\nkilled by its owner{LEAK}") == "one\ntwo\nkilled by its owner"


def test_other_launchers_variables_are_left_behind() -> None:
    """RunPod's clusters set the first four for every process of an account."""
    foreign = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE",
               "TORCHELASTIC_RUN_ID", "PET_NNODES", "ACCELERATE_USE_FSDP", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE",
               "HF_HUB_CACHE", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")  # fmt: skip
    kept = {"PATH": "/bin", "HF_TOKEN": "x", "MY_RANK": "1", "PYTORCH_ALLOC_CONF": "backend:native"}
    found = supervisor.inherited({**dict.fromkeys(foreign, "1"), **kept})
    assert found == {**kept, "XFORMERS_IGNORE_FLASH_VERSION_CHECK": "1"}


def test_what_axolotls_own_command_sets_is_set_unless_it_is_there() -> None:
    assert supervisor.inherited({})["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    old = {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64", "XFORMERS_IGNORE_FLASH_VERSION_CHECK": "0"}
    assert supervisor.inherited(old) == old


@pytest.mark.parametrize("line", ["wandb: WARNING no URL", "nanobind: leaked", "[rank0]: bye"])
def test_what_libraries_say_before_a_traceback_does_not_hide_it(line: str) -> None:
    assert told(f"{FRAME}ValueError: survived\n{line}\n{FRAME}RuntimeError: why\n") == "RuntimeError: why"


@pytest.mark.parametrize(
    "line", ["--- Logging error ---", "Process SpawnProcess-1:", "Task exception was never retrieved"]
)
def test_what_is_told_of_others_at_the_end_is_not_what_ended_it(line: str) -> None:
    assert told(f"{FRAME}RuntimeError: why\n{line}\n{FRAME}OSError: closed\n") == "RuntimeError: why"


def test_processes_that_fail_at_once_and_write_among_each_other() -> None:
    both = f"Traceback (most recent call last):\n{FRAME}RuntimeError: no driver\n{FRAME}RuntimeError: no driver\n"
    assert told(both) == "RuntimeError: no driver"
    group = "  + Exception Group Traceback (most recent call last):\n  |   File x\n  | ExceptionGroup: two\n"
    assert told(f"{FRAME}RuntimeError: why\n{group}wandb: View run\n") == "RuntimeError: why"


def test_who_has_the_lane_is_looked_up_once_for_each_heartbeat(tmp_path: pathlib.Path, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(
        supervisor.rundir, "lane_holder", lambda *given: asked.append(given) or f"run-{len(asked)} has it"
    )
    (tmp_path / "run.json").write_text('{"lane": "GPU-1"}')
    run = supervisor.Supervisor(tmp_path)
    assert [run.held_by() for _ in range(50)] == ["run-1 has it"] * 50
    run.write()
    assert [run.held_by() for _ in range(50)] == ["run-2 has it"] * 50
    assert asked == [(tmp_path, "GPU-1")] * 2
