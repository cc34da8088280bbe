"""Follow the memory of one micro batch through the real modules of a model, without a GPU; compare the plan's estimate.

python benchmarks/gpu/memory_simulation.py [--only qwen2.5-7b] [--out benchmarks/gpu/memory_simulated.json]

Runs in the environment of a trainer. Tensors are torch's fake ones: they have shapes and no values, so that a model of
70B takes no memory. Nothing of ``memory.py`` but the estimate to compare with is used: what is counted are the tensors
that transformers, PEFT, Axolotl and Liger make themselves.

What is real: transformers' modules, built from dimensions; PEFT's LoRA layers; Axolotl's LoRA kernels (their autograd
functions, patched in by Axolotl's own functions); Liger's autograd functions and patches; checkpointing; autocast; the
upcast of the outputs by Accelerate. What stands in for a kernel that needs a GPU allocates what that kernel allocates:
the unpacking of 4-bit weights (a bf16 copy, for the length of a product), attention (PyTorch's varlen attention as
Axolotl calls it where documents are packed: query, repeated keys and values, output and log-sum-exp are kept; where a
window slides, the memory-efficient kernel with its mask in bf16), RMSNorm and fused cross entropy of Liger, gradients
of LoRA's matrices in fp32.

What is counted: each storage from its making to its release, rounded up to 512 bytes as PyTorch's allocator does. The
peak is the largest sum, and what stays all the while: weights, LoRA in fp32, its gradients, two moments of Adam. What
is not counted: the CUDA context and the libraries' workspaces, what the allocator reserves and cannot use, what a
kernel allocates inside itself beyond the above.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import gc
import importlib.metadata
import inspect
import json
import multiprocessing
import os
import pathlib
import tempfile
import types
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

os.environ.update({"AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""})

from forge import ROOT, import_forge

import_forge()
import accelerate.utils.operations  # noqa: E402
import axolotl.kernels.lora  # noqa: E402
import bitsandbytes  # noqa: E402
import liger_kernel.ops.fused_linear_cross_entropy as fused  # noqa: E402
import liger_kernel.ops.rms_norm as rms  # noqa: E402
import peft  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from ansible.module_utils.lora_forge.planning import base_models, memory  # noqa: E402
from ansible.module_utils.lora_forge.planning.recipe import LORA_KERNELS  # noqa: E402
from axolotl.monkeypatch.lora_kernels import apply_lora_kernel_patches, patch_self_attn_lora  # noqa: E402
from axolotl.utils.dict import DictDefault  # noqa: E402
from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS  # noqa: E402
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS  # noqa: E402

GIB = 2**30
OUT = ROOT / "benchmarks/gpu/memory_simulated.json"
PACKAGES = ("axolotl", "torch", "transformers", "peft", "bitsandbytes", "accelerate", "liger-kernel")
BLOCK = 512  # bytes: PyTorch's allocator hands out multiples of it
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)  # bytes of a 4-bit weight and its constants
SEPARATE = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TOGETHER = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]  # of phi3
VARLEN_HEAD = 256  # Axolotl takes varlen attention up to this width of a head
CONTEXT = 0.7  # GiB: the CUDA context and cuBLAS's workspaces, which no tensor shows; an assumption
BEGIN, END = "<!-- simulated: written by benchmarks/gpu/memory_simulation.py -->", "<!-- end of what is simulated -->"


@dataclasses.dataclass(frozen=True)
class Case:
    """What is simulated.

    Attributes:
        base: A model of ``base_models.CONFIGS``, in lower case.
        rows: Micro batch.
        length: Tokens of a row.
        checkpointing: Gradient checkpointing.
        fused: Liger's fused cross entropy.
        norm: Liger's RMSNorm.
        kernels: Axolotl's LoRA kernels.
        dropout: ``lora_dropout``.
        rank: ``lora_r``.
        layers: So many layers in the place of the model's own; 0 for those.
    """

    base: str
    rows: int = 1
    length: int = 4096
    checkpointing: bool = True
    fused: bool = False
    norm: bool = False
    kernels: bool = True
    dropout: float = 0.05
    rank: int = 64
    layers: int = 0

    def recipe(self) -> dict[str, Any]:
        """Return the recipe keys that say the same."""
        return {
            "base_model": self.base,
            "adapter": "qlora",
            "load_in_4bit": True,
            "sequence_len": self.length,
            "sample_packing": True,
            "micro_batch_size": self.rows,
            "gradient_checkpointing": self.checkpointing,
            "attn_implementation": "sdpa",
            "lora_r": self.rank,
            "lora_dropout": self.dropout,
            "lora_target_modules": self.targets(),
            "optimizer": "adamw_torch_fused",
            **({"liger_fused_linear_cross_entropy": True} if self.fused else {}),
            **({"liger_rms_norm": True} if self.norm else {}),
            **({} if self.kernels else dict.fromkeys(LORA_KERNELS, False)),
        }

    def config(self) -> dict[str, Any]:
        """Return the model's config.json."""
        return base_models.CONFIGS[self.base] | ({"num_hidden_layers": self.layers} if self.layers else {})

    def targets(self) -> list[str]:
        """List all the linear modules of a layer, by their names in this model."""
        return TOGETHER if base_models.CONFIGS[self.base]["model_type"] == "phi3" else SEPARATE

    def words(self) -> str:
        """Describe the case briefly: 7b 2x4096 fused norm, and what is off."""
        said = [self.base, f"{self.rows}×{self.length}", f"r{self.rank}" if self.rank != 64 else ""]
        said += ["fused" if self.fused else "", "RMSNorm" if self.norm else ""]
        said += ["" if self.checkpointing else "no checkpointing", "" if self.kernels else "no LoRA kernels"]
        said += ["no dropout" if not self.dropout else ""]
        return " ".join(filter(None, said))


