"""Labelling, measured: how soon a label is acknowledged, how long results take, and whether they find what was planted.

    python benchmarks/labelling.py                     # figures
    python benchmarks/labelling.py --store FILE        # also keeps the store of planted labels

The labellers are simulated: each prefers by the true strengths of three models, and copies the other three times in
five beyond that. One client labels over HTTP on loopback as fast as it is acknowledged, every label committed to disk.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np

from kamerton.feedback.records import Candidate, make_item
from kamerton.feedback.results import results_of
from kamerton.feedback.store import FeedbackStore
from kamerton.tasks.example import conversation

TRUTH = {"base": -0.8, "few-shot": 0.1, "lora": 0.7}


def planted(path: Path, items: int, seed: int = 0) -> FeedbackStore:
    """A store in which two labellers compared all pairs of three models' answers to `items` prompts."""
    rng, store = np.random.default_rng(seed), FeedbackStore(path)
    names = list(TRUTH)
    store.add(
        make_item(conversation([("user", f"prompt {n}")]), [Candidate(f"{m} to {n}", m) for m in names], name=f"p{n}")
        for n in range(items)
    )
    with store.writing():
        for number in range(1, items + 1):
            for a, b in ((0, 1), (0, 2), (1, 2)):
                chance = 1 / (1 + np.exp(TRUTH[names[b]] - TRUTH[names[a]]))
                first = rng.random() < chance
                second = first if rng.random() < 0.6 else rng.random() < chance
                for name, won in (("Anna", first), ("Ben", second)):
                    shown = (a, b) if rng.random() < 0.5 else (b, a)
                    best = a if won else b
                    scores = (0.5, 0.5) if rng.random() < 0.08 else tuple(float(i == best) for i in shown)
                    store.label(number, name, "comparison", shown, scores, seconds=float(rng.gamma(4, 2)))
    return store


def acknowledged(folder: Path, count: int) -> list[float]:
    """Seconds from sending a label to its acknowledgement, one after another."""
    import uvicorn

    from kamerton.serving.guard import Guard
    from kamerton.serving.label_app import LARGEST, label_app

    store = FeedbackStore(folder / "speed.sqlite")
    store.add(
        make_item(
            conversation([("user", f"p{n}")]), [Candidate("a" * 800, "m"), Candidate("b" * 800, "n")], name=f"{n}"
        )
        for n in range(count)
    )
    app = Guard(label_app(store, "comparison"), key=None, largest=LARGEST)
    server = uvicorn.Server(uvicorn.Config(app, port=8139, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)

    def post(path: str, body: dict[str, object]) -> dict[str, object]:
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:8139{path}", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request) as answer:
            return dict(json.load(answer))

    took, state = [], post("/api/state", {"labeller": "Anna"})
    for n in range(count):
        question = dict(state["question"])["id"]  # type: ignore[call-overload]
        start = time.perf_counter()
        body = {"labeller": "Anna", "question": question, "scores": [1, 0], "seconds": 1, "token": f"token-{n:08}"}
        state = post("/api/labels", body)
        took.append(time.perf_counter() - start)
    server.should_exit = True
    thread.join()
    assert len(store.labels()) == count
    store.close()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, help="keep the planted store there")
    parser.add_argument("--labels", type=int, default=1000, help="labels over HTTP")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        took = np.array(acknowledged(folder, given.labels)) * 1000
        print(
            f"{given.labels} labels: median {np.median(took):.1f} ms, 99th percentile {np.quantile(took, 0.99):.1f} ms"
        )
        for items in (100, 1700):
            store = planted(given.store if given.store and items == 100 else folder / f"{items}.sqlite", items)
            start = time.perf_counter()
            (found,) = results_of(store).kinds
            print(f"{found.labels} labels of {items} items: results in {time.perf_counter() - start:.1f} s")
            for m in found.strengths.models:
                low, high = (float("nan") if end is None else end for end in (m.low, m.high))
                print(f"  {m.model}: planted {TRUTH[m.model]:+.2f}, found {m.score:+.2f} ({low:+.2f} to {high:+.2f})")
            value = found.alpha.value
            print(f"  alpha {value:.2f}" if value is not None else "  alpha is not defined")
            store.close()


if __name__ == "__main__":
    main()
