"""What a recipe is when its layers are merged: which of its keys decide what, its batch, and its fingerprint."""

from __future__ import annotations

import hashlib
import json
import pathlib
import re
from typing import Any

from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.text import canonical

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
DROPOUT_KERNELS = ("lora_mlp_kernel", "lora_qkv_kernel")
COMMIT = r"[0-9a-f]{40}"  # of the hub, in full
BATCH = ("micro_batch_size", "gradient_accumulation_steps")


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


def unusual_dropout(recipe: dict[str, Any]) -> dict[str, bool]:
    """Tell how a recipe draws its dropout, where its kernels make that another way than Axolotl has by default.

    Returns:
        Each of ``DROPOUT_KERNELS`` and whether it is on; empty without a dropout, or where all is as by default.
    """
    if not recipe.get("lora_dropout"):
        return {}
    kernels = lora_kernels(recipe)
    default = lora_kernels({key: value for key, value in recipe.items() if key not in LORA_KERNELS})
    on = {key: key in kernels for key in DROPOUT_KERNELS}
    return {} if on == {key: key in default for key in DROPOUT_KERNELS} else on


def effective_batch(recipe: dict[str, Any]) -> int:
    """Compute the sequences per optimizer step: micro batch × accumulation."""
    return int(recipe.get(BATCH[0], 1)) * int(recipe.get(BATCH[1], 1))


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
    if not rehearsal and unusual_dropout(recipe):  # a rehearsal is on a CPU, where there are no kernels
        keys["dropout_kernels"] = unusual_dropout(recipe)
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
