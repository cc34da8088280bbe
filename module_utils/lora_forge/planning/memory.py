"""How much GPU memory a training needs, computed from its recipe and the base model's config.json.

What decides are pure functions. :func:`snapshot`, :func:`config_of` and :func:`count_parameters` alone read files,
those of the controller. Others wrote these files, so nothing in them is believed before its size, type and bounds are
checked.
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
        """Width of all queries."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of all keys, and of all values."""
        return self.kv_heads * self.head_dim

    def linears(self) -> dict[str, tuple[int, int]]:
        """Input and output width of each linear module of a layer."""
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
        """How many weights the linear modules have; those that are quantised."""
        if self.counted:
            return self.counted[0]
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linears().values()) + self.beside

    def embedding_weights(self) -> int:
        """How many weights the embedding and the output head have, and what else is not quantised where it is known."""
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
_BF16 = 2.0
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
COMMIT = r"[0-9a-f]{40}"
USABLE = 0.91  # of the gigabytes that a card is named after, at least, in GiB: 14.6 of 16 on a T4, 22.0 of 24 on an L4
_CONTEXT = 0.7 * GIB  # bytes: the CUDA context, and the workspaces of cuBLAS; an assumption
_FRAGMENTATION = 1.03  # what PyTorch's allocator reserves over what is used; an assumption


def _named(base_model: Any) -> str:
    """A model's name as :data:`bases.CONFIGS` has it: without its owner, and without what does not change its shape."""
    name = str(base_model or "").rstrip("/").rpartition("/")[2].lower()
    return re.sub(r"^meta-|-(instruct|chat|base|it|pt)(?=-|$)", "", name)


