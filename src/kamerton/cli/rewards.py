"""`kamerton rewards`."""

from __future__ import annotations

from typing import Annotated

import typer

from kamerton.cli.options import terminal


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog="Examples:\n\nkamerton rewards\n\nkamerton rewards numeric")
    def rewards(
        name: Annotated[str | None, typer.Argument(help="One reward, with all its options.")] = None,
    ) -> None:
        """List the rewards: what says how good an answer is; or one reward's options and defaults."""
        from rich.markup import escape
        from rich.table import Table

        from kamerton.errors import RecipeError
        from kamerton.recipe_errors import closest
        from kamerton.rewards import REWARDS, get_reward

        console = terminal()
        if name is None:
            table = Table("reward", "what it says", "options", box=None, pad_edge=False, header_style="bold")
            table.columns[0].min_width = max(map(len, REWARDS))  # a name is what people type: never cut
            for known in REWARDS:
                kind = get_reward(known)
                table.add_row(known, kind.summary, ", ".join(kind.options.model_fields))
            console.print(table)
            console.print("\nmetrics that are means over examples are rewards too", highlight=False)
            console.print("one reward's options: kamerton rewards NAME", highlight=False)
            return
        if name not in REWARDS:
            raise RecipeError(f"unknown reward '{name}'", mend=closest(name, REWARDS))
        kind = get_reward(name)
        console.print(f"{name}: {kind.summary}", highlight=False)
        if kind.short:
            console.print(f"{name}: VALUE sets {kind.short}", highlight=False)
        table = Table("option", "default", "meaning", box=None, pad_edge=False, header_style="bold")
        for option, field in kind.options.model_fields.items():
            default = "needed" if field.is_required() else str(field.default)
            shown = default if len(default) <= 40 else f"{default[:40]} …"
            table.add_row(option, shown, escape(field.description or ""))
        console.print(table)
