"""`kamerton label`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from kamerton.cli.options import say, terminal

if TYPE_CHECKING:
    from kamerton.feedback.records import Kind
    from kamerton.feedback.results import Results
    from kamerton.feedback.store import FeedbackStore
    from kamerton.serving.live import Sampler

KINDS = ("comparison", "ranking", "rating", "thumbs")
SUFFIX = ".sqlite"


class _SeveralModels(TyperCommand):
    """Takes `--models A B C` for `--models A --models B --models C`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        out, taking = [], False
        for word in args:
            if word == "--models":
                taking = True
                continue
            taking = taking and not word.startswith("-")
            out += ["--models", word] if taking else [word]
        return super().parse_args(ctx, out)


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(
        cls=_SeveralModels,
        epilog="Examples:\n\nkamerton label answers.jsonl\n\n"
        "kamerton label labels.sqlite --models demo runs/instructions-lora --prompts prompts.jsonl\n\n"
        "kamerton label answers.jsonl --kind rating --port 9000\n\n"
        "kamerton label --results answers.sqlite --output results.html",
    )
    def label(
        source: Annotated[
            Path | None,
            typer.Argument(help="Prompts and answers (JSON lines), or a store of labels.", show_default=False),
        ] = None,
        kind: Annotated[
            str | None, typer.Option(help=f"{', '.join(KINDS)}; default: comparison where there are two answers.")
        ] = None,
        store: Annotated[
            Path | None, typer.Option(help="The store of labels; default: the file's name with .sqlite.")
        ] = None,
        models: Annotated[
            list[str] | None, typer.Option(help="Models whose answers are sampled meanwhile; one or more.")
        ] = None,
        prompts: Annotated[
            Path | None, typer.Option(help="With --models: prompts, as JSON lines or a line each.")
        ] = None,
        answers: Annotated[int, typer.Option(min=1, help="With --models: answers of each to a prompt.")] = 1,
        temperature: Annotated[float, typer.Option(min=0, help="With --models.")] = 0.8,
        max_tokens: Annotated[int, typer.Option(min=1, help="With --models: longest answer, in tokens.")] = 256,
        seed: Annotated[int, typer.Option(min=0, help="With --models: of the sampling.")] = 0,
        results: Annotated[bool, typer.Option("--results", help="Print what the labels say, and end.")] = False,
        output: Annotated[Path | None, typer.Option(help="With --results: write it as a page too.")] = None,
        host: Annotated[str, typer.Option(help="Where to listen; others than this machine want a key.")] = "127.0.0.1",
        port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8001,
        api_key: Annotated[
            str | None, typer.Option(help="Asked of everybody.", envvar="KAMERTON_API_KEY", show_envvar=True)
        ] = None,
    ) -> None:
        """Let people compare, rank or rate answers on a page, and see what they said.

        Who wrote an answer is hidden; the order of questions and sides is random for each labeller. A label is stored
        (SQLite) before the page says so. Start it again with the same file to go on; `/results` has agreement, win
        rates and Bradley–Terry scores.
        """
        from kamerton.errors import KamertonError

        if results:
            _results(source or store, output)
            return
        _check(kind, source, models, prompts, output)
        from kamerton.serving.guard import Guard, check_host
        from kamerton.serving.server import address, check_extra, listen

        check_host(host, api_key)
        check_extra()
        from kamerton.serving.label_app import LARGEST, label_app
        from kamerton.serving.runner import Server, serve

        opened, notes = _open(source, store, prompts)
        sampler = None
        try:
            bound = listen(host, port)
            if models and prompts:
                sampler = _sampler(opened, models, prompts, answers, temperature, max_tokens, seed)
            chosen, questions = _kind(opened, kind, sampler)
            if not questions and sampler is None:
                mend = "give more answers to a prompt, or --kind rating or thumbs"
                raise KamertonError(f"nothing can be asked as {chosen}", where=opened.path, mend=mend)
            for note in [*notes, *_asked(opened, chosen, questions, sampler)]:
                say(note)
            if sampler is not None:
                sampler.start()
            where = address(bound, host)
            say(f"open {where}" + (" (it asks for the key)" if api_key else ""))
            say(f"results: {where}results")
            say("Ctrl-C stops; every label is stored already")
            guarded = Guard(label_app(opened, chosen, sampler), key=api_key, largest=LARGEST, open_paths=("/healthz",))
            serve(Server(guarded), bound)
        finally:
            if sampler is not None:
                sampler.stop()
            opened.close()


def _check(
    kind: str | None, source: Path | None, models: list[str] | None, prompts: Path | None, output: Path | None
) -> None:
    from kamerton.errors import KamertonError

    if kind is not None and kind not in KINDS:
        raise KamertonError(f"no kind {kind!r}", where="--kind", mend=f"use {', '.join(KINDS)}")
    if bool(models) != bool(prompts):
        raise KamertonError("--models and --prompts go together", mend="give both, or a file with answers")
    if source is None and not models:
        raise KamertonError("nothing to label", mend="give a file of prompts and answers, or --models and --prompts")
    if output is not None:
        raise KamertonError("is for --results", where="--output", mend="give both, or leave it out")


