"""`kamerton tokenizer …`: train tokenizers, look at what they make of a text, compare them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from kamerton.cli.options import say, terminal

app = typer.Typer(no_args_is_help=True, help="Tokenizers: train, look at, compare.")

COLOURS = ("#b5e2fa", "#f9d5a7", "#c3e8bd", "#f7c6d9", "#d7c9f5")
"""Backgrounds of tokens in turn; their text is black, so that both are read on dark and on light."""


@app.command(
    epilog="Examples:\n\nkamerton tokenizer train corpus.txt --vocab-size 8000 --output runs/bpe\n\n"
    "kamerton tokenizer train ru.txt.gz --kind unigram --vocab-size 16000 --split-digits --chat-template chatml "
    "--output runs/unigram"
)
def train(
    files: Annotated[list[Path], typer.Argument(help="Text, or JSON lines with a text; .gz, .bz2, .xz, .zst too.",
                                                exists=True, dir_okay=False, show_default=False)],
    output: Annotated[Path, typer.Option(help="The folder to write.", show_default=False)],
    vocab_size: Annotated[int, typer.Option(min=1, help="Tokens in all.")] = 8000,
    kind: Annotated[Literal["byte-bpe", "bpe", "wordpiece", "unigram", "words"], typer.Option(
        help="How text is cut.")] = "byte-bpe",
    split_digits: Annotated[bool, typer.Option("--split-digits", help="Each digit is a token.")] = False,
    special: Annotated[list[str] | None, typer.Option(help="A further special token.", show_default=False)] = None,
    chat_template: Annotated[str | None, typer.Option(help="chatml, or a file with a template.",
                                                      show_default=False)] = None,
) -> None:  # fmt: skip
    """Train a tokenizer; the folder is one that transformers loads."""
    from kamerton.cli.display import bars
    from kamerton.errors import KamertonError
    from kamerton.text.lines import PACKED, Seen
    from kamerton.text.tokenizers import train as run

    template = chat_template
    if template is not None and template != "chatml":
        if not Path(template).is_file():
            raise KamertonError("there is no such file", where=template, mend="give chatml, or a file with a template")
        template = Path(template).read_text(encoding="utf-8")
    seen = Seen()
    plain = all(f.suffix not in PACKED for f in files)
    with bars(terminal(stderr=True)) as progress:
        bar = progress.add_task("reading", total=sum(f.stat().st_size for f in files) if plain else None, text=kind)
        made = run(files, kind, vocab_size, output, split_digits=split_digits, special=special or (),
                   chat_template=template, progress=lambda done: progress.advance(bar, done), seen=seen)  # fmt: skip
    say(f"{len(made):,} tokens, special: {' '.join(made.all_special_tokens)}")
    if len(made) < vocab_size:
        say(f"note: the text gave {len(made):,} tokens, not {vocab_size:,}")
    for note in seen.notes():
        say(f"note: {note}")
    say(f"saved: {output}")
    say(f'next: kamerton tokenizer show {output} "a text"')


@app.command(epilog='Example:\n\nkamerton tokenizer show demo "The year 2031, naïvely."')
def show(
    tokenizer: Annotated[str, typer.Argument(help="A folder, hub id, or demo.", show_default=False)],
    text: Annotated[str, typer.Argument(help="What is cut.", show_default=False)],
    html: Annotated[Path | None, typer.Option(help="Write a page too.", show_default=False)] = None,
) -> None:
    """A text coloured by token, with the tokens' numbers."""
    from rich.text import Text

    made = _open(tokenizer)
    pieces = _pieces(made, text)
    line = Text()
    for i, (piece, _, _) in enumerate(pieces):
        line.append(piece.replace("\n", "↵\n"), style=f"black on {COLOURS[i % len(COLOURS)]}")
    terminal().print(line, soft_wrap=True)
    say(f"{len(pieces)} tokens, {len(text.encode()) / max(len(pieces), 1):.2f} bytes a token")
    for _, token, number in pieces:
        say(f"{number:8d}  {token}")
    if html is not None:
        _page(html, tokenizer, pieces)
        say(f"page: {html}")


