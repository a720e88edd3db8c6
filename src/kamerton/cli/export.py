"""`kamerton export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kamerton.cli.options import say


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(
        epilog="Examples:\n\nkamerton export runs/dates-lora --format gguf --output models/dates-gguf\n\n"
        "kamerton export runs/dates --format safetensors --output models/dates\n\n"
        "kamerton export runs/dates-lora --format peft --output models/dates-adapter\n\n"
        "kamerton export demo --format gguf --type q8_0 --output models/demo-q8"
    )
    def export(
        target: Annotated[
            str, typer.Argument(help="A base, a tuned folder, or a comparison (its winner).", show_default=False)
        ],
        output: Annotated[Path, typer.Option(help="The folder to write.", show_default=False)],
        format: Annotated[str, typer.Option(help="safetensors, peft or gguf.")] = "safetensors",
        type: Annotated[
            str | None,
            typer.Option(
                help="f32, f16, bf16; for gguf also q8_0. Default: the base's own, for gguf f16.", show_default=False
            ),
        ] = None,
        shard_size: Annotated[str, typer.Option(help="The most that one file of safetensors holds.")] = "5GB",
        force: Annotated[bool, typer.Option("--force", help="Replace what an export wrote there before.")] = False,
    ) -> None:
        """Write a model as files that other programs load: transformers, peft, llama.cpp and Ollama.

        What was written is read back by those programs, and its logits on real prompts are compared with the model's; a
        difference that rounding does not explain is an error, and nothing is left.
        """
        from kamerton.api import export as run
        from kamerton.cli.display import OneBar

        with OneBar() as bar:
            written = run(
                target, output, format=format, type=type, shard_size=shard_size, force=force, report=bar
            )  # fmt: skip
        for check in written.checks:
            say(str(check))
        for note in written.notes:
            say(f"note: {note}")
        say(f"saved: {written.folder} ({written.format}, {written.type}, {written.bytes / 2**20:,.0f} MiB)")
        if written.format == "gguf":
            say(f"next: llama-cli --model {written.file}")
            say(f"or:   ollama create {written.folder.name} --file {written.folder / 'Modelfile'}")
        elif written.format == "peft":
            say(f"next: how peft loads it is in {written.folder / 'README.md'}")
        else:
            say(f"next: kamerton chat {written.folder}")
            say(f"or:   transformers.AutoModelForCausalLM.from_pretrained({str(written.folder)!r})")
