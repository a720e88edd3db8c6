"""Planted faults: whatever a person gets wrong is one line with file, place and mend, and no traceback.

A fault is a row of `FAULTS`: files to write, the recipe (its task or the whole of it), and what the line must say. To
add one of another room, append a row; `check` says how far the recipe is taken.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kamerton.api import tune
from kamerton.cli.main import run
from kamerton.comparison.run import Watcher, compare
from kamerton.errors import KamertonError
from kamerton.evaluation.general_prompts import PROMPTS
from kamerton.evaluation.metrics import task_metrics
from kamerton.recipe import GENERAL_PROMPTS, load_recipe
from kamerton.tasks import load_task

pytest_plugins = ("tiny",)

CSV = "text,label\n" + "".join(f"message {n},{'ab'[n % 2]}\n" for n in range(40))
JSONL = "".join(f'{{"prompt": "p {n}", "completion": "c {n}"}}\n' for n in range(40))


def read_task(path: Path) -> None:
    """As far as the rooms recipe, tasks and evaluation go: the recipe, its examples, its metrics on the test set."""
    recipe = load_recipe(path)
    task = load_task(recipe.task)
    for metric in task_metrics(task, recipe.task):
        metric.statistics([example.answers[0] for example in task.test], task.test)


class Stop(Exception):
    """What comes next would be work."""


class Before(Watcher):
    """Ends a comparison before its first cell."""

    def start(self, waiting: int, finished: int) -> None:
        raise Stop(waiting, finished)


def begin(path: Path) -> None:
    """As far as a comparison goes before its first cell: methods, options, budget, task, metrics, base."""
    with contextlib.suppress(Stop):
        compare(load_recipe(path), output=path.parent / "out", watcher=Before())


def until_reference(path: Path) -> None:
    """As far as the base is measured, which comes after the plan."""
    compare(load_recipe(path), output=path.parent / "out")


@dataclass(frozen=True)
class Fault:
    """One planted fault.

    Attributes:
        name: what is wrong.
        place: a regular expression that the start of the line must match; {d} is the folder.
        says: a regular expression that what is wrong must match.
        mend: a regular expression that the mend, after the last semicolon, must match.
        task: the recipe's task, indented below `task:`.
        recipe: the whole recipe, where the fault is not in the task.
        files: what is in the folder besides.
        check: what reads it.
    """

    name: str
    place: str
    says: str
    mend: str
    task: str = ""
    recipe: str = ""
    files: dict[str, str | bytes] = field(default_factory=dict)
    check: Callable[[Path], None] = read_task


BASE = "task: dates\nmethods: [zero-shot]\nbase: m\n"
"""`SMALL` in a recipe is a tiny model that works."""

ASK = "task: dates\nbase: SMALL\nmethods:\n  - zero-shot\n  - "
"""A recipe whose second method is at fault."""
METHOD = r"{d}/r\.yaml:5: methods\.1\."

FAULTS = [
    # the recipe
    Fault("no such recipe", r"{d}/r\.yaml: ", "no such file", "check the path", recipe="-"),
    Fault("empty recipe", r"{d}/r\.yaml: ", "is empty", "task, methods", recipe="\n"),
    Fault("a list", r"{d}/r\.yaml: ", "not a mapping", "field: value", recipe="- task\n"),
    Fault("bad YAML", r"{d}/r\.yaml:2: ", "is not YAML", "quotes", recipe="task: dates\nmethods: [lora\n"),
    Fault("a tab", r"{d}/r\.yaml:3: ", "tab", "spaces", recipe="task: dates\nmethods:\n\t- lora\n"),
    Fault(
        "not UTF-8", r"{d}/r\.yaml:2: ", "not UTF-8", "save",
        recipe="-", files={"r.yaml": b"task: dates\nname: \xff\n"},
    ),
    Fault(
        "half of an emoji", r"{d}/r\.yaml:2: ", "half of a surrogate pair", "write the character itself",
        recipe='task: dates\nname: "x \\uD83D"\nmethods: [lora]\n',
    ),
    Fault(
        "a key twice", r"{d}/r\.yaml:3: task: ", "twice .first on line 1.", "keep one",
        recipe="task: dates\nmethods: [lora]\ntask: dates\n",
    ),
    Fault(
        "unknown field", r"{d}/r\.yaml:3: bugdet: ", "unknown field 'bugdet'", "did you mean budget",
        recipe="task: dates\nmethods: [lora]\nbugdet: {tokens: 5}\n",
    ),
    Fault(
        "unknown inner field", r"{d}/r\.yaml:4: budget\.token: ", "unknown field 'token'", "did you mean tokens",
        recipe="task: dates\nmethods: [lora]\nbudget:\n  token: 5\n",
    ),
    Fault("no task", r"{d}/r\.yaml:1: task: ", "is missing", "add task:", recipe="methods: [lora]\n"),
    Fault(
        "no methods", r"{d}/r\.yaml:2: methods: ", "is empty", "at least one", recipe="task: dates\nmethods: []\n"
    ),
    Fault(
        "negative budget", r"{d}/r\.yaml:3: budget\.tokens: ", "greater than 0, not -5", "change",
        recipe="task: dates\nmethods: [lora]\nbudget: {tokens: -5}\n",
    ),
    Fault(
        "budget in words", r"{d}/r\.yaml:3: budget\.seconds: ", "must be a number, not 'ten minutes'", "write a number",
        recipe="task: dates\nmethods: [lora]\nbudget: {seconds: ten minutes}\n",
    ),
    Fault(
        "endless budget", r"{d}/r\.yaml:3: budget\.seconds: ", "finite", "leave the field out",
        recipe="task: dates\nmethods: [lora]\nbudget: {seconds: .inf}\n",
    ),
    Fault(
        "no seeds", r"{d}/r\.yaml:3: seeds: ", "at least 1, not 0", "seeds: 3",
        recipe="task: dates\nmethods: [lora]\nseeds: 0\n",
    ),
    Fault(
        "a seed twice", r"{d}/r\.yaml:3: seeds: ", "twice", "different",
        recipe="task: dates\nmethods: [lora]\nseeds: [1, 1]\n",
    ),
    Fault(
        "a label twice", r"{d}/r\.yaml:4: methods\.1\.lora: ", "'lora' is taken by methods.0", "label: lora-2",
        recipe="task: dates\nmethods:\n  - lora\n  - lora: {rank: 2}\n",
    ),
    Fault(
        "a label outside its folder", r"{d}/r\.yaml:3: methods\.0\.lora\.label: ", "cannot name a folder", "letters",
        recipe="task: dates\nmethods:\n  - lora: {label: ../../x}\n",
    ),
    Fault(
        "options beside the method", r"{d}/r\.yaml:3: methods\.0: ", "has 2 names", "indent",
        recipe="task: dates\nmethods:\n  - lora:\n    rank: 8\n",
    ),
    Fault(
        "unknown dtype", r"{d}/r\.yaml:2: base\.dtype: ", "'float31' is not known", "did you mean float32",
        recipe="task: dates\nbase: {dtype: float31}\nmethods: [lora]\n",
    ),
    Fault(
        "top-p above one", r"{d}/r\.yaml:3: evaluation\.sampling\.top_p: ", "at most 1, not 2", "change",
        recipe="task: dates\nmethods: [lora]\nevaluation: {sampling: {top_p: 2}}\n",
    ),
    Fault(
        "more general prompts than there are", r"{d}/r\.yaml:3: forgetting\.prompts: ", "at most 24, not 25", "change",
        recipe="task: dates\nmethods: [lora]\nforgetting: {prompts: 25}\n",
    ),
    # the task's part
    Fault("unknown task", r"{d}/r\.yaml:2: task\.embedded: ", "'datse'", "mean dates", task="embedded: datse"),
    Fault("task of nothing", r"{d}/r\.yaml:1: task: ", "exactly one of", "examples", task="name: x"),
    Fault(
        "hub and file", r"{d}/r\.yaml:2: task\.data: ", "exactly one of", "examples",
        task="data: {hub: a/b, path: a.csv}",
    ),
    Fault(
        "missing file", r"{d}/r\.yaml:2: task\.data\.path: ", "no such file: {d}/a.csv", "did you mean b.csv",
        task="data: a.csv", files={"b.csv": CSV},
    ),
    Fault(
        "a folder", r"{d}/r\.yaml:2: task\.data\.path: ", "is a folder", r"x/\*\.jsonl",
        task="data: x", files={"x/b.csv": CSV},
    ),
    Fault(
        "no match", r"{d}/r\.yaml:2: task\.data\.train: ", r"no file matches \*\.json", "pattern",
        task="data: {train: '*.json'}",
    ),
    Fault(
        "unknown suffix", r"{d}/r\.yaml:1: task\.format: ", "not known by its suffix", "set format",
        task="data: a.xls", files={"a.xls": CSV},
    ),
    Fault(
        "wrong column", r"{d}/r\.yaml:3: task\.columns\.text: ", "no column 'sentence'", "the file has: text, label",
        task="data: a.csv\n  columns: {text: sentence}", files={"a.csv": CSV},
    ),
    Fault(
        "unknown field in columns", r"{d}/r\.yaml:3: task\.columns\.lable: ", "unknown field", "did you mean label",
        task="data: a.csv\n  columns: {lable: label}", files={"a.csv": CSV},
    ),
    Fault(
        "misspelt and so missing", r"{d}/r\.yaml:3: task\.columns\.text\.fro: ", "unknown field", "did you mean from",
        task="data: a.csv\n  columns: {text: {fro: text}}", files={"a.csv": CSV},
    ),
    Fault(
        "wrong delimiter", r"{d}/r\.yaml:3: task\.columns\.text: ", "no column 'text'", "set delimiter",
        task="data: a.csv\n  columns: {text: text}", files={"a.csv": CSV.replace(",", "|")},
    ),
    Fault(
        "wrong delimiter and nothing mapped", r"{d}/r\.yaml:1: task\.columns: ", "cannot tell", "set delimiter: .*text.label",
        task="data: a.csv", files={"a.csv": CSV.replace(",", "|")},
    ),
    Fault(
        "a semicolon too many", r"{d}/a\.csv:4: ", "has 3 columns where the header has 2", "quote text that contains ';'",
        task="data: a.csv", files={"a.csv": CSV.replace(",", ";").replace("message 2;", "message; 2;")},
    ),
    Fault(
        "a column in another case", r"{d}/r\.yaml:3: task\.columns\.text: ", "no column 'message'", r"did you mean Message\?",
        task="data: a.csv\n  columns: {text: message}", files={"a.csv": CSV.replace("text,", "Message,")},
    ),
    Fault(
        "columns without meaning", r"{d}/r\.yaml:1: task\.columns: ", "cannot tell", "the file has: x, y",
        task="data: a.csv", files={"a.csv": CSV.replace("text,label", "x,y")},
    ),
    Fault(
        "unknown column in a template", r"{d}/r\.yaml:3: task\.template: ", "no column 'premise'", "the file has",
        task="data: a.csv\n  template: '{premise}'", files={"a.csv": CSV},
    ),
    Fault(
        "bad pattern", r"{d}/r\.yaml:3: task\.columns\.text\.pattern: ", "not a regular expression", "mend",
        task="data: a.csv\n  columns: {text: {from: text, pattern: '('}}", files={"a.csv": CSV},
    ),
    Fault(
        "unknown encoding", r"{d}/r\.yaml:3: task\.encoding: ", "unknown encoding 'utf-9'", "utf-8",
        task="data: a.csv\n  encoding: utf-9", files={"a.csv": CSV},
    ),
    Fault(
        "unknown reader", r"{d}/r\.yaml:3: task\.reader: ", "unknown reader 'squda'", "did you mean squad",
        task="data: a.json\n  reader: squda", files={"a.json": "{}"},
    ),
    Fault(
        "labels wanted and absent", r"{d}/r\.yaml:3: task\.instruction: ", "the task has none", "write",
        task="data: a.jsonl\n  instruction: 'One of {labels}'", files={"a.jsonl": JSONL},
    ),
    Fault(
        "splits that take everything", r"{d}/r\.yaml:3: task\.split: ", "no training examples", "smaller",
        task="data: a.jsonl\n  split: {test: 35, validation: 5}", files={"a.jsonl": JSONL},
    ),
    Fault(
        "unknown metric", r"{d}/r\.yaml:3: task\.metrics\.1: ", "unknown metric 'rogue-l'", "did you mean rouge-l",
        task="data: a.jsonl\n  metrics: [exact-match, rogue-l]", files={"a.jsonl": JSONL},
    ),
    Fault(
        "a metric's file that is not there", r"{d}/r\.yaml:3: task\.metrics\.0: ", r"own\.py: no such file", "path",
        task="data: a.jsonl\n  metrics: 'own.py:score'", files={"a.jsonl": JSONL},
    ),
    # the data
    Fault(
        "broken JSON at line 7", r"{d}/a\.jsonl:7: ", "broken JSON at column", "one complete JSON object",
        task="data: a.jsonl", files={"a.jsonl": JSONL.replace('"p 6", "completion"', '"p 6" "completion"')},
    ),
    Fault(
        "broken JSON file", r"{d}/a\.json:3: ", "broken JSON", "comma",
        task="data: a.json", files={"a.json": '[\n{"prompt": "a", "completion": "b"}\n{"prompt": "c"}]'},
    ),
    Fault(
        "a record without an end of levels", r"{d}/a\.jsonl:2: ", "nested too deeply", "fewer levels",
        task="data: a.jsonl", files={"a.jsonl": '{"prompt": "a", "completion": "b"}\n' + "[" * 200_000 + "\n"},
    ),
    Fault(
        "nested records", r"{d}/a\.json: ", "an object, not a list", "set field: rows",
        task="data: a.json", files={"a.json": '{"rows": [{"prompt": "a", "completion": "b"}]}'},
    ),
    Fault(
        "a record that is a list", r"{d}/a\.jsonl:2: ", "a list, not an object", "write each record",
        task="data: a.jsonl", files={"a.jsonl": '{"prompt": "a", "completion": "b"}\n["c", "d"]\n'},
    ),
    Fault(
        "label outside the choices", r"{d}/a\.csv:5: ", "label 'b' is not among", "use one of them",
        task="data: a.csv\n  labels: [a, c]", files={"a.csv": "text,label\none,a\n\"t\nwo\",a\nthree,b\n"},
    ),
    Fault(
        "one label", r"{d}/r\.yaml:1: task\.labels: ", "at least two labels, found a", "check",
        task="data: a.csv", files={"a.csv": CSV.replace(",b", ",a")},
    ),
    Fault(
        "a row too long", r"{d}/a\.csv:4: ", "has 3 columns where the header has 2", "quote",
        task="data: a.csv", files={"a.csv": CSV.replace("message 2,", "message, 2,")},
    ),
    Fault(
        "an open quote", r"{d}/a\.csv:4: ", "broken CSV", "quotes: false",
        task="data: a.csv", files={"a.csv": CSV.replace("message 2,", '"message 2,')},
    ),
    Fault(
        "a column twice", r"{d}/a\.csv:1: ", "'text' is there twice", "rename",
        task="data: a.csv", files={"a.csv": CSV.replace("text,label", "text,text")},
    ),
    Fault(
        "not UTF-8 at line 3", r"{d}/a\.csv:3: ", "is not utf-8", "encoding",
        task="data: a.csv", files={"a.csv": CSV.encode().replace(b"message 1,", b"m\xe4ssage 1,")},
    ),
    Fault(
        "empty file", r"{d}/a\.csv: ", "no records", "check the file", task="data: a.csv", files={"a.csv": ""}
    ),
    Fault(
        "empty split", r"{d}/t\.csv: ", "no records", "check the file",
        task="data: {train: a.csv, test: t.csv}", files={"a.csv": CSV, "t.csv": "text,label\n"},
    ),
    Fault(
        "train that is all in test", r"{d}/r\.yaml:2: task\.data\.train: ", "train has no examples", "give it",
        task="data: {train: a.csv, validation: v.csv, test: a.csv}",
        files={"a.csv": CSV, "v.csv": "text,label\nx,a\n"},
    ),
    Fault(
        "an empty answer", r"{d}/a\.jsonl:4: ", "the answer is empty", "empty_answer",
        task="data: a.jsonl", files={"a.jsonl": JSONL.replace("c 3\"", "\"")},
    ),
    Fault(
        "an empty question", r"{d}/a\.jsonl:4: ", "the question is empty", "remove",
        task="data: a.jsonl", files={"a.jsonl": JSONL.replace("p 3\"", " \"")},
    ),
    Fault(
        "a list for text", r"{d}/a\.jsonl:4: ", "prompt is an object", "inner field",
        task="data: a.jsonl", files={"a.jsonl": JSONL.replace('"p 3"', '{"x": 1}')},
    ),
    Fault(
        "no assistant turn", r"{d}/a\.jsonl:1: ", "the last turn is the user's", "assistant",
        task="data: a.jsonl", files={"a.jsonl": '{"messages": [{"role": "user", "content": "a"}]}\n'},
    ),
    Fault(
        "unknown role", r"{d}/a\.jsonl:1: ", "role 'tool' is not known", "use one of",
        task="data: a.jsonl", files={"a.jsonl": '{"messages": [{"role": "tool", "content": "a"}]}\n'},
    ),
    Fault(
        "an answer beyond the choices", r"{d}/a\.jsonl:1: ", "answer 2 is none of the 2 choices", "first_choice: 1",
        task="data: a.jsonl", files={"a.jsonl": '{"question": "q", "choices": ["a", "b"], "answer": 2}\n'},
    ),
    Fault(
        "not Parquet", r"{d}/a\.parquet: ", "is not Parquet", "write",
        task="data: a.parquet", files={"a.parquet": "PAR1 no"},
    ),
    Fault(
        "not gzip", r"{d}/a\.jsonl\.gz: ", "cannot be read", "check",
        task="data: a.jsonl.gz", files={"a.jsonl.gz": b"\x1f\x8b\x08\x00broken"},
    ),
    Fault(
        "a line without the pattern", r"{d}/a\.txt:2: ", "does not match the pattern", "mend",
        task="data: a.txt\n  format: lines\n  pattern: '(?P<label>[ab]) (?P<text>.*)'",
        files={"a.txt": "a one\nc two\nb three\n"},
    ),
    Fault(
        "an answer that is not JSON", r"a\.jsonl:\d+: ", "is not JSON", "mend",
        task="data: a.jsonl\n  metrics: json-f1", files={"a.jsonl": JSONL},
    ),
    # methods
    Fault(
        "unknown method", r"{d}/r\.yaml:2: methods\.0: ", "unknown method 'lroa'", "did you mean lora",
        recipe="task: dates\nmethods: [lroa]\n", check=begin,
    ),
    Fault(
        "unknown method with options", r"{d}/r\.yaml:3: methods\.0\.fewshot: ", "unknown method", "mean few-shot",
        recipe="task: dates\nmethods:\n  - fewshot: {shots: 2}\n", check=begin,
    ),
    Fault(
        "unknown option", r"{d}/r\.yaml:4: methods\.1\.lora\.rnak: ", "lora has no option 'rnak'", "did you mean rank",
        recipe="task: dates\nmethods:\n  - zero-shot\n  - lora: {rnak: 2}\n", check=begin,
    ),
    Fault(
        "an option that cannot be", r"{d}/r\.yaml:4: methods\.0\.lora\.rank: ", "greater than 0, not -2",
        "kamerton methods",
        recipe="task: dates\nmethods:\n  - lora:\n      rank: -2\n", check=begin,
    ),
    Fault(
        "an option in words", r"{d}/r\.yaml:3: methods\.0\.lora\.learning_rate: ", "valid number, .*, not 'fast'",
        "kamerton methods",
        recipe="task: dates\nmethods:\n  - lora: {learning_rate: fast}\n", check=begin,
    ),
    Fault(
        "an option that is infinite", r"{d}/r\.yaml:3: methods\.0\.full\.clip: ", "finite", "kamerton methods full",
        recipe="task: dates\nmethods:\n  - full: {clip: .inf}\n", check=begin,
    ),
    Fault(
        "an option of another method", r"{d}/r\.yaml:3: methods\.0\.zero-shot\.shots: ", "no option 'shots'",
        "no option",
        recipe="task: dates\nmethods:\n  - zero-shot: {shots: 2}\n", check=begin,
    ),
    Fault(
        "an unknown objective", r"{d}/r\.yaml:3: methods\.0\.lora\.objective: ", "unknown objective 'dop'",
        "use one of: supervised",
        recipe="task: dates\nmethods:\n  - lora: {objective: dop}\n", check=begin,
    ),
    # splits and budget
    Fault(
        "no test examples", r"{d}/r\.yaml:3: task\.split\.test: ", "must be", "change|write|give|leave",
        task="data: a.jsonl\n  split: {test: 0}", files={"a.jsonl": JSONL}, check=begin,
    ),
    Fault(
        "a split above one", r"{d}/r\.yaml:3: task\.split", "neither a share nor a count", "write 0.1",
        task="data: a.jsonl\n  split: {test: 1.5}", files={"a.jsonl": JSONL}, check=begin,
    ),
    Fault(
        "no budget at all", r"{d}/r\.yaml:3: budget\.epochs: ", "greater than 0, not 0", "change",
        recipe="task: dates\nmethods: [lora]\nbudget: {epochs: 0}\n", check=begin,
    ),
    # the base
    Fault(
        "no such model folder", r"{d}/r\.yaml:3: base\.model: \./none: ", "no such model folder", "hub id",
        recipe="task: dates\nmethods: [zero-shot]\nbase: ./none\n", check=begin,
    ),
    Fault(
        "a model folder without configuration", r"{d}/r\.yaml:3: base\.model: {d}/m: ", r"no config\.json", "point base",
        recipe=BASE, files={"m/model.safetensors": b""}, check=begin,
    ),
    Fault(
        "a model folder without weights", r"{d}/r\.yaml:3: base\.model: {d}/m: ", "no weights", r"model\.safetensors",
        recipe=BASE, files={"m/config.json": "{}"}, check=begin,
    ),
    Fault(
        "pickled weights", r"{d}/r\.yaml:3: base\.model: {d}/m: ", r"pickled .pytorch_model\.bin.", "safetensors",
        recipe=BASE, files={"m/config.json": "{}", "m/pytorch_model.bin": b"\x80\x02"}, check=begin,
    ),
    Fault(
        "a configuration that is broken", r"{d}/r\.yaml:3: base\.model: {d}/m: ", "cannot be loaded", "whole",
        recipe=BASE, files={"m/config.json": '{"model_type": "llama", ', "m/model.safetensors": b""}, check=begin,
    ),
    Fault(
        "a model without tokenizer", r"{d}/r\.yaml:3: base\.model: {d}/m: ", "cannot be loaded", "whole",
        recipe=BASE, files={"m/config.json": '{"model_type": "llama"}', "m/model.safetensors": b"\0" * 64}, check=begin,
    ),
    Fault(
        "an unknown architecture", r"{d}/r\.yaml:3: base\.model: {d}/m: ", "cannot be loaded", "whole",
        recipe=BASE, files={"m/config.json": '{"model_type": "lama"}', "m/model.safetensors": b"\0" * 64}, check=begin,
    ),
    Fault(
        "no such GGUF file", r"{d}/r\.yaml:3: base\.model: x\.gguf: ", "no such GGUF file", "check the path",
        recipe=BASE.replace("base: m", "base: x.gguf"), check=begin,
    ),
    Fault(
        "not a GGUF file", r"{d}/r\.yaml:3: base\.model: {d}/x\.gguf: ", "not a GGUF file that can be read", "download it again",
        recipe=BASE.replace("base: m", "base: x.gguf"), files={"x.gguf": b"GGUF no"}, check=begin,
    ),
    Fault(
        "a hub id without a network", r"{d}/r\.yaml:3: base\.model: nobody/nothing-here: ", "cannot be loaded from the hub", "folder, a GGUF",
        recipe=BASE.replace("base: m", "base: nobody/nothing-here"), check=begin,
    ),
    Fault(
        "no such device", r"{d}/r\.yaml:3: base\.device: ", "device 'cuda:77' cannot be used here", "use auto or cpu",
        recipe=BASE.replace("base: m", "base: {model: SMALL, device: 'cuda:77'}"), check=begin,
    ),
    Fault(
        "no such template", r"{d}/r\.yaml:3: base\.chat_template: {d}/t\.jinja: ", "the chat template cannot be read", "check the path",
        recipe=BASE.replace("base: m", "base: {model: SMALL, chat_template: t.jinja}"), check=begin,
    ),
    Fault(
        "a template that is none", r"{d}/r\.yaml:3: base\.chat_template: {d}/t\.jinja: ", "not valid Jinja", "mend it",
        recipe=BASE.replace("base: m", "base: {model: SMALL, chat_template: t.jinja}"),
        files={"t.jinja": "{% for m in messages %}{{ m['content'] "}, check=begin,
    ),
    Fault(
        "a template that refuses", r"{d}/r\.yaml:3: base\.chat_template: {d}/t\.jinja: ", "refuses", "chat_template",
        recipe=BASE.replace("base: m", "base: {model: SMALL, chat_template: t.jinja}"),
        files={"t.jinja": "{{ raise_exception('no') }}"}, check=begin,
    ),
    # what a method asks a base or a task for
    Fault(
        "targets that match no module", METHOD + r"lora\.targets: ", "'q_porj' matches no layer", "use some of: q_proj",
        recipe=ASK + "lora: {targets: [q_porj]}\n", check=begin,
    ),
    Fault(
        "targets of a method inside", METHOD + r"few-shot\.over\.calibration\.over\.qlora\.targets: ",
        "'q_porj' matches no layer", "use some of: q_proj",
        recipe=ASK + "few-shot: {over: {calibration: {over: {qlora: {targets: q_porj}}}}}\n", check=begin,
    ),
    Fault(
        "targets of rag's generator", METHOD + r"rag\.generator\.lora\.targets: ", "'q_porj' matches no layer",
        "use some of: q_proj",
        recipe=ASK + "rag: {generator: {lora: {targets: [q_porj]}}}\n", check=begin,
    ),
    Fault(
        "factors on no layer", METHOD + r"ia3\.feedforward: ", "'down' matches no linear layer", "use some of",
        recipe=ASK + "ia3: {feedforward: [down]}\n", check=begin,
    ),
    Fault(
        "adapters behind no layer", METHOD + r"adapter\.targets: ", "'o_porj' matches no linear", "use some of: o_proj",
        recipe=ASK + "adapter: {targets: [o_porj]}\n", check=begin,
    ),
    Fault(
        "more frozen layers than there are", METHOD + r"full\.freeze_layers: ", "9 of 2 layers would be frozen",
        "at most 1",
        recipe=ASK + "full: {freeze_layers: 9}\n", check=begin,
    ),
    Fault(
        "all weights of a quantised base", METHOD + r"prompt-search: ", "weights in nf4 cannot be trained", "use qlora",
        recipe=ASK.replace("SMALL", "{model: SMALL, quantise: nf4}") + "prompt-search: {over: full}\n", check=begin,
    ),
    Fault(
        "labels that are not there", METHOD + r"prompt-tuning\.init: ", "no class labels to start from", "init: examples",
        recipe=ASK + "prompt-tuning: {init: labels}\n", check=begin,
    ),
    Fault(
        "more soft tokens than positions", METHOD + "p-tuning: ", "600 soft tokens leave no room", "use fewer",
        recipe=ASK + "p-tuning: {tokens: 600}\n", check=begin,
    ),
    Fault(
        "no texts", METHOD + r"lora\.texts: ", "no such file or folder", "give texts",
        recipe=ASK + "lora: {objective: language-modeling, texts: none.txt}\n", check=begin,
    ),
    Fault(
        "no worked solutions", METHOD + "self-consistency: ", "worked solution, and none has one", "columns: reasoning",
        recipe=ASK + "self-consistency: {over: {chain-of-thought: {shots: 2}}}\n", check=begin,
    ),
    Fault(
        "labels to balance over", METHOD + "few-shot: ", "no choices that all", "selection random",
        recipe=ASK + "few-shot: {selection: balanced}\n", check=begin,
    ),
    Fault(
        "an encoder's folder without a model", METHOD + r"few-shot\.encoder: ", r"no modules\.json here", "give a folder",
        recipe=ASK + "few-shot: {selection: embeddings, encoder: ./none}\n", check=begin,
    ),
    Fault(
        "no index", METHOD + r"retrieval\.index: ", "no index is here", "kamerton index add",
        recipe=ASK + "retrieval: {index: none}\n", check=begin,
    ),
    Fault(
        "no documents", METHOD + "rag: ", "{d}/none: no such file", "check the path",
        recipe=ASK + "rag: {documents: [none]}\n", check=begin,
    ),
    Fault(
        "choices that begin alike", r"{d}/r\.yaml:4: methods\.0\.calibration: ", "begin with the same token", "by: choice",
        recipe="task: {data: a.csv}\nbase: SMALL\nmethods:\n  - calibration: {by: first-token}\n",
        files={"a.csv": CSV.replace(",a", ",xy").replace(",b", ",xz")}, check=begin,
    ),
    # what forgetting is measured on
    Fault(
        "no general text", r"{d}/r\.yaml:4: forgetting\.text: {d}/none\.txt: ", "the general text cannot be read", "UTF-8 text file",
        recipe=BASE.replace("base: m", "base: SMALL\nforgetting: {text: none.txt}"), check=until_reference,
    ),
]  # fmt: skip


def plant(fault: Fault, folder: Path, small: Path) -> Path:
    """Write a fault's files; returns its recipe."""
    path = folder / "r.yaml"
    if fault.recipe != "-":
        recipe = fault.recipe or f"task:\n  {fault.task}\nmethods: [zero-shot]\n"
        path.write_text(recipe.replace("SMALL", str(small)))
    for name, content in fault.files.items():
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_a_fault_is_one_line(fault: Fault, tmp_path: Path, small_folder: Path) -> None:
    path = plant(fault, tmp_path, small_folder)
    with pytest.raises(KamertonError) as caught:
        fault.check(path)
    line = str(caught.value)
    folder = re.escape(str(tmp_path))
    assert "\n" not in line
    assert re.match(fault.place.replace("{d}", folder), line), line
    said, semicolon, mend = line.partition("; ")
    assert semicolon, line
    assert re.search(fault.says.replace("{d}", folder), said), line
    assert re.search(fault.mend, mend), line
    assert len(line) - line.count(str(tmp_path)) * len(str(tmp_path)) < 320, "a line is to be read at a glance"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_the_command_line_prints_that_line(
    fault: Fault,
    tmp_path: Path,
    small_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`kamerton compare` with every fault: exit status 2, one line of error, no traceback, and no cell begun."""
    path = plant(fault, tmp_path, small_folder)
    monkeypatch.setattr(sys, "argv", ["kamerton", "compare", str(path), "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        run()
    said = capsys.readouterr()
    assert ended.value.code == 2
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert said.err.endswith(errors[0] + "\n")
    line = errors[0].removeprefix("error: ")
    folder = re.escape(str(tmp_path))
    assert re.match(fault.place.replace("{d}", folder), line), line
    assert re.search(fault.says.replace("{d}", folder), line), line
    assert "Traceback" not in said.err + said.out
    assert not (tmp_path / "out" / "cells").exists()


@pytest.mark.parametrize(
    "fault", [f for f in FAULTS if f.check is begin], ids=lambda fault: fault.name.replace(" ", "-")
)
def test_tuning_says_the_same_before_it_begins(fault: Fault, tmp_path: Path, small_folder: Path) -> None:
    path = plant(fault, tmp_path, small_folder)
    with pytest.raises(KamertonError) as caught:
        tune(path, load_recipe(path).methods[-1].label, output=tmp_path / "tuned")
    line = str(caught.value)
    assert re.match(fault.place.replace("{d}", re.escape(str(tmp_path))), line), line
    assert re.search(fault.says.replace("{d}", re.escape(str(tmp_path))), line), line
    assert not (tmp_path / "tuned").exists()


SIGNS = 'ab []{}"\\;,|\t\n\r\0\x85\u2028\u00e9\u0130\u212b\u200b\ufeff\uffff\U0001f355\ud83d\udc00'
"""Letters and what programs stumble over: separators, zero bytes, letters that change under NFKC or in case, halves of
surrogate pairs."""
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.floats() | st.text(SIGNS, max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "text", "label", "user"]), inner, max_size=3)
    ),
    max_leaves=8,
)
ODD = st.recursive(
    VALUES,
    lambda inner: (
        st.lists(
            st.fixed_dictionaries({"role": st.sampled_from(["user", "system", None]), "content": inner}), max_size=3
        )
        | st.fixed_dictionaries({"text": st.lists(inner, min_size=2, max_size=3), "label": inner})
    ),
    max_leaves=6,
)
GOOD: list[dict[str, object]] = [
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    {"question": "q", "choices": ["a", "b"], "answer": 0},
    {"text": "t", "label": "a"},
    {"prompt": "p", "completion": "c"},
    {"question": "q", "answers": ["a"], "context": "c"},
    {"instruction": "i", "input": "x", "output": "o"},
]


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(GOOD), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2), ODD), max_size=4))
def test_odd_values_are_a_task_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, good: dict[str, object], odd: list[tuple[int, int, object]]
) -> None:
    """Records of every shape with some values replaced by what nobody expects there."""
    rows = [
        {key: f"{value} {n}" if key in ("text", "prompt") else value for key, value in good.items()} for n in range(6)
    ]
    for row, column, value in odd:
        rows[row][list(good)[column % len(good)]] = value
    folder = tmp_path_factory.mktemp("t")
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "r.yaml").write_text("task:\n  data: a.jsonl\n  split: {test: 1, validation: 1}\nmethods: [a]\n")
    with contextlib.suppress(KamertonError):
        read_task(folder / "r.yaml")


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=80), st.sampled_from(["a.json", "a.jsonl", "a.csv", "a.tsv", "a.parquet", "a.csv.gz"]))
def test_any_bytes_are_a_task_or_one_line(tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str) -> None:
    folder = tmp_path_factory.mktemp("t")
    (folder / name).write_bytes(content)
    (folder / "r.yaml").write_text(f"task:\n  data: {name}\nmethods: [a]\n")
    with contextlib.suppress(KamertonError):
        read_task(folder / "r.yaml")


def test_the_bound_of_general_prompts_is_how_many_there_are() -> None:
    assert len(PROMPTS) == GENERAL_PROMPTS


def test_there_are_at_least_thirty() -> None:
    assert len({fault.name for fault in FAULTS}) >= 30
