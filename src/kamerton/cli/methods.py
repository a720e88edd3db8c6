"""`kamerton methods`."""

from __future__ import annotations

from typing import Annotated

import typer

from kamerton.cli.options import terminal


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog="Examples:\n\nkamerton methods\n\nkamerton methods lora")
    def methods(
        name: Annotated[str | None, typer.Argument(help="One method, with all its options.")] = None,
    ) -> None:
        """List the methods: what each trains and costs; or one method's options and defaults."""
        from rich.table import Table

        from kamerton.methods import METHODS, get_method
        from kamerton.methods.costs import cost_line
        from kamerton.methods.search import shown, space_of

        console = terminal()
        if name is None:
            columns = ("method", "what it does", "trains", "cost", "searched")
            table = Table(*columns, box=None, pad_edge=False, header_style="bold")
            table.columns[0].min_width = max(map(len, METHODS))  # a name is what people type: never cut
            for known in METHODS:
                method = get_method(known)
                table.add_row(known, method.summary, method.trains, cost_line(method), ", ".join(space_of(method)))
            console.print(table)
            console.print("\none method's options: kamerton methods NAME", highlight=False)
            return
        method = get_method(name)
        console.print(f"{name}: {method.summary}\ntrains {method.trains}\npaper {method.paper}", highlight=False)
        console.print(f"cost {cost_line(method)}", highlight=False)
        space = space_of(method)
        if space:
            values = [f"{option} {', '.join(map(shown, tried))}" for option, tried in space.items()]
            console.print(f"searched inside the budget: {'; '.join(values)}", highlight=False, soft_wrap=True)
        table = Table("option", "default", "meaning", box=None, pad_edge=False, header_style="bold")
        for option, field in method.options.model_fields.items():
            table.add_row(option, str(field.default), field.description or "")
        if method.options.model_fields:
            console.print(table)