def _open(source: Path | None, store: Path | None, prompts: Path | None) -> tuple[FeedbackStore, list[str]]:
    """The store, filled with what the file has, and what there is to say about that."""
    from kamerton.errors import KamertonError
    from kamerton.feedback.items import read_items
    from kamerton.feedback.store import FeedbackStore, is_store

    if source is not None and (is_store(source) or (prompts is not None and not source.exists())):
        if store is not None:
            raise KamertonError("is a store already", where=str(source), mend="leave --store out")
        return FeedbackStore(source), []
    named = source or prompts
    assert named is not None  # _check has seen to it
    path = store or named.with_suffix(SUFFIX)
    if source is None:
        return FeedbackStore(path), []
    read = read_items(source)
    opened = FeedbackStore(path)
    new = opened.add(read.items)
    notes = [f"{path}: {len(read.items)} items of {source}, {new} of them new"]
    if read.repeated:
        notes.append(f"{read.repeated} lines are there twice with the same answers")
    if read.labelled:
        notes.append(
            f"{read.labelled} lines hold labels; kamerton feedback import {source} --into {path} takes them in"
        )
    return opened, notes


def _sampler(
    store: FeedbackStore, names: list[str], prompts: Path, answers: int, temperature: float, max_tokens: int, seed: int
) -> Sampler:
    from kamerton.api import load, load_beside
    from kamerton.errors import KamertonError
    from kamerton.feedback.items import read_questions
    from kamerton.inference import Sampling
    from kamerton.serving.live import Sampler

    if len(set(names)) < len(names):
        raise KamertonError("names a model twice", where="--models", mend="name each once, with --answers 2")
    questions = read_questions(prompts)
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, n=answers, seed=seed)
    with terminal(stderr=True).status("loading"):
        first = load(names[0])
        models = {names[0]: first} | {name: load_beside(name, first.base) for name in names[1:]}
        return Sampler(store, models, questions, sampling)


def _kind(store: FeedbackStore, given: str | None, sampler: Sampler | None) -> tuple[Kind, int]:
    """What is asked, and how many questions that is for now."""
    from kamerton.feedback.records import KINDS, questions_of

    items = store.items("label")
    counts = {kind: sum(len(questions_of(item, kind)) for item in items) for kind in KINDS}
    default: Kind = "comparison" if counts["comparison"] or (sampler and sampler.several) else "thumbs"
    chosen = next((kind for kind in KINDS if kind == given), default)
    return chosen, counts[chosen]


def _asked(store: FeedbackStore, kind: Kind, questions: int, sampler: Sampler | None) -> list[str]:
    """What is asked, what is not, and what is to come."""
    from kamerton.feedback.records import questions_of

    items = store.items("label")
    without = sum(not questions_of(item, kind) for item in items)
    notes = [f"{questions} questions of kind {kind} for each labeller"]
    if sampler is not None:
        notes.append(f"answers to {sampler.total - sampler.done} of {sampler.total} prompts are sampled meanwhile")
    if without:
        notes.append(f"{without} of {len(items)} items have no two different answers, and are not asked about")
    return notes


def _results(path: Path | None, output: Path | None) -> None:
    from kamerton.errors import KamertonError
    from kamerton.feedback.results import results_of
    from kamerton.feedback.store import FeedbackStore, is_store
    from kamerton.files import write_text
    from kamerton.serving.results_page import results_page

    if path is None:
        raise KamertonError("no store is named", mend="write: kamerton label --results labels.sqlite")
    if path.exists() and not is_store(path) and is_store(path.with_suffix(SUFFIX)):
        path = path.with_suffix(SUFFIX)
    store = FeedbackStore(path, create=False)
    found = results_of(store)
    store.close()
    for line in result_lines(found):
        say(line)
    if output is not None:
        write_text(output, results_page(found, path.name, alone=True))
        say(f"page: {output}")


def result_lines(found: Results) -> list[str]:
    """Results as lines of text."""
    from kamerton.serving.results_page import TITLES, agreement_text, percent, sentences, signed

    chats = f", {found.chats} answers from chats" if found.chats else ""
    lines = [f"{found.items} items to label{chats}"]
    for kind in found.kinds:
        lines += ["", TITLES[kind.kind]]
        models = kind.strengths.models
        if models:
            wide = max(5, *(len(m.model) for m in models))
            lines.append(f"{'model':<{wide}}  comparisons  won (95 % interval)     Bradley–Terry (95 % interval)")
            for m in models:
                won = f"{percent(m.rate)} ({percent(m.rate_low)} to {percent(m.rate_high)})"
                score = f"{signed(m.score)} ({signed(m.low)} to {signed(m.high)})"
                group = f"  group {m.group + 1}" if kind.strengths.groups > 1 else ""
                lines.append(f"{m.model:<{wide}}  {m.comparisons:>11}  {won:<22}  {score}{group}")
        lines += [f"- {text}" for text in sentences(kind)]
        if kind.alpha.units:
            lines.append(f"Krippendorff's alpha: {agreement_text(kind.alpha)}, {kind.alpha.units} questions in common")
        lines += [f"Cohen's kappa of {a} and {b}: {agreement_text(one)}" for a, b, one in kind.kappas]
        for one in kind.labellers:
            took = "" if one.seconds is None else f", median {one.seconds:.1f} s"
            lines.append(f"{one.name}: {one.labels} labels, {one.skipped} skipped, {one.undone} undone{took}")
    if not found.kinds:
        lines.append("no labels yet")
    return lines
