"""What the adapter of a run will consist of: the names and shapes of its tensors, without any weights.

Runs in the trainer's environment, beside a training or before the weights are there. The model is built on torch's meta
device from config.json alone, by the class that Axolotl would load; it gets Axolotl's own LoRA configuration, and PEFT
says which tensors it would save. Importing this file does nothing.
"""

from __future__ import annotations

import collections
import math
import pathlib
import re
from typing import Any, Optional

SCHEMA = 1
ADAPTERS = ("lora", "qlora")
PREFIX = "base_model.model."  # PEFT's, before each name
_LORA = re.compile(r"\.lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)\b")
# Words by which a recipe asks for a tower, and by which one is known where a model does not tell its decoder.
_TOWER_WORDS = ("vision", "visual", "audio", "image", "video", "speech", "projector", "aligner", "connector", "merger")
_SHOWN = 12  # names in a sentence


class Refused(Exception):
    """The recipe makes no adapter of this model that could be proven or served; the message says what to change."""


def configuration(path: pathlib.Path, folder: Optional[pathlib.Path] = None) -> Any:
    """Read a run's axolotl.yml as a training does, as far as the model and its adapter go.

    Args:
        path: The axolotl.yml.
        folder: Where config.json of the base model lies; without it, in the folder or the cache that the run names.

    Returns:
        Axolotl's configuration (DictDefault), validated and normalised.

    Raises:
        Exception: Axolotl refuses it.
    """
    import yaml
    from axolotl.cli.config import gpu_capabilities, prepare_plugins
    from axolotl.utils.config import normalize_config, validate_config
    from axolotl.utils.dict import DictDefault

    cfg = DictDefault(yaml.safe_load(path.read_text(encoding="utf-8")))
    prepare_plugins(cfg)
    capabilities, around = gpu_capabilities()
    cfg = validate_config(cfg, capabilities=capabilities, env_capabilities=around)
    if folder is not None:
        cfg.base_model_config = str(folder)
    normalize_config(cfg)
    return cfg


def expected(cfg: Any, tokenizer: Any = None) -> dict[str, Any]:
    """Say what the adapter of a training will consist of.

    Args:
        cfg: Axolotl's configuration, see :func:`configuration`.
        tokenizer: The run's; where it knows more tokens than the model, Axolotl makes the embeddings larger, and PEFT
            saves them. Without it that is left out.

    Returns:
        ``schema``, ``base_model``, ``revision`` (the commit that config.json is of; None of a folder), ``model_type``,
        ``tensors`` (name in adapter_model.safetensors -> shape), ``parameters`` (last part of a module's name ->
        trained values), ``towers`` (modules outside the language model that are adapted), ``unmatched`` (targets that
        are called like nothing in the model).

    Raises:
        Refused: Targets match nothing, reach into a tower without being asked to, or the model cannot be built.
    """
    import torch
    from peft import get_peft_model_state_dict

    if cfg.adapter not in ADAPTERS:
        raise Refused(f"adapter: {cfg.adapter} is none that can be proven; {' and '.join(ADAPTERS)} are")
    with torch.random.fork_rng(devices=[]):  # a training draws what it would have drawn
        model = _build(cfg, tokenizer)
        names = [name for name, _ in model.named_modules()]
        parameters = [name for name, _ in model.named_parameters()]
        language = _language(model)
        adapted = _adapt(model, cfg)
    saved = get_peft_model_state_dict(adapted)
    tensors = {name: list(tensor.shape) for name, tensor in saved.items()}
    modules = {_module(name): _tower(_module(name), language) for name in tensors if _LORA.search(name)}
    _refuse_towers(cfg, modules, language)
    known = _kept(adapted, "target_modules")
    unmatched = [
        target
        for key, own in (("lora_target_modules", names), ("lora_target_parameters", parameters))
        for target in _listed(cfg[key])
        if not any(name == target or name.endswith(f".{target}") for name in own)
        and (key != "lora_target_modules" or target in known)  # else PEFT gave it its name of today
    ]
    counts: collections.Counter[str] = collections.Counter()
    for name, shape in tensors.items():
        counts[_kind(name)] += math.prod(shape)
    return {
        "schema": SCHEMA,
        "base_model": cfg.base_model,
        "revision": _commit(cfg),
        "model_type": model.config.model_type,
        "tensors": tensors,
        "parameters": dict(sorted(counts.items())),
        "towers": sorted(name for name, root in modules.items() if root is not None),
        "unmatched": unmatched,
    }


