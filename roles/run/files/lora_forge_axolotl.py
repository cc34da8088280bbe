"""The Axolotl plugin of a run: metrics, clean stops, whole checkpoints, and a W&B that cannot end a training.

It also says what the adapter has to consist of, before the model is loaded, and what no gradient ever reached. Axolotl
loads it by name (``plugins: [lora_forge_axolotl.LoraForgePlugin]``) and hands its callbacks to the trainer. It runs in
the trainer's environment with the run directory as working directory; ``rundir.py`` lies beside it.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import importlib.metadata
import os
import pathlib
import re
import shutil
import signal
import sys
import time
from typing import Any

import answer_cases
import expected_adapter
import gang
import rundir
from axolotl.integrations.base import BasePlugin
from transformers import TrainerCallback

METRICS = pathlib.Path("metrics.jsonl")
WEIGHTS = "model.safetensors"
TAG = 64  # characters that W&B takes
FIRST = 1  # the step that a warmup takes with a learning rate of 0: what is evaluated after it has learnt nothing
WANDB_TIMEOUT = 30  # seconds a GPU waits for W&B, at the beginning and at the end


class RunCallback(TrainerCallback):
    """Reports a training to metrics.jsonl and turns SIGTERM into a checkpoint and a clean stop."""

    def __init__(self, trainer: Any, prepared: pathlib.Path):
        self.trainer = trainer
        self.prepared = prepared
        self.stop_wanted = False
        self.stops = False  # whether it ends because of that, before its time
        self.trains = False  # whether it was reported that what it resumes from was read
        self.step_began = 0.0
        self.seconds = 0.0  # spent in training steps since the last report, evaluations left out
        self.tokens = 0.0  # seen by the model until the last report

    def report(self, event: str, state: Any, **values: Any) -> None:
        if rundir.writes():  # on each host of a gang: its supervisor reads what its own disk holds
            rundir.append_event(METRICS, event, step=state.global_step, planned=state.max_steps, **values)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Axolotl handles SIGINT and nothing else; before this line a SIGTERM simply ends the process.
        signal.signal(signal.SIGTERM, self.on_sigterm)
        if state.global_step:
            # What a checkpoint is worth is known; once more would count against early stopping's patience.
            args.eval_on_start = False
            self.judge_anew(args, state)
        if rundir.writes() and self.prepared.is_dir():
            rundir.write_json(self.prepared / rundir.COMPLETE, {})  # the tokenised data is whole
        self.report("begin", state, epoch=state.epoch)

    def judge_anew(self, args: Any, state: Any) -> None:
        """Forget a best adapter whose checkpoint is not here, as on another trainer: nothing could be as good again."""
        output = pathlib.Path(args.output_dir)
        best, own = (output / f"checkpoint-{step}" for step in (state.best_global_step, state.global_step))
        if not gang.agreed(bool(state.best_global_step and rundir.defect(best)), args.device):
            # Where it lies on this host, whatever the one says that wrote the state.
            state.best_model_checkpoint = str(best) if state.best_global_step else None
            return
        print(f"the best adapter so far, {best.name}, is not here; the best of what follows is delivered", flush=True)
        evaluated = {entry["step"]: entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry}
        state.best_metric = evaluated.get(state.global_step)
        state.best_global_step = state.global_step if state.best_metric is not None else None
        state.best_model_checkpoint = str(own) if state.best_metric is not None else None

    def on_sigterm(self, number: int, frame: Any) -> None:
        self.stop_wanted = True

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.best_global_step == FIRST:
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None
        if not self.trains:
            self.trains = True
            self.report("step", state)  # what ends it from here on is not the fault of a checkpoint that cannot be read
        self.step_began = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds += time.monotonic() - self.step_began
        # Whoever was told, all processes stop at the same step, or they would wait for each other for ever.
        self.stop_wanted = gang.agreed(self.stop_wanted or gang.stop_wanted(), args.device)
        # In its last step it has nothing left to go on with, and a start from there would not evaluate any more.
        self.stops = self.stop_wanted and state.global_step < state.max_steps
        if self.stops:
            # It goes on from here: nothing is delivered, and transformers must not tidy this checkpoint away.
            args.load_best_model_at_end = False
            args.save_total_limit = max(args.save_total_limit, 2) if args.save_total_limit else None
            self.report("stop", state, reason="SIGTERM")
            control.should_save = True
            control.should_training_stop = True
        elif state.global_step >= state.max_steps and self.trainer.eval_dataset is not None:
            control.should_evaluate = True  # every run evaluates at its end, whatever eval_steps is

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        logs = logs or {}
        if "loss" in logs:
            total = float(logs.get("tokens/total", 0))
            rate = (total - self.tokens) / self.seconds if self.seconds and total > self.tokens else None
            self.tokens, self.seconds = total, 0.0
            self.report(
                "log",
                state,
                epoch=logs.get("epoch"),
                loss=number(logs["loss"]),
                grad_norm=number(logs.get("grad_norm")),
                learning_rate=number(logs.get("learning_rate")),
                tokens_per_second=None if rate is None else round(rate, 1),
            )
        elif "eval_loss" in logs:
            self.report("eval", state, epoch=logs.get("epoch"), eval_loss=number(logs["eval_loss"]))

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        # Checkpoints and evaluations each have their own rhythm; without this the best one would seldom be on the disk.
        loss = (metrics or {}).get("eval_loss")
        if not args.load_best_model_at_end or state.global_step <= FIRST or loss is None or args.save_strategy == "no":
            return
        best = state.best_metric if state.best_global_step not in (None, FIRST) else None
        control.should_save |= gang.agreed(loss < (float("inf") if best is None else best), args.device)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        checkpoint = pathlib.Path(args.output_dir) / f"checkpoint-{state.global_step}"
        gang.barrier()  # of a sharded one each process writes its part
        if rundir.writes() and checkpoint.is_dir():
            rundir.mark_complete(checkpoint, state.global_step)
            self.report("save", state, checkpoint=checkpoint.name)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        early = not self.stops and state.global_step < state.max_steps
        if rundir.writes():
            state.save_to_json(str(pathlib.Path(args.output_dir) / "trainer_state.json"))
        best = args.load_best_model_at_end and state.best_model_checkpoint  # it has just been loaded
        self.report(
            "end",
            state,
            reason="early stopping" if early and control.should_training_stop else None,
            adapter=state.best_global_step if best else state.global_step,
        )


class GradientCallback(TrainerCallback):
    """Notes which tensors of the adapter no gradient has reached, in all starts of a run: they stay as they began.

    The note lies beside the files of each checkpoint, so that a resume goes on with it, and of the adapter in the end.
    """

    def __init__(self) -> None:
        self.waiting: dict[str, Any] = {}  # name in the adapter's file -> parameter

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.waiting = {saved_name(name): one for name, one in model.named_parameters() if one.requires_grad}
        if state.global_step:
            noted = rundir.read_json(
                pathlib.Path(args.output_dir) / f"checkpoint-{state.global_step}" / rundir.GRADIENTS
            )
            never = noted.get("never")
            if isinstance(never, list):  # an earlier lora-forge left none: what counts is what comes
                self.waiting = {name: one for name, one in self.waiting.items() if name in never}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.waiting = {name: one for name, one in self.waiting.items() if not has_gradient(one)}

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        checkpoint = pathlib.Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if rundir.writes() and checkpoint.is_dir():
            rundir.write_json(checkpoint / rundir.GRADIENTS, {"never": sorted(self.waiting)})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        note: dict[str, Any] = {"never": sorted(self.waiting)}
        if args.load_best_model_at_end and state.best_model_checkpoint:  # it has just been loaded
            note = rundir.read_json(pathlib.Path(state.best_model_checkpoint) / rundir.GRADIENTS) or note
        if rundir.writes():
            rundir.write_json(pathlib.Path(args.output_dir) / rundir.GRADIENTS, note)


def saved_name(name: str) -> str:
    """Return the name of a parameter in adapter_model.safetensors: without what wraps a model, and the adapter's."""
    name = re.sub(r"(^|\.)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)", r"\1", name)
    return re.sub(r"\.default(?=\.|$)", "", re.sub(r"\.{2,}", ".", name).lstrip("."))


