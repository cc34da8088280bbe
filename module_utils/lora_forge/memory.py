"""How much GPU memory a training needs, computed from its recipe before a host is touched. Pure functions."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any, Optional

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
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool

    def linears(self) -> dict[str, tuple[int, int]]:
        """Input and output width of each linear module of a layer."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (self.hidden, queries),
            "k_proj": (self.hidden, keys),
            "v_proj": (self.hidden, keys),
            "o_proj": (queries, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    def linear_weights(self) -> int:
        """How many weights the linear modules of all layers have."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linears().values())

    def embedding_weights(self) -> int:
        """How many weights the embedding and the output head have."""
        return self.vocab * self.hidden * (1 if self.tied else 2)


MODELS = {
    "Qwen2.5-0.5B": Model(24, 896, 4864, 14, 2, 64, 151936, True),
    "Qwen2.5-1.5B": Model(28, 1536, 8960, 12, 2, 128, 151936, True),
    "Qwen2.5-3B": Model(36, 2048, 11008, 16, 2, 128, 151936, True),
    "Qwen2.5-7B": Model(28, 3584, 18944, 28, 4, 128, 152064, False),
    "Qwen2.5-14B": Model(48, 5120, 13824, 40, 8, 128, 152064, False),
    "Qwen2.5-32B": Model(64, 5120, 27648, 40, 8, 128, 152064, False),
    "Qwen2.5-72B": Model(80, 8192, 29568, 64, 8, 128, 152064, False),
}

# Bytes of a frozen weight. NF4 with double quantisation: half a byte, one 8-bit constant for every 64 weights and
# one 32-bit constant for every 256 of those.
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
INT8 = 1.0
BF16 = 2.0
FP32 = 4.0
ADAM_8BIT = 1 + 4 / 256  # one byte for a moment, and a 32-bit constant for every 256 (bitsandbytes)
OFFLOADED = 2  # inputs of layers that are on the GPU while the others wait on the host: one in use, one on its way
STASH = 5  # tensors that are on the GPU while they are copied to the host, where all activations go there (TRL)
PINNED = 2  # PyTorch rounds pinned memory of the host up to a power of two
LAYER_HIDDEN, LAYER_INTERMEDIATE = 16, 8  # bf16 tensors of either width that the backward pass of a layer keeps
LOGIT = 2 + 4 + 4  # bytes of a logit: in bf16, upcast to fp32, and its log-probability or gradient in fp32
FUSED = ("cut_cross_entropy", "liger_fused_linear_cross_entropy")  # these never hold all the logits
SHARDED = ("deepspeed", "fsdp_config")
CONTEXT = 1.0 * GIB  # bytes: the CUDA context, and the workspaces of cuBLAS and bitsandbytes
FRAGMENTATION = 1.10  # what PyTorch's allocator reserves over what is used


def known(recipe: dict[str, Any]) -> Optional[Model]:
    """The dimensions of a recipe's model, by its name; None for one that is not in :data:`MODELS`."""
    name = re.sub("-instruct$", "", str(recipe.get("base_model", "")).rstrip("/").rpartition("/")[2], flags=re.I)
    return {one.lower(): found for one, found in MODELS.items()}.get(name.lower())


def recomputes(recipe: dict[str, Any]) -> bool:
    """Whether the backward pass makes a layer's activations again.

    Axolotl takes ``activation_offloading`` in the place of recomputing where an adapter is trained: all activations go
    to the host. Only ``hidden_states`` offloads the checkpoints of what is made again.
    """
    offloaded = recipe.get("activation_offloading")
    return bool(recipe.get("gradient_checkpointing")) and (not offloaded or offloaded == "hidden_states")


def on_host(recipe: dict[str, Any]) -> float:
    """Bytes of the host's memory that offloaded activations may take; 0 where nothing is offloaded or known."""
    model = known(recipe)
    if model is None or not recipe.get("activation_offloading"):
        return 0.0
    tokens = recipe["sequence_len"] * recipe.get("micro_batch_size", 1)
    each = tokens * model.hidden * BF16 if recomputes(recipe) else _layer(model, tokens)
    return PINNED * model.layers * each


def _layer(model: Model, tokens: int) -> float:
    """Bytes of activations that the backward pass of one layer needs."""
    return tokens * (LAYER_HIDDEN * model.hidden + LAYER_INTERMEDIATE * model.intermediate) * BF16


def parts(recipe: dict[str, Any]) -> Optional[dict[str, float]]:
    """Bytes of everything that a training holds on each of its GPUs at its peak, by name.

    With tokens = sequence_len × micro_batch_size::

        frozen       linear weights × 0.516 (4-bit with its constants), × 1 (8-bit) or × 2 (bf16)
        embeddings   (embedding + head unless tied) weights × 2: Axolotl keeps both in bf16, never quantised
        LoRA         rank × (inputs + outputs) of every target module × 4, fp32
        gradients    the same again
        optimizer    twice the same for Adam's two moments; a quarter of that, and constants, with an 8-bit optimizer
        checkpoints  layers × tokens × hidden × 2: with gradient checkpointing only the input of each layer stays, and
                     two of them with ``activation_offloading: hidden_states``. With any other offloading nothing is
                     made again, all activations go to the host, and 5 × tokens × intermediate × 2 are on their way
                     there. Without checkpointing every layer's activations are there
        layer        tokens × (16 × hidden + 8 × intermediate) × 2: what the backward pass of a layer needs, made
                     again, or brought back, layer by layer
        logits       tokens × vocabulary × 10: transformers upcasts them for the loss; nothing with a fused loss
        allocator    a tenth of all that, which is reserved and not used
        context      1 GiB

    Of layer and logits only the greater one counts with gradient checkpointing, because the logits are gone before the
    first layer is made again: the other one is 0. Attention is taken as linear in tokens (sdpa, FlashAttention); eager
    attention needs more.

    Args:
        recipe: The merged recipe.

    Returns:
        None where nothing can be said: a model that is not in :data:`MODELS`, another adapter than LoRA or QLoRA,
        modules that are trained in full, a sharded model.
    """
    model = known(recipe)
    if model is None or recipe.get("adapter") not in ("lora", "qlora") or recipe.get("lora_modules_to_save"):
        return None
    if any(recipe.get(key) for key in SHARDED):
        return None
    tokens = recipe["sequence_len"] * recipe.get("micro_batch_size", 1)
    weight = NF4 if recipe.get("load_in_4bit") else INT8 if recipe.get("load_in_8bit") else BF16
    linears = model.linears()
    targets = list(linears) if recipe.get("lora_target_linear") else recipe.get("lora_target_modules") or []
    trained = model.layers * recipe["lora_r"] * sum(sum(linears[target]) for target in targets if target in linears)
    moment = ADAM_8BIT if "8bit" in str(recipe.get("optimizer", "")) else FP32
    layer = _layer(model, tokens)
    logits = 0.0 if any(recipe.get(key) for key in FUSED) else tokens * model.vocab * LOGIT
    checkpoint = tokens * model.hidden * BF16
    if recipe.get("gradient_checkpointing"):
        if not recomputes(recipe):
            kept = STASH * tokens * model.intermediate * BF16
        else:
            kept = checkpoint * (min(OFFLOADED, model.layers) if recipe.get("activation_offloading") else model.layers)
        layer, logits = (layer, 0.0) if layer >= logits else (0.0, logits)
    else:
        kept, layer = layer * model.layers, 0.0
    found = {
        "frozen": model.linear_weights() * weight,
        "embeddings": model.embedding_weights() * BF16,
        "LoRA": trained * FP32,
        "gradients": trained * FP32,
        "optimizer": trained * 2 * moment,
        "checkpoints": kept,
        "layer": layer,
        "logits": logits,
    }
    return found | {"allocator": sum(found.values()) * (FRAGMENTATION - 1), "context": CONTEXT}


def estimate(recipe: dict[str, Any]) -> Optional[float]:
    """GiB of memory that one training needs on each of its GPUs (without sharding every GPU holds everything).

    The sum of :func:`parts`. **It has not been checked against a measured peak yet**: the factors 16, 8, 1.10 and 1 GiB
    are reasoned, not measured. So it may only warn, or choose between GPUs; what refuses is :func:`floor`.

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
