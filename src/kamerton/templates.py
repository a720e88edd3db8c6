"""Chat templates of strangers: Jinja in the sandbox of transformers, with bounds on what they may cost.

The sandbox keeps a template from Python's insides, but not from running for ever or filling memory
(`{{ 'a' * 10**10 }}`, loops in loops, a text that is doubled forty times). Here a rendering counts what it does: steps
of loops and calls, characters that are put together, items of lists that are built. Above a bound it is refused. The
counting is put into the template's syntax tree, so that what a template writes stays the same.

What is left out: time inside a single function of Python's that is within the bounds of size (sorting a list that was
given, say).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, cast

from jinja2 import TemplateError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

STEPS = 1_000_000
"""Steps of loops, and calls, of one rendering."""
CHARACTERS = 50_000_000
"""Characters that one rendering puts together, whether they are shown or not."""
ITEMS = 1_000_000
"""Items of one list or mapping that a template builds, those inside it counted as often as they stand there."""

_GROWING = {"ljust", "rjust", "center", "zfill", "expandtabs"}
"""Methods of texts whose first number is the length of what they give."""
_LEFT_OUT = {"lipsum", "center", "wordwrap", "batch", "slice", "filesizeformat", "urlize", "xmlattr", "pprint"}
"""Filters and functions that chat templates have no use for, and that make much of little."""


_WIDE = re.compile(r"%[^%a-zA-Z]*(?:\*|\d{4})")
"""A width of four digits, or one that is given, in a text for Python's operator %."""


class TooCostly(TemplateError):
    """A template that would take more time or memory than a conversation can need."""


class _Spent:
    """What a rendering has used."""

    def __init__(self) -> None:
        self.steps = self.characters = 0

    def step(self, count: int = 1) -> None:
        self.steps += count
        if self.steps > STEPS:
            raise TooCostly(f"takes more than {STEPS:,} steps")

    def read(self, count: int) -> None:
        self.characters += count
        if self.characters > CHARACTERS:
            raise TooCostly(f"writes more than {CHARACTERS:,} characters")


_spent: ContextVar[_Spent] = ContextVar("spent", default=_Spent())  # noqa: B039 (constants of a template are folded outside)


def _counted(found: Any) -> Any:
    """What a loop goes through, a step for each item."""
    if not isinstance(found, Iterable):
        return found
    spent = _spent.get()

    def items() -> Iterator[Any]:
        for item in found:
            spent.step()
            yield item

    # a loop may ask for the length; a generator has none
    return _Counted(items, found)


class _Counted:
    """Something that is gone through step by step, as long as the thing itself."""

    def __init__(self, items: Any, found: Any) -> None:
        self._items, self._found = items, found

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items())

    def __len__(self) -> int:
        return len(self._found)


def _sized(value: Any) -> Any:
    """A value that is put into a text."""
    size = len(value) if isinstance(value, str) else 8 * weight(_built(value))
    _spent.get().read(size)
    return value


def _built(value: Any) -> Any:
    """A list or mapping that a template makes."""
    if isinstance(value, (list, tuple, Mapping)) and weight(value) > ITEMS:
        raise TooCostly(f"builds a list of more than {ITEMS:,} items")
    return value


def weight(value: Any) -> int:
    """How many items a value has with those inside it, letters not counted; counting stops above `ITEMS`."""
    total, stack = 0, [value]
    while stack and total <= ITEMS:
        part = stack.pop()
        total += 1
        if isinstance(part, (list, tuple)):
            if len(part) > ITEMS:
                return ITEMS + 1
            stack += part
        elif isinstance(part, Mapping):
            stack += part.values()
    return total


class _Counting(NodeTransformer):
    """Puts the counting into a template's syntax tree."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filter(node.iter, "_counted")
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [n if isinstance(n, nodes.TemplateData) else _filter(n, "_sized") for n in node.nodes]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [_filter(n, "_sized") for n in node.nodes]
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _filter(node, "_built")

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _filter(node, "_built")

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _filter(node, "_built") if node.ctx == "load" else node


class _Environment(ImmutableSandboxedEnvironment):
    """A sandbox that counts."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Counting().visit(super()._parse(source, name, filename))
        return tree

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for part, times in ((left, right), (right, left)):
                if isinstance(part, (str, bytes, list, tuple)) and isinstance(times, int):
                    self._check(part, times)
        elif operator == "+" and isinstance(left, (str, list, tuple)):
            self._check(left, 1)
            self._check(right, 1)
        elif operator == "**" and (abs(_number(left)) > 10**6 or abs(_number(right)) > 64):
            raise TooCostly("computes a power of large numbers")
        elif operator == "%" and isinstance(left, str) and _WIDE.search(left):
            raise TooCostly("formats a text to a width above 999")
        made = super().call_binop(context, operator, left, right)
        if isinstance(made, int) and made.bit_length() > 4096:
            raise TooCostly("computes a number of more than 1,000 digits")
        return _built(made) if isinstance(made, (list, tuple)) else made

    @staticmethod
    def _check(part: Any, times: int) -> None:
        if isinstance(part, (str, bytes)):
            _spent.get().read(len(part) * max(times, 0))
        elif isinstance(part, (list, tuple)) and len(part) * times > ITEMS:
            raise TooCostly(f"builds a list of more than {ITEMS:,} items")

    def call(self, context: Any, found: Any, /, *args: Any, **kwargs: Any) -> Any:
        spent, name = _spent.get(), getattr(found, "__name__", "")
        owner = getattr(getattr(found, "__wrapped__", found), "__self__", None)  # the sandbox wraps str.format
        spent.step(20)
        if isinstance(owner, str):
            if name in _GROWING and args:
                spent.read(_number(args[0]))
            elif name == "replace" and len(args) > 1:
                _bound_replacing(owner, args[0], args[1])
            elif name in ("format", "format_map") and ":" in owner:
                raise TooCostly("formats a text to a width")
            elif name == "translate":
                raise TooCostly("uses translate, which can make a text of any length")
            elif name == "join" and args and isinstance(args[0], (list, tuple)):
                spent.read(sum(len(str(part)) + len(owner) for part in args[0]))
        made = super().call(context, found, *args, **kwargs)
        if isinstance(made, str):
            spent.read(len(made))
        return _built(made) if isinstance(made, (list, tuple, dict)) else made


