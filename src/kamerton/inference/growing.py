"""The text of an answer while its tokens come, decoded piece by piece and not from its beginning each time."""

from __future__ import annotations

from kamerton.inference.engine import Engine, safe_length
from kamerton.inference.sampling import Sampling


class GrowingText:
    """Tokens in, pieces of text out. The pieces joined are `Engine.text` of all tokens.

    Args:
        engine: decodes.
        sampling: its stop strings are never given, nor what could be the beginning of one.
    """

    def __init__(self, engine: Engine, sampling: Sampling) -> None:
        self._engine, self._sampling = engine, sampling
        self.tokens: list[int] = []
        self._start = self._read = 0
        self._held, self._given = "", 0

    def add(self, token: int, *, last: bool) -> str:
        """The text that is sure with this token; with the last one all that is left."""
        self.tokens.append(token)
        if last:
            return self._engine.text(self.tokens, self._sampling)[self._given :]
        # decoding starts one piece back: a tokenizer may write a token differently at the beginning of a text
        known = self._engine.renderer.decode(self.tokens[self._start : self._read])
        now = self._engine.renderer.decode(self.tokens[self._start :])
        if now.endswith("\ufffd"):  # a character that is not whole yet
            return ""
        self._held += now[len(known) :]
        self._start, self._read = self._read, len(self.tokens)
        safe = safe_length(self._held, self._sampling.stop)
        piece, self._held = self._held[:safe], self._held[safe:]
        self._given += len(piece)
        return piece
