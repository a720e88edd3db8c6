"""`kamerton compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kamerton.cli.options import (
    AddressOption,
    BackendOption,
    CpusOption,
    ExecutorOption,
    MemoryOption,
    backend_field,
    resource_fields,
    terminal,
)


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(
        epilog="Examples:\n\n"
        "kamerton compare examples/dates.yaml\n\n"
        "kamerton compare examples/banking77.yaml --data ~/data/banking77 --output runs/banking\n\n"
        "kamerton compare examples/dates.yaml --race\n\n"
        "kamerton compare examples/dates.yaml --backend vllm\n\n"
        "kamerton compare examples/dates.yaml --executor ray --address auto --cpus 4 --output /shared/dates\n\n"
        "kamerton compare examples/dates.yaml --set seeds=5 --set budget.epochs=2"
    )
    def compare(
        recipe: Annotated[Path, typer.Argument(help="The recipe (YAML).", show_default=False)],
        output: Annotated[Path | None, typer.Option(help="Folder for results; default: the recipe's.")] = None,
        data: Annotated[Path | None, typer.Option(help="A local copy of the task's data: a folder or file.")] = None,
        workers: Annotated[int | None, typer.Option(min=1, help="Processes at a time.")] = None,
        race: Annotated[
            bool | None, typer.Option("--race/--no-race", help="Stop early what is clearly behind on validation.")
        ] = None,
        backend: BackendOption = None,
        executor: ExecutorOption = "local",
        address: AddressOption = None,
        cpus: CpusOption = None,
        gpus: Annotated[
            float | None, typer.Option(help="With ray: GPUs that each cell gets, 0.5 for half of one.")
        ] = None,
        memory: MemoryOption = None,
        set_: Annotated[list[str] | None, typer.Option("--set", help="Set a field: budget.epochs=2.")] = None,
    ) -> None:
        """Compare methods on one task under one budget, and write a report.

        Stopped at any moment, the same command goes on from what is finished.
        """
        from kamerton.cluster import check_executor
        from kamerton.errors import KamertonError
        from kamerton.recipe import load_recipe

        check_executor(executor, address)
        if gpus is not None and executor == "local":
            raise KamertonError("is of Ray alone", where="--gpus", mend="add --executor ray, or set base.device")
        asked = resource_fields(cpus=cpus, gpus=gpus, memory=memory)
        # before slow imports: most mistakes are here
        loaded = load_recipe(recipe, data=data, overrides=[*(set_ or []), *asked, *backend_field(backend)])

        from kamerton.cli.display import Bars
        from kamerton.comparison.run import compare as run

        result = run(
            loaded, output=output, workers=workers, race=race, executor=executor, address=address, watcher=Bars()
        )
        console = terminal()
        console.print()
        console.print(str(result), highlight=False, markup=False, soft_wrap=True)
        console.print(f"\nreport: {result.report}", highlight=False, markup=False, soft_wrap=True)
        if result.failed:
            console.print(f"{len(result.failed)} cells failed; run the same command to try them again", highlight=False)
            raise typer.Exit(1)
