"""The `kamerton` command. One file a command group; here they are gathered, and errors become one line.

A mistake of the user's is one line on standard error and exit status 2; Ctrl-C is exit status 130, and what was done
is kept. Nothing heavy is imported before a command needs it, so `kamerton --help` answers at once.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
import warnings

import typer

from kamerton import processes
from kamerton.cli import (
    align,
    base,
    chat,
    compare,
    corpus,
    evaluate,
    export,
    feedback,
    from_scratch,
    index,
    label,
    merge,
    methods,
    ngram,
    plan,
    pretrain,
    recipe,
    report,
    reward,
    rewards,
    scaling,
    serve,
    tokenizer,
    tune,
)
from kamerton.errors import KamertonError
from kamerton.files import REFUSED, refused_by
from kamerton.memory import no_room, out_of_memory

SYSTEM = (
    errno.EACCES, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.EPERM, *REFUSED,
)  # fmt: skip
"""What the system refuses to write; who named the place can mend it."""

app = typer.Typer(
    name="kamerton", no_args_is_help=True, rich_markup_mode="markdown", pretty_exceptions_enable=False,
    help="Find out, with evidence, which way of adapting a language model is best for your examples.",
    epilog="Start with: **kamerton compare examples/dates.yaml**",
)  # fmt: skip
compare.register(app)
plan.register(app)
tune.register(app)
report.register(app)
pretrain.register(app)
scaling.register(app)
from_scratch.register(app)
align.register(app)
evaluate.register(app)
chat.register(app)
label.register(app)
serve.register(app)
merge.register(app)
export.register(app)
methods.register(app)
rewards.register(app)
app.add_typer(base.app, name="base")
app.add_typer(recipe.app, name="recipe")
app.add_typer(reward.app, name="reward")
app.add_typer(index.app, name="index")
app.add_typer(feedback.app, name="feedback")
app.add_typer(ngram.app, name="ngram")
app.add_typer(tokenizer.app, name="tokenizer")
app.add_typer(corpus.app, name="corpus")


TOGETHER = ("align", "compare", "pretrain", "reward", "tune")
"""What several processes do together; of `reward` its part `train`."""


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context, version: bool = typer.Option(False, "--version", help="Print the version and exit.")
) -> None:
    command = context.invoked_subcommand
    if processes.launched() > 1 and command is not None:
        if command not in TOGETHER:
            raise KamertonError(f"kamerton {command} runs in one process", mend="start it without a launcher")
        processes.join()
    if version:
        from kamerton.comparison.machine import kamerton_version

        typer.echo(f"kamerton {kamerton_version()}")
        raise typer.Exit


def run() -> None:
    """Entry point of the command."""
    # libraries telling each other about their next version: nothing that a user could act on
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft|accelerate")
    if processes.launched() == 1:
        _run()
        return
    try:
        _run()
    except SystemExit as ended:
        if not ended.code:
            processes.leave()
            raise
        # another process may wait for this one inside a library: nothing is waited for here
        processes.end(ended.code if isinstance(ended.code, int) else 1)
    except BaseException:
        if processes.speaks():
            traceback.print_exc(file=sys.stderr)
        processes.end(1)


def _run() -> None:
    try:
        app()
    except KamertonError as error:
        _say(f"error: {error}")
        sys.exit(2)
    except (OSError, RuntimeError, MemoryError) as error:
        line = _in_words(error)
        if line is None:
            raise
        _say(f"error: {line}")
        sys.exit(2)
    except SystemExit as ended:
        if ended.code == 130:  # typer's answer to Ctrl-C
            _say("stopped; what was finished is kept, run the same command to go on")
        raise


def _say(line: str) -> None:
    """A last line, said once: of several processes by the first one that ends so."""
    if processes.speaks():
        print(line, file=sys.stderr)


def _in_words(error: Exception) -> str | None:
    """What a disk or the memory refused, in one line; None where an error is about something else."""
    if out_of_memory(error):
        return str(no_room(error))
    number = refused_by(error)
    if isinstance(error, OSError) and error.errno in SYSTEM and error.filename is not None:
        number = error.errno
    if number is None:
        return None
    where = f"{error.filename}: " if isinstance(error, OSError) and error.filename is not None else ""
    full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    mend = "make room and run the same command again" if full else "choose another place"
    return f"{where}{os.strerror(number)}; {mend}"