def _int(value: Any, least: int = 1, most: int = _MOST) -> int:
    """A whole number within its bounds; a ValueError for anything else, a text or a boolean too."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"no whole number from {least} to {most}")
    return value


def from_config(config: Mapping[str, Any]) -> Optional[Model]:
    """The dimensions that a config.json tells.

    Args:
        config: What config.json holds. The language model of a multimodal one stands in its ``text_config``.

    Returns:
        None where they cannot be told for sure: a kind that is not in :data:`KINDS`, experts, weights that were
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
    said = _DEFAULTS.get(kind, {}) | dict(text)
    try:
        hidden, heads = _int(said["hidden_size"]), _int(said["num_attention_heads"])
        kv_heads, head_dim = said.get("num_key_value_heads"), said.get("head_dim")
        head_dim = _int(hidden // heads if head_dim is None else head_dim)
        windows, slides = said.get("layer_types"), said.get("sliding_window") and said.get("use_sliding_window", True)
        full = isinstance(windows, list) and windows and "sliding_attention" not in windows
        return Model(
            layers=_int(said["num_hidden_layers"]),
            hidden=hidden,
            intermediate=_int(said["intermediate_size"]),
            heads=heads,
            kv_heads=heads if kv_heads is None else _int(kv_heads),
            head_dim=head_dim,
            vocab=_int(said["vocab_size"]),
            tied=bool(said.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
            masked=head_dim > _VARLEN_HEAD or bool(slides and not full),
            capped=bool(said.get("final_logit_softcapping")),
            beside=_tower(config.get("vision_config")),
            **KINDS[kind],
        )
    except (KeyError, ValueError):
        return None


def _tower(vision: Any) -> int:
    """How many weights the layers of a vision tower have, about: attention, and an MLP that may be gated.

    0 where there is none, or its config leaves a width out; a ValueError where that makes no sense.
    """
    if vision is None:
        return 0
    if not isinstance(vision, Mapping):
        raise ValueError("vision_config is no mapping")
    said = [vision.get(key) for key in ("num_hidden_layers", "hidden_size", "intermediate_size")]
    layers, wide, inner = (0 if value is None else _int(value, 0) for value in said)
    return layers * (4 * wide * wide + 3 * wide * inner) if None not in said else 0


def _regular(path: pathlib.Path) -> os.stat_result:
    """What the system tells of a file; a ValueError for a folder, or a pipe or device, which would keep its reader."""
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise ValueError(f"{path} is no regular file")
    return about


def _read(path: pathlib.Path, most: int) -> bytes:
    """All bytes of a regular file; a ValueError where these are more than ``most``."""
    if _regular(path).st_size > most:
        raise ValueError(f"{path} has more than {most} bytes")
    with path.open("rb") as file:
        return file.read(most)


def _json(found: bytes) -> Any:
    """What a JSON text holds; a ValueError for one that is broken or nested too deep."""
    try:
        return json.loads(found)
    except RecursionError:
        raise ValueError("nested too deep") from None


def snapshot(recipe: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Optional[pathlib.Path]:
    """The folder of the base model on this machine, where there is one: the very folder, or the hub's cache.

    Args:
        recipe: With ``base_model``, and ``model_revision`` where it is none of a folder.
        environ: Of the process: HF_HUB_CACHE, HF_HOME and XDG_CACHE_HOME say where the cache is (huggingface_hub's
            documentation, «Environment variables»).

    Returns:
        The folder, which need not exist. None where it has no name: a model that is none of the hub, or a branch or tag
        of which the cache does not tell the commit. It has a folder for each commit, and in ``refs`` a file with the
        commit for each other revision (huggingface_hub's documentation, «Understand caching»).
    """
    base = str(recipe.get("base_model") or "")
    if base.startswith("/"):
        return pathlib.Path(base)
    revision = str(recipe.get("model_revision") or "")
    name = r"\w[\w.-]*"
    if not re.fullmatch(f"{name}/{name}", base) or not re.fullmatch(f"{name}(/{name})*", revision):
        return None
    home = environ.get("HF_HOME") or f"{environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    # Not pathlib's, which raises where there is no such user.
    cache = os.path.expanduser(environ.get("HF_HUB_CACHE") or f"{home}/hub")
    folder = pathlib.Path(cache) / f"models--{base.replace('/', '--')}"
    if not re.fullmatch(COMMIT, revision):
        try:
            revision = _read(folder / "refs" / revision, _REF_BYTES).decode().strip()
        except (OSError, ValueError):
            return None
    return folder / "snapshots" / revision if re.fullmatch(COMMIT, revision) else None


def config_of(
    recipe: Mapping[str, Any], environ: Mapping[str, str] = os.environ
) -> tuple[dict[str, Any], Optional[pathlib.Path]]:
    """The config.json of a recipe's base model, from this machine, or else from :data:`bases.CONFIGS`.

    Args:
        recipe: As for :func:`snapshot`.
        environ: As for :func:`snapshot`.

    Returns:
        What it holds, empty where the model is not known; and the folder that it lies in, None for the table.
    """
    folder = snapshot(recipe, environ)
    if folder is not None:
        try:
            found = _json(_read(folder / "config.json", _JSON_BYTES))
            if isinstance(found, dict):
                return found, folder
        except (OSError, ValueError):
            pass
    return base_models.CONFIGS.get(_named(recipe.get("base_model")), {}), None


def count_parameters(folder: pathlib.Path) -> Optional[tuple[int, int]]:
    """Weights of linear modules, and all others, from the headers of a model's safetensors files.

    A header is JSON behind its length in 8 bytes (safetensors' documentation, «Format»). Linear are tensors of two
    dimensions but the embedding and the head, which Axolotl does not quantise.

    Returns:
        None where a file is missing or cannot be read, or what it tells can be no model.
    """
    found = [0, 0]
    try:
        index = folder / "model.safetensors.index.json"
        names = {"model.safetensors"}
        if index.exists():
            names = set(_json(_read(index, _JSON_BYTES))["weight_map"].values())
        for name in names:
            if pathlib.PurePath(name).name != name:
                raise ValueError(f"{index} names a file elsewhere")
            about = _regular(folder / name)
            here = _header(str(folder / name), about.st_size, about.st_mtime_ns)
            found = [found[0] + here[0], found[1] + here[1]]
        return _int(found[0], most=_MOST_WEIGHTS), _int(found[1], most=_MOST_WEIGHTS)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return None


@functools.cache
def _header(path: str, size: int, _changed: int) -> tuple[int, int]:
    """The same for one file, which is read once for each plan: it asks for every agent and machine class.

    The length is held against the file's size: a pointer of git-lfs, read so, would tell of 2 billion gigabytes.
    """
    found = [0, 0]
    with pathlib.Path(path).open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = _json(file.read(_int(length, most=min(size - 8, HEADER_BYTES))))
    for tensor, about in header.items():
        if tensor == "__metadata__":
            continue
        shape = about["shape"]
        if not isinstance(shape, list) or len(shape) > 8:
            raise ValueError(f"{path}: a shape that no weight has")
        linear = len(shape) == 2 and not re.search(r"embed|lm_head", tensor)
        found[0 if linear else 1] += math.prod(_int(one, 0, _MOST_WEIGHTS) for one in shape)
    return found[0], found[1]


def known(recipe: dict[str, Any]) -> Optional[Model]:
    """The dimensions of a recipe's model; None where they are not known."""
    config, folder = config_of(recipe)
    model = from_config(config)
    if model is None or folder is None:
        return model
    return dataclasses.replace(model, counted=count_parameters(folder))


def _odd(recipe: Mapping[str, Any]) -> str:
    """The key of a recipe's figure with which nothing can be computed; empty where all are sound."""
    for key, default in _FIGURES.items():
        try:
            _int(recipe.get(key, default))
        except ValueError:
            return key
    return ""


def _weight_bytes(recipe: Mapping[str, Any]) -> float:
    """Bytes of a frozen weight of a linear module, as Axolotl loads it.

    It quantises by the adapter's name (``_set_quantization_config`` in axolotl/loaders/model.py): ``load_in_4bit``
    counts for QLoRA only, ``load_in_8bit`` for LoRA only. Elsewhere they are left aside, and the model is in bf16.

    Args:
        recipe: The merged recipe.
    """
    if recipe.get("adapter") in ("qlora", "mixlora") and recipe.get("load_in_4bit"):
        return NF4
    return _INT8 if recipe.get("adapter") == "lora" and recipe.get("load_in_8bit") else _BF16


def recomputes(recipe: dict[str, Any]) -> bool:
    """Whether the backward pass makes a layer's activations again.

    Axolotl takes ``activation_offloading`` in the place of recomputing where an adapter is trained: all activations go
    to the host. Only ``hidden_states`` offloads the checkpoints of what is made again.
    """
    offloaded = recipe.get("activation_offloading")
    return bool(recipe.get("gradient_checkpointing")) and (not offloaded or offloaded == "hidden_states")


def targets(recipe: dict[str, Any], model: Model) -> list[str]:
    """The linear modules of a layer that get an adapter."""
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


def on_host(recipe: dict[str, Any]) -> float:
    """Bytes of the host's memory that offloaded activations may take; 0 where nothing is offloaded or known."""
    model = known(recipe)
    if model is None or not recipe.get("activation_offloading") or _odd(recipe):
        return 0.0
    tokens = recipe["sequence_len"] * recipe.get("micro_batch_size", 1)
    each = tokens * model.hidden * _BF16 if recomputes(recipe) else kept_activations(model, recipe)
    return _PINNED * model.layers * each


def kept_activations(model: Model, recipe: dict[str, Any]) -> float:
    """Bytes of activations that the backward pass of one layer needs.

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
    tokens, rank, adapted = rows * length, recipe["lora_r"], targets(recipe, model)
    hidden, inner, queries, keys = model.hidden, model.intermediate, model.queries, model.keys
    on, drop = recipes.lora_kernels(recipe), _DROPPED if recipe.get("lora_dropout") else 0.0
    norm = 1 if recipe.get("liger_rms_norm") else 2
    wide: float = norm * (model.norms * hidden + (queries + keys if model.head_norms else 0))
    flash = bool(re.search("flash|flex", str(recipe.get("attn_implementation", ""))) or recipe.get("flash_attention"))
    masked = not flash and (model.masked or recipe.get("sdpa_varlen") is False)
    unrepeated = flash or (masked and model.kv_heads == 1)  # a single one is repeated without a copy
    wide += 2 * queries + 2 * keys if unrepeated else 4 * queries
    wide += drop * queries if "o_proj" in adapted else 0
    wide += rank if "o_proj" in adapted and "lora_o_kernel" not in on else 0
    for names, kernel in ((QKV, "lora_qkv_kernel"), (MLP, "lora_mlp_kernel")):
        if kernel in on and set(names) <= set(adapted):
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
    return _BF16 * (tokens * wide + copies + mask)


def _at_work(model: Model, recipe: dict[str, Any]) -> float:
    """Bytes that the backward pass of a layer takes beside what is kept.

    The gradients of the hidden state and of what down_proj is given, (i + 2 h) × tokens, and the weights of one module
    in bf16 where they are quantised.
    """
    tokens = recipe["sequence_len"] * recipe.get("micro_batch_size", 1)
    quantised = _weight_bytes(recipe) < _BF16
    weights = max(inputs * outputs for inputs, outputs in model.linears().values()) if quantised else 0
    return _BF16 * (tokens * (model.intermediate + 2 * model.hidden) + weights)


def parts(recipe: dict[str, Any]) -> Optional[dict[str, float]]:
    """Bytes of everything that a training holds on each of its GPUs at its peak, by name.

    With tokens = sequence_len × micro_batch_size::

        frozen       linear weights × 0.516 (4-bit with its constants), × 1 (8-bit) or × 2 (bf16): :func:`_weight_bytes`
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
    model = known(recipe)
    return None if model is None or unknown_reason(recipe) else parts_of(model, recipe)


def parts_of(model: Model, recipe: dict[str, Any]) -> dict[str, float]:
    """The same for a model whose dimensions are given.

    Args:
        model: The model.
        recipe: The merged recipe; a LoRA or QLoRA that is not sharded.
    """
    tokens = recipe["sequence_len"] * recipe.get("micro_batch_size", 1)
    linears = model.linears()
    trained = model.layers * recipe["lora_r"] * sum(sum(linears[name]) for name in targets(recipe, model))
    moment = _ADAM_8BIT if "8bit" in str(recipe.get("optimizer", "")) else _FP32
    layer = _at_work(model, recipe)
    fused = any(recipe.get(key) for key in _FUSED)
    logits = tokens * (model.hidden * 10.0 if fused else model.vocab * (_LOGIT + (_BF16 if model.capped else 0.0)))
    held = tokens * model.hidden * _BF16 * model.layers
    if not recipe.get("gradient_checkpointing"):
        held = kept_activations(model, recipe) * model.layers
    else:
        layer += kept_activations(model, recipe)
        if not recomputes(recipe):
            held = _STASH * tokens * model.intermediate * _BF16
        elif recipe.get("activation_offloading"):
            held *= min(_OFFLOADED, model.layers) / model.layers
    layer, logits = (layer, 0.0) if layer >= logits else (0.0, logits)
    found = {
        "frozen": model.linear_weights() * _weight_bytes(recipe),
        "embeddings": model.embedding_weights() * _BF16,
        "LoRA": trained * _FP32,
        "gradients": trained * _FP32,
        "optimizer": trained * 2 * moment,
        "kept": held,
        "layer": layer,
        "logits": logits,
    }
    return found | {"allocator": sum(found.values()) * (_FRAGMENTATION - 1), "context": _CONTEXT}


def unknown_reason(recipe: dict[str, Any]) -> str:
    """Why nothing can be said of a recipe's memory, in words; empty where something can.

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
    odd = _odd(recipe)
    if odd:
        return f"«{odd}» is no whole number from 1 to {_MOST}"
    config, folder = config_of(recipe)
    if from_config(config) is not None:
        return ""
    if config:
        text = config.get("text_config") or config
        kind = text.get("model_type") if isinstance(text, Mapping) else None
        shown = isinstance(kind, str) and re.fullmatch(r"[\w.-]{1,40}", kind, re.ASCII)  # a stranger's, on a terminal
        where = f"{folder}/config.json" if folder else "its config.json"
        return (
            f"{where} tells of a model {f'(«{kind}»)' if shown else 'of another kind'} that is not estimated: one with "
            "experts, with weights that were quantised beforehand, with a dimension that is missing or makes no sense, "
            "or built in another way"
        )
    looked = snapshot(recipe)
    return "its dimensions are not known here. They are as soon as this controller has " + (
        f"{looked}/config.json" if looked else "the config.json of that model"
    )


def estimate(recipe: dict[str, Any]) -> Optional[float]:
    """GiB of memory that one training needs on each of its GPUs (without sharding every GPU holds everything).

    The sum of :func:`parts`. **Simulated, not measured**: so it may only warn, or choose between GPUs; what refuses is
    :func:`floor`.

    Args:
        recipe: The merged recipe.

    Returns:
        None where nothing can be said, as in :func:`parts`.
    """
    found = parts(recipe)
    return None if found is None else round(sum(found.values()) / GIB, 1)


def floor(recipe: dict[str, Any]) -> Optional[float]:
    """GiB below which a training certainly does not fit: the weights of model and adapter alone, without anything else.

    Args:
        recipe: The merged recipe.

    Returns:
        None where nothing can be said, as in :func:`parts`.
    """
    found = parts(recipe)
    if found is None:
        return None
    # An adapter could be held in bf16. Rounded down: it refuses.
    return math.floor((found["frozen"] + found["embeddings"] + found["LoRA"] / 2) / GIB * 10) / 10


def usable_gib(machine: str) -> Optional[float]:
    """GiB that the GPUs of a machine class have at least, by its name, such as gpu-24gb; None for another name."""
    found = re.fullmatch(r"(?:.*\D)?(\d{1,6})gb", machine)
    return int(found.group(1)) * USABLE if found else None


def fitting_machine(usable: float, classes: Mapping[str, Optional[float]]) -> str:
    """The machine class to take on a GPU: of those that fit, the one that makes most of it.

    Args:
        usable: GiB that the GPU has.
        classes: A training's estimate with each file of configs/machines/, in GiB; None where it is not known.

    Returns:
        Its name; empty where none fits.
    """
    found = {name: gib for name, gib in classes.items() if gib is not None and gib <= usable}
    return max(sorted(found), key=lambda name: (found[name], usable_gib(name) or 0), default="")
