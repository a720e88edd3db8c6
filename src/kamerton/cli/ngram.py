"""`kamerton ngram …`: n-gram models of text, and what they are good for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from kamerton.cli.options import say, terminal

app = typer.Typer(no_args_is_help=True, help="N-gram models: train, measure, sample, and help with typing.")

Model = Annotated[Path, typer.Argument(help="A folder of `kamerton ngram train`.", show_default=False)]
Text = Annotated[str, typer.Argument(help="The beginning of a line.", show_default=False)]
Best = Annotated[int, typer.Option("-k", min=1, help="How many.")]


@app.command(
    epilog="Examples:\n\nkamerton ngram train plays/*.txt --order 3 --output runs/plays-3\n\n"
    "kamerton ngram train corpus.txt.gz --tokens bytes --order 6 --output runs/bytes-6"
)
def train(
    files: Annotated[list[Path], typer.Argument(help="Text, a sentence a line; .gz, .bz2, .xz, .zst too.", exists=True,
                                                dir_okay=False, show_default=False)],
    output: Annotated[Path, typer.Option(help="The folder to write.", show_default=False)],
    order: Annotated[int, typer.Option(min=1, help="Longest n-gram.")] = 5,
    tokens: Annotated[str, typer.Option(help="words, characters, bytes, or a tokenizer's folder.")] = "words",
    smoothing: Annotated[Literal["kneser-ney", "katz", "mle"], typer.Option(help="Modified Kneser–Ney, Katz back-off, "
                                                                             "or shares of counts.")] = "kneser-ney",
    least: Annotated[int, typer.Option(min=1, help="Words seen less often are unknown.")] = 1,
    memory: Annotated[int, typer.Option(min=16, help="MiB of counts before they go to disk, about.")] = 1024,
    documents: Annotated[bool, typer.Option("--documents", help="A sentence is a whole document.")] = False,
) -> None:  # fmt: skip
    """Count text and estimate a model."""
    from kamerton.cli.display import bars
    from kamerton.text.lines import PACKED
    from kamerton.text.ngrams import estimate, open_units

    console = terminal(stderr=True)
    with bars(console) as progress:
        bar = progress.add_task("counting", total=None, text="vocabulary")
        units = open_units(tokens, files, least=least)
        plain = all(f.suffix not in PACKED for f in files)
        total = sum(f.stat().st_size for f in files) if plain else None
        progress.update(bar, total=total, text=f"{units.size:,} {units.kind}")
        model = estimate(files, units, order, smoothing, memory=memory << 20, whole=documents,
                         progress=lambda done: progress.advance(bar, done))  # fmt: skip
    model.save(output)
    for n, one in enumerate(model.orders, start=1):
        say(f"order {n}: {len(one.keys):,}")
    for note in model.notes:
        say(f"note: {note}")
    say(f"saved: {output}")
    say(f"next: kamerton ngram eval {output} FILE")


@app.command("eval", epilog="Example:\n\nkamerton ngram eval runs/plays-3 held-out.txt")
def evaluate(
    model: Model,
    files: Annotated[list[Path], typer.Argument(help="Text, a sentence a line.", exists=True, dir_okay=False,
                                                show_default=False)],
    documents: Annotated[bool, typer.Option("--documents", help="A sentence is a whole document.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:  # fmt: skip
    """Perplexity and bits per byte on text that was not trained on."""
    import json

    from kamerton.text.lines import Seen
    from kamerton.text.ngrams.counts import sentences_of
    from kamerton.text.ngrams.units import seen_notes

    found, seen = _load(model), Seen()
    scored = found.score(sentences_of(files, found.units, seen=seen, whole=documents))
    notes = seen_notes(seen, found.units)
    figures: dict[str, Any] = {
        "perplexity": scored.perplexity, "perplexity with unknown": scored.perplexity_with_unknown,
        "bits per byte": scored.bits_per_byte if found.units.lossless or not scored.unknown else None,
        "units": scored.units, "unknown": scored.unknown, "impossible": scored.impossible,
        "sentences": scored.sentences, "bytes": scored.bytes,
    }  # fmt: skip
    if as_json:
        typer.echo(json.dumps({**figures, "notes": notes}))
        return
    for name, value in figures.items():
        shown = "–" if value is None else f"{value:,.4f}" if isinstance(value, float) else f"{value:,}"
        say(f"{name:24s}{shown}")
    if figures["bits per byte"] is None:
        say("bits per byte: not given where units are unknown; train with --tokens bytes, or a tokenizer's folder")
    for note in notes:
        say(f"note: {note}")


@app.command(epilog="Example:\n\nkamerton ngram sample runs/plays-3 --lines 5 --seed 1")
def sample(
    model: Model,
    lines: Annotated[int, typer.Option(min=1, help="How many.")] = 5,
    longest: Annotated[int, typer.Option(min=1, help="Units of a line, at most.")] = 200,
    temperature: Annotated[float, typer.Option(min=0.01, help="Below 1: likelier units.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Lines drawn from a model."""
    import numpy as np

    found, rng = _load(model), np.random.default_rng(seed)
    for _ in range(lines):
        typer.echo(found.units.join(found.sample(rng, longest=longest, temperature=temperature)))


@app.command("next", epilog='Example:\n\nkamerton ngram next runs/plays-3 "I will not"')
def following(model: Model, text: Text, k: Best = 5) -> None:
    """The most likely units behind a text."""
    from kamerton.text.ngrams.typing_help import next_units

    _table(next_units(_load(model), text, k))


@app.command(epilog='Example:\n\nkamerton ngram complete runs/plays-3 "the king of Eng"')
def complete(model: Model, text: Text, k: Best = 5) -> None:
    """The most likely ends of a word that is half typed."""
    from kamerton.text.ngrams.typing_help import complete as run

    _table(run(_load(model), text, k))


@app.command(epilog='Example:\n\nkamerton ngram correct runs/plays-3 "I wil not goe to teh king"')
def correct(
    model: Model, text: Text,
    errors: Annotated[float, typer.Option(min=1e-6, max=0.5, help="Chance of an edit in a word.")] = 0.02,
) -> None:  # fmt: skip
    """A line with mistyped words put right."""
    from rich.text import Text as Styled

    from kamerton.text.ngrams.typing_help import correct as run

    line, done = Styled(), 0
    for typed, meant in run(_load(model), text, errors=errors):
        at = max(text.find(typed, done), done)
        line.append(text[done:at]).append(meant, style="" if typed == meant else "bold green")
        done = at + len(typed)
    line.append(text[done:])
    terminal().print(line, soft_wrap=True)


@app.command(epilog="Example:\n\nkamerton ngram export runs/plays-3 --output plays.arpa")
def export(
    model: Model, output: Annotated[Path, typer.Option(help="The file to write.", show_default=False)]
) -> None:  # fmt: skip
    """Write an ARPA file, which KenLM, SRILM and others read."""
    from kamerton.text.ngrams.arpa import write_arpa

    write_arpa(_load(model), output)
    say(f"saved: {output}")


def _load(folder: Path) -> Any:
    from kamerton.text.ngrams import NgramModel

    return NgramModel.load(folder)


def _table(rows: list[tuple[str, float]]) -> None:
    for name, p in rows:
        typer.echo(f"{p:8.4f}  {name}")
