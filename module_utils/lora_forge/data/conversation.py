"""One line of a dataset: read in the forms that people have, written in the one form that is trained on.

The canonical line is ``{"messages": TEXT, "tools": TEXT}``: both are JSON as text, a list of turns and a list of tools.
Hugging Face's datasets takes the type of each field from the first 10 MB of a file, and fails where it is another one
later. Two fields that are always text have no type that could change, whatever the turns and tools hold, and Axolotl's
chat_template strategy reads both from text.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, Optional

from ansible.module_utils.lora_forge.text import shown

NEEDS = ("reasoning_content", "tool_calls", "tool_role", "tools")  # what not every chat template knows
ORDER = ("assistant_first", "later_system", "same_speaker", "system")  # turns that not every one takes
ROLES = ("system", "user", "assistant", "tool")  # of the canonical form
MAPPED = ("content", "name", "reasoning_content", "role", "tool_call_id", "tool_calls")  # what is read of a turn

# What a recipe's ``datasets`` item says of how lines are read. The canonical form has it settled, so that none of it
# reaches Axolotl.
READING = (
    "field_messages", "field_thinking", "field_tools", "message_field_content", "message_field_role",
    "message_field_training", "message_property_mappings", "roles",
)  # fmt: skip

_LISTS = ("conversations", "messages")  # under which turns are looked for
_PAIRS = (("from", "value"), ("role", "content"))  # who speaks, and what
_CALLS, _RESULT = "function_call", "observation"  # ShareGPT's speakers for the call of a tool and its result
_SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
    _CALLS: "assistant",
    _RESULT: "tool",
    "function": "tool",
    "developer": "system",  # what OpenAI calls it today
}
_TEXTS = ("tool_call_id", "name")  # of a turn, which a template may show
_TEXT_PARTS = ("text", "input_text", "output_text")  # of a content in parts
_FLAGS = ("training", "trainable", "loss")  # other people's names for what is trained
_CONTAINERS = ("data", "items", "rows", "examples", "train")  # under which a file may hold all its conversations
_PICTURES = ("image", "images", "video", "videos", "audio", "audios")
PLACEHOLDER = re.compile(r"<(?:image|video|audio)>")

# Tokens that begin or end turns in the chat templates of Qwen, Llama 3, Phi, gpt-oss, Granite, Gemma and DeepSeek, and
# that no text holds by chance.
CONTROL = re.compile(
    r"<\|(?:im_(?:start|end|sep)|endoftext|eo[tm]_id|(?:start|end)_(?:header_id|of_role)|(?:begin|end)_of_text|"
    r"user|assistant|system|tool|start|end|message|channel|return|call|constrain|python_tag|turn)\|>|"
    r"<(?:start|end)_of_turn>|<\|turn>|<turn\|>|<｜[^｜<>\n]{1,40}｜>"
)
# And those of Llama 2 and Mistral, which may be text: HTML ends what is struck out with one of them.
LOOSE_CONTROL = re.compile(r"\[/?INST\]|</s>")

_NO_TURNS = {
    "chosen": "is a pair to prefer one of, as for DPO",
    "instruction": "is in Alpaca's form",
    "prompt": "is a prompt and its completion",
    "question": "is a question and its answer",
    "text": "is running text",
}
_ANSWERS = ("output", "completion", "response", "answer")
_TO_MESSAGES = '\'{messages: [{role: "user", content: .%s}, {role: "assistant", content: .%s}]}\''


class Flaw(Exception):
    """What keeps a line from being trained on.

    Args:
        kind: The sort of problem: of many lines with the same one, the first is told in full.
        message: What is wrong, for people; it goes on from «FILE, line 3: ».
    """

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


@dataclasses.dataclass(frozen=True)
class Keys:
    """Under which keys a line holds what.

    Attributes:
        lists: Of the turns; the first one that a line has.
        pairs: Who speaks and what, in a turn; the first pair that a line's first turn has.
        turn: Other keys of a turn, by the canonical one.
        training: Says whether a turn is trained.
        tools: Of a line's tools.
        speakers: Whom each name of a speaker stands for.
    """

    lists: tuple[str, ...] = _LISTS
    pairs: tuple[tuple[str, str], ...] = _PAIRS
    turn: Mapping[str, str] = dataclasses.field(default_factory=dict)
    training: str = "train"
    tools: str = "tools"
    speakers: Mapping[str, str] = dataclasses.field(default_factory=lambda: _SPEAKERS)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Keys:
        """Read them from a recipe's ``datasets`` item, whose types were checked."""
        mapping = dict(options.get("message_property_mappings") or {})
        role = mapping.pop("role", options.get("message_field_role"))
        content = mapping.pop("content", options.get("message_field_content"))
        if options.get("field_thinking"):
            mapping.setdefault("reasoning_content", options["field_thinking"])
        named = options.get("field_messages")
        own = {source: role for role, sources in (options.get("roles") or {}).items() for source in sources}
        return cls(
            lists=((named,) if named else ()) + _LISTS,
            pairs=(((role or "role", content or "content"),) if role or content else ()) + _PAIRS,
            turn=mapping,
            training=options.get("message_field_training") or "train",
            tools=options.get("field_tools") or "tools",
            speakers={**_SPEAKERS, **own},
        )