def _cases(base: str, *changes: dict[str, Any]) -> list[Case]:
    return [Case(base, **change) for change in changes]


LIGER: dict[str, Any] = {"fused": True, "norm": True}
OPEN = LIGER | {"checkpointing": False}
CASES = [
    *_cases(
        "qwen2.5-7b",
        {"rows": 2}, {}, {"length": 8192}, {"rank": 16}, {"rows": 2, "fused": True}, LIGER, LIGER | {"rows": 2},
        LIGER | {"rows": 4}, OPEN, OPEN | {"dropout": 0.0}, OPEN | {"rows": 2},
        {"fused": True, "checkpointing": False}, {"fused": True, "kernels": False},
        {"fused": True, "kernels": False, "checkpointing": False},
    ),
    *_cases("qwen2.5-0.5b", {}),
    *_cases("qwen2.5-3b", {"rows": 2}),
    *_cases("qwen2.5-14b", {}, {"rows": 2}, LIGER),
    *_cases("qwen2.5-32b", {}),
    *_cases("qwen3-4b", {}, OPEN),
    *_cases("qwen3-8b", {}, LIGER, OPEN),
    *_cases("llama-3.1-8b", {}, {"fused": True}, OPEN),
    *_cases("llama-3.2-1b", {"rows": 2}),
    *_cases("mistral-7b-v0.3", {}, OPEN),
    *_cases("mistral-nemo-2407", {"fused": True}),
    *_cases("gemma-2-9b", {}, {"fused": True}, OPEN),
    *_cases("gemma-3-1b", {}, {"fused": True, "checkpointing": False}),
    *_cases("phi-4", {"kernels": False}, {"kernels": False, "fused": True, "checkpointing": False}),
]  # fmt: skip


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that are alive.

    Attributes:
        now: Bytes at the moment.
        peak: The most that they were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.held: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if isinstance(one, torch.Tensor):
                self.count(one)
        return made

    def count(self, tensor: torch.Tensor) -> None:
        """Count the storage of a tensor until it is released; once, however many tensors share it."""
        storage = tensor.untyped_storage()
        if id(storage) in self.held:
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        key = id(storage)

        def released(_: Any) -> None:
            if self.held.pop(key, None) is not None:
                self.now -= size

        self.held[key] = weakref.ref(storage, released)
        self.now += size
        self.peak = max(self.peak, self.now)

    def known(self, tensor: torch.Tensor) -> None:
        """Leave out a tensor that is counted elsewhere."""
        before = self.now, self.peak
        self.count(tensor)
        storage = tensor.untyped_storage()
        self.now, self.peak = before
        self.held[id(storage)] = storage


