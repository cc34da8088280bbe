"""Hold a chat template against the base model's tokenizer and the data. Runs in the trainer's environment.

What is asked is what Axolotl itself does: its own strategy tokenises small conversations, and what comes out is looked
at. Nothing is loaded but a tokenizer, and importing this file imports nothing of Axolotl.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

DEFAULT = "tokenizer_default"  # Axolotl's word for the tokenizer's own template
IGNORED = -100  # the label of a token that is not learnt

# A token that ends a turn, and Axolotl's template that ends turns with it; the first one in a vocabulary decides.
# Mistral's templates end a turn with the end of text, and are known by what closes an instruction.
SUITABLE = (
    ("<|im_end|>", "chatml"),
    ("<|eot_id|>", "llama3"),
    ("<|eot|>", "llama4"),
    ("<end_of_turn>", "gemma3"),
    ("<turn|>", "gemma4"),
    ("<|END_OF_TURN_TOKEN|>", "command_a"),
    ("<|end|>", "phi_35"),
    ("[/INST]", "mistral_v3_tekken"),
)

# Words that appear in a rendered conversation only where the template puts them there. All of them are lower-case
# letters, so that no template changes them by trimming or escaping.
_QUESTION, _ANSWER, _RESULT, _THOUGHT = "markquestion", "markanswer", "markresult", "markthought"
_RULE = "markrule"
_TOOL, _CALLED, _ARGUMENT = "marktool", "markcalled", "markargument"
_CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": "abcdefghi",  # nine letters or digits: Mistral's templates take no other
            "type": "function",
            "function": {"name": _CALLED, "arguments": {"word": _ARGUMENT}},
        }
    ],
}
_USER, _ASSISTANT = {"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}
_TOOL_TURN = {"role": "tool", "name": _CALLED, "tool_call_id": "abcdefghi", "content": _RESULT}
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": _TOOL,
            "description": "A tool.",
            "parameters": {"type": "object", "properties": {"word": {"type": "string", "description": "A word."}}},
        },
    }
]
# What data may need of a template: how a sentence calls it, a conversation that has it, and what must come out.
NEEDS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "reasoning_content": (
        "the reasoning of a turn (reasoning_content)",
        {"messages": [_USER, {**_ASSISTANT, "reasoning_content": _THOUGHT}]},
        (_THOUGHT,),
    ),
    "tool_calls": (
        "the calls of tools (tool_calls)",
        {"messages": [_USER, _CALL, _TOOL_TURN, _ASSISTANT], "tools": _TOOLS},
        (_CALLED, _ARGUMENT, _RESULT),
    ),
    "tool_role": (
        "the answers of tools (turns by tool)",
        {"messages": [_USER, _ASSISTANT, _TOOL_TURN, _ASSISTANT]},
        (_RESULT,),
    ),
    "tools": ("the list of tools (tools)", {"messages": [_USER, _ASSISTANT], "tools": _TOOLS}, (_TOOL,)),
}
_SYSTEM = {"role": "system", "content": _RULE}
# What data may ask of a template in the order of its turns, in the same form: many templates end a training at it.
ORDER: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "assistant_first": (
        "a conversation that the assistant begins",
        {"messages": [_ASSISTANT, _USER, _ASSISTANT]},
        (_ANSWER,),
    ),
    "later_system": (
        "a system turn after the first turn",
        {"messages": [_USER, _ASSISTANT, _SYSTEM, _USER, _ASSISTANT]},
        (_RULE,),
    ),
    "same_speaker": (
        "two turns by the same speaker, one after the other",
        {"messages": [_USER, {**_USER, "content": _RULE}, _ASSISTANT]},
        (_QUESTION, _RULE),
    ),
    "system": ("a system turn", {"messages": [_SYSTEM, _USER, _ASSISTANT]}, (_RULE,)),
}


def check(cfg: Any, tokenizer: Any, needs: Mapping[str, str]) -> list[str]:
    """List what is wrong with the template that a run trains with.

    Args:
        cfg: Axolotl's configuration of the run, after its validation.
        tokenizer: The base model's, with its own template: see :func:`load_base_tokenizer`.
        needs: Keys of :data:`NEEDS` and :data:`ORDER` that the data has, each with the file and line that has it.

    Returns:
        Sentences, each a reason not to train; empty where all is well.
    """
    choice = str(_name(cfg.get("chat_template")))
    vocabulary = tokenizer.get_vocab()
    if choice == DEFAULT and not getattr(tokenizer, "chat_template", None):
        fitting = suitable(vocabulary)
        way = f"write «chat_template: {fitting}», which its vocabulary suits" if fitting else (
            "name one of Axolotl's with chat_template, or give one of your own with chat_template_jinja"
        )  # fmt: skip
        return [
            f"the tokenizer of {cfg.base_model} has no chat template, and the recipe takes the tokenizer's own: {way}"
        ]
    said: list[str] = []
    for entry in _entries(cfg):
        said += _entry_problems(cfg, tokenizer, choice, entry, needs)
    return list(dict.fromkeys(said))


def warnings(cfg: Any, tokenizer: Any) -> list[str]:
    """List what a server has to know of the template that a run trains with.

    Args:
        cfg: See :func:`check`.
        tokenizer: See :func:`check`.
    """
    own, choice = getattr(tokenizer, "chat_template", None), str(_name(cfg.get("chat_template")))
    trained = _template(cfg, tokenizer)
    said = []
    if own and trained and own != trained:
        said.append(
            f"chat_template {choice} is not the template of {cfg.base_model} itself, and a server with LoRA adapters, "
            "such as vLLM, takes the base model's own for all of them. Start it with the adapter's chat_template.jinja "
            f"(vLLM: --chat-template), or train with «chat_template: {DEFAULT}»"
        )
    if cfg.get("chat_template_kwargs"):
        said.append(
            "chat_template_kwargs decide how conversations are rendered in training: whoever asks a server has to send "
            "the same"
        )
    return said


def suitable(vocabulary: Mapping[str, int]) -> str:
    """Name Axolotl's template whose turns end with a token of a vocabulary; empty where there is none.

    Args:
        vocabulary: Token -> number.
    """
    return next((template for token, template in SUITABLE if token in vocabulary), "")


def load_base_tokenizer(cfg: Any) -> Any:
    """Load the base model's tokenizer as Axolotl does, with the recipe's tokens, but with its own chat template.

    Args:
        cfg: See :func:`check`.
    """
    from axolotl.loaders import load_tokenizer
    from axolotl.utils.dict import DictDefault

    return load_tokenizer(DictDefault({**cfg, "chat_template": None, "chat_template_jinja": None}))


def _name(choice: Any) -> Any:
    """Return a template's name: Axolotl's validation makes a member of an enumeration of it."""
    return getattr(choice, "value", choice) or DEFAULT


def _entries(cfg: Any) -> list[dict[str, Any]]:
    """List what the datasets of a configuration say, each once, without where they lie."""
    entries = []
    for item in cfg.get("datasets") or [{}]:
        entry = dict(item if isinstance(item, Mapping) else item.model_dump())
        entry = {key: value for key, value in entry.items() if key not in ("path", "ds_type", "split", "type")}
        if entry not in entries:
            entries.append(entry)
    return entries


def _template(cfg: Any, tokenizer: Any) -> str:
    """Return the text of the template that a configuration names; empty where it names none that is there."""
    from axolotl.utils.chat_templates import get_chat_template_from_config

    try:
        return str(get_chat_template_from_config(cfg=cfg, tokenizer=tokenizer) or "")
    except ValueError:
        return ""


def _entry_problems(
    cfg: Any, tokenizer: Any, choice: str, entry: dict[str, Any], needs: Mapping[str, str]
) -> list[str]:
    """List what is wrong with the template for one entry of the datasets."""
    from axolotl.prompt_strategies import chat_template

    try:
        strategy = chat_template.load(tokenizer, cfg, entry)
        made = strategy.tokenize_prompt({"messages": [_USER, _ASSISTANT, _USER, _ASSISTANT]})
    except Exception as error:  # whatever the template raises would end the training as well
        return [f"chat_template {choice} makes no conversation with the tokenizer of {cfg.base_model}: {_brief(error)}"]
    said = [] if _ends(strategy, tokenizer, made) else [_endless(cfg, tokenizer, choice, entry, made)]
    lost: dict[str, str] = {}
    failed = []
    for need in sorted(needs):
        if need == "tool_role" and "tool_calls" in needs:
            continue  # asked with a call before the answer, as some templates will have it
        if need == "system" and entry.get("drop_system_message"):
            continue  # left out as the recipe says
        words, conversation, marks = {**NEEDS, **ORDER}[need]
        try:
            shown = rendered(strategy, conversation)
        except Exception as error:
            failed.append(
                f"chat_template {choice} does not take {words}, which the data has ({needs[need]}): {_brief(error)}. "
                "Take a template that does, or take such conversations out of the data"
            )
            continue
        if not all(mark in shown for mark in marks):
            lost[words] = needs[need]
    if lost:
        places = "; ".join(dict.fromkeys(lost.values()))
        said.append(
            f"chat_template {choice} leaves out {_list([*lost])}, which the data has ({places}), so that nothing "
            f"of it would be learnt. Take a template that knows it, such as {_knowing(needs)} or the base model's own, "
            "or take it out of the data"
        )
    return said + failed


def _knowing(needs: Iterable[str]) -> str:
    """Name templates of Axolotl's that know what is needed."""
    return "qwen3, qwen3_5" if "reasoning_content" in needs else "qwen_25, qwen3"


