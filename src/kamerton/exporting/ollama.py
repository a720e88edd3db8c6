"""An Ollama `Modelfile` beside a GGUF file: the chat template as Ollama writes it, where an answer ends, how to sample.

Ollama's templates are Go templates. One is put together from what the model's own (Jinja) template writes around
messages of each role, found by rendering marked conversations, and it is kept only if it writes the same text for other
conversations. A template that does more (it counts messages, moves the system text, …) has no such counterpart; Ollama
then takes the one that it recognises in the GGUF file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kamerton.errors import ModelError
from kamerton.exporting.gguf_vocabulary import starts_with_bos
from kamerton.rendering import Renderer
from kamerton.tasks.example import Message, Role

_CONVERSATIONS: tuple[tuple[Role, ...], ...] = (
    ("user",), ("system", "user"), ("user", "assistant", "user"), ("system", "user", "assistant", "user"),
    ("user", "assistant", "user", "assistant", "user"), ("system", "user", "assistant", "user", "assistant", "user"),
)  # fmt: skip


@dataclass(frozen=True)
class Turns:
    """What a template writes around messages.

    Attributes:
        start: before everything.
        around: by role what stands before and behind a message.
        answer: before the model's turn.
        system: the system text that it writes where a conversation has none.
    """

    start: str
    around: dict[str, tuple[str, str]]
    answer: str
    system: str | None

    def text(self, messages: Sequence[Message]) -> str:
        """A conversation as these turns write it."""
        given = list(messages)
        if self.system is not None and given[0].role != "system":
            given.insert(0, Message("system", self.system))
        parts = [self.around[m.role][0] + m.content + self.around[m.role][1] for m in given]
        return self.start + "".join(parts) + self.answer

    def go(self) -> str:
        """As a Go template over Ollama's messages."""
        branches = [
            f'{{{{ {"if" if i == 0 else "else if"} eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{behind}'
            for i, (role, (before, behind)) in enumerate(self.around.items())
        ]
        return f"{self.start}{{{{ range .Messages }}}}{''.join(branches)}{{{{ end }}}}{{{{ end }}}}{self.answer}"


def turns(renderer: Renderer) -> Turns | None:
    """What a renderer's template writes around messages; None where it is no such thing."""
    s, u, a, v = (f"@{name}@" for name in ("system", "first", "answer", "second"))

    def text(*messages: tuple[Role, str], open_: bool = False) -> str:
        return renderer.text([Message(role, said) for role, said in messages], generation_prompt=open_)

    try:
        alone, opened = text(("user", u)), text(("user", u), open_=True)
        whole = text(("user", u), ("assistant", a), ("user", v))
        answered = text(("user", u), ("assistant", a))
        asked = text(("system", s), ("user", u))
        behind_user = alone.partition(u)[2]
        before_answer = _between(whole, u, a).removeprefix(behind_user)
        behind_answer = answered.partition(a)[2]
        before_user = _between(whole, a, v).removeprefix(behind_answer)
        behind_system = _between(asked, s, u)
        head = alone.partition(u)[0]
        if not behind_system.endswith(before_user) or not head.endswith(before_user):
            return None
        behind_system = behind_system[: len(behind_system) - len(before_user)]
        head = head[: len(head) - len(before_user)]
        before_system, bos = asked.partition(s)[0], renderer.tokenizer.bos_token or ""
        start = bos if bos and before_system.startswith(bos) and head.startswith(bos) else ""
        if start == before_system and before_system == before_user:
            start = ""  # a template whose every turn starts with that token
        before_system, head = before_system[len(start) :], head[len(start) :]
        system = None
        if head:
            if not (head.startswith(before_system) and head.endswith(behind_system)):
                return None
            system = head[len(before_system) : len(head) - len(behind_system)]
        around = {
            "system": (before_system, behind_system), "user": (before_user, behind_user),
            "assistant": (before_answer, behind_answer),
        }  # fmt: skip
        found = Turns(start, around, opened.removeprefix(alone), system)
        for roles in _CONVERSATIONS:
            messages = [Message(role, f"{role} says {i}.") for i, role in enumerate(roles)]
            if found.text(messages) != renderer.text(messages):
                return None
    except (ModelError, ValueError):
        return None
    literal = (found.start, found.answer, system or "", *(part for pair in around.values() for part in pair))
    return None if any("{{" in part or '"""' in part for part in literal) else found


def _between(text: str, first: str, second: str) -> str:
    if first not in text or second not in text:
        raise ValueError("a message does not stand as it is in the conversation")
    return text.partition(first)[2].partition(second)[0]


def modelfile(renderer: Renderer, file: str, context: int | None) -> tuple[str, list[str]]:
    """The text of a Modelfile, and what the user should know.

    Args:
        file: the GGUF file's name, beside the Modelfile.
        context: positions that the model has.
    """
    notes = []
    lines = [f"FROM ./{file}"]
    found = turns(renderer)
    if found is None:
        notes.append(
            "the chat template has no counterpart among Ollama's templates of turns, so the Modelfile has no TEMPLATE: "
            "Ollama takes what it recognises in the GGUF file; compare its prompts with kamerton's before use"
        )
    else:
        template = found.go()
        if starts_with_bos(renderer):  # llama.cpp writes that token itself
            template = template.removeprefix(found.start)
        lines.append(f'TEMPLATE """{template}"""')
        if found.system is not None:
            lines.append(f'SYSTEM """{found.system}"""')
    ends = [renderer.tokenizer.decode([i]) for i in renderer.end_ids]
    lines += [f'PARAMETER stop "{end}"' for end in ends if end and '"' not in end]
    lines.append("# as kamerton answers where nothing else is asked")
    lines += ["PARAMETER temperature 0", "PARAMETER repeat_penalty 1"]
    if context is not None:
        lines.append(f"PARAMETER num_ctx {min(context, 8192)}")
    return "\n".join(lines) + "\n", notes
