"""Read a recipe's layers, merge them, check them against Axolotl's schema, and compute a recipe's fingerprint."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import pathlib
import re
from collections.abc import Iterable
from typing import Any, Callable, Optional

import jsonschema
import yaml
from ansible.module_utils.lora_forge.data import conversation
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.text import canonical, nearest

# The one place that tells the two kinds of keys apart. Machine keys decide only how fast; they may stand in
# configs/machines/ and are not part of a fingerprint. The batch sizes are here because only their product is. How an
# evaluation is batched is none of them: its loss is a mean over batches, and decides which adapter is the best one.
MACHINE_KEYS = frozenset(
    """
    activation_offloading attn_implementation bf16 bfloat16 chunked_cross_entropy chunked_cross_entropy_num_chunks
    cut_cross_entropy cut_cross_entropy_accum_c_fp32 cut_cross_entropy_c_grad_chunk_size dataloader_num_workers
    dataloader_pin_memory dataloader_prefetch_factor dataset_num_proc ddp_find_unused_parameters ddp_timeout
    deepspeed device_map fa_varlen_kwargs_in_collator flash_attn_cross_entropy flash_attn_fuse_mlp float16 fp16
    fsdp_config fsdp_version gc_collect_steps gradient_accumulation_steps gradient_checkpointing
    gradient_checkpointing_kwargs include_tkps liger_cross_entropy liger_fused_linear_cross_entropy
    liger_glu_activation liger_layer_norm liger_rms_norm liger_rope lora_embedding_kernel lora_mlp_kernel
    lora_o_kernel lora_qkv_kernel low_cpu_mem_usage max_memory micro_batch_size nf4_backend pad_to_sequence_len
    sample_packing_mp_start_method sdpa_varlen tf32 torch_compile torch_compile_backend torch_compile_mode
    torch_compile_regional torch_empty_cache_steps unfrozen_parameters_on_cpu
    """.split()
)
# Bookkeeping: what is written where. Neither what is learnt nor how fast.
RECORD_KEYS = frozenset(
    "export logging_nan_inf_filter logging_steps save_only_model save_total_limit strict sync_profiler_start_step "
    "sync_profiler_steps use_tensorboard use_wandb wandb_entity wandb_log_model wandb_name wandb_project "
    "wandb_watch".split()
)
# Computed for every run; a recipe that sets them would be overruled without a message.
COMPUTED_KEYS = frozenset(
    "auto_resume_from_checkpoints dataset_prepared_path output_dir resume_from_checkpoint test_datasets wandb_mode "
    "wandb_run_id".split()
)
# Axolotl's plugins that read machine keys: without its plugin such a key would change nothing, or be refused.
KERNEL_PLUGINS = {
    "axolotl.integrations.liger.LigerPlugin": "liger_",
    "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin": "cut_cross_entropy",
}
# Axolotl's own LoRA kernels. A recipe that names none of them trains with all; one that names some, with those alone.
LORA_KERNELS = ("lora_embedding_kernel", "lora_mlp_kernel", "lora_o_kernel", "lora_qkv_kernel")
# Those that draw a dropout otherwise than PEFT, which has a mask for each module: q, k and v share one, gate and up
# share one, and down has none (axolotl/kernels/lora.py). With a dropout they decide what is learnt; without one, only
# how fast. The kernel of o_proj draws its own mask, as PEFT does, and that of embeddings has none, as in PEFT.
_DROPOUT_KERNELS = ("lora_mlp_kernel", "lora_qkv_kernel")
_SHOWN = 40  # letters of a value in a message
COMMIT = r"[0-9a-f]{40}"  # of the hub, in full
_MOST = 100_000_000  # of what is counted in a recipe; more is a slip of the hand
_LARGEST_BATCH = 1_000_000  # sequences of a step
_LARGEST_FILE = 1 << 20  # bytes
_DEEPEST = 50  # lists and mappings in each other
_MOST_VALUES = 20_000  # of one key; a few lines with YAML's anchors make millions
_BITS = 64  # of a number
_NO_TEXT = re.compile(r"[\0\ud800-\udfff]")
TARGETS = ("lora_target_modules", "lora_target_linear", "lora_target_parameters")  # any of them says what is adapted
NEEDED = ("base_model", "sequence_len", "lora_r")  # the plan and the adapter's proof read them
BATCH = ("micro_batch_size", "gradient_accumulation_steps")


def _is_set(value: Any) -> bool:
    return bool(value)


def _other_than(*harmless: Any) -> Callable[[Any], bool]:
    return lambda value: bool(value) and value not in harmless


@dataclasses.dataclass(frozen=True)
class Rivals:
    """Keys that say the same thing in different ways: of two layers, the later one's is meant.

    Attributes:
        sides: The ways; each maps its keys to a test of whether a value takes part.
        why: What goes wrong where two of them stand side by side, for messages.
    """

    sides: tuple[dict[str, Callable[[Any], bool]], ...]
    why: str


# Axolotl 0.21's axolotl/utils/schemas/validation.py refuses them side by side, where no other reason is given. A value
# that Axolotl counts as not set (false, 0) takes no part.
RIVALS = (
    Rivals(({"warmup_steps": _is_set}, {"warmup_ratio": _is_set}), "each says how long the warmup is"),
    # Axolotl takes saves_per_epoch beside save_strategy, and ignores the strategy without a message.
    Rivals(
        ({"save_steps": _is_set}, {"saves_per_epoch": _is_set}, {"save_strategy": _other_than("steps")}),
        "each says when a checkpoint is saved",
    ),
    Rivals(
        (
            {"eval_steps": _is_set},
            {"evals_per_epoch": _is_set},
            {"eval_strategy": _other_than("steps"), "evaluation_strategy": _other_than("steps")},
        ),
        "each says when to evaluate",
    ),
    Rivals(({"eval_strategy": _is_set}, {"evaluation_strategy": _is_set}), "the second is the first one's old name"),
    # `adapter: lora` takes both, and quantises to 8 bits.
    Rivals(({"load_in_4bit": _is_set}, {"load_in_8bit": _is_set}), "a model is loaded in one of the two"),
    Rivals(
        ({"load_in_4bit": _is_set, "load_in_8bit": _is_set}, {"model_quantization_config": _is_set}),
        "each says how the base model is quantised",
    ),
    # Axolotl takes both and trains in bf16. `bf16: auto` gives way to fp16 by itself.
    Rivals(
        ({"bf16": _other_than("auto"), "bfloat16": _is_set}, {"fp16": _is_set, "float16": _is_set}),
        "a training has one precision, and bf16 would win without a warning",
    ),
    Rivals(({"deepspeed": _is_set}, {"fsdp_config": _is_set}), "a model is divided by one of them"),
    Rivals(
        tuple(
            {key: _is_set}
            for key in (
                *("chunked_cross_entropy", "cut_cross_entropy"),
                *("liger_cross_entropy", "liger_fused_linear_cross_entropy"),
            )
        ),
        "each is a cross entropy of its own",
    ),
    Rivals(({"use_dft": _is_set}, {"use_eaft": _is_set}), "each is a loss of its own"),
    Rivals(({"model_type": _is_set}, {"type_of_model": _is_set}), "the second is Axolotl's own word for the first one"),
    # Axolotl adds up what both name. An empty list names nothing.
    Rivals(
        ({"lora_target_linear": _is_set}, {"lora_target_modules": _is_set}),
        "each says which modules are trained, and Axolotl would train those of both",
    ),
    Rivals(({"max_memory": _is_set}, {"gpu_memory_limit": _is_set}), "each limits the GPU's memory"),
    Rivals(
        ({"lr_groups": _is_set}, {"loraplus_lr_ratio": _is_set}), "each gives groups of weights their learning rates"
    ),
    Rivals(
        ({"neftune_noise_alpha": _is_set}, {"noisy_embedding_alpha": _is_set}), "the second is the first one's old name"
    ),
    Rivals(({"liger_glu_activation": _is_set}, {"liger_swiglu": _is_set}), "the second is the first one's old name"),
    Rivals(
        ({"sample_packing": _is_set}, {"batch_flattening": _other_than("auto")}),
        "each puts several examples into a row",
    ),
    # Axolotl reads chat_template_jinja only where chat_template does not name another one.
    Rivals(
        ({"chat_template": _other_than("jinja")}, {"chat_template_jinja": _is_set}),
        "the second would be ignored without a warning",
    ),
)


def _rivals_by_key() -> dict[str, list[tuple[Callable[[Any], bool], list[tuple[str, Callable[[Any], bool]]], str]]]:
    """Turn RIVALS round: of each key its own test, its rivals with theirs, and the reason, once for each group."""
    turned: dict[str, list[tuple[Callable[[Any], bool], list[tuple[str, Callable[[Any], bool]]], str]]] = {}
    for group in RIVALS:
        for side in group.sides:
            others = [item for other in group.sides if other is not side for item in other.items()]
            for key, takes_part in side.items():
                turned.setdefault(key, []).append((takes_part, others, group.why))
    return turned


_RIVALS_OF = _rivals_by_key()  # it is asked for every key of every layer, of hundreds of recipes

# What other programs, and people, call Axolotl's keys, where the nearest spelling would be another key or none.
SYNONYMS = {
    "alpha": "lora_alpha",
    "cutoff_len": "sequence_len",
    "dataset": "datasets",
    "dropout": "lora_dropout",
    "epochs": "num_epochs",
    "gradient_accumulation": "gradient_accumulation_steps",
    "lora_rank": "lora_r",
    "lr": "learning_rate",
    "lr_scheduler_type": "lr_scheduler",
    "max_length": "sequence_len",
    "max_seq_len": "sequence_len",
    "max_seq_length": "sequence_len",
    "model": "base_model",
    "model_max_length": "sequence_len",
    "model_name": "base_model",
    "model_name_or_path": "base_model",
    "modules_to_save": "lora_modules_to_save",
    "neftune_alpha": "neftune_noise_alpha",
    "num_train_epochs": "num_epochs",
    "optim": "optimizer",
    "packing": "sample_packing",
    "patience": "early_stopping_patience",
    "per_device_train_batch_size": "micro_batch_size",
    "r": "lora_r",
    "rank": "lora_r",
    "revision": "model_revision",
    "revision_of_model": "model_revision",  # Axolotl knows it, and the plan reads the other one
    "scheduler": "lr_scheduler",
    "target_modules": "lora_target_modules",
    "template": "chat_template",
    "use_dora": "peft_use_dora",
    "use_rslora": "peft_use_rslora",
    "warmup": "warmup_steps",
}
# Figures: above or from the first one on, up to the second one.
_RANGES: dict[str, tuple[float, bool, float]] = {
    "learning_rate": (0, False, 1),
    "lora_alpha": (0, False, _MOST),
    "lora_dropout": (0, True, 0.99),
    "max_grad_norm": (0, True, _MOST),
    "neftune_noise_alpha": (0, True, 1000),
    **dict.fromkeys(
        (
            *("early_stopping_patience", "eval_steps", "evals_per_epoch", "logging_steps", "save_steps"),
            *("save_total_limit", "saves_per_epoch", "tensor_parallel_size", "context_parallel_size"),
        ),
        (0, True, _MOST),
    ),
    "warmup_ratio": (0, True, 1),
    "warmup_steps": (0, True, _MOST),
    "weight_decay": (0, True, 10),
}
# What learns from something else than conversations, or from other data than is checked here.
_OTHER_TRAININGS = {
    **dict.fromkeys(
        ("rl", "reward_model", "process_reward_model"), "what is trained here learns from conversations alone (SFT)"
    ),
    "pretraining_dataset": "what is trained here are the conversations of datasets, and a trainer is offline",
    "streaming": "the files are staged, and read as a whole; take it out",
}
# Of a dataset's entry: what leads to a dataset elsewhere, or into another kind of file than lines of JSON.
_ELSEWHERE = ("data_files", "name", "revision", "trust_remote_code")
_CONVERSATIONS = '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}'


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys, and names the line of whatever it cannot read."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > _DEEPEST:
            line = self.peek_event().start_mark.line + 1
            raise UserError(f"{self.name}, line {line}: more than {_DEEPEST} lists and mappings lie in each other")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        # As SafeLoader has it of a date that does not exist, endless digits, «!!bool x», «!!timestamp x».
        except (ValueError, KeyError, AttributeError) as error:
            raise yaml.constructor.ConstructorError(None, None, _unreadable(node, error), node.start_mark) from None


def _unreadable(node: yaml.Node, error: Exception) -> str:
    """Say why a value that has the form of a number, a date or the like is none."""
    kind = node.tag.rpartition(":")[2]
    if kind == "int" and len(node.value) > _SHOWN:
        return f"a number of {len(node.value)} digits"
    why = f": {error}" if kind == "timestamp" and isinstance(error, ValueError) else ""  # which part of a date is wrong
    return f"«{_cut(str(node.value))}» is no {_TAGS.get(kind, kind)}{why}"


_TAGS = {"bool": "true or false", "float": "number", "int": "whole number", "timestamp": "date"}


def _cut(text: str) -> str:
    """Shorten a text for a message."""
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _mapping(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen: dict[Any, int] = {}
    for key_node, _value in node.value:
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
            continue  # construct_mapping refuses keys that are no scalars; merge keys are flattened below
        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if key in seen:
            raise UserError(f"{node.start_mark.name}, lines {seen[key]} and {line}: «{key}» stands twice; keep one")
        seen[key] = line
    loader.flatten_mapping(node)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


@dataclasses.dataclass
class Layer:
    """One layer of a recipe.

    Attributes:
        source: Where it comes from, for messages.
        keys: Its Axolotl keys.
        lines: The line of each key; empty when it is no file.
    """

    source: str
    keys: dict[str, Any]
    lines: dict[Any, int] = dataclasses.field(default_factory=dict)

    def where(self, key: Any) -> str:
        """Tell where a key stands, for messages."""
        return f"{self.source}, line {self.lines[key]}" if key in self.lines else self.source


def read_layer(path: pathlib.Path, name: str) -> Layer:
    """Read a YAML file of Axolotl keys.

    Args:
        path: The file.
        name: What messages call it.

    Raises:
        UserError: Missing, too large, not YAML, tabs, duplicate keys, not a mapping, a value that JSON has not.
    """
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise UserError(f"{name}: more than {_LARGEST_FILE >> 20} MiB, which is no file of «key: value» lines")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{name} is missing; every recipe needs it") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    for number, line in enumerate(text.splitlines(), 1):
        if "\t" in line[: len(line) - len(line.lstrip())]:
            raise UserError(f"{name}, line {number}: a tab in the indentation; YAML takes spaces only")
    try:
        loader = _Loader(text)
        loader.name = name
        node = loader.get_single_node()
        keys = loader.construct_document(node) if node else {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}, line {mark.line + 1}" if mark else name
        raise UserError(f"{where}: not YAML ({getattr(error, 'problem', error)})") from None
    if not isinstance(keys, dict):
        raise UserError(f"{name}: holds a {type(keys).__name__}; it must hold «key: value» lines")
    lines = {loader.construct_object(key): key.start_mark.line + 1 for key, _ in node.value} if node else {}
    layer = Layer(name, keys, lines)
    if wrong := value_problems(layer):
        raise UserError("\n".join(wrong))
    return dataclasses.replace(layer, keys={key: _with_text_keys(value) for key, value in keys.items()})


def _with_text_keys(value: Any) -> Any:
    """Write numbers that are keys of mappings as JSON does, such as the GPUs of max_memory."""
    if isinstance(value, list):
        return [_with_text_keys(item) for item in value]
    return {str(key): _with_text_keys(item) for key, item in value.items()} if isinstance(value, dict) else value


def value_problems(layer: Layer) -> list[str]:
    """List the values of a layer that are no plain ones, though YAML and Ansible read them: a date, infinity.

    Whatever reads a recipe later may rely on it: each value is what JSON has, and of a sane size.

    Args:
        layer: As it was read, be it of a file or of the command line.
    """
    return [
        f"{layer.where(key)}: «{key}» holds {found}" for key, value in layer.keys.items() if (found := _strange(value))
    ]


def _strange(value: Any) -> str:
    """Name what no recipe can hold of a value; empty where there is nothing."""
    waiting, seen = [(value, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        seen += 1
        if seen > _MOST_VALUES:
            return f"more than {_MOST_VALUES:,} values"
        if isinstance(value, (dict, list)):
            if depth >= _DEEPEST:
                return f"more than {_DEEPEST} lists and mappings in each other"
            if odd := [key for key in value if type(key) not in (str, int)] if isinstance(value, dict) else []:
                return f"the key «{odd[0]}», which YAML takes for no text; put it in quotes"
            items = [*value, *value.values()] if isinstance(value, dict) else value
            waiting += [(item, depth + 1) for item in reversed(items)]
        elif found := _strange_scalar(value):
            return found
    return ""


def _strange_scalar(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value}, which is no number"
    if isinstance(value, (int, float)):
        return f"a number of more than {_BITS} bits; write a smaller one" if abs(value) >= 1 << _BITS else ""
    if isinstance(value, str):
        odd = _NO_TEXT.search(value)
        return f"the character U+{ord(odd[0]):04X}, which cannot stand in a text; leave it out" if odd else ""
    if value is None:
        return ""
    kind = "binary data" if isinstance(value, bytes) else f"a {type(value).__name__}"
    return f"{kind} ({_cut(str(value))}); numbers, text, lists and mappings are read: put a text in quotes"


def merge(layers: Iterable[Layer]) -> tuple[dict[str, Any], dict[str, Layer]]:
    """Lay layers over each other, the last one on top: a null removes a key, and a key its rivals of earlier layers.

    Returns:
        The recipe, and for each key the layer it comes from.
    """
    recipe, origin, _ = _merge(layers)
    return recipe, origin


def _merge(layers: Iterable[Layer]) -> tuple[dict[str, Any], dict[str, Layer], list[tuple[str, str, Layer]]]:
    """Do what :func:`merge` does, and list the rivals that gave way: the new key, the rival, the rival's layer."""
    recipe: dict[str, Any] = {}
    origin: dict[str, Layer] = {}
    removed: list[tuple[str, str, Layer]] = []
    for layer in layers:
        for key, value in layer.keys.items():
            origin[key] = layer
            if value is None:
                recipe.pop(key, None)
            else:
                recipe[key] = value
        for key in layer.keys:
            for rival, _ in _rivals(recipe, key):
                if origin[rival] is not layer:
                    removed.append((key, rival, origin[rival]))
                    del recipe[rival]
    return recipe, {key: origin[key] for key in recipe}, removed


