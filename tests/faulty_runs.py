"""Commands in processes of their own that tests can kill, starve and lie to; what a run leaves, as values to compare.

`Forks` holds a process that has imported everything already and forks a child for each command, so that a killed run
costs its own work and not the imports. In it checkpoints are written at every chance and the index commits often:
otherwise a tiny run would end before its first one. Run as a program this module is that process.

PYTEST_DONT_REWRITE: the module asserts nothing, and is a program too.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {
    **os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")]), "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "300", "NO_COLOR": "1",
}  # fmt: skip
SMALL = {"preset": "llama", "width": 32, "depth": 2, "heads": 2}
TEXT = "\n\n".join(f"Line {n}: " + " ".join(tiny.WORDS[(n * k) % 40] for k in range(1, 9)) for n in range(120))


@dataclass
class Ended:
    """How a command ended: its exit status (negative: by that signal), what it said, and seconds."""

    status: int
    said: str
    seconds: float


class Forks:
    """Starts commands in children of a process that is ready to run them; a context manager."""

    def __enter__(self) -> Forks:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
        )
        self._line()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.kill()  # it has nothing left to do, and takes its time to end
        self._process.wait()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process that forks has ended")
        return line

    def run(self, command: list[object], log: Path, *, kill_after: float | None = None) -> Ended:
        """Run a command to its end, or kill it after so many seconds."""
        assert self._process.stdin is not None
        started = time.monotonic()
        self._process.stdin.write(json.dumps({"command": [*map(str, command)], "log": str(log)}) + "\n")
        self._process.stdin.flush()
        pid = int(self._line())
        if kill_after is not None:
            time.sleep(kill_after)
            # it is a child of the other process, which waits for it: its number is not given away before that is told
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        status = int(self._line())
        return Ended(os.waitstatus_to_exitcode(status), log.read_text(errors="replace"), time.monotonic() - started)


def command(*arguments: object, **changes: str) -> Ended:
    """Run a command in a fresh process; `changes` to its environment."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "kamerton", *map(str, arguments)], capture_output=True, text=True, check=False,
        env={**ENVIRONMENT, **changes}, timeout=300,
    )  # fmt: skip
    return Ended(done.returncode, done.stdout + done.stderr, time.monotonic() - started)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A disk of its own in memory, mounted at a folder; skips the test where that is not allowed."""
    import pytest

    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    ) if os.geteuid() == 0 else None  # fmt: skip
    if done is None or done.returncode:
        pytest.skip("a small disk needs a user who may mount one (root)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def resize(folder: Path, options: str) -> None:
    """Mount a small disk anew: with another size, or for reading only."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


# -- recipes ----------------------------------------------------------------------------------------------------------


def write_texts(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "texts.txt").write_text(TEXT, encoding="utf-8")
    return folder / "texts.txt"


def pretrain_recipe(folder: Path, **changes: Any) -> Path:
    """A pretraining of a tiny model on a few thousand bytes."""
    texts = write_texts(folder)
    recipe = {
        "model": SMALL, "tokenizer": "bytes", "data": {"train": str(texts), "held_out": 0.1, "documents": "paragraph"},
        "context": 32, "budget": {"steps": 24}, "samples": {"prompts": ["Line"], "tokens": 8},
        "training": {"batch_size": 4, "validations": 4, "learning_rate": 0.01}, **changes,
    }  # fmt: skip
    path = folder / "pretrain.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    return path


def scaling_recipe(folder: Path) -> Path:
    """A grid of three tiny models and three budgets."""
    grid = {"sizes": ["43k", "190k", "380k"], "tokens": [400, 800, 1600], "bootstrap": 20}
    given = json.loads(pretrain_recipe(folder, context=16, model={"preset": "llama"}, scaling=grid).read_text())
    del given["budget"], given["samples"]
    given["training"] = {"batch_size": 2, "learning_rate": 0.01}
    path = folder / "scaling.yaml"
    path.write_text(json.dumps(given), encoding="utf-8")
    return path


