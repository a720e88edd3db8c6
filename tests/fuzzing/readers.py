"""Every reader of the program as an entry: the cases that it starts from, made by the program itself, and how it reads.

Readers that need a model have a tiny random one. What a reader is given lies in one folder in memory, whose files are
written anew for each case.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzzing import data_seeds, served_readers
from fuzzing.mutations import Case

EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass(frozen=True)
class Reader:
    """How a kind of input is read.

    Attributes:
        name: for the command line.
        summary: what is read, in a few words.
        open: a context that gives the first cases and the function that reads one; it is given a folder.
        inputs: how many the short run in the suite reads.
    """

    name: str
    summary: str
    open: Callable[[Path], contextlib.AbstractContextManager[tuple[list[Case], Callable[[Case], Any]]]]
    inputs: int = 40


READERS: dict[str, Reader] = {}

Opened = tuple[list[Case], Callable[[Case], Any]]


def reader(name: str, summary: str, inputs: int = 40) -> Callable[[Callable[[Path], Iterator[Opened]]], Any]:
    """Register a generator as a reader."""

    def add(made: Callable[[Path], Iterator[Opened]]) -> Any:
        READERS[name] = Reader(name, summary, contextlib.contextmanager(made), inputs)
        return made

    return add


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder in memory where there is such."""
    root = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="kamerton-fuzz-", dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def laid(folder: Path, case: Case) -> Path:
    """A case as the files of a folder, and no others."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, data in case.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return folder


def taken(folder: Path) -> Case:
    """The files of a folder as a case."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# -- recipes ------------------------------------------------------------------------------------------------------------


def _recipes(names: tuple[str, ...], more: tuple[str, ...] = ()) -> list[Case]:
    found = [{"r.yaml": p.read_bytes()} for pattern in names for p in sorted(EXAMPLES.glob(pattern))]
    return [*found, *({"r.yaml": text.encode()} for text in more)]


_COMPARISONS = ("[a-eg-lo-z]*.yaml", "methods*.yaml", "gan_prompt/*.yaml", "encoder/*.yaml")
"""All but the mixture, which names recipes beside it, and those of the whole path."""


@reader("recipe", "recipes of comparisons and tunings", 60)
def _recipe(folder: Path) -> Iterator[Opened]:
    from kamerton.methods import resolve
    from kamerton.recipe import load_recipe

    def read(case: Case) -> None:
        resolve(load_recipe(laid(folder, case) / "r.yaml"))

    yield _recipes(_COMPARISONS), _only(read, "r.yaml")


@reader("recipe-overrides", "--set FIELD=VALUE on a recipe", 60)
def _overrides(folder: Path) -> Iterator[Opened]:
    from kamerton.recipe import load_recipe

    path = folder / "r.yaml"
    path.write_bytes((EXAMPLES / "dates.yaml").read_bytes())

    def read(case: Case) -> None:
        load_recipe(path, overrides=[line for line in case["set.txt"].decode("utf-8", "replace").split("\n") if line])

    given = ("budget.tokens=1000", "methods.0=majority", "seeds=[1, 2]\ntask.name=x", "base.model=demo\nname=x")
    yield [{"set.txt": text.encode()} for text in given], _only(read, "set.txt")


@reader("recipe-corpus", "recipes of corpora", 60)
def _corpus_recipe(folder: Path) -> Iterator[Opened]:
    from kamerton.text.corpus.recipe import load_corpus_recipe

    def read(case: Case) -> None:
        load_corpus_recipe(laid(folder, case) / "r.yaml")  # its paths are not looked up: one may be the whole disk

    more = ("sources: pages\nsteps: [extract, normalise, {gopher-quality: {language: ru}}]\n",)
    yield _recipes(("corpus/[mp]*.yaml",), more), _only(read, "r.yaml")


@reader("recipe-pretrain", "recipes of pretrainings, the grids of scaling laws among them", 60)
def _pretrain_recipe(folder: Path) -> Iterator[Opened]:
    from kamerton.recipe_pretrain import as_pretrain_recipe

    def read(case: Case) -> None:
        as_pretrain_recipe(laid(folder, case) / "r.yaml")

    more = (
        "model: {preset: llama, size: 1m}\ntokenizer: bytes\ndata: a.txt\nbudget: {tokens: 1000000}\n"
        "scaling: {sizes: [300k, 1m], tokens: [1m, 2m], seeds: 2, budget: {flops: 1e15}}\n",
    )
    yield _recipes(("pretrain/*.yaml",), more), _only(read, "r.yaml")


@reader("recipe-from-scratch", "recipes of the whole path", 40)
def _from_scratch_recipe(folder: Path) -> Iterator[Opened]:
    from kamerton.from_scratch.recipe import load_from_scratch

    def read(case: Case) -> None:
        load_from_scratch(laid(folder, case) / "r.yaml", data=folder)

    yield _recipes(("from_scratch*.yaml",)), _only(read, "r.yaml")