class Quantised(bitsandbytes.nn.Linear4bit):
    """A linear module in 4 bits: packed weights, and a bf16 copy of them for the length of each product."""

    def __init__(self, linear: torch.nn.Linear):
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        packed = torch.empty(linear.weight.numel() // 2, 1, dtype=torch.uint8)
        self.weight = torch.nn.Parameter(packed, requires_grad=False)
        self.weight.quant_state = types.SimpleNamespace(shape=linear.weight.shape, dtype=torch.bfloat16)
        self.weight.compress_statistics, self.weight.quant_type = True, "nf4"
        self.bias = linear.bias
        self.compute_dtype = torch.bfloat16

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.to(torch.bfloat16)
        return Product.apply(x.to(torch.bfloat16), self.weight, self.weight.quant_state, bias)


class Product(torch.autograd.Function):
    """A product with 4-bit weights as bitsandbytes computes it: of its input it keeps nothing."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, packed: torch.Tensor, state: Any, bias: Any) -> torch.Tensor:
        ctx.packed, ctx.state = packed, state
        return torch.nn.functional.linear(x, unpacked(packed, state), bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return torch.matmul(gradient, unpacked(ctx.packed, ctx.state).to(gradient.dtype)), None, None, None


def unpacked(packed: torch.Tensor, state: Any = None) -> torch.Tensor:
    """Stand in for ``axolotl.kernels.quantize.dequantize``: bf16 weights, transposed where the packed ones are."""
    if state is None:
        return packed
    out = torch.empty(state.shape, dtype=state.dtype)
    return out.t() if packed.shape[0] == 1 else out


def lora_gradient(left: torch.Tensor, right: torch.Tensor, dtype: Any, scale: float) -> torch.Tensor:
    """Stand in for Axolotl's ``_gradient_mm``, which on a GPU allocates nothing but its result."""
    return torch.empty((left.shape[0], right.shape[1]), dtype=dtype or left.dtype).mul_(scale)


class Attention(torch.autograd.Function):
    """What an attention kernel keeps and makes: its inputs, its output, and the log-sum-exp of each row in fp32.

    The backward pass makes the three gradients, the sum of each row of gradient × output, and FlashAttention's fp32
    accumulator of the queries' gradient.
    """

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, mask: Any) -> torch.Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, torch.empty(query.shape[:-1], dtype=torch.float32), mask)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        query, key, value, _, sums, _ = ctx.saved_tensors
        gradient = gradient.contiguous()
        held = torch.empty_like(query, dtype=torch.float32), torch.empty_like(sums)
        made = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        del held
        return *made, None


def attend(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **_: Any) -> tuple[torch.Tensor, None]:
    """Attend as Axolotl's «sdpa» does to packed documents: keys and values are repeated for all the heads."""
    rows, heads, length, width = query.shape
    groups = heads // key.shape[1]
    if attention_mask is None:  # sdpa_varlen
        if groups > 1:
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        flat = [one.transpose(1, 2).reshape(rows * length, heads, -1) for one in (query, key, value)]
        return Attention.apply(*flat, None).reshape(rows, length, heads, width), None
    if groups > 1:
        shape = (rows, key.shape[1], groups, length, width)
        key, value = (one[:, :, None].expand(shape).reshape(query.shape) for one in (key, value))
    mask = torch.empty(attention_mask.shape, dtype=query.dtype)  # a truth value becomes a number for the kernel
    return Attention.apply(query, key, value, mask).transpose(1, 2).contiguous(), None


def norm_forward(x: Any, weight: Any, eps: Any, offset: Any, casting: Any, row_mode: Any) -> Any:
    """Stand in for Liger's kernel: the result, and one fp32 number per row, which is kept with the input."""
    flat = x.view(-1, x.shape[-1])
    return torch.empty_like(flat).view(x.shape), flat, torch.empty(flat.shape[0], dtype=torch.float32), 0, 0, casting