def corpus_recipe(folder: Path) -> Path:
    """A corpus from a few files of JSON lines, with steps that look at one document and at all of them."""
    raw = folder / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for part in range(4):
        rows = [
            {"id": f"{part}-{n}", "text": " ".join(tiny.WORDS[(n * k + part) % len(tiny.WORDS)] for k in range(1, 60))}
            for n in range(40)
        ]
        (raw / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = {"sources": [{"path": f"{raw}/*.jsonl"}], "steps": ["normalise", "exact-duplicates", "near-duplicates"]}
    path = folder / "corpus.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return path


def documents(folder: Path, count: int = 24) -> Path:
    """A folder of small text files for an index."""
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        text = ". ".join(" ".join(tiny.WORDS[(n * k + i) % 40] for k in range(1, 9)) for i in range(12))
        (folder / f"{n:03d}.txt").write_text(text, encoding="utf-8")
    return folder


# -- what a run left --------------------------------------------------------------------------------------------------

CLOCK = ("seconds", "machine", "versions", "threads", "tokens_per_second", "started", "updated")


def without_clock(value: Any) -> Any:
    """The same without what a clock or the machine decides."""
    if isinstance(value, dict):
        return {k: without_clock(v) for k, v in value.items() if k not in CLOCK}
    return [without_clock(v) for v in value] if isinstance(value, list) else value


def sums(folder: Path, *patterns: str) -> dict[str, str]:
    """SHA-256 of files by their names."""
    files = sorted(p for pattern in patterns for p in folder.glob(pattern) if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def tuned(folder: Path) -> Any:
    return sums(folder, "*.safetensors", "*.json")


def pretrained(folder: Path) -> Any:
    told = without_clock(json.loads((folder / "pretraining.json").read_text()))
    return told, sums(folder, "*.safetensors", "samples.jsonl", "config.json")


def compared(folder: Path) -> Any:
    from kamerton.comparison.report.results import results_without_times

    told = results_without_times(json.loads((folder / "results.json").read_text()))
    return told, sums(folder, "cells/*/seed-*/answers.jsonl")


def scaled(folder: Path) -> Any:
    rows = [json.loads(p.read_text()) for p in sorted(folder.glob("runs/*/*/*/run.json"))]
    return [(row["size"], row["tokens"], row["loss"]) for row in rows]


def made_corpus(folder: Path) -> Any:
    return without_clock(json.loads((folder / "report.json").read_text())), sums(folder, "*.jsonl", "rejected/*")


def indexed(folder: Path) -> Any:
    from kamerton.retrieval.index import PassageIndex
    from words_encoder import WordsEncoder

    index = PassageIndex.open(folder, WordsEncoder())
    hits, vectors = index.vectors()
    return index.fingerprint, [(h.source, h.passage.text) for h in hits], vectors.tobytes()


def litter(folder: Path) -> list[Path]:
    """Files that a killed process left half written; the index's library names its own otherwise."""
    return [p for p in folder.rglob(".*") if p.name.startswith((".partial-", ".former-"))]


@dataclass
class Job:
    """A command over one folder, and what it leaves there.

    Attributes:
        arguments: of the command, given the folder.
        left: what is compared.
    """

    arguments: Callable[[Path], list[object]]
    left: Callable[[Path], Any]


def jobs(folder: Path, base: Path) -> dict[str, Job]:
    """The commands that are killed; their recipes are written below a folder."""
    tune = tiny.write_recipe(
        folder / "tune", base, "- lora: {learning_rate: 0.01}", budget="{steps: 16}", forgetting="false"
    )
    both = "- lora: {batch_size: 8, validations: 2}\n- prompt-tuning: {tokens: 4, learning_rate: 0.01}"
    compare = tiny.write_recipe(folder / "compare", base, both, seeds="[0]", budget="{steps: 30}")
    pretrain, grid = pretrain_recipe(folder / "pretrain"), scaling_recipe(folder / "scaling")
    corpus, texts = corpus_recipe(folder / "corpus"), documents(folder / "documents")
    cutting: list[object] = ["--size", 16, "--overlap", 0]
    return {
        "tune": Job(lambda out: ["tune", tune, "lora", "--output", out], tuned),
        "pretrain": Job(lambda out: ["pretrain", pretrain, "--output", out], pretrained),
        "index": Job(lambda out: ["index", "add", out, texts, *cutting], indexed),
        "compare": Job(lambda out: ["compare", compare, "--output", out, "--workers", 1], compared),
        "corpus": Job(lambda out: ["corpus", "build", corpus, "--output", out, "--workers", 1], made_corpus),
        "scaling": Job(lambda out: ["scaling", grid, "--output", out], scaled),
    }


# -- the process that forks -------------------------------------------------------------------------------------------


def _ready() -> None:
    """Import what commands need, and let them write checkpoints and commits as often as they can."""
    import torch

    torch.set_num_threads(1)
    import peft  # noqa: F401
    import transformers  # noqa: F401

    import kamerton.api
    import kamerton.cli.display
    import kamerton.cli.main
    import kamerton.methods.lora
    import kamerton.pretraining.run  # noqa: F401
    import kamerton.retrieval.index as index
    from kamerton.training.loop import Settings
    from words_encoder import WordsEncoder

    made = Settings.__init__
    made.__defaults__ = tuple(0.0 if value == 30.0 else value for value in made.__defaults__ or ())
    index.FLUSH, index.load_encoder = 16, lambda name: WordsEncoder()


def _child(request: dict[str, Any]) -> None:
    from kamerton.cli.main import run

    with open(request["log"], "wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    faulthandler.dump_traceback_later(120)  # a child that hangs says where
    sys.argv = ["kamerton", *request["command"]]
    status = 0
    try:
        run()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    _ready()
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _child(json.loads(line))
        print(child, flush=True)
        _, code = os.waitpid(child, 0)
        print(code, flush=True)
