"""Hold recipes against Axolotl's own validation, and against their base models, of which no weights are needed.

Runs in an environment of the trainers' locks: on the controller for a plan, and on a trainer while the weights are
still on their way. ``preflight.py <pid of who asks> <seconds>`` reads from standard input a JSON list of questions:

    recipe          what axolotl.yml holds
    capabilities    what Axolotl would find of the GPU
    model           a folder with config.json of the base model; empty where there is none
    needs           what of its data the chat template has to know, each with the place of the first such conversation
    write           where the expected adapter is written once nothing is said against the recipe; empty for nowhere

The last line that it prints is JSON: ``axolotl``, its version; ``answers``, one for each question, see :func:`answer`;
``left_out``, the plugins that are not here. Nothing is asked of a hub, and no code of a model is run. It ends with who
asks, and after the seconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import resource
import signal
import sys
import tempfile
from typing import Any

MEMORY = 16 << 30  # bytes; 70B took 690 MiB. What asks for more is no model, and takes nobody else's memory
LONGEST = 3000  # letters of a sentence
MOST = 50  # sentences about a recipe
NAMES = 12  # in a sentence
# Keys that have nothing to do with which adapter a base model gets. Any other one that differs costs a second look.
_ASIDE = frozenset(
    """
    datasets test_datasets output_dir dataset_prepared_path val_set_size num_epochs max_steps warmup_steps warmup_ratio
    eval_steps evals_per_epoch save_steps saves_per_epoch logging_steps learning_rate lr_scheduler weight_decay seed
    max_grad_norm sequence_len sample_packing eval_sample_packing micro_batch_size gradient_accumulation_steps
    wandb_project wandb_entity wandb_name wandb_mode use_wandb
    """.split()
)
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")


def bound(parent: int, seconds: int) -> None:
    """End with the process that asks, and after a time: whoever interrupts it does not wait for its children."""
    with contextlib.suppress(AttributeError):  # Linux alone has it
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        sys.exit("whoever asked is gone")
    signal.alarm(seconds)
    with contextlib.suppress(OSError, ValueError):  # a limit of the host's own may be lower
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))


if __name__ == "__main__":
    bound(int(sys.argv[1]), int(sys.argv[2]))  # before what takes long

from axolotl.integrations.base import PluginManager  # noqa: E402
from axolotl.utils.config import normalize_config, prepare_plugins, validate_config  # noqa: E402
from axolotl.utils.dict import DictDefault  # noqa: E402
from pydantic import ValidationError  # noqa: E402

TORCH = importlib.metadata.version("torch").partition("+")[0]
SAID = (ValueError, DeprecationWarning, NotImplementedError)  # what Axolotl raises to be read by people


class Base:
    """What is known of a base model with one set of LoRA keys.

    Attributes:
        tokenizer: The run's; None where its files are not here.
        adapter: Of ``expected_adapter.expected``; empty where the recipe is refused, or nobody can tell.
        refused: Sentences against the recipe.
        unknown: Why nobody can tell, in a sentence.
    """

    def __init__(self) -> None:
        self.tokenizer: Any = None
        self.adapter: dict[str, Any] = {}
        self.refused: list[str] = []
        self.unknown = ""


def there(plugin: str) -> bool:
    """Tell whether a plugin can be loaded here: Axolotl's own always, one of the user's unless it is only there."""
    try:
        return plugin.startswith("axolotl.") or importlib.util.find_spec(plugin.rpartition(".")[0]) is not None
    except (ImportError, ValueError):
        return False


def validate(recipe: dict[str, Any], capabilities: dict[str, Any]) -> tuple[Any, list[str]]:
    """Return Axolotl's configuration of a recipe, and what Axolotl says against it; of the two only one."""
    PluginManager.get_instance().plugins.clear()  # those of the recipe before bring keys of their own, and defaults
    given = {**recipe, "plugins": [plugin for plugin in recipe.get("plugins") or [] if there(plugin)]}
    try:
        prepare_plugins(DictDefault(given))
        env = {"torch_version": TORCH}
        return validate_config(DictDefault(given), capabilities=capabilities, env_capabilities=env), []
    except ValidationError as error:
        return None, list(dict.fromkeys(map(sentence, error.errors(include_url=False))))
    except SAID as error:
        return None, [str(error)]
    except Exception as error:  # on a trainer it would end the training as well
        return None, [f"{type(error).__name__}: {error}"]


def sentence(error: Any) -> str:
    """Put an error of pydantic's into words: which key, unless its own message tells, and what."""
    message = error["msg"].removeprefix("Value error, ")
    return f"{'.'.join(map(str, error['loc']))}: {message}" if error["loc"] else message


def complete(cfg: Any, recipe: dict[str, Any], folder: pathlib.Path) -> None:
    """Add to a configuration what Axolotl adds before a training, by a base model in a folder.

    Args:
        cfg: Axolotl's configuration, validated.
        recipe: What it was made of.
        folder: Where config.json and the tokenizer lie; a training would find them in the hub's cache, by a name.
    """
    cfg.base_model_config = cfg.base_model_config or str(folder)
    cfg.tokenizer_config = cfg.tokenizer_config or str(folder)
    cfg.revision_of_model = None
    normalize_config(cfg)
    # The validation gives an entry without a template the tokenizer's, and Axolotl gives the tokenizer the recipe's.
    for given, entry in zip(recipe.get("datasets") or [], cfg.datasets or []):
        if cfg.chat_template and not given.get("chat_template"):
            entry.chat_template, entry.chat_template_jinja = cfg.chat_template, cfg.chat_template_jinja