def rendered(strategy: Any, conversation: dict[str, Any]) -> str:
    """Render a conversation as a strategy does before it tokenises; whatever fails in either is raised."""
    prompt = copy.deepcopy(conversation)  # a strategy changes what it is given
    strategy.tokenize_prompt(copy.deepcopy(conversation))  # it renders stand-ins for turns, too, which may not fit
    turns, tools = strategy.get_conversation_thread(prompt), strategy._get_tools(prompt)
    shown = strategy.prompter.build_prompt_text(turns, tools=tools)
    if shown is not None:
        return str(shown)
    return str(strategy.tokenizer.decode(strategy.prompter.build_prompt(turns, tools=tools)))


def _ends(strategy: Any, tokenizer: Any, made: Mapping[str, list[int]]) -> bool:
    """Tell whether a token that ends a turn is learnt."""
    ends = {tokenizer.eos_token_id, *getattr(strategy, "_eot_token_ids", ())}
    return any(label in ends for label in made["labels"] if label != IGNORED)


def _endless(cfg: Any, tokenizer: Any, choice: str, entry: dict[str, Any], made: Mapping[str, list[int]]) -> str:
    """Say that nothing that is learnt ends a turn, and what to do."""
    said = (
        f"with chat_template {choice} and the tokenizer of {cfg.base_model} no token is learnt that ends a turn, so "
        "that the adapter would not stop: "
    )
    masked = [key for key in ("train_on_eos", "train_on_eot") if entry.get(key) == "none"]
    if masked:
        return said + f"take {_list(masked)} out of the recipe's datasets"
    special = set(getattr(tokenizer, "all_special_ids", ())) | set(getattr(tokenizer, "added_tokens_decoder", {}))
    learnt = [place for place, label in enumerate(made["labels"]) if label != IGNORED]
    after = made["input_ids"][learnt[-1] + 1 :] if learnt else []
    end = next((token for token in after if token in special), None)
    if end is not None:
        return said + f'write «eot_tokens: ["{tokenizer.convert_ids_to_tokens(end)}"]», which the template ends with'
    if choice != DEFAULT and getattr(tokenizer, "chat_template", None):
        return said + f"write «chat_template: {DEFAULT}», the model's own"
    fitting = suitable(tokenizer.get_vocab())
    if fitting and fitting != choice:
        return said + f"write «chat_template: {fitting}», which its vocabulary suits"
    return (
        said
        + f"its end of text is {tokenizer.eos_token}; take a template that writes it, or name the end with eot_tokens"
    )


def _brief(error: Exception) -> str:
    """Put an error into one line that is not too long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:199]}…"


def _list(words: list[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
