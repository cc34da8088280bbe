"""How much GPU memory a training needs, computed from its recipe and the base model's config.json.

The decisions are pure functions. Only :func:`model_folder`, :func:`find_config` and :func:`count_parameters` read
files, those of the controller. Others wrote these files, so nothing in them is trusted before its size, type and bounds
are checked.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import pathlib
import re
import stat
import struct
from collections.abc import Mapping
from typing import Any, Optional

from ansible.module_utils.lora_forge.planning import base_models
from ansible.module_utils.lora_forge.planning import recipe as recipes

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Model:
    """The dimensions of a decoder model, from its config.json.

    Attributes:
        layers: Decoder layers.
        hidden: Width of the hidden state.
        intermediate: Width of the MLP.
        heads: Attention heads.
        kv_heads: Heads of keys and values.
        head_dim: Width of a head.
        vocab: Rows of the embedding, padding included.
        tied: The output head is the embedding itself.
        norms: RMSNorms of a layer that are as wide as the hidden state.
        head_norms: Queries and keys are normalised, too.
        masked: Packed documents are told apart by a mask, because a window slides over them or a head is too wide.
        together: Queries, keys and values are one module, gate and up another one.
        capped: A tanh bounds the logits.
        beside: Weights of linear modules outside the layers, such as a vision tower's.
        counted: Weights of linear modules, and all others, where the files of the weights tell; else None.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    norms: int = 2
    head_norms: bool = False
    masked: bool = False
    together: bool = False
    capped: bool = False
    beside: int = 0
    counted: Optional[tuple[int, int]] = None

    @property
    def queries(self) -> int:
        """Width of all queries together."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of all keys together, and of all values."""
        return self.kv_heads * self.head_dim

    def linears(self) -> dict[str, tuple[int, int]]:
        """Give the input and output width of each linear module of a layer."""
        both = {"o_proj": (self.queries, self.hidden), "down_proj": (self.intermediate, self.hidden)}
        if self.together:
            return both | {
                "qkv_proj": (self.hidden, self.queries + 2 * self.keys),
                "gate_up_proj": (self.hidden, 2 * self.intermediate),
            }
        return both | {
            "q_proj": (self.hidden, self.queries),
            "k_proj": (self.hidden, self.keys),
            "v_proj": (self.hidden, self.keys),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
        }

    def linear_weights(self) -> int:
        """Count the weights of the linear modules, which are those that are quantised."""
        if self.counted:
            return self.counted[0]
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linears().values()) + self.beside

    def embedding_weights(self) -> int:
        """Count the weights of embedding and output head, and what else is not quantised, where that is known."""
        return self.counted[1] if self.counted else self.vocab * self.hidden * (1 if self.tied else 2)


# What config.json does not say of a kind of model: how its layers are built. Each kind has been followed through
# transformers' own modules by benchmarks/gpu/memory_simulation.py; a kind that is not here may be built otherwise.
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {"head_norms": True},
    "gemma2": {"norms": 4},
    "gemma3_text": {"norms": 4, "head_norms": True},
    "phi3": {"together": True},
}
# What transformers takes where config.json leaves it out, as makers do with values that are its defaults.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma3_text": {
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208,
        "tie_word_embeddings": True, "sliding_window": 4096,
    },
    "gemma2": {"tie_word_embeddings": True, "sliding_window": 4096, "head_dim": 256, "final_logit_softcapping": 30.0},
    "mistral": {"sliding_window": 4096},
}  # fmt: skip
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size")
_VARLEN_HEAD = 256  # Axolotl's varlen attention takes heads up to this width

