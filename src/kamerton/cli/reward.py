"""`kamerton reward`: train, eval, score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from kamerton import processes
from kamerton.errors import KamertonError

app = typer.Typer(no_args_is_help=True, help="Train a reward model on judged answers, measure it, score answers.")
Folder = Annotated[Path, typer.Argument(help="The reward model: a folder.", show_default=False)]


@app.callback()
def _group(context: typer.Context) -> None:
    """Train a reward model on judged answers, measure it, score answers."""
    if processes.launched() > 1 and context.invoked_subcommand != "train":
        raise KamertonError(
            f"kamerton reward {context.invoked_subcommand} runs in one process", mend="start it without a launcher"
        )


@app.command(
    epilog="Examples:\n\nkamerton reward train examples/dpo.yaml lora --output runs/reward\n\n"
    "kamerton reward train examples/dpo.yaml lora --output runs/reward --start runs/sft --option learning_rate=0.0003"
)
def train(
    recipe: Annotated[Path, typer.Argument(help="The recipe (YAML).", show_default=False)],
    method: Annotated[str | None, typer.Argument(help="full, lora, qlora or ia3; default: the recipe's one.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder; default: runs/<recipe>-reward.")] = None,
    start: Annotated[str | None, typer.Option(help="A tuned folder to start from; default: the base.")] = None,
    margin: Annotated[bool, typer.Option(help="Use the margins of pairs, where the data have them.")] = True,
    centre: Annotated[float, typer.Option(min=0, help="Weight of the squared sum of a pair's rewards.")] = 0.0,
    data: Annotated[Path | None, typer.Option(help="A local copy of the task's data: a folder or file.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed; default: the recipe's first.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="An option of the method: rank=4.")] = None,
    tracker: Annotated[list[str] | None, typer.Option(help="A tracker: tensorboard, wandb, …")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Set a field: budget.epochs=2.")] = None,
) -> None:
    """Train a reward model on a task's judged answers: pairs, ranked or graded answers, thumbs.

    Saved as a sequence classifier with one label, which transformers loads. Stopped at any moment, the same command
    goes on from the last checkpoint.
    """
    from kamerton.cli.options import read_options, say
    from kamerton.recipe import load_recipe

    loaded = load_recipe(recipe, data=data, overrides=set_ or [])  # before slow imports: most mistakes are here
    options = read_options(option or [])

    from kamerton.cli.display import OneBar
    from kamerton.objectives.reward_modeling import RewardOptions
    from kamerton.reward_models import train_reward_model

    folder = output or Path("runs") / f"{loaded.name}-reward"
    with OneBar() as bar:
        trained = train_reward_model(
            loaded, method, output=folder, start=start, reward=RewardOptions(margin=margin, centre=centre),
            options=options, seed=seed, report=bar, trackers=tracker or (),
        )  # fmt: skip
    record = trained.record
    for note in record.notes:
        say(note)
    held_out = [row["validation_loss"] for row in record.curve if "validation_loss" in row]
    best = f"validation loss {min(held_out):.4f}" if held_out else f"loss {record.curve[-1]['loss']:.4f}"
    say(
        f"{best}, learning rate {record.learning_rate:g}, {record.tokens:,} tokens in {record.seconds:.0f} s, "
        f"{record.trainable_parameters:,} trained parameters"
    )
    say(f"saved: {folder}")
    say(f"next: kamerton reward eval {folder} {recipe}")


@app.command(
    "eval",
    epilog="Examples:\n\nkamerton reward eval runs/reward examples/dpo.yaml\n\n"
    "kamerton reward eval runs/reward examples/dpo.yaml --split validation --output runs/reward-report",
)
def evaluate(
    folder: Folder,
    recipe: Annotated[Path, typer.Argument(help="The recipe that gives the task.", show_default=False)],
    split: Annotated[str, typer.Option(help="test, validation or train.")] = "test",
    bins: Annotated[int, typer.Option(min=1, help="Bins of the calibration error.")] = 10,
    output: Annotated[Path | None, typer.Option(help="Folder of the page; default: the model's.")] = None,
    data: Annotated[Path | None, typer.Option(help="A local copy of the task's data: a folder or file.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Set a field: task.limit.test=50.")] = None,
) -> None:
    """Accuracy on pairs that the model never saw, its calibration and its scores; a page with plots."""
    from kamerton.cli.options import say
    from kamerton.recipe import load_recipe

    loaded = load_recipe(recipe, data=data, overrides=set_ or [])

    from kamerton.cli.display import OneBar
    from kamerton.reward_models import evaluate_reward_model

    with OneBar() as bar:
        found = evaluate_reward_model(folder, loaded, output=output, split=split, bins=bins, report=bar)
    r = found.results
    a, c, s = r["accuracy"], r["calibration"], r["scores"]
    say(f"accuracy          {a['value']:.4f}  ({a['low']:.4f} to {a['high']:.4f}, {r['pairs']} pairs)")
    say(f"log loss          {r['log_loss']:.4f}")
    say(f"calibration error {c['ece']:.4f}  ({c['if_calibrated']:.4f} if it were calibrated)")
    for name in ("chosen", "rejected"):
        say(f"{name:17} {s[name]['mean']:.4f}  (deviation {s[name]['deviation']:.4f})")
    if r["cut"]:
        say(f"{r['cut']} answers were cut to fit the model")
    if r["without"]:
        say(f"{r['without']} examples have no two answers with different scores")
    say(f"page: {found.page}")


@app.command(
    epilog="Examples:\n\nkamerton reward score runs/reward answers.jsonl\n\n"
    "kamerton reward score runs/reward answers.jsonl --output scored.jsonl"
)
def score(
    folder: Folder,
    file: Annotated[Path, typer.Argument(help="JSON lines with prompt (or messages) and answer.", show_default=False)],
    output: Annotated[Path | None, typer.Option(help="JSON lines to write; default: standard output.")] = None,
) -> None:
    """Score answers: each line of the file with its reward.

    A line has prompt, a text, or messages, a conversation; and answer. Without answer, the last message is it.
    """
    from kamerton.cli.display import OneBar
    from kamerton.files import write_jsonl

    rows = _read(file)

    from kamerton.inference.reward_model import RewardModel

    with OneBar() as bar:
        bar("loading", 0.0, "")
        model = RewardModel.load(folder)
        asked = [(messages, answer) for _, messages, answer in rows]
        rewards = model.score(
            [m for m, _ in asked], [a for _, a in asked],
            progress=lambda done, total: bar("scoring", done / total, f"{done} of {total}"),
        )  # fmt: skip
    scored = [{**row, "reward": reward} for (row, _, _), reward in zip(rows, rewards, strict=True)]
    if output is None:
        for row in scored:
            typer.echo(json.dumps(row, ensure_ascii=False))
    else:
        write_jsonl(output, scored)
    if model.cut:
        typer.echo(f"{model.cut} answers were cut to fit the model", err=True)


def _read(file: Path) -> list[tuple[dict[str, Any], Any, str]]:
    """Each line with its conversation and its answer.

    Raises:
        TaskError: no such file, or a line that has not both.
    """
    from kamerton.errors import TaskError
    from kamerton.tasks.example import Message

    mend = 'write {"prompt": "…", "answer": "…"}, or messages in place of prompt'
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"cannot be read ({error})", where=file, mend="give a file of JSON lines in UTF-8") from None
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            turns = row["messages"] if "messages" in row else [{"role": "user", "content": row["prompt"]}]
            messages = [Message(t["role"], t["content"]) for t in turns]
            answer = row["answer"] if "prompt" in row or "answer" in row else messages.pop().content
        except (ValueError, KeyError, TypeError, IndexError):
            raise TaskError("has no prompt and answer", where=f"{file}:{number}", mend=mend) from None
        texts = [answer, *(m.content for m in messages)]
        if not messages or not all(isinstance(t, str) and t.strip() for t in texts):
            raise TaskError("prompt or answer is empty", where=f"{file}:{number}", mend=mend)
        found.append((row, tuple(messages), answer))
    if not found:
        raise TaskError("has no lines", where=file, mend=mend)
    return found