@dataclasses.dataclass(frozen=True)
class Conversation:
    """A line that can be trained on.

    Attributes:
        line: Its canonical bytes, with the end of the line.
        same: What two conversations have in common that differ at most in which turns are trained.
        text: All that is shown to the model, as JSON.
        turns: How many turns it has.
        characters: Of all that is shown to the model.
        head: Of that, the characters before the first turn that is trained.
        tools: Whether it offers tools.
        calls: How many calls of tools it holds.
        reasoned: How many turns have reasoning.
        results: How many turns are a tool's.
        masked: How many turns of the assistant are not trained.
        marked: Whether any turn says if it is trained.
        unread: Keys that look like something that is trained, or decides what is, and are not read.
        order: Of ``ORDER``, what its turns ask of a template.
    """

    line: bytes
    same: bytes
    text: str
    turns: int
    characters: int
    head: int
    tools: bool
    calls: int
    reasoned: int
    results: int
    masked: int
    marked: bool
    unread: tuple[str, ...] = ()
    order: frozenset[str] = frozenset()


def read(line: bytes, keys: Keys) -> Conversation:
    """Read a line.

    Args:
        line: The bytes of it.
        keys: How it is read.

    Raises:
        Flaw: It cannot be trained on.
    """
    try:
        return _read(parse(line), keys)
    except RecursionError:
        raise Flaw("deep", "is nested too deeply to be read") from None