def has_gradient(parameter: Any) -> bool:
    """Tell whether a gradient has reached a parameter in this step; of one in parts, the part of this process."""
    gradient = parameter.grad
    return gradient is not None and bool(getattr(gradient, "_local_tensor", gradient).any())


def expect(cfg: Any) -> None:
    """Write expected.json, on each host of a gang, unless an earlier start or the check before the training has.

    What was made of another base model than this one, as of a folder that has changed since, is made anew; of a commit
    of the hub nothing can change.

    Args:
        cfg: Axolotl's configuration.

    Raises:
        expected_adapter.Refused: No adapter could come of it that holds up; the supervisor knows it by its name.
    """
    path = pathlib.Path(rundir.EXPECTED)
    noted = rundir.read_json(path)
    known = (noted.get("schema"), noted.get("base_model")) == (expected_adapter.SCHEMA, cfg.base_model)
    if not rundir.writes() or (known and noted.get("revision")):
        return
    from axolotl.loaders import load_tokenizer

    rundir.write_json(path, expected_adapter.expected(cfg, load_tokenizer(cfg)))


def number(value: Any) -> Any:
    """Return a figure as JSON can hold it: Axolotl logs some as text; NaN and infinity become text."""
    if value is None:
        return None
    value = float(value)
    return value if abs(value) < float("inf") else str(value)


