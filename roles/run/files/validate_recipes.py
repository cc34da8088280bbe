"""Hold recipes against Axolotl's own validation. Runs on the controller, in an environment of the trainers' locks.

Reads from standard input a JSON list of {"recipe": …, "capabilities": …}: what axolotl.yml holds, and what Axolotl
would find of the GPU. The last line that it prints is JSON: the version of Axolotl, and of each recipe a list of
sentences against it, empty where it is taken. Nothing is loaded or asked of a hub.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
from typing import Any

from axolotl.integrations.base import PluginManager
from axolotl.utils.config import prepare_plugins, validate_config
from axolotl.utils.dict import DictDefault
from pydantic import ValidationError

TORCH = importlib.metadata.version("torch").partition("+")[0]


def there(plugin: str) -> bool:
    """Whether a plugin can be loaded here; one of the user's own may lie on the trainer alone."""
    try:
        return importlib.util.find_spec(plugin.rpartition(".")[0]) is not None
    except (ImportError, ValueError):
        return False


def problems(recipe: dict[str, Any], capabilities: dict[str, Any]) -> list[str]:
    """What Axolotl says against a recipe."""
    PluginManager.get_instance().plugins.clear()  # those of the recipe before bring keys of their own, and defaults
    recipe["plugins"] = [plugin for plugin in recipe.get("plugins") or [] if there(plugin)]
    try:
        prepare_plugins(DictDefault(recipe))
        validate_config(DictDefault(recipe), capabilities=capabilities, env_capabilities={"torch_version": TORCH})
    except ValidationError as error:
        return list(dict.fromkeys(map(sentence, error.errors(include_url=False))))
    except (ValueError, DeprecationWarning, NotImplementedError) as error:
        return [str(error)]
    except Exception as error:  # on a trainer it would end the training as well
        return [f"{type(error).__name__}: {error}"]
    return []


def sentence(error: Any) -> str:
    """One error of pydantic's in words: which key, unless its own message tells, and what."""
    said = error["msg"].removeprefix("Value error, ")
    return f"{'.'.join(map(str, error['loc']))}: {said}" if error["loc"] else said


def main() -> None:
    said = [problems(one["recipe"], one["capabilities"]) for one in json.load(sys.stdin)]
    print(json.dumps({"axolotl": importlib.metadata.version("axolotl"), "problems": said}))


if __name__ == "__main__":
    main()