def _filter(node: nodes.Node, name: str) -> nodes.Filter:
    made = nodes.Filter(cast("nodes.Expr", node), name, [], [], None, None)
    made.set_lineno(node.lineno)
    if node.environment is not None:
        made.set_environment(node.environment)
    return made


def _number(value: Any) -> int:
    return int(min(abs(value), 2**62)) if isinstance(value, (int, float)) else 0


def _bound_replacing(text: Any, old: Any, new: Any) -> None:
    if all(isinstance(part, str) for part in (text, old, new)):
        times = len(text) // len(old) + 1 if old else len(text) + 1
        _spent.get().read(len(text) + times * len(new))


def _bounded_filter(name: str, given: Any) -> Any:
    """A filter of Jinja's whose result is counted, and whose growth is bounded where it makes much of little."""

    @functools.wraps(given)
    def call(*args: Any, **kwargs: Any) -> Any:
        spent = _spent.get()
        spent.step()
        own = args[1:] if hasattr(given, "jinja_pass_arg") else args
        if name == "replace" and len(own) > 2:
            _bound_replacing(str(own[0]), own[1], own[2])
        elif name == "format" and own and _WIDE.search(str(own[0])):
            raise TooCostly("formats a text to a width above 999")
        elif name in ("indent", "tojson"):
            width = max((_number(v) for v in (*own[1:], *kwargs.values()) if not isinstance(v, bool)), default=0)
            if width > 1000:
                raise TooCostly("indents by more than 1,000 spaces")
        elif name == "join" and own and isinstance(own[0], (list, tuple)):
            between = str(own[1] if len(own) > 1 else kwargs.get("d", ""))
            spent.read(sum((len(p) if isinstance(p, str) else 8 * weight(p)) + len(between) for p in own[0]))
        if own and isinstance(own[0], (str, list, tuple)):
            spent.step(len(own[0]) // 64)
        if name in ("string", "tojson", "upper", "lower", "title", "escape", "e", "forceescape") and own:
            _sized(own[0])
        made = given(*args, **kwargs)
        if isinstance(made, str):
            spent.read(len(made))
        return _built(made) if isinstance(made, (list, tuple, dict)) else made

    return call


@functools.lru_cache(16)
def _compiled(source: str) -> Any:
    from transformers.utils import chat_template_utils

    # its filters, functions and tags, so that a template writes what it writes there
    theirs = chat_template_utils._compile_jinja_template("").environment
    made = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=list(map(type, theirs.extensions.values())))
    made.globals = {k: v for k, v in theirs.globals.items() if k not in _LEFT_OUT}
    made.filters = {k: _bounded_filter(k, v) for k, v in theirs.filters.items() if k not in _LEFT_OUT}
    made.filters |= {"_counted": _counted, "_sized": _sized, "_built": _built}
    made.tests = theirs.tests
    return made.from_string(source)


def render(source: str, messages: list[dict[str, str]], **values: Any) -> str:
    """A conversation through a chat template, as transformers' `apply_chat_template` renders it.

    Args:
        source: the template.
        messages: dictionaries of role and content.
        values: what else the template knows (`add_generation_prompt`, `bos_token`, …).

    Raises:
        TemplateError: the template is not valid, refuses the conversation, reaches for Python's insides, or would cost
            more than the bounds above.
    """
    token = _spent.set(_Spent())
    try:
        return str(_compiled(source).render(messages=messages, tools=None, documents=None, **values))
    except TemplateError:
        raise
    except RecursionError:
        raise TooCostly("calls itself without an end") from None
    except Exception as error:  # a template can make Python raise nearly anything (adding a number to a text)
        raise TemplateError(f"{type(error).__name__}: {' '.join(str(error).split())[:150]}") from error
    finally:
        _spent.reset(token)