def _only(read: Callable[[Case], Any], *names: str) -> Callable[[Case], Any]:
    """A reader whose cases always have some files: an empty one stands for one that a change took away."""
    return lambda case: read({**dict.fromkeys(names, b""), **case})


# -- examples -----------------------------------------------------------------------------------------------------------


def _task(folder: Path, seeds: list[Case]) -> Iterator[Opened]:
    from kamerton.evaluation.metrics import task_metrics
    from kamerton.recipe import load_recipe
    from kamerton.tasks import load_task

    def read(case: Case) -> None:
        recipe = load_recipe(laid(folder, case) / "r.yaml")
        task = load_task(recipe.task)
        for metric in task_metrics(task, recipe.task):
            metric.statistics([example.answers[0] for example in task.test], task.test)

    yield seeds, _only(read, "r.yaml")


for _name, _summary in data_seeds.TASKS.items():

    def _made(folder: Path, name: str = _name) -> Iterator[Opened]:
        yield from _task(folder, data_seeds.task(name))

    reader(f"task-{_name}", _summary)(_made)


@reader("feedback-lines", "files for labelling and of labels, brought into a store", 30)
def _feedback_lines(folder: Path) -> Iterator[Opened]:
    from kamerton.feedback.items import read_items
    from kamerton.feedback.preferences import import_labels
    from kamerton.feedback.store import FeedbackStore

    def read(case: Case) -> None:
        file = laid(folder, case) / "a.jsonl"
        with contextlib.suppress(_error()):
            read_items(file)
        store = FeedbackStore(":memory:")
        try:
            import_labels([file], store, "ann")
        finally:
            store.close()

    yield data_seeds.feedback(), _only(read, "a.jsonl")


@reader("graded-file", "prompts with answers that a reward is asked of", 60)
def _graded(folder: Path) -> Iterator[Opened]:
    from kamerton.cli.reward import _read

    yield data_seeds.graded(), _only(lambda case: _read(laid(folder, case) / "a.jsonl"), "a.jsonl")


@reader("feedback-store", "SQLite files of feedback", 30)
def _store(folder: Path) -> Iterator[Opened]:
    from kamerton.feedback.preferences import from_store
    from kamerton.feedback.results import results_of
    from kamerton.feedback.store import FeedbackStore

    def read(case: Case) -> None:
        store = FeedbackStore(laid(folder / "s", case) / "f.sqlite", create=False)
        try:
            results_of(store)
            from_store(store)
        finally:
            store.close()

    yield data_seeds.stores(folder), _only(read, "f.sqlite")


@reader("conversations", "files of conversations for kamerton chat", 60)
def _conversations(folder: Path) -> Iterator[Opened]:
    from kamerton.chat.history import load, save

    def read(case: Case) -> None:
        path = laid(folder, case) / "c.jsonl"
        history, _, _ = load(path)
        with contextlib.suppress(_error()):
            save(history, path)

    yield data_seeds.conversations(), _only(read, "c.jsonl")


@reader("documents", "documents of an index: text, Markdown, pages, PDF", 30)
def _documents(folder: Path) -> Iterator[Opened]:
    from kamerton.retrieval.documents import find, read

    def each(case: Case) -> None:
        for file in find([laid(folder, case)]).files:
            read(file)

    yield data_seeds.documents(), each


# -- text ---------------------------------------------------------------------------------------------------------------


@reader("corpus-files", "raw files of a corpus: text, HTML, XML, JSON lines, Parquet, WARC, packed ones", 60)
def _corpus(folder: Path) -> Iterator[Opened]:
    from datatrove.data import Document

    from kamerton.text.corpus.files import Input
    from kamerton.text.corpus.markup import ExtractStep
    from kamerton.text.corpus.options import Extract
    from kamerton.text.corpus.reading import Reader as Files
    from kamerton.text.corpus.recipe import SourceSpec

    out = folder / "out"

    def read(case: Case) -> None:
        files = sorted(p for p in laid(folder / "in", case).rglob("*") if p.is_file())
        source = SourceSpec(path=("a",), keep=("url",))
        pieces = [[Input(p, p.name, "a", p.stat().st_size, 0, source) for p in files]]
        extract = ExtractStep(str(out), "01-extract", Extract())
        for doc in Files(str(out), pieces, 100_000).run(None, 0, 1):
            assert isinstance(doc, Document)
            doc.text.encode()
            extract.judge(doc)

    yield data_seeds.raw_files(), read