@app.command(
    epilog="Examples:\n\nkamerton tokenizer compare runs/bpe demo --text en=english.txt --text ru=russian.txt\n\n"
    "kamerton tokenizer compare runs/* --text held-out.txt --json"
)
def compare(
    tokenizers: Annotated[list[str], typer.Argument(help="Folders, hub ids, or demo.", show_default=False)],
    text: Annotated[list[str], typer.Option(help="A file, or name=file; several of one name are one text.",
                                            show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:  # fmt: skip
    """Tokens a word (fertility), bytes a token, unknown text, and what comes back, by language or file."""
    import json
    from dataclasses import asdict

    from rich.table import Table

    from kamerton.errors import KamertonError
    from kamerton.text.tokenizers.compare import measure

    texts: dict[str, list[Path]] = {}
    for one in text:
        name, _, file = one.rpartition("=")
        if not Path(file).is_file():
            raise KamertonError("there is no such file", where=f"--text {one}", mend="give a file, or name=file")
        texts.setdefault(name or Path(file).name, []).append(Path(file))
    rows = [measure(t, made, n, f) for t in tokenizers for made in [_open(t)] for n, f in texts.items()]
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows]))
        return
    table = Table(box=None, header_style="bold")
    names = ("tokenizer", "text", "tokens in it", "tokens a word", "bytes a token", "letters a token", "unknown",
             "words cut", "lines back")  # fmt: skip
    for i, column in enumerate(names):
        table.add_column(column, justify="left" if i < 2 else "right")
    for r in rows:
        table.add_row(
            r.tokenizer, r.text, f"{r.vocabulary:,}", f"{r.fertility:.3f}", f"{r.bytes_per_token:.3f}",
            f"{r.characters_per_token:.3f}", f"{r.unknown:.2%}", f"{r.split_words:.1%}", f"{r.round_trip:.1%}",
        )  # fmt: skip
    terminal().print(table)
    for note in dict.fromkeys(f"note: {row.text}: {note}" for row in rows for note in row.notes):
        say(note)


def _open(name: str) -> Any:
    from kamerton.errors import ModelError
    from kamerton.files import expanded, is_path

    if is_path(name) and not expanded(name).exists():
        raise ModelError("no such folder", where=name, mend="check the path, or give a hub id, or demo")

    import transformers

    from kamerton.base.sources import first_line, resolve

    transformers.logging.set_verbosity_error()
    # a tokenizer's folder needs no model beside it
    source = name if (Path(name) / "tokenizer.json").is_file() else resolve(name)[0]
    try:
        return transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds; every one is about what the user named
        what = f"no tokenizer: {first_line(error)}"
        raise ModelError(what, where=name, mend="name a folder with tokenizer.json") from error


def _pieces(tokenizer: Any, text: str) -> list[tuple[str, str, int]]:
    """Of each token: the part of the text that it covers, the token, its number. A letter in several tokens is shown
    at the first of them."""
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    tokens = tokenizer.convert_ids_to_tokens(found["input_ids"])
    out, done = [], 0
    for i, (token, number) in enumerate(zip(tokens, found["input_ids"], strict=True)):
        last = i == len(tokens) - 1
        end = len(text) if last else max(done, found["offset_mapping"][i][1])
        out.append((text[done:end], token, number))
        done = end
    return out


def _page(path: Path, name: str, pieces: list[tuple[str, str, int]]) -> None:
    from html import escape

    spans = "".join(
        f'<span style="background:{COLOURS[i % len(COLOURS)]}" title="{escape(token)} {number}">{escape(piece)}</span>'
        for i, (piece, token, number) in enumerate(pieces)
    )
    path.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(name)}</title>'
        f'<h1 style="font:600 1.2em sans-serif">{escape(name)}: {len(pieces)} tokens</h1>'
        f'<p style="white-space:pre-wrap;color:#000;font:1.1em/1.8 monospace">{spans}</p></html>\n',
        encoding="utf-8",
    )