def _rivals(recipe: dict[str, Any], key: str) -> list[tuple[str, str]]:
    """List the rivals of a key in a recipe, each with the reason.

    Args:
        recipe: Axolotl keys, be it of several layers.
        key: One of them.
    """
    rivals = []
    for own, others, why in _RIVALS_OF.get(key, ()) if key in recipe else ():
        if own(recipe[key]):
            rivals += [(other, why) for other, takes_part in others if other in recipe and takes_part(recipe[other])]
    return rivals


def replacement_notes(layers: list[Layer], quiet: Optional[Layer] = None) -> list[str]:
    """Tell of each key of an earlier layer that gave way to a rival which the merged recipe has.

    Args:
        layers: The layers, the last one on top.
        quiet: A layer whose replacements are no news.
    """
    recipe, origin, removed = _merge(layers)
    return [
        f"{key} of {origin[key].source} takes the place of {rival} of {layer.source}"
        for key, rival, layer in removed
        if key in recipe and rival not in recipe and origin[key] is not quiet
    ]


def contradictions(recipe: dict[str, Any], origin: dict[str, Layer]) -> list[str]:
    """List rivals that are left in a merged recipe: they stand in one layer, and nobody can say which is meant.

    Args:
        recipe: The merged recipe.
        origin: The layer of each key.
    """
    return [
        f"{origin[key].where(key)}: «{key}: {quote_value(recipe[key])}», and {origin[rival].where(rival)}: "
        f"«{rival}: {quote_value(recipe[rival])}»: {why}. Keep one of them"
        for key in recipe
        for rival, why in _rivals(recipe, key)
        if key < rival
    ]


