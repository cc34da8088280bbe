"""FLOPs of a LoRA training, and what share of a GPU they are. Pure functions; no GPU is needed.

Model FLOPs are what the training itself needs, however it is computed; hardware FLOPs add what is computed twice. MFU
and HFU divide them by what the very card reaches in a bf16 product. Both words as in Korthikanti et al. 2022,
«Reducing Activation Recomputation in Large Transformer Models»; PaLM (Chowdhery et al. 2022, appendix B), where MFU
comes from, divides by the data sheet's peak instead, which no product reaches.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Shape:
    """What FLOPs depend on.

    Attributes:
        linear: Weights of the linear modules of all layers.
        head: Weights of the output head; the embedding is a look-up and costs none.
        layers: Layers.
        width: Query heads × width of a head.
    """

    linear: int
    head: int
    layers: int
    width: int


@dataclasses.dataclass(frozen=True)
class Load:
    """What was put through the model.

    Attributes:
        tokens: Real tokens; padding is no work.
        positions: Tokens and padding, which is computed all the same.
        squares: Sum of the squares of the documents' lengths, in tokens²; packed documents do not see each other.
    """

    tokens: int
    positions: int
    squares: int


def attention_forward(shape: Shape, squares: int) -> int:
    """Return the FLOPs of causal attention, forward, over all layers: the products Q·Kᵀ and P·V.

    Each is 2 · s² · width for a document of s tokens; of both, a causal mask leaves half::

        layers × 2 × s² × width

    Half of PaLM's appendix B, which does not take the mask off. Softmax is not counted.
    """
    return shape.layers * 2 * squares * shape.width


def model_flops(shape: Shape, load: Load) -> int:
    """Return the FLOPs that a LoRA training on a frozen base needs.

    With N the weights of linear modules and head::

        4 N × tokens  +  3 × attention_forward

    2 N for the forward pass and 2 N for the gradients of the activations (Kaplan et al. 2020, section 2.1, has another
    2 N for the gradients of the weights, which a frozen base has not). Attention has no weights, so its backward pass
    costs twice its forward pass, as in any training. What LoRA's own matrices cost, 6 FLOPs a weight and token, is left
    out: 3 % for Qwen2.5-7B at rank 64, so the share is told too small rather than too large. Undoing the quantisation
    is no product and is not counted.

    Args:
        shape: The model.
        load: What it was trained on.
    """
    return 4 * (shape.linear + shape.head) * load.tokens + 3 * attention_forward(shape, load.squares)


def hardware_flops(shape: Shape, load: Load, checkpointing: bool) -> int:
    """Return the FLOPs that are computed, with padding; checkpointing computes each layer's forward pass twice.

    The head is no part of a checkpointed layer. What an attention kernel computes anew by itself is not counted.
    """
    again = 2 * shape.linear * load.positions + attention_forward(shape, load.squares) if checkpointing else 0
    padding = 4 * (shape.linear + shape.head) * (load.positions - load.tokens)
    return model_flops(shape, load) + padding + again


def share(flops: int, seconds: float, ceiling: float) -> float:
    """Return MFU or HFU.

    Args:
        flops: Of :func:`model_flops` or :func:`hardware_flops`.
        seconds: In which they were computed.
        ceiling: FLOPs a second that the same card reached in a bf16 product.
    """
    return flops / seconds / ceiling
