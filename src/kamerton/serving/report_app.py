"""The report of a comparison as an app, live while it runs: what the folder says now, curves, verdict, answers.

Nothing is written. A request's path reaches no file: pages are read at the start, and a cell is looked up by label and
seed among those that the comparison has. The verdict takes seconds to compute: a thread of its own does it, once for
each set of cells that have ended, and until then the last one is shown.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import Response

from kamerton.comparison.report.answers import side_by_side
from kamerton.comparison.report.data import Comparison, load_comparison, scale_of
from kamerton.comparison.report.live import LiveComparison
from kamerton.comparison.report.page import environment, page, piece, policy
from kamerton.comparison.report.results import results, verdict_of
from kamerton.comparison.verdict import Verdict
from kamerton.errors import KamertonError
from kamerton.pretraining.live import LivePretraining
from kamerton.serving.errors import json_response
from kamerton.serving.pages import RequestError, add_errors, add_static, read_static

Record = dict[str, Any]
Live = LiveComparison | LivePretraining
NO_STORE = {"cache-control": "no-store"}


@dataclass
class Found:
    """What came of the cells that have ended so far."""

    folder: Path
    key: tuple[Any, ...]
    comparison: Comparison | None = None
    verdict: Verdict | None = None
    results: Record = field(default_factory=dict)

    @cached_property
    def answers(self) -> bytes:
        """The data of the answers side by side, methods in the recipe's order, as JSON in ASCII."""
        if self.comparison is None:
            return b"null"
        return json.dumps(side_by_side(self.comparison, self.comparison.labels)).encode()

    @cached_property
    def page(self) -> str:
        """The report in a file, as it would be written now."""
        if self.comparison is None:
            if not self.results:
                raise RequestError(404, "there is nothing to report yet", "no_report")
            from kamerton.pretraining.page import page_of  # it loads PyTorch, which takes seconds

            return page_of(self.folder)
        return page(self.comparison, self.verdict, self.results)

    def said(self) -> Record | None:
        """The verdict for the page; None where there is none yet."""
        if self.comparison is None and self.results:
            from kamerton.pretraining.page import sentences

            return {"sentences": sentences(self.results), "rows": [], "metric": ""}
        if self.comparison is None or self.comparison.deciding is None or not (self.verdict and self.verdict.rows):
            return None
        scale = scale_of(self.comparison.deciding)
        return {
            "sentences": list(self.verdict.sentences), "metric": scale.name, "cells": self.results["cells"]["finished"],
            "rows": [
                {
                    "label": row.label, "rank": row.rank, "score": scale.score(row.value),
                    "interval": f"{scale.number(row.low)} to {scale.number(row.high)}", "seeds": len(row.seeds),
                    "leading": row.label in self.verdict.contenders,
                }
                for row in self.verdict.rows
            ],
        }  # fmt: skip

    def score(self, metrics: Record) -> str:
        """A cell's score as people write it; "" where its units are not known yet."""
        metric = self.comparison.deciding if self.comparison is not None else None
        return scale_of(metric).score(metrics.get(metric.name)) if metric is not None else ""


class Reports:
    """Makes `Found` again when a cell has ended; one thread at a time.

    Args:
        folder: the comparison's or the pretraining's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.error = folder, ""
        self._found = Found(folder, ())
        self._asked: tuple[Any, ...] = ()
        self._lock = threading.Lock()

    def last(self, live: Live) -> Found:
        """What was found last; where more has ended since, a thread begins to look."""
        key = live.key()
        if key not in (self._asked, self._found.key):
            self._asked = key
            threading.Thread(target=self.now, args=(live,), name="verdict", daemon=True).start()
        return self._found

    def now(self, live: Live) -> Found:
        """What is found now; takes a few seconds where more has ended since the last time."""
        with self._lock:
            key = live.key()
            if key != self._found.key:
                try:
                    self._found, self.error = self._make(live, key), ""
                except KamertonError as error:
                    self.error, self._asked = str(error), ()  # a file may be on its way: it is looked at again
            return self._found

    def _make(self, live: Live, key: tuple[Any, ...]) -> Found:
        if isinstance(live, LivePretraining):
            return Found(self.folder, key, results=live.result())
        comparison = load_comparison(self.folder)
        verdict = verdict_of(comparison) if comparison.labels else None
        return Found(self.folder, key, comparison, verdict, results(comparison, verdict))


def report_app(folder: Path) -> FastAPI:
    """The app; put `Guard` in front of it.

    Args:
        folder: of a comparison or a pretraining; need not be there yet.
    """
    app = FastAPI(title="Kamerton report", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(GZipMiddleware, minimum_size=4096)
    add_errors(app)
    shared = {name: piece(name).encode() for name in ("style.css", "page.js")}
    add_static(app, {**shared, **read_static("report.css", "report.js")}, {})
    template = (files("kamerton.serving") / "templates" / "report.html.j2").read_text(encoding="utf-8")
    add_static(app, {"report.html": environment().from_string(template).render().encode()}, {"/": "report.html"})
    known: dict[type[Live], Live] = {}
    reports = Reports(folder)

    def live() -> Live:
        kind: type[Live] = LivePretraining if LivePretraining.there(folder) else LiveComparison
        return known.setdefault(kind, kind(folder))

    def state() -> Record:
        view = live()
        told, found = view.state(), reports.last(view)
        for method in told["methods"]:
            for cell in method["cells"]:
                if "metrics" in cell:
                    cell["score"] = found.score(cell.pop("metrics"))
        answers = str(hash(found.key)) if found.comparison is not None and found.comparison.labels else None
        return {**told, "verdict": found.said(), "answers": answers, "error": reports.error,
                "now": time.time()}  # fmt: skip

    @app.get("/api/state")
    async def _state() -> Response:
        return json_response(await run_in_threadpool(state), headers=NO_STORE)

    @app.get("/api/curves")
    async def _curves() -> Response:
        return json_response(await run_in_threadpool(lambda: live().curves()), headers=NO_STORE)

    @app.get("/api/answers")
    async def _answers() -> Response:
        content = await run_in_threadpool(lambda: reports.last(live()).answers)
        return Response(content, media_type="application/json", headers=NO_STORE)

    @app.get("/api/cell")
    async def _cell(label: str, seed: int) -> Response:
        found = await run_in_threadpool(lambda: live().record(label, seed))
        if found is None:
            raise RequestError(404, "there is no such cell", "no_such_cell")
        return json_response(found, headers=NO_STORE)

    @app.get("/report")
    async def _report() -> Response:
        text = await run_in_threadpool(lambda: reports.now(live()).page)
        headers = {**NO_STORE, "content-security-policy": f"{policy()}; frame-ancestors 'none'"}
        # half a surrogate pair in an answer cannot be encoded
        return Response(text.encode(errors="backslashreplace"), media_type="text/html; charset=utf-8", headers=headers)

    @app.get("/results.json")
    async def _results() -> Response:
        return json_response(await run_in_threadpool(lambda: reports.now(live()).results), headers=NO_STORE)

    @app.get("/healthz")
    async def _health() -> dict[str, str]:
        return {"status": "ok"}

    return app