def quote_value(value: Any) -> str:
    """Quote a value for a message, as YAML has it, and not too long."""
    return _cut(json.dumps(value, ensure_ascii=False, default=str))


def lora_kernels(recipe: dict[str, Any]) -> frozenset[str]:
    """List the LoRA kernels that a recipe trains with on a GPU.

    Axolotl's rule (``lora_kernels_auto_enable`` in axolotl/utils/schemas/validation.py): all of them, where none is
    named, unless the adapter is not (Q)LoRA, the model is loaded in 8 bits, or its code comes from elsewhere.
    """
    if any(recipe.get(key) is not None for key in LORA_KERNELS):
        return frozenset(key for key in LORA_KERNELS if recipe.get(key))
    unfit = recipe.get("rl") or recipe.get("nvfp4_merge_aware") or recipe.get("trust_remote_code")
    if unfit or recipe.get("adapter") not in ("lora", "qlora"):
        return frozenset()
    return frozenset() if recipe["adapter"] == "lora" and recipe.get("load_in_8bit") else frozenset(LORA_KERNELS)


def _unusual_dropout(recipe: dict[str, Any]) -> dict[str, bool]:
    """Tell how a recipe draws its dropout, where its kernels make that another way than Axolotl has by default.

    Returns:
        Each of ``_DROPOUT_KERNELS`` and whether it is on; empty without a dropout, or where all is as by default.
    """
    if not recipe.get("lora_dropout"):
        return {}
    kernels = lora_kernels(recipe)
    default = lora_kernels({key: value for key, value in recipe.items() if key not in LORA_KERNELS})
    on = {key: key in kernels for key in _DROPOUT_KERNELS}
    return {} if on == {key: key in default for key in _DROPOUT_KERNELS} else on