# Bytes of a frozen weight. NF4 with double quantisation: half a byte, one 8-bit constant for every 64 weights and
# one 32-bit constant for every 256 of those.
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
_INT8 = 1.0
BF16 = 2.0
_FP32 = 4.0
_ADAM_8BIT = 1 + 4 / 256  # one byte for a moment, and a 32-bit constant for every 256 (bitsandbytes)
_OFFLOADED = 2  # inputs of layers that are on the GPU while the others wait on the host: one in use, one on its way
_STASH = 5  # tensors that are on the GPU while they are copied to the host, where all activations go there (TRL)
_PINNED = 2  # PyTorch rounds pinned memory of the host up to a power of two
_LOGIT = 12  # bytes of a logit in the backward pass: its log-probability and two gradients, in fp32
_FUSED = ("cut_cross_entropy", "liger_fused_linear_cross_entropy")  # these never hold all the logits
QKV = ("q_proj", "k_proj", "v_proj")  # what a LoRA kernel computes at once
MLP = ("gate_proj", "up_proj", "down_proj")
_DROPPED = 1.5  # tensors that a dropout keeps: what it lets through, and a mask of a byte each
_SHARDED = ("deepspeed", "fsdp_config")
_FIGURES = {"lora_r": None, "sequence_len": None, "micro_batch_size": 1}  # what is multiplied, and Axolotl's default

# Bounds of what is read, far beyond any model's. They keep every product a number that a float can hold.
_MOST = 10**7  # a dimension, or a figure of a recipe
_MOST_WEIGHTS = 10**13
_JSON_BYTES = 10 * 10**6  # a config.json, or an index of weights
HEADER_BYTES = 100 * 10**6  # a header of safetensors, whose own bound this is
_REF_BYTES = 100  # a branch's file in the hub's cache: a commit, and perhaps a line's end
USABLE = 0.91  # of the gigabytes that a card is named after, at least, in GiB: 14.6 of 16 on a T4, 22.0 of 24 on an L4
_CONTEXT = 0.7 * GIB  # bytes: the CUDA context, and the workspaces of cuBLAS; an assumption
_FRAGMENTATION = 1.03  # what PyTorch's allocator reserves over what is used; an assumption


def table_name(base_model: Any) -> str:
    """Name a model as :data:`base_models.CONFIGS` does: without its owner, and what does not change its shape."""
    name = str(base_model or "").rstrip("/").rpartition("/")[2].lower()
    return re.sub(r"^meta-|-(instruct|chat|base|it|pt)(?=-|$)", "", name)


def _whole_number(value: Any, least: int = 1, most: int = _MOST) -> int:
    """Return a whole number within its bounds; anything else, text or a boolean too, is a ValueError."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"no whole number from {least} to {most}")
    return value


def from_config(config: Mapping[str, Any]) -> Optional[Model]:
    """Read a model's dimensions off its config.json.

    Args:
        config: What config.json holds. The language model of a multimodal one stands in its ``text_config``.

    Returns:
        None where they are not certain: a kind that is not in :data:`KINDS`, experts, weights that were
        quantised beforehand, a dimension that is missing or no whole number within :data:`_MOST`.
    """
    text = config.get("text_config") or config
    if not isinstance(text, Mapping):
        return None
    kind = text.get("model_type")
    if not isinstance(kind, str) or kind not in KINDS or any(text.get(key) for key in _EXPERTS):
        return None
    if config.get("quantization_config") or text.get("quantization_config"):
        return None
    values = _DEFAULTS.get(kind, {}) | dict(text)
    try:
        hidden, heads = _whole_number(values["hidden_size"]), _whole_number(values["num_attention_heads"])
        kv_heads, head_dim = values.get("num_key_value_heads"), values.get("head_dim")
        head_dim = _whole_number(hidden // heads if head_dim is None else head_dim)
        windows = values.get("layer_types")
        slides = values.get("sliding_window") and values.get("use_sliding_window", True)
        full = isinstance(windows, list) and windows and "sliding_attention" not in windows
        return Model(
            layers=_whole_number(values["num_hidden_layers"]),
            hidden=hidden,
            intermediate=_whole_number(values["intermediate_size"]),
            heads=heads,
            kv_heads=heads if kv_heads is None else _whole_number(kv_heads),
            head_dim=head_dim,
            vocab=_whole_number(values["vocab_size"]),
            tied=bool(values.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
            masked=head_dim > _VARLEN_HEAD or bool(slides and not full),
            capped=bool(values.get("final_logit_softcapping")),
            beside=_tower(config.get("vision_config")),
            **KINDS[kind],
        )
    except (KeyError, ValueError):
        return None


def _tower(vision: Any) -> int:
    """Estimate how many weights the layers of a vision tower have: attention, and an MLP that may be gated.

    0 where there is none, or its config leaves a width out; a ValueError where that makes no sense.
    """
    if vision is None:
        return 0
    if not isinstance(vision, Mapping):
        raise ValueError("vision_config is no mapping")
    values = [vision.get(key) for key in ("num_hidden_layers", "hidden_size", "intermediate_size")]
    layers, hidden, intermediate = (0 if value is None else _whole_number(value, 0) for value in values)
    return layers * (4 * hidden * hidden + 3 * hidden * intermediate) if None not in values else 0


def _stat_regular(path: pathlib.Path) -> os.stat_result:
    """Stat a file; a folder, or a pipe or device, which would keep its reader waiting, is a ValueError."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path} is no regular file")
    return status