def parse(line: bytes) -> Any:
    """Read a line as JSON in which no object gives a key twice.

    Raises:
        Flaw: It is no such JSON.
    """
    try:
        return _DECODER.decode(line.decode("utf-8").strip())
    except UnicodeDecodeError as error:
        raise Flaw("utf-8", f"not UTF-8 text (byte {error.start + 1})") from None
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and line.lstrip()[:1] == b"{":
            what = "ends with a comma" if line.strip()[-2:] == b"}," else "holds more than one JSON object"
            how = "sed 's/,$//' takes it away" if what == "ends with a comma" else "jq -c . writes each in a line"
            raise Flaw(what, f"{what}; {how}") from None
        cut = "" if line.endswith(b"\n") else "; the file ends within this line, and may have been cut off there"
        raise Flaw("json", f"not JSON ({error.msg} at column {error.colno}){cut}") from None
    except ValueError:  # a number that Python does not read
        raise Flaw("number", "holds a number of thousands of digits") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object; refuse one that gives a key twice, as each reader takes another one of the two."""
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in made if names.count(name) > 1)
        raise Flaw("twice", f"gives the key «{shown(twice, 40)}» twice in one object")
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def _read(record: Any, keys: Keys) -> Conversation:
    given, turns, tools = read_turns(record, keys)
    return _canonical(turns, tools, record, _unread(given, record, keys))


def read_turns(record: Any, keys: Keys) -> tuple[list[Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """Read the turns of a record, whoever speaks last.

    Args:
        record: What stands in a line.
        keys: How it is read.

    Returns:
        The turns as they are given, the same in the canonical form, and the tools that are offered.

    Raises:
        Flaw: It holds none, or one that cannot be read.
    """
    if not isinstance(record, dict):
        raise Flaw("object", f"holds a JSON {type(record).__name__}, not an object")
    # What puts datasets together writes null under the names of the others.
    name = next((name for name in keys.lists if record.get(name)), "") or next(
        (name for name in keys.lists if record.get(name) is not None), ""
    )
    if not name:
        raise _without_turns(record, keys)
    given = record[name]
    if isinstance(given, str):  # as it is staged
        try:
            given = _DECODER.decode(given.strip())
        except ValueError:
            raise Flaw("turns", f"«{name}» is text, and no JSON") from None
    if not isinstance(given, list) or not given:
        raise Flaw("turns", f"«{name}» holds no turns")
    pair = _find_pair(given[0], record, keys)
    turns = [_plain(turn, pair, keys) or _Turn(number, turn, pair, keys).read() for number, turn in enumerate(given, 1)]
    system = record.get("system")
    if isinstance(system, str) and system.strip() and turns[0]["role"] != "system":  # as Axolotl puts it first
        turns.insert(0, {"role": "system", "content": system})
    return given, turns, _read_tools(record.get(keys.tools) or record.get("functions"))


def _without_turns(record: dict[str, Any], keys: Keys) -> Flaw:
    """Say what a line is that holds no turns, and what to do."""
    names = shown(", ".join(map(str, record)) or "nothing", 200)
    for name in _CONTAINERS if len(record) == 1 else ():
        items = record.get(name)
        if isinstance(items, list) and items and isinstance(items[0], dict) and any(key in items[0] for key in _LISTS):
            return Flaw("no turns", f"holds all conversations under «{name}»; jq -c '.{name}[]' writes each in a line")
    if "chosen" in record and "rejected" in record:
        return Flaw("no turns", f"{_NO_TURNS['chosen']} (it has: {names}), and conversations are trained here")
    if isinstance(record.get("prompt"), list) and isinstance(record.get("completion"), list):
        how = "jq -c '{messages: (.prompt + .completion)}'"
        return Flaw("no turns", f"has its turns under prompt and completion; {how} makes one conversation of them")
    lacks = f"has neither «conversations» nor «messages» (it has: {names})"
    if len(keys.lists) > len(_LISTS):
        lacks = f"has no «{keys.lists[0]}», which field_messages names (it has: {names})"
    known = next((name for name in _NO_TURNS if isinstance(record.get(name), str)), None)
    answer = next((name for name in _ANSWERS if isinstance(record.get(name), str)), None)
    if known and answer:
        how = f"jq -c {_TO_MESSAGES % (known, answer)} makes turns of it"
        more = " (and «input», where there is one, belongs to the question)" if record.get("input") else ""
        return Flaw(
            "no turns", f"{_NO_TURNS[known]} ({known}, {answer}), and conversations are trained here: {how}{more}"
        )
    if known:
        return Flaw("no turns", f"{_NO_TURNS[known]} (it has: {names}), and conversations are trained here")
    lists = [name for name, value in record.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if lists:
        lacks += f"; where «{shown(lists[0], 40)}» holds the turns, name it as field_messages in the recipe's datasets"
    return Flaw("no turns", lacks)


def _find_pair(turn: Any, record: dict[str, Any], keys: Keys) -> tuple[str, str]:
    """Find under which keys turns say who speaks, and what; where the first one does not, what its list goes with."""
    usual = keys.pairs[-2 if "conversations" in record else -1]
    known = turn if isinstance(turn, dict) else {}
    return next((pair for pair in keys.pairs if known.get(pair[0]) is not None), usual)


def _plain(turn: Any, pair: tuple[str, str], keys: Keys) -> Optional[dict[str, Any]]:
    """Return a turn in the canonical form where nothing is special about it, as about nearly all; else None."""
    if not isinstance(turn, dict) or len(turn) != 2:
        return None
    speaker, said = turn.get(pair[0]), turn.get(pair[1])
    if not isinstance(speaker, str) or speaker == _CALLS or not isinstance(said, str) or not said or said.isspace():
        return None
    role = keys.speakers.get(speaker)
    return {"role": role, "content": said} if role else None


class _Turn:
    """Reads a turn.

    Args:
        number: Its place, from 1.
        turn: What is there.
        pair: Under which keys it says who speaks, and what.
        keys: All others.
    """

    def __init__(self, number: int, turn: Any, pair: tuple[str, str], keys: Keys):
        self.number, self.pair, self.keys = number, pair, keys
        if not isinstance(turn, dict) or pair[0] not in turn:
            self.fail("needs", f"needs «{pair[0]}» and «{pair[1]}»", colon=False)
        self.turn = turn
        self.name = turn[pair[0]]

    def fail(self, kind: str, message: str, colon: bool = True) -> NoReturn:
        """Say what is wrong with it."""
        raise Flaw(kind, f"turn {self.number}{':' if colon else ''} {message}")

    def get(self, key: str) -> Any:
        """Return what it has under a canonical key."""
        return self.turn.get(self.keys.turn.get(key, key))

    def read(self) -> dict[str, Any]:
        """Return it in the canonical form.

        Raises:
            Flaw: It has none.
        """
        role = self.keys.speakers.get(self.name) if isinstance(self.name, str) else None
        if role is None:
            known = ", ".join(self.keys.speakers)
            more = "roles in the recipe's datasets says whom another name stands for"
            self.fail("speaker", f"is by «{shown(str(self.name), 40)}»; known speakers: {known}; {more}", colon=False)
        made: dict[str, Any] = {"role": role, "content": ""}
        if self.name == _CALLS:
            made["tool_calls"] = self.calls(self.turn.get(self.pair[1]), self.pair[1])
        else:
            made["content"] = self.content()
        reasoning = self.get("reasoning_content")
        if reasoning and role == "assistant":
            if not isinstance(reasoning, str):
                self.fail("reasoning", f"«reasoning_content» must be text, not {type(reasoning).__name__}")
            made["reasoning_content"] = reasoning
        calls = self.get("tool_calls") or self.turn.get("function_call")
        if calls and role != "assistant":
            self.fail(
                "caller", f"({shown(self.name, 40)}) has «tool_calls», and none but the assistant calls tools", False
            )
        if calls:
            made["tool_calls"] = self.calls(calls, "tool_calls")
        # Axolotl's way to have no default system message is an empty system turn.
        if not made["content"].strip() and role not in ("system", "tool") and len(made) == 2:
            self.fail("empty", f"({shown(self.name, 40)}) is empty; take it out", colon=False)
        for key in _TEXTS:
            value = self.get(key)
            if isinstance(value, str) and value:
                made[key] = value
        train = self.trained()
        return made if train is None else made | {"train": train}

    def content(self) -> str:
        """Return what is said; parts are put together."""
        key = self.pair[1]
        if key not in self.turn and not (self.get("tool_calls") or self.turn.get("function_call")):
            self.fail("needs", f"needs «{self.pair[0]}» and «{key}»", colon=False)
        value = self.turn.get(key)
        if isinstance(value, list) and value and all(isinstance(part, dict) and "type" in part for part in value):
            other = next((part["type"] for part in value if part["type"] not in _TEXT_PARTS), None)
            if other is not None:
                self.fail("part", f"«{key}» has a part of type «{shown(str(other), 40)}»; text alone is trained here")
            if any("train" in part or "weight" in part for part in value):
                self.fail("part", f"«{key}» has parts of which some are not to be trained; make turns of them")
            texts = [part.get("text") for part in value]
            if not all(isinstance(text, str) for text in texts):
                self.fail("part", f"«{key}» has a part without «text», or with something else than text in it")
            value = "".join(texts)
        if value is None or value == []:
            return ""
        if not isinstance(value, str):
            self.fail("text", f"«{key}» must be text, not {type(value).__name__}")
        return value

    def trained(self) -> Optional[bool]:
        """Tell whether it is trained; None where it does not say."""
        train, weight = self.turn.get(self.keys.training), self.turn.get("weight")
        if train is not None and not isinstance(train, bool):
            self.fail("train", f"«{self.keys.training}» must be true or false, not {shown(json.dumps(train), 40)}")
        if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
            self.fail("weight", f"«weight» must be 0 or 1, not {shown(json.dumps(weight), 40)}; nothing is in between")
        if weight == 0 and train:
            self.fail("weight", f"«weight» is 0, and «{self.keys.training}» is true")
        return False if weight == 0 else train  # a weight of 1 is what goes without saying

    def calls(self, given: Any, key: str) -> list[dict[str, Any]]:
        """Return calls of tools."""
        listed = self.data(given, key)
        made = []
        for call in listed if isinstance(listed, list) else [listed]:
            function = call.get("function", call) if isinstance(call, dict) else None
            if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
                self.fail("call", f"«{key}» needs the «name» of a tool and its «arguments»")
            arguments = self.data(function.get("arguments") or {}, "arguments")
            if not isinstance(arguments, dict):
                self.fail("call", f"«arguments» must be a JSON object, not {type(arguments).__name__}")
            known = call.get("id")
            kept = {"id": known} if isinstance(known, str) and known else {}
            made.append({**kept, "type": "function", "function": {"name": function["name"], "arguments": arguments}})
        if not made:
            self.fail("call", f"«{key}» holds no call")
        return made

    def data(self, given: Any, key: str) -> Any:
        """Return JSON that may be given as text."""
        if not isinstance(given, str):
            return given
        try:
            return _DECODER.decode(given.strip())
        except Flaw as flaw:
            self.fail(flaw.kind, f"«{key}» {flaw}")
        except ValueError:
            self.fail("call", f"«{key}» is text, and no JSON")


def _read_tools(given: Any) -> list[dict[str, Any]]:
    """Return the tools of a line as a server is told of them."""
    if isinstance(given, str) and given.strip():
        try:
            given = _DECODER.decode(given.strip())
        except ValueError:
            raise Flaw("tools", "«tools» is text, and no JSON") from None
    if not given or isinstance(given, str):
        return []
    tools = []
    for tool in given if isinstance(given, list) else [None]:
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Flaw("tools", "«tools» must be a list of functions, each with a «name»")
        if isinstance(function.get("parameters"), str):
            try:
                function = {**function, "parameters": _DECODER.decode(function["parameters"])}
            except ValueError:
                raise Flaw("tools", "«parameters» of a tool is text, and no JSON") from None
        tools.append({"type": "function", "function": function})
    return tools


def _unread(turns: Sequence[Any], record: dict[str, Any], keys: Keys) -> tuple[str, ...]:
    found: tuple[str, ...] = ("system_prompt",) if record.get("system_prompt") and "system" not in record else ()
    more = [turn for turn in turns if len(turn) > 2]
    if not more:
        return found
    reasoning, training = keys.turn.get("reasoning_content", "reasoning_content"), keys.training
    thought = (name for name in ("thinking", "reasoning") if name != reasoning)
    found += tuple(name for name in thought if any(isinstance(turn.get(name), str) and turn[name] for turn in more))
    flags = (name for name in _FLAGS if name != training)
    return found + tuple(name for name in flags if any(isinstance(turn.get(name), bool) for turn in more))


def _order(turns: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """Tell what of ``ORDER`` a conversation asks of a template."""
    roles = [turn["role"] for turn in turns]
    said = roles[1:] if roles[0] == "system" else roles
    found = {"system"} if "system" in roles else set()
    if "system" in said:
        found.add("later_system")
    if said and said[0] == "assistant":
        found.add("assistant_first")
    if any(one == other != "tool" for one, other in zip(said, said[1:])):
        found.add("same_speaker")
    return frozenset(found)


# One encoder each: json.dumps makes a new one for every call that is not the usual one.
_write = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(", ", ": ")).encode


def _canonical(
    turns: list[dict[str, Any]], tools: list[dict[str, Any]], record: dict[str, Any], unread: tuple[str, ...]
) -> Conversation:
    """Write a conversation in the canonical form, and count what it holds."""
    try:
        text, offered = _write(turns), _write(tools) if tools else "[]"
        line = f'{{"messages": "{_escaped(text)}", "tools": "{_escaped(offered)}"}}\n'.encode()
        calls = [len(_write(turn["tool_calls"])) if "tool_calls" in turn else 0 for turn in turns]
    except UnicodeEncodeError:
        raise Flaw("surrogate", "holds half of a character (a surrogate such as \\ud83d), which is no text") from None
    except ValueError:
        raise Flaw("finite", "has NaN or Infinity in a tool or its arguments, which JSON does not know") from None
    size, head, masked, marked = len(offered) if tools else 0, -1, 0, False
    for turn, called in zip(turns, calls):
        answers = turn["role"] == "assistant"
        trained = turn.get("train", answers)
        if trained and head < 0:
            head = size
        masked += answers and not trained
        marked = marked or "train" in turn
        size += len(turn["content"]) + called + len(turn.get("reasoning_content", ""))
    if head < 0 and masked:
        raise Flaw("masked", "has no turn that is trained: each says train: false or weight: 0")
    if head < 0:
        raise Flaw("no assistant", "has no assistant turn, so there is nothing to learn from it")
    if any(name in record for name in _PICTURES) and _goes_with_pictures(record, text):
        raise Flaw("pictures", "goes with pictures or sound (<image>); text alone is trained here")
    same = line
    if marked:
        same = _write([{key: value for key, value in turn.items() if key != "train"} for turn in turns]).encode()
    return Conversation(
        line=line,
        same=same,
        text=text + offered if tools else text,
        turns=len(turns),
        characters=size,
        head=head,
        tools=bool(tools),
        calls=sum(len(turn.get("tool_calls", ())) for turn in turns) if any(calls) else 0,
        reasoned=sum("reasoning_content" in turn for turn in turns),
        results=sum(turn["role"] == "tool" for turn in turns),
        masked=masked,
        marked=marked,
        unread=unread,
        order=_order(turns),
    )


def _goes_with_pictures(record: dict[str, Any], text: str) -> bool:
    return PLACEHOLDER.search(text) is not None and any(record.get(name) for name in _PICTURES)


def _escaped(text: str) -> str:
    """Make a text in JSON of JSON, which holds nothing else to be escaped."""
    return text.replace("\\", "\\\\").replace('"', '\\"')