def problems(
    recipe: dict[str, Any], origin: dict[str, Layer], schema: dict[str, Any], fine: Optional[set[str]] = None
) -> list[str]:
    """List everything wrong with a merged recipe that the controller can see.

    Args:
        recipe: The merged recipe, before paths are added.
        origin: The layer of each key.
        schema: configs/schema.json.
        fine: Keys with values that have passed before, by the same schema; gets those that pass. Hundreds of agents
            have most of them in common, and the schema is slow.

    Returns:
        Sentences that name file, line, key and remedy.
    """
    sentences = []
    known = schema["properties"]
    for key, value in recipe.items():
        where = origin[key].where(key)
        if key in COMPUTED_KEYS:
            sentences.append(f"{where}: «{key}» is computed for every run; take it out")
        elif key not in known:
            hint = f"; it is called «{SYNONYMS[key]}»" if key in SYNONYMS else nearest(key, known)
            sentences.append(f"{where}: Axolotl knows no key «{key}»{hint}")
        elif key in _OTHER_TRAININGS and value:
            sentences.append(f"{where}: «{key}: {quote_value(value)}»: {_OTHER_TRAININGS[key]}")
        elif "x-deprecated" in known[key]:
            sentences.append(f"{where}: «{key}» has been replaced. {known[key]['x-deprecated'].strip()}")
        elif key == "datasets":
            sentences += _dataset_problems(value, where, schema)
        else:
            value_key = f"{key}: {value!r}"
            found = [] if fine and value_key in fine else _type_problems(key, value, where, schema)
            if fine is not None and not found:
                fine.add(value_key)
            sentences += found or _name_problems(key, value, where, recipe, schema)
            plugin = known[key].get("x-plugin", "")
            named = {name.rpartition(".")[2] for name in _plugins(recipe)} if plugin else set()
            if plugin and plugin not in KERNEL_PLUGINS and plugin.rpartition(".")[2] not in named:
                sentences.append(
                    f"{where}: «{key}» is a key of {plugin}, which «plugins» does not name: it would do nothing"
                )
    return sentences