def norm_backward(gradient: Any, x: Any, weight: Any, *rest: Any) -> Any:
    """Stand in for Liger's kernel, which writes into the gradient that it is given, unless told not to."""
    in_place = rest[-2]
    return (gradient if in_place is True else torch.zeros_like(gradient)), torch.empty_like(weight)


def loss_forward(_input: Any, weight: Any, target: Any, **_: Any) -> Any:
    """Stand in for Liger's fused cross entropy: the gradient of its input at once, logits in chunks."""
    tokens, hidden = _input.shape
    chunks = -(-weight.shape[0] // hidden)
    size = min(tokens, 1 << (-(-tokens // chunks) - 1).bit_length())  # the next power of 2
    gradient, losses = torch.zeros_like(_input), torch.zeros(tokens, dtype=torch.float32)
    logits = torch.empty((size, weight.shape[0]), dtype=_input.dtype)
    del logits
    return losses.sum(), None, None, None, gradient, None, None


def loss_backward(gradient: Any, of_input: Any, of_weight: Any, of_bias: Any) -> Any:
    """Stand in for Liger's kernel, which writes into the gradient that it has already."""
    return of_input, of_weight, of_bias


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Stand in for Axolotl's gated activations."""
    return torch.empty_like(gate)


def swiglu_gradient(gradient: Any, gate: Any, up: Any) -> Any:
    """Stand in for their backward pass, which writes into its arguments."""
    return gradient, gate, up


def dropout(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """Drop out as a GPU does: the mask takes a byte per value, where a CPU keeps one in the type of the input."""
    return torch.native_dropout(x, p, True)[0] if training and 0 < p < 1 else x


def stand_ins() -> None:
    """Put what allocates alike in the place of what needs a GPU."""
    lora = axolotl.kernels.lora
    lora.dequantize, lora._gradient_mm = unpacked, lora_gradient
    lora._activation_kernels = lambda kind: (swiglu, swiglu_gradient)
    torch.nn.functional.dropout = dropout
    rms.rms_norm_forward, rms.rms_norm_backward = norm_forward, norm_backward
    fused.fused_linear_cross_entropy_forward, fused.fused_linear_cross_entropy_backward = loss_forward, loss_backward
    transformers.masking_utils.find_packed_sequence_indices = lambda position_ids: None  # it looks at values


def windowed(config: Any) -> bool:
    """Tell whether Axolotl leaves a model to plain sdpa with a mask: a sliding window, or heads that are too wide."""
    kinds, head = getattr(config, "layer_types", None), getattr(config, "head_dim", None)
    head = head or config.hidden_size // config.num_attention_heads
    slides = bool(getattr(config, "sliding_window", None)) and (not kinds or "sliding_attention" in kinds)
    return slides or head > VARLEN_HEAD


def quantise(model: Any) -> tuple[int, int]:
    """Put the linear modules of a model's layers into 4 bits, as transformers does: all but the head.

    Returns:
        Weights in 4 bits, and bytes of all that is not.
    """
    weights = 0
    for module in list(model.modules()):
        for child, linear in list(module.named_children()):
            if type(linear) is torch.nn.Linear and child != "lm_head":
                weights += linear.weight.numel()
                setattr(module, child, Quantised(linear))
    seen = {id(one): one for one in model.parameters() if one.dtype != torch.uint8}
    return weights, sum(one.numel() * one.element_size() for one in seen.values())


def build(case: Case) -> tuple[Any, dict[str, int]]:
    """Build the model with its adapter on fake tensors; return it, and the bytes that stay in memory throughout."""
    config = transformers.AutoConfig.for_model(**case.config())
    kind = config.model_type
    cfg = DictDefault(
        dict.fromkeys(LORA_KERNELS, case.kernels) | {"base_model": "", "model_config_type": kind, "adapter": "qlora"}
    )
    if case.kernels:
        with tempfile.TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            cfg.base_model = folder
            patch_self_attn_lora(cfg)
    if case.norm or case.fused:
        MODEL_TYPE_TO_APPLY_LIGER_FN[kind](
            **liger_arguments(MODEL_TYPE_TO_APPLY_LIGER_FN[kind], rms_norm=case.norm, fused=case.fused)
        )
    masked = windowed(config)
    ALL_ATTENTION_FUNCTIONS.register("sdpa", attend)
    if not masked:
        ALL_MASK_ATTENTION_FUNCTIONS.register("sdpa", lambda *_, **__: None)
    else:
        ALL_MASK_ATTENTION_FUNCTIONS.register("sdpa", whole_mask)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
        weights, rest = quantise(model)
    model.train()
    model.config.use_cache, model.is_loaded_in_4bit = False, True
    if case.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model.requires_grad_(False)
    model = peft.get_peft_model(
        model,
        peft.LoraConfig(
            r=case.rank, lora_alpha=2 * case.rank, lora_dropout=case.dropout, target_modules=case.targets(),
            task_type="CAUSAL_LM",
        ),
    )  # fmt: skip
    if case.kernels:
        apply_lora_kernel_patches(model, cfg)
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    assert all(one.dtype == torch.float32 for one in model.parameters() if one.requires_grad)
    return model, {"quantised": round(weights * NF4), "rest": rest, "lora": 16 * trained, "trained": trained}


def faked(model: Any) -> None:
    """Put fake tensors of the CPU in the place of a model's, which are on torch's meta device: autocast knows no meta.

    One that several modules share stays one.
    """
    made: dict[int, Any] = {}
    for module in model.modules():
        for name, one in module._parameters.items():
            if one is not None and id(one) not in made:
                made[id(one)] = one, torch.nn.Parameter(torch.empty(one.shape, dtype=one.dtype), one.requires_grad)
                made[id(one)][1].__dict__.update(one.__dict__)
            if one is not None:
                module._parameters[name] = made[id(one)][1]
        for name, one in module._buffers.items():
            if one is not None:
                module._buffers[name] = torch.empty(one.shape, dtype=one.dtype)


def liger_arguments(patch: Callable[..., None], rms_norm: bool, fused: bool) -> dict[str, bool]:
    """Return the arguments for Liger's patch of a model, with everything else off."""
    wanted = {"rms_norm": rms_norm, "fused_linear_cross_entropy": fused}
    known = {
        name for name, one in inspect.signature(patch).parameters.items()
        if isinstance(one.default, bool)
    }  # fmt: skip
    return dict.fromkeys(known, False) | {name: value for name, value in wanted.items() if name in known}


def whole_mask(batch_size: int, q_length: int, kv_length: int, **_: Any) -> torch.Tensor:
    """Return the mask of a micro batch, a byte for each pair of tokens."""
    return torch.empty((batch_size, 1, q_length, kv_length), dtype=torch.bool)


def simulate(case: Case) -> dict[str, Any]:
    """Simulate the memory of one micro batch.

    Returns:
        GiB: ``peak``, of which ``static`` is there all the while, and ``forward``, the most that is kept when the
        forward pass is done.
    """
    stand_ins()
    with warnings_off():
        model, static = build(case)
    with FakeTensorMode(allow_non_fake_inputs=True), warnings_off():
        faked(model)
        for one in model.parameters():
            if one.requires_grad:
                one.grad = torch.zeros_like(one)
        live = Live()
        for one in [*model.parameters(), *model.buffers()]:
            live.known(one)
            if one.grad is not None:
                live.known(one.grad)
        tokens = torch.empty((case.rows, case.length), dtype=torch.long)
        places = torch.empty((case.rows, case.length), dtype=torch.long)
        count = torch.empty((), dtype=torch.long)
        gc.collect()
        # PEFT asks whether autocast is on for CUDA.
        torch.set_autocast_enabled("cuda", True)
        with live:
            context = torch.autocast("cpu", dtype=torch.bfloat16)
            forward = accelerate.utils.operations.convert_outputs_to_fp32(context(model.forward))
            answer = forward(
                input_ids=tokens, labels=tokens, position_ids=places, num_items_in_batch=count, use_cache=False
            )
            loss = answer["loss"]
            del answer
            kept, before = live.now, live.peak
            loss.backward()
        return {
            "peak": (live.peak + sum(static[key] for key in ("quantised", "rest", "lora"))) / GIB,
            "static": sum(static[key] for key in ("quantised", "rest", "lora")) / GIB,
            "kept": kept / GIB,
            "forward": before / GIB,
            "trained": static["trained"],
        }


@contextlib.contextmanager
def warnings_off() -> Iterator[None]:
    """Silence the libraries' remarks on a machine that has no GPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _child(case: Case, answer: Any) -> None:
    try:
        answer.put(simulate(case))
    except BaseException as error:
        answer.put({"error": f"{type(error).__name__}: {error}"})
        raise


def apart(case: Case) -> dict[str, Any]:
    """Simulate in a process of its own: Axolotl's and Liger's patches change classes until their process ends.

    Raises:
        SystemExit: It failed.
    """
    context = multiprocessing.get_context("fork")
    answer = context.Queue()
    process = context.Process(target=_child, args=(case, answer))
    process.start()
    found: dict[str, Any] = answer.get()
    process.join()
    if "error" in found:
        raise SystemExit(f"{case.words()}: {found['error']}")
    return found


def compared(case: Case, found: dict[str, Any]) -> dict[str, Any]:
    """Return a simulation beside the plan's estimate of the same case, in GiB."""
    recipe, model = case.recipe(), memory.from_config(case.config())
    assert model is not None, f"{case.base}: memory.py does not know this kind of model"
    simulated, estimated = found["peak"] + CONTEXT, sum(memory.parts_of(model, recipe).values()) / GIB
    return {
        "case": case.words(),
        "recipe": recipe,
        **{key: round(found[key], 3) for key in ("static", "kept")},
        "live": round(found["peak"], 3),
        "simulated": round(simulated, 1),
        "estimated": round(estimated, 1),
        "ratio": round(estimated / simulated, 3),
    }


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the lines of a Markdown table."""
    text = ["| shape | simulated GiB | estimated GiB | ratio |", "|---|---|---|---|"]
    return text + [f"| {row['case']} | {row['simulated']} | {row['estimated']} | {row['ratio']:.2f} |" for row in rows]


def write(rows: list[dict[str, Any]], out: pathlib.Path) -> None:
    """Write what was simulated, with its date and versions."""
    about = {
        "what": "simulated, not measured: benchmarks/gpu/memory_simulation.py",
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "context": CONTEXT,
    }
    lines = ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in rows)
    head = json.dumps(about, indent=1).removesuffix("\n}")
    out.write_text(f'{head},\n "rows": [\n{lines}\n ]\n}}\n', encoding="utf-8")


def put(rows: list[dict[str, Any]], page: pathlib.Path) -> None:
    """Put the table between the marks of a document."""
    text = page.read_text(encoding="utf-8")
    before, mark, rest = text.partition(BEGIN)
    if not mark or END not in rest:
        raise SystemExit(f"{page} has no lines «{BEGIN}» and «{END}»")
    page.write_text(f"{before}{BEGIN}\n\n" + "\n".join(table(rows)) + f"\n\n{END}{rest.partition(END)[2]}", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="bases, with commas; all without it")
    parser.add_argument("--layers", type=int, default=0, help="so many layers only, to try the program")
    parser.add_argument("--length", type=int, default=0, help="rows of so many tokens, to try the program")
    parser.add_argument("--out", type=pathlib.Path, default=OUT, help="JSON to write")
    parser.add_argument("--page", type=pathlib.Path, help="a document to put the table into, such as docs/gpu.md")
    given = parser.parse_args()
    wanted = [name for name in given.only.split(",") if name]
    unknown = sorted(set(wanted) - {case.base for case in CASES})
    if unknown:
        raise SystemExit(
            f"nothing is simulated of {', '.join(unknown)}; of {', '.join(sorted({c.base for c in CASES}))}"
        )
    rows = []
    for case in CASES:
        if not wanted or case.base in wanted:
            case = dataclasses.replace(case, layers=given.layers, length=given.length or case.length)
            rows.append(compared(case, apart(case)))
            print(table(rows)[-1], flush=True)
    write(rows, given.out)
    if given.page:
        put(rows, given.page)


if __name__ == "__main__":
    main()