@reader("text-lines", "files of text for n-grams and tokenizers, packed or not", 60)
def _lines(folder: Path) -> Iterator[Opened]:
    from kamerton.text.lines import documents, lines

    def read(case: Case) -> None:
        files = sorted(p for p in laid(folder, case).rglob("*") if p.is_file())
        for file in files:
            with contextlib.suppress(_error()):
                sum(map(len, lines([file])))
            sum(map(len, documents([file])))

    yield data_seeds.texts(), read


@reader("ngram-model", "folders of n-gram models", 30)
def _ngrams(folder: Path) -> Iterator[Opened]:
    from kamerton.text.lines import lines
    from kamerton.text.ngrams.counts import batches
    from kamerton.text.ngrams.model import NgramModel

    text = folder / "t.txt"
    text.write_text("the cat sat\nthe dog ran\n")

    def read(case: Case) -> None:
        model = NgramModel.load(laid(folder / "m", case))
        model.score(batches(lines([text])))
        model.following([0])

    yield data_seeds.ngram_models(folder), read


# -- models -------------------------------------------------------------------------------------------------------------


@reader("model-folder", "model folders: configuration, tokenizer, template, weights", 6)
def _models(folder: Path) -> Iterator[Opened]:
    from kamerton.base import load_base
    from kamerton.tasks.example import Message

    def read(case: Case) -> None:
        base = load_base(laid(folder / "m", case), dtype="float32", device="cpu")
        base.renderer.prompt([Message("user", "the green river")])

    yield data_seeds.model_folders(folder), read


@reader("gguf", "GGUF files", 6)
def _gguf(folder: Path) -> Iterator[Opened]:
    from kamerton.base import load_base

    os.environ["KAMERTON_CACHE"] = str(folder / "cache")

    def read(case: Case) -> None:
        shutil.rmtree(folder / "cache", ignore_errors=True)
        load_base(laid(folder / "m", case) / "m.gguf", dtype="float32", device="cpu")

    yield data_seeds.gguf_files(folder), _only(read, "m.gguf")


@reader("saved-method", "folders that kamerton tune wrote: kamerton.json, adapters, shots", 8)
def _saved(folder: Path) -> Iterator[Opened]:
    from kamerton.inference import Sampling
    from kamerton.methods import load_adapted
    from kamerton.tasks.example import conversation

    base, seeds = data_seeds.saved_methods(folder)
    asked = [conversation([("system", "Which colour is in the text?"), ("user", "the green river 7")])]

    def read(case: Case) -> None:
        load_adapted(laid(folder / "m", case), base).generate(asked, Sampling(max_tokens=1))

    yield seeds, read


@reader("checkpoint", "checkpoints of a training", 20)
def _checkpoint(folder: Path) -> Iterator[Opened]:
    import torch

    from kamerton.files import checksum
    from kamerton.training.checkpoint import load_checkpoint, save_checkpoint

    module = torch.nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    state = {"step": 5, "key": "k", "best": 0.5, "curve": [{"step": 5, "loss": 0.5}]}
    save_checkpoint(folder / "made", module, optimiser, state, {"average": torch.ones(3)})

    def read(case: Case) -> None:
        place = laid(folder / "c", case)
        file = place / "step-000005" / "state.json"
        if len(case) % 2 == 0 and file.is_file():  # the right sums, so that what is in the files is looked at
            with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError, AttributeError):
                told = json.loads(file.read_bytes())
                told["checksums"] = {p.name: checksum(p) for p in file.parent.iterdir() if p != file}
                file.write_text(json.dumps(told))
        load_checkpoint(place, module, optimiser, key="k")

    yield [taken(folder / "made")], read


# -- results ------------------------------------------------------------------------------------------------------------


@reader("comparison", "folders of comparisons: settings, examples, cells, answers, curves", 4)
def _comparison(folder: Path) -> Iterator[Opened]:
    from kamerton.comparison.report.data import load_comparison
    from kamerton.comparison.report.live import LiveComparison
    from kamerton.comparison.report.page import page
    from kamerton.comparison.report.results import results, verdict_of
    from kamerton.targets import winner
    from synthetic_comparison import FIVE, write_comparison

    write_comparison(folder / "made", FIVE[:3], seeds=(0, 1), examples=6)
    whole = load_comparison(folder / "made")
    (folder / "made" / "results.json").write_text(json.dumps(results(whole, verdict_of(whole))))

    def read(case: Case) -> None:
        place = laid(folder / "c", case)
        live = LiveComparison(place)
        live.state(), live.curves()
        with contextlib.suppress(_error()):
            winner(place)
        found = load_comparison(place)
        verdict = verdict_of(found) if found.labels else None
        page(found, verdict, results(found, verdict))

    yield [taken(folder / "made")], read


def _error() -> type[Exception]:
    from kamerton.errors import KamertonError

    return KamertonError


served_readers.register(reader)