def _plugins(recipe: dict[str, Any]) -> list[str]:
    """List the plugins that a recipe names, also where they are none that can be."""
    named = recipe.get("plugins")
    return [str(plugin) for plugin in named] if isinstance(named, list) else []


def _name_problems(key: str, value: Any, where: str, recipe: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    """Refuse a name that neither Axolotl nor transformers knows; somebody's own plugin may bring another one."""
    names = schema["properties"][key].get("x-names", [])
    own = [plugin for plugin in _plugins(recipe) if not plugin.startswith("axolotl.")]
    if not isinstance(value, str) or not names or value in names or own:
        return []
    return [f"{where}: «{key}: {value}» is none that Axolotl knows{nearest(value, names)}"]


def range_problems(recipe: dict[str, Any], origin: dict[str, Layer]) -> list[str]:
    """List what fits Axolotl's schema and still makes no run: keys that the plan and an adapter's proof need.

    Args:
        recipe: A merged recipe without other problems.
        origin: The layer of each key.
    """
    linear = ("lora_target_modules",) if recipe.get("lora_target_linear") else ()
    needed = (key for key in NEEDED if key not in linear)
    sentences = [f"the recipe has no «{key}»; every run needs it" for key in needed if key not in recipe]
    for key in ("sequence_len", *BATCH, "num_epochs", "lora_r", "max_steps"):
        if not 0 < recipe.get(key, 1) <= _MOST:
            more = f" and {_MOST:,} at most" if recipe[key] > _MOST else ""
            more += "; leave it out for all epochs" if key == "max_steps" else ""
            sentences.append(f"{origin[key].where(key)}: «{key}: {quote_value(recipe[key])}» must be above 0{more}")
    if not sentences and effective_batch(recipe) > _LARGEST_BATCH:
        place = next(key for key in BATCH if key in recipe)
        sentences.append(
            f"{origin[place].where(place)}: «{place}: {recipe[place]}» makes steps of {effective_batch(recipe):,} "
            f"sequences (micro_batch_size × gradient_accumulation_steps); {_LARGEST_BATCH:,} at most"
        )
    for key, (low, itself, high) in _RANGES.items():
        value = recipe.get(key, low if itself else high)
        if isinstance(value, str) or not (low <= value <= high and (itself or value > low)):
            said = f"from {low} on" if itself else f"above {low}"
            sentences.append(
                f"{origin[key].where(key)}: «{key}: {quote_value(value)}» must be a number {said} and {high:,} at most"
            )
    if not 0 <= recipe.get("val_set_size", 0) < 1:
        where = origin["val_set_size"].where("val_set_size")
        sentences.append(f"{where}: «val_set_size: {recipe['val_set_size']}» must be a share from 0 to below 1")
    project = str(recipe.get("wandb_project", ""))
    if re.search(r"[/\\#?%:]", project) or len(project) > 128:  # W&B's own rule
        where = origin["wandb_project"].where("wandb_project")
        sentences.append(
            f"{where}: «wandb_project: {project}» must have no / \\ # ? % : in it, and 128 characters at most"
        )
    if not any(recipe.get(key) for key in TARGETS):
        at = origin.get("lora_target_modules")
        where = f"{at.where('lora_target_modules')}: " if at else ""
        sentences.append(f"{where}«lora_target_modules» names no module, so that nothing would be trained")
    return sentences


def model_problems(recipe: dict[str, Any], origin: dict[str, Layer], layers: list[Layer]) -> list[str]:
    """Refuse a base model that may not be the one that is meant: nothing is downloaded unpinned.

    Args:
        recipe: A merged recipe without other problems.
        origin: The layer of each key.
        layers: All layers, the last one on top.
    """
    begun = str(recipe.get("lora_model_dir") or "/")
    if not begun.startswith("/"):
        return [
            f"{origin['lora_model_dir'].where('lora_model_dir')}: «lora_model_dir: {begun}» is looked for on the "
            "trainer; give its absolute path there"
        ]
    model, revision = str(recipe["base_model"]), recipe.get("model_revision")
    where = f"{origin['base_model'].where('base_model')}: «base_model: {model}»"
    if model.startswith(("~", ".")):
        return [f"{where} looks like a folder; give its absolute path on the trainer"]
    if model.startswith("/"):
        return []
    if not revision:
        return [f"{where} needs a «model_revision», the commit to fetch: nothing is downloaded unpinned"]
    if layers.index(origin["base_model"]) > layers.index(origin["model_revision"]):
        pinned = origin["model_revision"].where("model_revision")
        return [
            f"{where} is another model than the one whose «model_revision» stands in {pinned}; give its own beside it"
        ]
    if not re.fullmatch(COMMIT, str(revision)):
        return [
            f"{origin['model_revision'].where('model_revision')}: «model_revision: {quote_value(revision)}» is no "
            "commit, and a branch or a tag may be another model tomorrow. Give the 40 digits of the commit: the hub "
            f"shows them on the page of {model}, Files and versions, History"
        ]
    return []


def _dataset_problems(items: Any, where: str, schema: dict[str, Any]) -> list[str]:
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        return [f"{where}: «datasets» must be a list of mappings"]
    sentences = []
    known = schema["$defs"]["SFTDataset"]["properties"]
    for number, item in enumerate(items, 1):
        place = f"{where}: datasets, item {number}"
        sentences += _entry_problems(item, place)
        for key in item:
            if key not in known:
                sentences.append(f"{place}: Axolotl knows no key «{key}» there{nearest(key, known)}")
            else:
                sentences += _type_problems(key, item[key], place, {**schema, "properties": known})
        if len(items) > 1 and not item.get("path"):
            sentences.append(f"{place} names no «path»; where there are several, each says which file it is for")
    return sentences


def _entry_problems(item: dict[str, Any], place: str) -> list[str]:
    """List what an entry of the datasets asks for that is not done here."""
    kind, sentences = item.get("type", "chat_template"), []
    if kind not in ("chat_template", None):
        sentences.append(
            f"{place}: «type: {quote_value(kind)}»: what is trained here are conversations, type: chat_template. "
            f"Convert its lines to {_CONVERSATIONS}"
        )
    elsewhere = [key for key in _ELSEWHERE if item.get(key)]
    elsewhere += [key for key, here in (("ds_type", "json"), ("split", "train")) if item.get(key, here) != here]
    if elsewhere:
        sentences.append(
            f"{place}: «{elsewhere[0]}» is for a dataset of the hub or another kind of file; what is trained on here "
            "are files of JSON lines on this machine. Take it out"
        )
    mapped = item.get("message_property_mappings")
    for key in mapped if isinstance(mapped, dict) else ():
        if key not in conversation.MAPPED:
            sentences.append(
                f"{place}: message_property_mappings: «{key}» is not read of a turn; "
                f"{', '.join(conversation.MAPPED)} are"
            )
    roles = item.get("roles")
    for role in roles if isinstance(roles, dict) else ():
        if role not in conversation.ROLES:
            sentences.append(
                f"{place}: roles: «{role}» is no speaker of a chat template; {', '.join(conversation.ROLES)} are"
            )
    if item.get("conversation"):
        sentences.append(f"{place}: «conversation» is read by nothing any more; name the template with chat_template")
    return sentences


def hub_dataset(path: str) -> bool:
    """Tell whether a path that is no file looks like the name of a dataset of the hub, or an address.

    Args:
        path: Of a recipe's dataset.
    """
    if "://" in path:
        return True
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path)) and not re.search(r"\.jsonl?(\.gz)?$", path)