def _build(cfg: Any, tokenizer: Any) -> Any:
    """Build the model that Axolotl would load, without weights."""
    import torch
    import transformers
    from axolotl.loaders.model import ModelLoader

    loader = ModelLoader(cfg, tokenizer)
    loader._set_auto_model_loader()
    # As _build_model of axolotl/loaders/model.py 0.21 chooses.
    own = cfg.type_of_model and cfg.type_of_model != "AutoModelForCausalLM" and not cfg.trust_remote_code
    kind = getattr(transformers, cfg.type_of_model) if own else loader.auto_model_loader
    config = loader.model_config
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config  # names and shapes are those of the model before it
    told = {"trust_remote_code": cfg.trust_remote_code or False} if hasattr(kind, "_model_mapping") else {}
    attention = {"attn_implementation": "eager"}  # any other asks for a GPU or a package, and changes no name
    try:
        with torch.device("meta"):
            build = kind.from_config if hasattr(kind, "_model_mapping") else kind._from_config
            model = build(config, **told, **attention)
    except Exception as error:  # whatever it is, no training loads it either
        what = f"{type(error).__name__}: {_line(error)}"
        raise Refused(f"the model of {cfg.base_model} cannot be built from its config.json: {what}") from None
    if tokenizer is not None:
        wanted = len(tokenizer) if not cfg.resize_token_embeddings_to_32x else -(-len(tokenizer) // 32) * 32
        there = model.get_input_embeddings().num_embeddings
        if there < wanted or (there > wanted and cfg.shrink_embeddings):
            model.resize_token_embeddings(wanted, mean_resizing=False)
    return model


def _adapt(model: Any, cfg: Any) -> Any:
    """Apply PEFT as ``load_lora`` of axolotl/loaders/adapter.py 0.21 does, on weights that are not there."""
    from axolotl.loaders import adapter
    from axolotl.utils.lora_tying import tie_lora_output_embeddings
    from peft import get_peft_model

    try:
        _, config = adapter.load_lora(model, cfg, config_only=True)
        # How the matrices begin needs the weights, and changes none of their names and shapes.
        config.init_lora_weights, config.loftq_config = True, {}
        if config.lora_dropout and adapter._peft_will_auto_convert_target_params(model, config):
            adapter._patch_peft_param_wrapper_dropout()
        adapted = get_peft_model(model, config)
        tie_lora_output_embeddings(adapted)
    except (ValueError, TypeError, KeyError, re.error) as error:
        hint = ""
        if "not found" in str(error) or "No modules" in str(error):
            hint = f" The model's linear layers are called {_some(sorted(adapter.find_all_linear_names(model)))}"
        raise Refused(f"PEFT refuses the LoRA keys of the recipe for {cfg.base_model}: {_line(error)}{hint}") from None
    return adapted


def _language(model: Any) -> Optional[tuple[str, ...]]:
    """Return the names of the modules that are the language model, its output layer among them.

    None where the model does not tell its decoder from the rest; an empty one where there is nothing but text.
    """
    config = model.config
    if not config.sub_configs:
        return ()
    parts = (getattr(model, name, lambda: None)() for name in ("get_decoder", "get_output_embeddings"))
    decoder, head = (_name_of(model, part) for part in parts)
    return None if decoder is None else tuple(filter(None, (decoder, head)))


def _name_of(model: Any, part: Any) -> Optional[str]:
    """Return the name of a module below a model; None where it is none, or the model itself."""
    return next((name for name, module in model.named_modules() if module is part and name), None)


def _tower(name: str, language: Optional[tuple[str, ...]]) -> Optional[str]:
    """Name the tower or projector that a module is of; None where it is one of the language model.

    Args:
        name: Of the module.
        language: Of :func:`_language`.
    """
    if language == () or any(f"{name}.".startswith(f"{own}.") for own in language or ()):
        return None
    parts = name.split(".")
    told = [at for at, part in enumerate(parts) if any(word in part for word in _TOWER_WORDS)]
    if not told and language is None:
        return None
    return ".".join(parts[: told[0] + 1 if told else 2])


def _refuse_towers(cfg: Any, adapted: dict[str, Optional[str]], language: Optional[tuple[str, ...]]) -> None:
    """Refuse an adapter of a tower that nobody asked for: servers take none, and text alone trains none.

    Args:
        cfg: Axolotl's configuration.
        adapted: The modules that are adapted, with the tower of each.
        language: Of :func:`_language`.
    """
    said = " ".join((*_listed(cfg.lora_target_modules), *_listed(cfg.lora_target_parameters))).lower()
    hit = sorted({root for root in adapted.values() if root is not None})
    unasked = [root for root in hit if not any(word in said for word in _words(root))]
    if not unasked:
        return
    kinds = sorted({name.rpartition(".")[2] for name, root in adapted.items() if root is None})
    begin = f"{re.escape(language[0])}\\." if language else f"(?!.*({'|'.join(_TOWER_WORDS)}))"
    instead = f"{begin}.*\\.({'|'.join(map(re.escape, kinds))})"
    count = sum(root in unasked for root in adapted.values())
    linear = ", and no lora_target_linear" if cfg.lora_target_linear else ""
    raise Refused(
        f"the LoRA targets of the recipe reach into {_some(unasked)} of {cfg.base_model} ({count} modules), which is "
        "no part of the language model: text trains nothing there, and servers refuse such an adapter. "
        + (f"Without it: lora_target_modules: '{instead}'{linear}. " if kinds else "")
        + "Whoever means it writes a regular expression that names it"
    )


def _words(root: str) -> list[str]:
    """List the words by which a recipe asks for a tower."""
    return [root.rpartition(".")[2].lower(), *(word for word in _TOWER_WORDS if word in root)]


def _kept(adapted: Any, key: str) -> set[str]:
    """Return what PEFT made of a list of names in its configuration; empty where it is a text."""
    value = getattr(adapted.peft_config["default"], key)
    return set() if value is None or isinstance(value, str) else set(value)


def _listed(value: Any) -> list[str]:
    """Return a key of names as a list; a text is a regular expression and counts as one."""
    return [value] if isinstance(value, str) else list(value or [])


def _module(name: str) -> str:
    """Return the name of the module that a tensor is of, as the model calls it."""
    return _LORA.split(name)[0].removeprefix(PREFIX).replace(".base_layer", "")


def _kind(name: str) -> str:
    """Return the last part of the name of the module that a tensor is of."""
    return re.sub(r"(\.modules_to_save|\.original_module)?\.(weight|bias)$", "", _module(name)).rpartition(".")[2]


def _commit(cfg: Any) -> Optional[str]:
    """Return the commit that the base model is of, by where it lies in the hub's cache; None of a folder."""
    from huggingface_hub import try_to_load_from_cache

    name = str(cfg.base_model)
    if pathlib.Path(name).is_absolute():
        return None
    path = try_to_load_from_cache(name, "config.json", revision=cfg.revision_of_model or None)
    return pathlib.Path(path).parent.name if isinstance(path, str) else cfg.revision_of_model or None


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 600 else f"{text[:599]}…"