def start_wandb(cfg: Any) -> None:
    """Begin the W&B run, or go on with it after a resume: one run there for one run here.

    Transformers takes the run that it finds. Left to itself it would begin one when the model is loaded, and a server
    that is down would end the training; so it is begun here, and recorded offline when W&B cannot be reached.

    Args:
        cfg: Axolotl's configuration; what is known of the run stands in run.json.
    """
    wanted = os.environ.get("WANDB_MODE", "online")
    mode: Any = wanted
    if not cfg.use_wandb or mode == "disabled" or os.environ.get("RANK", "0") != "0":
        return
    import wandb

    noted = rundir.read_json(pathlib.Path("run.json"))
    known = {
        "project": cfg.wandb_project,
        "entity": cfg.wandb_entity,
        "id": noted["run_id"],
        "name": cfg.wandb_name or noted["run_id"],
        "resume": "allow",
        "tags": [noted["agent"], noted["host"][:TAG], *(["rehearsal"] if noted["rehearsal"] else [])],
        "config": {
            "lora_forge": {key: noted[key] for key in ("run_id", "fingerprint", "recipe_sha256", "datasets", "host")}
        },
        "settings": wandb.Settings(init_timeout=WANDB_TIMEOUT, finish_timeout=WANDB_TIMEOUT),
    }
    try:
        run = wandb.init(**known, mode=mode)
    except Exception as error:  # whatever it is, it must not end the training
        print(f"W&B cannot be reached, the run is recorded offline: {error}", file=sys.stderr, flush=True)
        wandb.teardown()  # it would hold the run's id for in use
        mode = "offline"
        try:
            run = wandb.init(**known, mode=mode)
        except Exception as another:
            print(f"W&B records nothing: {another}", file=sys.stderr, flush=True)
            cfg.use_wandb = False
            rundir.append_event(METRICS, "wandb", mode="disabled", wanted=wanted, run=None, url=None)
            return
    rundir.append_event(METRICS, "wandb", mode=mode, wanted=wanted, run=run.path, url=run.url)


def note_templates(cfg: Any, tokenizer: Any) -> None:
    """Note the chat templates that the data is rendered with, as Axolotl's own strategy finds them.

    What is delivered is held against them: Axolotl delivers one with the tokenizer, and renders with what it is told of
    each dataset.

    Args:
        cfg: Axolotl's configuration.
        tokenizer: The tokenizer, or the processor that has it.
    """
    from axolotl.utils.chat_templates import get_chat_template_from_config

    if not rundir.writes() or cfg.tokenizer_use_mistral_common:
        return
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    texts = {str(get_chat_template_from_config(cfg, entry, tokenizer)) for entry in cfg.datasets or []}
    for digest in sorted(hashlib.sha256(text.encode()).hexdigest() for text in texts):
        rundir.append_event(METRICS, "template", sha256=digest)


def make_weights(folder: pathlib.Path, seed: int = 0) -> None:
    """Make the random weights of a rehearsal's model, where it has none yet (tiny_model.py).

    They are made here because torch and transformers are imported here anyway. The same seed makes the same weights,
    so that the hosts of a gang, and a run that goes on elsewhere, have the same base.

    Args:
        folder: Of the model, with its config.json.
        seed: Of the weights; what the training draws afterwards does not depend on it.
    """
    import torch
    import transformers

    with rundir.locked(folder):  # other processes of this run, and other runs on the same model
        if (folder / WEIGHTS).exists():
            return
        config = transformers.AutoConfig.from_pretrained(folder)
        made = folder / f"partial.{os.uname().nodename}.{os.getpid()}"  # other nodes may see the same folder
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = getattr(transformers, config.architectures[0])(config).float()
        model.save_pretrained(made, max_shard_size="100GB")
        (made / WEIGHTS).rename(folder / WEIGHTS)
        shutil.rmtree(made)


def foreign_plugins() -> list[str]:
    """List what other packages would have Axolotl load by itself, by the groups that Axolotl 0.21 reads."""
    groups = ("axolotl.plugins", "axolotl.model_support")
    points = [point for group in groups for point in importlib.metadata.entry_points(group=group)]
    return sorted(point.value for point in points if not point.value.startswith("axolotl."))