def _read(path: pathlib.Path, most: int) -> bytes:
    """Read all bytes of a regular file; more than ``most`` are a ValueError."""
    if _stat_regular(path).st_size > most:
        raise ValueError(f"{path} has more than {most} bytes")
    with path.open("rb") as file:
        return file.read(most)


def _parse_json(content: bytes) -> Any:
    """Parse a JSON text; one that is broken or nested too deep is a ValueError."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deep") from None


def model_folder(recipe: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Optional[pathlib.Path]:
    """Name the base model's folder on this machine: the one that the recipe names, or one of the hub's cache.

    Args:
        recipe: With ``base_model``, and ``model_revision`` where it is none of a folder.
        environ: Of the process: HF_HUB_CACHE, HF_HOME and XDG_CACHE_HOME say where the cache is (huggingface_hub's
            documentation, «Environment variables»).

    Returns:
        The folder, which need not exist. None where it has no name: a model that is none of the hub, or a branch or tag
        of which the cache does not tell the commit. It has a folder for each commit, and in ``refs`` a file with the
        commit for each other revision (huggingface_hub's documentation, «Understand caching»).
    """
    model = str(recipe.get("base_model") or "")
    if model.startswith("/"):
        return pathlib.Path(model)
    revision = str(recipe.get("model_revision") or "")
    name = r"\w[\w.-]*"
    if not re.fullmatch(f"{name}/{name}", model) or not re.fullmatch(f"{name}(/{name})*", revision):
        return None
    home = environ.get("HF_HOME") or f"{environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    # Not pathlib's, which raises where there is no such user.
    cache = os.path.expanduser(environ.get("HF_HUB_CACHE") or f"{home}/hub")
    folder = pathlib.Path(cache) / f"models--{model.replace('/', '--')}"
    if not re.fullmatch(recipes.COMMIT, revision):
        try:
            revision = _read(folder / "refs" / revision, _REF_BYTES).decode().strip()
        except (OSError, ValueError):
            return None
    return folder / "snapshots" / revision if re.fullmatch(recipes.COMMIT, revision) else None


def find_config(
    recipe: Mapping[str, Any], environ: Mapping[str, str] = os.environ
) -> tuple[dict[str, Any], Optional[pathlib.Path]]:
    """Read the config.json of a recipe's base model from this machine, or else from :data:`base_models.CONFIGS`.

    Args:
        recipe: As for :func:`model_folder`.
        environ: As for :func:`model_folder`.

    Returns:
        What it holds, empty where the model is not known; and the folder that it lies in, None for the table.
    """
    folder = model_folder(recipe, environ)
    if folder is not None:
        try:
            config = _parse_json(_read(folder / "config.json", _JSON_BYTES))
            if isinstance(config, dict):
                return config, folder
        except (OSError, ValueError):
            pass
    return base_models.CONFIGS.get(table_name(recipe.get("base_model")), {}), None


def count_parameters(folder: pathlib.Path) -> Optional[tuple[int, int]]:
    """Count the weights of linear modules, and all others, from the headers of a model's safetensors files.

    A header is JSON behind its length in 8 bytes (safetensors' documentation, «Format»). Linear are tensors of two
    dimensions but the embedding and the head, which Axolotl does not quantise.

    Returns:
        None where a file is missing or cannot be read, or what it tells can be no model.
    """
    linear, others = 0, 0
    try:
        index = folder / "model.safetensors.index.json"
        names = {"model.safetensors"}
        if index.exists():
            names = set(_parse_json(_read(index, _JSON_BYTES))["weight_map"].values())
        for name in names:
            if pathlib.PurePath(name).name != name:
                raise ValueError(f"{index} names a file elsewhere")
            status = _stat_regular(folder / name)
            counts = _count_in_file(str(folder / name), status.st_size, status.st_mtime_ns)
            linear, others = linear + counts[0], others + counts[1]
        return _whole_number(linear, most=_MOST_WEIGHTS), _whole_number(others, most=_MOST_WEIGHTS)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return None


@functools.cache
def _count_in_file(path: str, size: int, _changed: int) -> tuple[int, int]:
    """Do the same for one file, once for each plan, which asks for every agent and machine class.

    The length is held against the file's size: a pointer of git-lfs, read so, would tell of 2 billion gigabytes.
    """
    counts = [0, 0]
    with pathlib.Path(path).open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = _parse_json(file.read(_whole_number(length, most=min(size - 8, HEADER_BYTES))))
    for tensor, entry in header.items():
        if tensor == "__metadata__":
            continue
        shape = entry["shape"]
        if not isinstance(shape, list) or len(shape) > 8:
            raise ValueError(f"{path}: a shape that no weight has")
        linear = len(shape) == 2 and not re.search(r"embed|lm_head", tensor)
        counts[0 if linear else 1] += math.prod(_whole_number(size, 0, _MOST_WEIGHTS) for size in shape)
    return counts[0], counts[1]


def find_model(recipe: dict[str, Any]) -> Optional[Model]:
    """Find the dimensions of a recipe's model; None where they are not known."""
    config, folder = find_config(recipe)
    model = from_config(config)
    if model is None or folder is None:
        return model
    return dataclasses.replace(model, counted=count_parameters(folder))


def _unusable_figure(recipe: Mapping[str, Any]) -> str:
    """Name the key of a recipe's figure with which nothing can be computed; empty where all are sound."""
    for key, default in _FIGURES.items():
        try:
            _whole_number(recipe.get(key, default))
        except ValueError:
            return key
    return ""


def weight_bytes(recipe: Mapping[str, Any]) -> float:
    """Give the bytes of a frozen weight of a linear module, as Axolotl loads it.

    It quantises by the adapter's name (``_set_quantization_config`` in axolotl/loaders/model.py): ``load_in_4bit``
    counts for QLoRA only, ``load_in_8bit`` for LoRA only. Elsewhere they are left aside, and the model is in bf16.

    Args:
        recipe: The merged recipe.
    """
    if recipe.get("adapter") in ("qlora", "mixlora") and recipe.get("load_in_4bit"):
        return NF4
    return _INT8 if recipe.get("adapter") == "lora" and recipe.get("load_in_8bit") else BF16


def recomputes(recipe: dict[str, Any]) -> bool:
    """Tell whether the backward pass computes a layer's activations again.

    Axolotl takes ``activation_offloading`` in the place of recomputing where an adapter is trained: all activations go
    to the host. Only ``hidden_states`` offloads the checkpoints of what is computed again.
    """
    offloaded = recipe.get("activation_offloading")
    return bool(recipe.get("gradient_checkpointing")) and (not offloaded or offloaded == "hidden_states")


def adapted_modules(recipe: dict[str, Any], model: Model) -> list[str]:
    """List the linear modules of a layer that get an adapter."""
    wanted, names = recipe.get("lora_target_modules") or [], list(model.linears())
    if recipe.get("lora_target_linear") or wanted in ("all-linear", ["all-linear"]):
        return names
    if isinstance(wanted, str):  # PEFT takes a text as a regular expression for the whole path of a module
        paths = {name: [f"model.layers.0.{part}.{name}" for part in ("self_attn", "mlp")] for name in names}
        try:
            return [name for name in names if any(re.fullmatch(wanted, path) for path in paths[name])]
        except (re.error, OverflowError, RecursionError):
            return []
    return [name for name in names if name in wanted]


def host_bytes(recipe: dict[str, Any]) -> float:
    """Estimate the bytes of the host's memory for offloaded activations; 0 where nothing is offloaded or known."""
    model = find_model(recipe)
    if model is None or not recipe.get("activation_offloading") or _unusable_figure(recipe):
        return 0.0
    tokens = recipe["sequence_len"] * recipe.get("micro_batch_size", 1)
    of_layer = tokens * model.hidden * BF16 if recomputes(recipe) else kept_activations(model, recipe)
    return _PINNED * model.layers * of_layer


def kept_activations(model: Model, recipe: dict[str, Any]) -> float:
    """Estimate the bytes of activations that the backward pass of one layer needs.

    In bf16 tensors of T tokens; h: hidden, a: all queries, k: all keys, i: intermediate; d is 1.5 where LoRA has a
    dropout (what is left, and a mask of a byte each), else 0::

        norms        2 each, in fp32; 1 with Liger's RMSNorm. Of h, and of a and k where heads are normalised
        attention    4 a: queries, keys and values repeated for all the heads, output; 2 a + 2 k with FlashAttention or
                     flex attention. Where a mask tells documents apart, that too: rows × sequence_len²
        q, k, v      with LoRA kernels (1 + d) h at once; without them d h for each adapter, or h where d is 0
        o            d a
        gate, up     with LoRA kernels (1 + d) h + 2 i, and nothing for down; without them as q, k, v, and 3 i
        down         d i, or i where d is 0
        LoRA         2 × rank × (inputs + outputs) of bf16 copies; without kernels rank × tokens for each adapter, too

    Args:
        model: The model.
        recipe: The merged recipe.
    """
    rows, length = recipe.get("micro_batch_size", 1), recipe["sequence_len"]
    tokens, rank, adapted = rows * length, recipe["lora_r"], adapted_modules(recipe, model)
    hidden, inner, queries, keys = model.hidden, model.intermediate, model.queries, model.keys
    kernels, drop = recipes.lora_kernels(recipe), _DROPPED if recipe.get("lora_dropout") else 0.0
    norm = 1 if recipe.get("liger_rms_norm") else 2
    wide: float = norm * (model.norms * hidden + (queries + keys if model.head_norms else 0))
    flash = bool(re.search("flash|flex", str(recipe.get("attn_implementation", ""))) or recipe.get("flash_attention"))
    masked = not flash and (model.masked or recipe.get("sdpa_varlen") is False)
    unrepeated = flash or (masked and model.kv_heads == 1)  # a single one is repeated without a copy
    wide += 2 * queries + 2 * keys if unrepeated else 4 * queries
    wide += drop * queries if "o_proj" in adapted else 0
    wide += rank if "o_proj" in adapted and "lora_o_kernel" not in kernels else 0
    for names, kernel in ((QKV, "lora_qkv_kernel"), (MLP, "lora_mlp_kernel")):
        if kernel in kernels and set(names) <= set(adapted):
            wide += (1 + drop) * hidden + (2 * inner if names is MLP else 0)
            continue
        own = [name for name in adapted if name in names + (("gate_up_proj",) if names is MLP else ("qkv_proj",))]
        apart = len(own) - own.count("down_proj")
        wide += apart * drop * hidden if drop else hidden * bool(apart)
        wide += len(own) * rank
        if names is MLP:
            wide += 3 * inner + (drop or 1) * inner * own.count("down_proj")
    copies = rank * sum(sum(model.linears()[name]) for name in adapted)
    mask = rows * length * length if masked and recipe.get("sample_packing") else 0
    return BF16 * (tokens * wide + copies + mask)


def _backward_bytes(model: Model, recipe: dict[str, Any]) -> float:
    """Estimate the bytes that the backward pass of a layer takes beside what is kept.

    The gradients of the hidden state and of what down_proj is given, (i + 2 h) × tokens, and the weights of one module
    in bf16 where they are quantised.
    """
    tokens = recipe["sequence_len"] * recipe.get("micro_batch_size", 1)
    quantised = weight_bytes(recipe) < BF16
    weights = max(inputs * outputs for inputs, outputs in model.linears().values()) if quantised else 0
    return BF16 * (tokens * (model.intermediate + 2 * model.hidden) + weights)


def parts(recipe: dict[str, Any]) -> Optional[dict[str, float]]:
    """Estimate the bytes of everything that a training holds on each of its GPUs at its peak, by name.

    With tokens = sequence_len × micro_batch_size::

        frozen       linear weights × 0.516 (4-bit with its constants), × 1 (8-bit) or × 2 (bf16): :func:`weight_bytes`
        embeddings   all other weights × 2: Axolotl keeps them in bf16, never quantised
        LoRA         rank × (inputs + outputs) of every target module × 4, fp32
        gradients    the same again
        optimizer    twice the same for Adam's two moments; a quarter of that, and constants, with an 8-bit optimizer
        kept         layers × tokens × hidden × 2: with gradient checkpointing only the input of each layer stays, and
                     two of them with ``activation_offloading: hidden_states``. With any other offloading nothing is
                     made again, all activations go to the host, and 5 × tokens × intermediate × 2 are on their way
                     there. Without checkpointing :func:`kept_activations` of every layer
        layer        what the backward pass of a layer takes: :func:`kept_activations`, where that is made again or
                     brought back, and gradients
        logits       tokens × vocabulary × 12, or 14 where a tanh bounds them: log-probabilities and their gradients in
                     fp32. With a fused loss tokens × hidden × 10: its gradient, chunks of logits, the last norm
        allocator    3 % of all that, which is reserved and not used
        context      0.7 GiB

    Of layer and logits only the greater one counts, because the logits are gone before the first layer's turn: the
    other one is 0. Attention is taken as linear in tokens, but for a mask.

    Held against the tensors of real modules (benchmarks/gpu/memory_simulation.py, no GPU); the last two are assumed.

    Args:
        recipe: The merged recipe.

    Returns:
        None where nothing can be said: see :func:`unknown_reason`.
    """
    model = find_model(recipe)
    return None if model is None or unknown_reason(recipe) else parts_of(model, recipe)


def parts_of(model: Model, recipe: dict[str, Any]) -> dict[str, float]:
    """Do the same for a model whose dimensions are given.

    Args:
        model: The model.
        recipe: The merged recipe; a LoRA or QLoRA that is not sharded.
    """
    tokens = recipe["sequence_len"] * recipe.get("micro_batch_size", 1)
    linears = model.linears()
    trained = model.layers * recipe["lora_r"] * sum(sum(linears[name]) for name in adapted_modules(recipe, model))
    moment = _ADAM_8BIT if "8bit" in str(recipe.get("optimizer", "")) else _FP32
    layer = _backward_bytes(model, recipe)
    fused = any(recipe.get(key) for key in _FUSED)
    logits = tokens * (model.hidden * 10.0 if fused else model.vocab * (_LOGIT + (BF16 if model.capped else 0.0)))
    kept = tokens * model.hidden * BF16 * model.layers
    if not recipe.get("gradient_checkpointing"):
        kept = kept_activations(model, recipe) * model.layers
    else:
        layer += kept_activations(model, recipe)
        if not recomputes(recipe):
            kept = _STASH * tokens * model.intermediate * BF16
        elif recipe.get("activation_offloading"):
            kept *= min(_OFFLOADED, model.layers) / model.layers
    layer, logits = (layer, 0.0) if layer >= logits else (0.0, logits)
    used = {
        "frozen": model.linear_weights() * weight_bytes(recipe),
        "embeddings": model.embedding_weights() * BF16,
        "LoRA": trained * _FP32,
        "gradients": trained * _FP32,
        "optimizer": trained * 2 * moment,
        "kept": kept,
        "layer": layer,
        "logits": logits,
    }
    return used | {"allocator": sum(used.values()) * (_FRAGMENTATION - 1), "context": _CONTEXT}


def unknown_reason(recipe: dict[str, Any]) -> str:
    """Say why nothing can be said of a recipe's memory; empty where something can.

    Args:
        recipe: The merged recipe.
    """
    if recipe.get("adapter") not in ("lora", "qlora"):
        return "only LoRA and QLoRA are estimated"
    if recipe.get("lora_modules_to_save"):
        return "modules that are trained in full (lora_modules_to_save) are not estimated"
    sharded = next((key for key in _SHARDED if recipe.get(key)), "")
    if sharded:
        return f"a model that is divided among GPUs ({sharded}) is not estimated"
    if recipe.get("attn_implementation") == "eager":
        return "eager attention, which holds a number for each pair of tokens, is not estimated"
    unusable = _unusable_figure(recipe)
    if unusable:
        return f"«{unusable}» is no whole number from 1 to {_MOST}"
    config, folder = find_config(recipe)
    if from_config(config) is not None:
        return ""
    if config:
        text = config.get("text_config") or config
        kind = text.get("model_type") if isinstance(text, Mapping) else None
        printable = isinstance(kind, str) and re.fullmatch(r"[\w.-]{1,40}", kind, re.ASCII)  # others wrote it
        where = f"{folder}/config.json" if folder else "its config.json"
        return (
            f"{where} tells of a model {f'(«{kind}»)' if printable else 'of another kind'} that is not estimated: one "
            "with experts, with weights that were quantised beforehand, with a dimension that is missing or makes no "
            "sense, or built in another way"
        )
    expected = model_folder(recipe)
    return "its dimensions are not known here. They are as soon as this controller has " + (
        f"{expected}/config.json" if expected else "the config.json of that model"
    )


def estimate(recipe: dict[str, Any]) -> Optional[float]:
    """Estimate the GiB that one training needs on each of its GPUs (without sharding every GPU holds everything).

    The sum of :func:`parts`. **Simulated, not measured**: so it may only warn, or choose between GPUs; what refuses is
    :func:`floor`.

    Args:
        recipe: The merged recipe.

    Returns:
        None where nothing can be said, as in :func:`parts`.
    """
    used = parts(recipe)
    return None if used is None else round(sum(used.values()) / GIB, 1)


def floor(recipe: dict[str, Any]) -> Optional[float]:
    """Give the GiB below which a training certainly does not fit: the weights of model and adapter alone.

    Args:
        recipe: The merged recipe.

    Returns:
        None where nothing can be said, as in :func:`parts`.
    """
    used = parts(recipe)
    if used is None:
        return None
    # An adapter could be held in bf16. Rounded down, because this figure refuses a training.
    return math.floor((used["frozen"] + used["embeddings"] + used["LoRA"] / 2) / GIB * 10) / 10


def usable_gib(machine: str) -> Optional[float]:
    """Give the GiB that the GPUs of a machine class have at least, by its name, such as gpu-24gb; None for another."""
    match = re.fullmatch(r"(?:.*\D)?(\d{1,6})gb", machine)
    return int(match.group(1)) * USABLE if match else None


def fitting_machine(usable: float, classes: Mapping[str, Optional[float]]) -> str:
    """Choose the machine class for a GPU: of those that fit, the one that makes most of it.

    Args:
        usable: GiB that the GPU has.
        classes: A training's estimate with each file of configs/machines/, in GiB; None where it is not known.

    Returns:
        Its name; empty where none fits.
    """
    fitting = {name: gib for name, gib in classes.items() if gib is not None and gib <= usable}
    return max(sorted(fitting), key=lambda name: (fitting[name], usable_gib(name) or 0), default="")