def dataset_options(recipe: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Tell what a recipe says of its dataset files.

    Args:
        recipe: The merged recipe.

    Returns:
        What it says of each file that it names, in their order, without the path; and what it says of all others, such
        as those for validation: what all entries have in common.
    """
    items = recipe.get("datasets") or []
    own = [{key: value for key, value in item.items() if key != "path"} for item in items]
    common = {key: value for key, value in (own[0] if own else {}).items() if all(one.get(key) == value for one in own)}
    return [one for one, item in zip(own, items) if item.get("path")], common


def _type_problems(key: str, value: Any, where: str, schema: dict[str, Any]) -> list[str]:
    part = {**schema["properties"][key], "$defs": schema.get("$defs", {})}
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(part).iter_errors(value))
    if error is None:
        return []
    return [f"{where}: «{key}: {json.dumps(value, default=str)}» does not fit: {_expected(part)}"]


def _expected(part: dict[str, Any]) -> str:
    """Say what a schema takes, in a few words."""
    options = part.get("anyOf", [part])
    words: list[str] = []
    for option in options:
        if "$ref" in option:
            option = part["$defs"].get(option["$ref"].rpartition("/")[2], {})
        if "enum" in option:
            words.append("one of " + ", ".join(map(str, option["enum"])))
        elif "const" in option:
            words.append(str(option["const"]))
        elif option.get("type") == "object" and (option.get("additionalProperties") or {}) == _LIST_OF_TEXT:
            words.append("a mapping to lists of texts")
        elif option.get("type") not in (None, "null"):
            limits = [f"{word} {option[name]}" for name, word in _LIMITS.items() if name in option]
            words.append(" ".join([_TYPES.get(option["type"], option["type"]), *limits]))
    return "expected " + (" or ".join(dict.fromkeys(words)) or "another form")


_LIST_OF_TEXT = {"items": {"type": "string"}, "type": "array"}
_TYPES = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "text",
          "array": "a list", "object": "a mapping"}  # fmt: skip
_LIMITS = {"minimum": "of at least", "maximum": "of at most", "exclusiveMinimum": "above", "exclusiveMaximum": "below"}


def machine_problems(layer: Layer, below: dict[str, Any]) -> list[str]:
    """List what a machine file may not do: hold training keys, or change the effective batch.

    Args:
        layer: The machine file.
        below: The recipe it is laid over.
    """
    sentences = [
        f"{layer.where(key)}: «{key}» decides what is learnt; a machine file may only hold machine keys. "
        "Put it into configs/agents/ or configs/base.yml"
        for key in layer.keys
        if key not in MACHINE_KEYS | RECORD_KEYS
    ]
    merged, _, removed = _merge([Layer("the recipe below", below), layer])
    sentences += [
        f"{layer.where(key)}: «{key}» would take the place of «{rival}», which decides what is learnt; a machine file "
        "may not do that"
        for key, rival, _ in removed
        if rival not in MACHINE_KEYS | RECORD_KEYS
    ]
    named = next((key for key in layer.keys if key in LORA_KERNELS), "")
    if named and not sentences and _unusual_dropout(merged) != _unusual_dropout(below):
        sentences.append(
            f"{layer.where(named)}: «{named}» changes which LoRA kernels train. With «lora_dropout: "
            f"{merged['lora_dropout']}» that decides what is learnt, as {' and '.join(_DROPOUT_KERNELS)} draw the "
            "dropout otherwise. Put it into configs/agents/ or configs/base.yml, or train without a dropout"
        )
    try:
        before, after = effective_batch(below), effective_batch(merged)
    except (TypeError, ValueError, OverflowError):
        return sentences  # a wrong type or no number, which problems() names
    if before != after:
        sentences.append(
            f"{layer.source}: micro_batch_size × gradient_accumulation_steps becomes {after} instead of {before}; "
            "a machine file must keep the product"
        )
    return sentences


def effective_batch(recipe: dict[str, Any]) -> int:
    """Compute the sequences per optimizer step: micro batch × accumulation."""
    return int(recipe.get(BATCH[0], 1)) * int(recipe.get(BATCH[1], 1))


def with_plugins(recipe: dict[str, Any]) -> dict[str, Any]:
    """Add the plugins that a recipe's machine keys need; a machine file may not name them itself.

    Args:
        recipe: The merged recipe, its fingerprint taken: a kernel's plugin is as little part of it as the kernel's key.
    """
    named = list(recipe.get("plugins") or [])
    wanted = [
        plugin
        for plugin, prefix in KERNEL_PLUGINS.items()
        if plugin not in named and any(key.startswith(prefix) and value for key, value in recipe.items())
    ]
    return {**recipe, "plugins": named + wanted} if wanted else recipe


def split_batch(recipe: dict[str, Any], processes: int) -> dict[str, Any]:
    """Divide the batch among several processes, one a GPU: the effective batch stays what it is.

    effective batch = micro batch × accumulation × processes that share the data; those of one tensor or context
    parallel group see the same data. The micro batch is kept where it can be, and made smaller where it must.

    Args:
        recipe: The merged recipe, for one process.
        processes: How many there are.

    Raises:
        UserError: The effective batch cannot be divided among them.
    """
    same_data = int(recipe.get("tensor_parallel_size") or 1) * int(recipe.get("context_parallel_size") or 1)
    if processes % same_data:
        raise UserError(
            f"run_gpus is {processes}, and tensor_parallel_size × context_parallel_size is {same_data}; the first must "
            "be a multiple of the second"
        )
    sharing, batch = processes // same_data, effective_batch(recipe)
    if sharing == 1:
        return recipe
    if batch % sharing:
        fits = [count for count in range(1, batch + 1) if batch % count == 0]
        raise UserError(
            f"an effective batch of {batch} (micro_batch_size × gradient_accumulation_steps) cannot be divided among "
            f"{sharing} GPUs. It can among {', '.join(map(str, fits))}: change run_gpus, or the batch in the recipe"
        )
    share = batch // sharing
    micro = max(size for size in range(1, int(recipe.get(BATCH[0], 1)) + 1) if share % size == 0)
    return {**recipe, BATCH[0]: micro, BATCH[1]: share // micro}


def fingerprint(recipe: dict[str, Any], rehearsal: bool, sets: list[dict[str, str]], axolotl: str) -> str:
    """Compute what a run is known by: SHA-256 over everything that decides what is learnt.

    Args:
        recipe: The merged recipe.
        rehearsal: Whether the rehearsal profile is in it.
        sets: Purpose (train, val) and SHA-256 of each dataset file.
        axolotl: The pinned version; its major.minor counts.
    """
    ignored = MACHINE_KEYS | RECORD_KEYS | COMPUTED_KEYS
    keys = {key: value for key, value in recipe.items() if key not in ignored}
    if not rehearsal and _unusual_dropout(recipe):  # a rehearsal is on a CPU, where there are no kernels
        keys["dropout_kernels"] = _unusual_dropout(recipe)
    own = [{k: v for k, v in item.items() if k != "path"} for item in recipe.get("datasets", [])]
    keys["datasets"] = own if any(own) else []  # to name a file, or to have it found, is the same
    basis = {
        "training": keys,
        "effective_batch": effective_batch(recipe),
        "rehearsal": rehearsal,
        "datasets": [{"use": item["use"], "sha256": item["sha256"]} for item in sets],
        "axolotl": ".".join(axolotl.split(".")[:2]),
    }
    return hashlib.sha256(canonical(basis).encode()).hexdigest()


def pinned_version(lock: pathlib.Path, package: str) -> str:
    """Read the version that a lock file pins.

    Raises:
        UserError: The lock is missing or does not name the package.
    """
    try:
        text = lock.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{lock} is missing; make it with: make lock") from None
    match = re.search(rf"^{re.escape(package)}==([^\s;]+)", text, re.MULTILINE)
    if not match:
        raise UserError(f"{lock} does not pin {package}; make it anew with: make lock")
    return match.group(1)


def read_schema(root: pathlib.Path) -> Any:
    """Read Axolotl's own schema of a recipe.

    Args:
        root: The checkout.

    Raises:
        UserError: It cannot be read.
    """
    try:
        return json.loads((root / "configs/schema.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"configs/schema.json cannot be read ({error}); make it anew with: make schema") from None