def look_at(cfg: Any, recipe: dict[str, Any], folder: pathlib.Path) -> Base:
    """Work out which adapter a base model gets, from its configuration and its tokenizer.

    Args:
        cfg: Axolotl's configuration, validated.
        recipe: What it was made of.
        folder: Where config.json lies.
    """
    import expected_adapter
    import template_check

    base = Base()
    if cfg.trust_remote_code:
        base.unknown = "trust_remote_code is set, and code that comes with a model is run by its training alone"
        return base
    commit = None if os.path.isabs(str(cfg.base_model)) else folder.name  # as the hub's cache calls its folders
    try:
        complete(cfg, recipe, folder)
    except SAID as error:
        base.refused = [str(error)]
        return base
    except Exception as error:  # config.json is broken: the training will tell
        base.unknown = f"{type(error).__name__}: {error}"
        return base
    try:
        if any((folder / name).is_file() for name in _TOKENIZERS):
            base.tokenizer = template_check.load_base_tokenizer(cfg)
        base.adapter = {**expected_adapter.expected(cfg, base.tokenizer), "revision": commit}
    except expected_adapter.Refused as error:
        base.refused = [str(error)]
    except (SystemExit, Exception) as error:  # a broken file, no memory, a fault of ours
        base.unknown = f"{type(error).__name__}: {error}"
    return base


def adapter_warnings(adapter: dict[str, Any], model: str) -> list[str]:
    """List what may not be meant in which modules get a part of an adapter.

    Args:
        adapter: Of ``expected_adapter.expected``.
        model: The base model, as the recipe calls it.
    """
    said = []
    if adapter["unmatched"]:
        said.append(f"nothing in {model} is called like these LoRA targets: {some(adapter['unmatched'])}")
    if adapter["towers"]:
        count = len(adapter["towers"])
        said.append(f"{count} modules beside the language model are trained, too: {some(adapter['towers'])}")
    return said


def some(names: list[str]) -> str:
    """Write the first names of a list."""
    more = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
    return ", ".join(names[:NAMES]) + more


def nothing_said(unknown: str = "") -> dict[str, Any]:
    """Return an answer that says nothing; see :func:`answer`."""
    return {"problems": [], "refused": [], "warnings": [], "unknown": unknown, "tensors": 0, "parameters": 0}


def answer_any(question: dict[str, Any], known: dict[str, Base]) -> dict[str, Any]:
    """Answer a question, whatever happens on the way: what one model's files break says nothing of other runs."""
    try:
        return answer(question, known)
    except (SystemExit, Exception) as error:
        return nothing_said(f"{type(error).__name__}: {error}")


def answer(question: dict[str, Any], known: dict[str, Base]) -> dict[str, Any]:
    """Answer a question.

    Args:
        question: See above.
        known: What has been looked at already, by what decides on it; it is added to.

    Returns:
        ``problems``, what Axolotl says against the recipe; ``refused``, what is said against it with this base model;
        ``warnings``, what may not be meant; ``unknown``, why all this was left out; ``tensors`` and ``parameters``, how
        many the adapter has.
    """
    import template_check

    recipe, found = question["recipe"], nothing_said()
    cfg, found["problems"] = validate(recipe, question["capabilities"])
    if found["problems"]:
        return found
    if not question["model"]:
        return {**found, "unknown": "its configuration is not here"}
    folder = pathlib.Path(question["model"])
    decides = {key: value for key, value in recipe.items() if key not in _ASIDE}
    key = json.dumps([str(folder), decides], sort_keys=True)
    if key not in known:
        known[key] = look_at(cfg, recipe, folder)
    elif known[key].adapter:
        complete(cfg, recipe, folder)
    base = known[key]
    found |= {"refused": list(base.refused), "unknown": base.unknown}
    if not base.adapter:
        return found
    found |= {"tensors": len(base.adapter["tensors"]), "parameters": sum(base.adapter["parameters"].values())}
    found["warnings"] = adapter_warnings(base.adapter, recipe["base_model"])
    if base.tokenizer is not None:
        found["refused"] += template_check.check(cfg, base.tokenizer, question["needs"])
        found["warnings"] += template_check.warnings(cfg, base.tokenizer)
    if question["write"] and not found["refused"]:
        write(pathlib.Path(question["write"]), base.adapter)
    return found


def write(path: pathlib.Path, adapter: dict[str, Any]) -> None:
    """Write what is expected: whole or not at all, in a folder that is nobody else's."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, part = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(adapter, file, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        pathlib.Path(part).unlink(missing_ok=True)


def cut(found: dict[str, Any]) -> dict[str, Any]:
    """Return an answer whose texts are of bounded number and length."""
    lists = ("problems", "refused", "warnings")
    texts = {name: [str(text)[:LONGEST] for text in found[name][:MOST]] for name in lists}
    return {**found, **texts, "unknown": found["unknown"][:LONGEST]}


def main() -> None:
    questions = json.load(sys.stdin)
    named = {plugin for question in questions for plugin in question["recipe"].get("plugins") or []}
    known: dict[str, Base] = {}
    with tempfile.TemporaryDirectory(prefix="lora-forge-") as scratch:  # Axolotl lays changed tokenizers there
        for question in questions:
            question["recipe"]["output_dir"] = scratch
        answers = [cut(answer_any(question, known)) for question in questions]
    left_out = sorted(plugin for plugin in named if not there(plugin))
    print(json.dumps({"axolotl": importlib.metadata.version("axolotl"), "answers": answers, "left_out": left_out}))


if __name__ == "__main__":
    main()
