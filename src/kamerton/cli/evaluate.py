"""`kamerton eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(
        "eval",
        epilog="Examples:\n\n"
        "kamerton eval runs/dates-lora examples/dates.yaml\n\n"
        "kamerton eval demo examples/dates.yaml --show 5\n\n"
        "kamerton eval runs/dates examples/dates.yaml --answers answers.jsonl",
    )
    def evaluate(
        target: Annotated[str, typer.Argument(help="A tuned folder, a comparison (its winner), or a base.")],
        recipe: Annotated[Path, typer.Argument(help="The recipe that gives the task.", show_default=False)],
        data: Annotated[Path | None, typer.Option(help="A local copy of the task's data: a folder or file.")] = None,
        split: Annotated[str, typer.Option(help="test, validation or train.")] = "test",
        show: Annotated[int, typer.Option(min=0, help="Print so many answers.")] = 3,
        answers: Annotated[Path | None, typer.Option(help="Write all answers to this JSON-lines file.")] = None,
        set_: Annotated[list[str] | None, typer.Option("--set", help="Set a field: task.limit.test=50.")] = None,
    ) -> None:
        """Ask a model every question of a task and judge its answers."""
        from kamerton.recipe import load_recipe

        loaded = load_recipe(recipe, data=data, overrides=set_ or [])  # before slow imports: most mistakes are here

        from rich.console import Console

        from kamerton.api import evaluate as run
        from kamerton.cli.display import OneBar
        from kamerton.training.files import write_text

        with OneBar() as bar:
            result = run(target, loaded, split=split, report=bar)
        console = Console()
        for example, text in list(zip(result.examples, result.answers, strict=True))[:show]:
            console.print(f"asked     {example.messages[-1].content}", highlight=False, markup=False)
            console.print(f"answered  {text}", highlight=False, markup=False)
            console.print(f"expected  {example.answers[0]}\n", highlight=False, markup=False)
        for name, value in result.metrics.items():
            console.print(f"{name:16} {value:.4f}", highlight=False)
        console.print(
            f"{len(result.examples)} questions, {result.prompt_tokens:.0f} tokens read and "
            f"{result.generated_tokens:.0f} written for each", highlight=False,
        )  # fmt: skip
        if result.cut:
            console.print(f"{result.cut} questions were cut to fit the model", highlight=False)
        if answers is not None:
            rows = [
                {"id": e.id, "question": e.messages[-1].content, "answer": text, "expected": list(e.answers)}
                for e, text in zip(result.examples, result.answers, strict=True)
            ]
            write_text(answers, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            console.print(f"answers: {answers}", highlight=False, markup=False)
