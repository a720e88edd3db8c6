"""`kamerton merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kamerton.cli.options import terminal


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(
        epilog="Examples:\n\nkamerton merge runs/dates-lora --output models/dates\n\nkamerton chat models/dates"
    )
    def merge(
        target: Annotated[
            str, typer.Argument(help="A tuned folder, or a comparison (its winner).", show_default=False)
        ],
        output: Annotated[Path, typer.Option(help="The model folder to write.", show_default=False)],
    ) -> None:
        """Merge what a method trained into the weights and save an ordinary model folder.

        A base in 4 bits is dequantised first. What was written is read back, and its logits on real prompts are
        compared with the adapted model's; a difference that rounding does not explain is an error.
        """
        from kamerton.api import merge as run

        console = terminal()
        with console.status("merging"):
            merged = run(target, output)
        console.print(
            f"largest difference of a logit from the adapted model's: {merged.difference:.2g} over {merged.positions} "
            f"positions (more than {merged.tolerance:g} would be an error)",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        size = merged.bytes / 2**20
        console.print(f"saved: {merged.folder} ({merged.dtype}, {size:,.0f} MiB)", highlight=False, markup=False,
                      soft_wrap=True)  # fmt: skip
        console.print(f"next: kamerton chat {merged.folder}", highlight=False, markup=False, soft_wrap=True)