class LoraForgePlugin(BasePlugin):
    """Axolotl's plugin interface to the callbacks, and a count of what the length limits did to the data.

    Attributes:
        trains: Whether this process trains. One that only answers cases writes nothing of what a training writes.
    """

    trains = True

    def __init__(self) -> None:
        super().__init__()
        self.trained: Any = None  # the model, once its training came to its end
        self.running: Any = None  # the RunCallback

    def register(self, cfg: dict[str, Any]) -> None:
        foreign = foreign_plugins()
        if foreign:
            raise RuntimeError(
                f"Axolotl loads {', '.join(foreign)} by itself, because a package in this environment brings it. "
                "Nothing trains that the recipe does not name. Delete the environment; it is made anew from its lock"
            )
        import torch

        if not torch.cuda.is_available():
            # Linear attention (Qwen3.5) takes its kernels wherever they can be imported, and those need a GPU; without
            # them transformers computes the same in torch.
            sys.modules["fla"] = None  # type: ignore[assignment]

    def pre_model_load(self, cfg: Any) -> None:
        if self.trains:
            expect(cfg)
        gc.freeze()  # what was imported since the data was loaded
        if rundir.read_json(pathlib.Path("run.json")).get("rehearsal"):
            make_weights(pathlib.Path(cfg.base_model))
        if self.trains:
            start_wandb(cfg)

    def post_model_build(self, cfg: Any, model: Any) -> None:
        # On a CPU with AVX512-BF16 an evaluation packs the weights for inference (bitsandbytes 0.50), and they stay
        # packed: no gradient passes them any more, so that a rehearsal would learn in its last layers only.
        for module in model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False

    def post_lora_load(self, cfg: Any, model: Any) -> None:
        # PEFT leaves it out, and whoever loads the adapter by its own word would get the newest base of that name.
        for config in getattr(model, "peft_config", {}).values():
            config.revision = cfg.revision_of_model or None

    def get_training_args(self, cfg: Any) -> dict[str, Any]:
        """On several hosts each keeps its own checkpoints, as each resumes from its own disk."""
        several = os.environ.get("WORLD_SIZE", "1") != os.environ.get("LOCAL_WORLD_SIZE", "1")
        return {"save_on_each_node": True} if several and rundir.ONE_FOLDER not in os.environ else {}

    def load_datasets(self, cfg: Any, preprocess: bool = False) -> None:
        """Count examples that are truncated or dropped, while Axolotl itself loads the data."""
        from axolotl.utils.data import sft

        # Axolotl collects garbage at every checkpoint, and often while it packs: what a million objects of imported
        # modules are made of need not be looked at each time, half a second long.
        gc.freeze()
        original = sft.handle_long_seq_in_dataset
        if getattr(original, "counted", False):
            return

        @functools.wraps(original)
        def counting(dataset: Any, sequence_len: int, cfg: Any) -> Any:
            lengths = [len(ids) for ids in dataset["input_ids"]]
            kept = original(dataset, sequence_len, cfg)
            # No question of who writes: one process prepares the data in a folder, and all others wait for it.
            rundir.append_event(
                METRICS,
                "data",
                examples=len(lengths),
                tokens=sum(lengths),
                longer=sum(length > sequence_len for length in lengths),
                dropped=len(lengths) - len(kept),
                # What has no assistant token left within the limit is dropped by sample packing.
                untrainable=sum(all(label == -100 for label in labels) for labels in kept["labels"]),
            )
            return kept

        counting.counted = True  # type: ignore[attr-defined]
        sft.handle_long_seq_in_dataset = counting

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        """Have the best evaluated adapter delivered, where the recipe wants it; note the chat template.

        Axolotl, and the arguments of transformers when they are made, take that only where each save falls on an
        evaluation; :meth:`RunCallback.on_evaluate` sees to it that there is a checkpoint of the best one.
        """
        sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
        if cfg.load_best_model_at_end and trainer.eval_dataset is not None and not (cfg.save_only_model and sharded):
            trainer.args.load_best_model_at_end = True
            trainer.args.metric_for_best_model = "loss"  # what promotion compares; rules.py refuses any other
            trainer.args.greater_is_better = False
        note_templates(cfg, trainer.processing_class)
        if rundir.ONE_FOLDER in os.environ:  # Axolotl's own sign of who saves the adapter: the first one of each host
            cfg.local_rank = int(os.environ["RANK"])

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[TrainerCallback]:
        self.running = RunCallback(trainer, pathlib.Path(cfg.dataset_prepared_path))
        # The note first: a checkpoint's list of files is written last.
        return [GradientCallback(), self.running]

    def post_train(self, cfg: Any, model: Any) -> None:
        self.trained = model  # Axolotl 0.21 says so before it saves the adapter, and again after that

    def post_train_unload(self, cfg: Any) -> None:
        """Answer the agent's cases: the adapter is saved, and the model still there, so that nothing is loaded again.

        Where several processes have trained, their supervisor has one of its own do it. Whatever goes wrong here costs
        answers, which can be given later, and never the adapter.
        """
        model, self.trained = self.trained, None
        alone = os.environ.get("WORLD_SIZE", "1") == "1"
        if model is None or sys.exc_info()[0] is not None or not alone or not answer_cases.QUESTIONS.exists():
            return
        try:
            answer_cases.answer_after_training(pathlib.Path(cfg.output_dir), model, lambda: self.running.stop_wanted)
        except Exception as error:
            print(f"cases are left unanswered: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
