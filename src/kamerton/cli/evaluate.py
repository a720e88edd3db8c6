"""`kamerton eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from kamerton.cli.options import BackendOption, backend_field, picked, say_measured, terminal


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(
        "eval",
        epilog="Examples:\n\n"
        "kamerton eval runs/dates-lora examples/dates.yaml\n\n"
        "kamerton eval demo examples/dates.yaml --show 5\n\n"
        "kamerton eval runs/dates examples/dates.yaml --answers answers.jsonl\n\n"
        "kamerton eval runs/dates-lora examples/dates.yaml --backend vllm\n\n"
        "kamerton eval runs/dates-lora examples/dates.yaml --fidelity --judge\n\n"
        "kamerton eval runs/dates-lora examples/dates.yaml --fidelity --against runs/dates-prompt-tuning\n\n"
        "kamerton eval runs/dates-lora examples/dates.yaml --scaling --samples 16",
    )
    def evaluate(
        target: Annotated[str, typer.Argument(help="A tuned folder, a comparison (its winner), or a base.")],
        recipe: Annotated[Path, typer.Argument(help="The recipe that gives the task.", show_default=False)],
        data: Annotated[Path | None, typer.Option(help="A local copy of the task's data: a folder or file.")] = None,
        split: Annotated[str, typer.Option(help="test, validation or train.")] = "test",
        show: Annotated[int, typer.Option(min=0, help="Print so many answers.")] = 3,
        answers: Annotated[Path | None, typer.Option(help="Write all answers to this JSON-lines file.")] = None,
        set_: Annotated[list[str] | None, typer.Option("--set", help="Set a field: task.limit.test=50.")] = None,
        backend: BackendOption = None,
        fidelity: Annotated[
            bool, typer.Option("--fidelity", help="Compare sampled answers with references, and write a page.")
        ] = False,
        frontier: Annotated[str | None, typer.Option(help="Temperatures; 0.5,0.7,1.0 by default.")] = None,
        samples: Annotated[int | None, typer.Option(help="Samples of each question; 4 by default.")] = None,
        judge: Annotated[bool, typer.Option("--judge", help="Train judges for the reverse cross-entropy.")] = False,
        against: Annotated[str | None, typer.Option(help="Another model, compared on the same questions.")] = None,
        phrasings: Annotated[int | None, typer.Option(help="Phrasings of the instruction; 4 by default.")] = None,
        bins: Annotated[int | None, typer.Option(help="Bins of the calibration error; 10 by default.")] = None,
        seed: Annotated[int | None, typer.Option(help="Seed of samples and judges; 0 by default.")] = None,
        output: Annotated[Path | None, typer.Option(help="Folder; default: runs/<target>-fidelity, -scaling.")] = None,
        scaling: Annotated[
            bool, typer.Option("--scaling", help="Measure quality against tokens by samples and thought.")
        ] = False,
        temperature: Annotated[float | None, typer.Option(help="Of the samples; 0.7 by default.")] = None,
        reward: Annotated[list[str] | None, typer.Option(help="A reward that chooses; may be repeated.")] = None,
        budgets: Annotated[str | None, typer.Option(help="Thinking budgets in tokens: 0,32,64.")] = None,
        continuations: Annotated[int | None, typer.Option(help="Times that a thought is made to go on.")] = None,
    ) -> None:
        """Ask a model every question of a task and judge its answers; its samples with --fidelity or --scaling."""
        given = {
            "--frontier": frontier, "--samples": samples, "--judge": judge or None, "--against": against,
            "--phrasings": phrasings, "--bins": bins, "--seed": seed, "--output": output,
        }  # fmt: skip
        scaled = {
            "--samples": samples, "--seed": seed, "--output": output, "--temperature": temperature,
            "--reward": reward or None, "--budgets": budgets, "--continuations": continuations,
        }  # fmt: skip
        _refuse_strangers({"--fidelity": (fidelity, given), "--scaling": (scaling, scaled)})
        fields = [*(set_ or []), *backend_field(backend)]
        if fidelity:
            _fidelity(target, recipe, data, split, fields, given)
            return
        if scaling:
            from kamerton.cli.test_time_scaling import run_scaling

            run_scaling(target, recipe, data, split, fields, scaled)
            return

        from kamerton.recipe import load_recipe

        loaded = load_recipe(recipe, data=data, overrides=fields)  # before slow imports: most mistakes are here

        from kamerton.api import evaluate as run
        from kamerton.cli.display import OneBar
        from kamerton.files import write_text

        with OneBar() as bar:
            result = run(target, loaded, split=split, report=bar)
        console = terminal()
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


def _refuse_strangers(modes: dict[str, tuple[bool, dict[str, Any]]]) -> None:
    """Refuse two modes at once, and options of modes that were not asked for."""
    from kamerton.errors import KamertonError

    asked = [name for name, (on, _) in modes.items() if on]
    if len(asked) > 1:
        raise KamertonError(f"{' and '.join(asked)} are two measurements", mend="ask for one at a time")
    known = modes[asked[0]][1] if asked else {}
    for mode, (_, options) in modes.items():
        for name, setting in options.items():
            if setting is not None and name not in known:
                raise KamertonError(f"{name} is for {mode}", mend=f"add {mode}, or leave {name} out")


def _fidelity(
    target: str, recipe: Path, data: Path | None, split: str, overrides: list[str], given: dict[str, Any]
) -> None:
    """What `--fidelity` does: measure, write, and print what matters most."""
    import shlex
    import sys

    from kamerton.api import fidelity as run
    from kamerton.assessment.settings import FidelitySettings, temperatures
    from kamerton.assessment.table import rows
    from kamerton.cli.display import OneBar
    from kamerton.recipe import load_recipe

    chosen = picked(given, "samples", "judge", "phrasings", "bins", "seed")
    if given["--frontier"] is not None:
        chosen["temperatures"] = temperatures(given["--frontier"])
    settings = FidelitySettings(**chosen)
    folder = given["--output"] or Path("runs") / f"{Path(target).name or 'model'}-fidelity"
    loaded = load_recipe(recipe, data=data, overrides=overrides)
    with OneBar() as bar:
        result = run(
            target, loaded, output=folder, against=given["--against"], settings=settings, split=split, report=bar,
            command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        )  # fmt: skip
    say_measured(rows(result.results), result.sentences, result.report)
