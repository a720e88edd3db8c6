"""Where a chat reads and writes: a terminal, with line editing; or pipes, and then standard output has answers alone.

A message of several lines: a line that ends in a backslash goes on, and what stands between two lines of three double
quotes is one message. What is written is never taken for markup.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.text import Text

from kamerton.chat.model import clean

QUOTES = '"""'
PROMPT, MORE = "› ", "… "


class Screen:
    """Reads messages and shows what comes of them.

    Attributes:
        interactive: a person sits at it; else lines are read from a pipe or file, and notes go to standard error.
        mistakes: errors that were shown.
    """

    def __init__(self) -> None:
        self.interactive = sys.stdin.isatty() and sys.stdout.isatty()
        self.mistakes = 0
        self._out = Console(highlight=False)
        self._notes = self._out if self.interactive else Console(stderr=True, highlight=False)
        self._errors = Console(stderr=True, highlight=False)
        for stream in (sys.stdin, sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # bytes that are no text, and letters that a terminal does not have
                stream.reconfigure(errors="replace")

    # -- reading

    def read(self) -> str:
        """The next message, as it was typed.

        Raises:
            EOFError: there is none. KeyboardInterrupt: Ctrl-C.
        """
        line = self._line(PROMPT)
        if line.strip().startswith(QUOTES):
            return self._block(line.strip().removeprefix(QUOTES))
        parts = [line]
        while parts[-1].endswith("\\"):
            parts[-1] = parts[-1][:-1]
            try:
                parts.append(self._line(MORE))
            except EOFError:
                break
        return clean("\n".join(parts))

    def _block(self, first: str) -> str:
        if first.endswith(QUOTES):
            return clean(first.removesuffix(QUOTES))
        parts = [first] if first else []
        with contextlib.suppress(EOFError):
            while not (line := self._line(MORE)).rstrip().endswith(QUOTES):
                parts.append(line)
            end = line.rstrip().removesuffix(QUOTES)
            parts += [end] if end else []
        return clean("\n".join(parts))

    def _line(self, prompt: str) -> str:
        return input(prompt) if self.interactive else input()

    def edit_lines(self, complete: Callable[[str], list[str]]) -> None:
        """Arrow keys, history and completion, where this Python has readline.

        Args:
            complete: the words that a beginning may become; told the whole line so far.
        """
        if not self.interactive:
            return
        try:
            import readline
        except ImportError:
            return

        def completer(text: str, state: int) -> str | None:  # noqa: ARG001 - the line tells more
            found = complete(readline.get_line_buffer()[: readline.get_endidx()])
            return found[state] if state < len(found) else None

        readline.set_completer(completer)
        readline.set_completer_delims(" \t\n")
        if "libedit" in (readline.__doc__ or ""):
            readline.parse_and_bind("bind ^I rl_complete")
        else:
            readline.parse_and_bind("tab: complete")
            readline.parse_and_bind("set enable-bracketed-paste on")  # pasted lines are one message

    # -- writing

    def piece(self, text: str) -> None:
        """A part of an answer, at once."""
        sys.stdout.write(text)
        sys.stdout.flush()

    def show(self, text: str) -> None:
        """What was asked for by a command."""
        sys.stdout.write(f"{clean(text)}\n")
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """What should be known beside the answers."""
        self._notes.print(Text(clean(text), style="dim"), soft_wrap=True)

    def error(self, text: str) -> None:
        """What went wrong."""
        self.mistakes += 1
        sys.stdout.flush()
        (self._notes if self.interactive else self._errors).print(Text(f"error: {clean(text)}"), soft_wrap=True)

    @contextlib.contextmanager
    def waiting(self, text: str) -> Iterator[Waiting]:
        """Say that something takes its time, until it is over or `Waiting.over` is called."""
        shown = Waiting(self._notes.status(Text(text)) if self._notes.is_terminal else None)
        try:
            yield shown
        finally:
            shown.over()


class Waiting:
    """A line that says that something takes its time; without a terminal it says nothing."""

    def __init__(self, status: Any) -> None:
        self._status = status
        if status is not None:
            status.start()

    def say(self, text: str) -> None:
        if self._status is not None:
            self._status.update(Text(text))

    def over(self) -> None:
        """Remove it; may be called again."""
        if self._status is not None:
            self._status.stop()
            self._status = None
