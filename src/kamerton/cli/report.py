"""`kamerton report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kamerton.cli.options import say, terminal


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(
        epilog="Examples:\n\n"
        "kamerton report runs/dates\n\n"
        "kamerton report runs/dates --serve --open\n\n"
        "KAMERTON_API_KEY=… kamerton report runs/dates --serve --host 0.0.0.0 --port 9000"
    )
    def report(
        folder: Annotated[
            Path, typer.Argument(metavar="DIR", help="Of a comparison or a pretraining.", show_default=False)
        ],
        serve: Annotated[
            bool, typer.Option("--serve", help="Show it in a browser, live while it runs; need not be there yet.")
        ] = False,
        open_: Annotated[bool, typer.Option("--open", help="Open a browser.")] = False,
        host: Annotated[
            str, typer.Option(help="With --serve: where to listen; others than this machine want a key.")
        ] = "127.0.0.1",
        port: Annotated[int, typer.Option(min=0, max=65535, help="With --serve: 0 takes a free one.")] = 8002,
        api_key: Annotated[
            str | None,
            typer.Option(
                envvar="KAMERTON_API_KEY", help="With --serve: asked of everybody.", show_default=False,
                show_envvar=True,
            ),
        ] = None,
    ) -> None:  # fmt: skip
        """Write the report of what a folder holds, or show it in a browser while it grows.

        The comparison may be finished, stopped, or still running. With --serve nothing is written.
        """
        if serve:
            _serve(folder, host, port, api_key, open_)
        else:
            _write(folder, open_)


def _write(folder: Path, open_: bool) -> None:
    from kamerton.comparison.report import load_comparison, write_report
    from kamerton.errors import KamertonError
    from kamerton.pretraining.live import RESULT

    if (folder / RESULT).is_file():
        from kamerton.pretraining.page import sentences, write_page

        for line in sentences(write_page(folder)):
            say(line)
        page = folder / "report.html"
    else:
        found = load_comparison(folder)
        if not found.settings and not found.labels:
            mend = f"run kamerton compare RECIPE --output {folder}, or name its folder"
            raise KamertonError("no comparison is in this folder", where=folder, mend=mend)
        with terminal(stderr=True).status("computing the verdict"):
            page = write_report(folder)
        say((folder / "table.md").read_text(encoding="utf-8"))
    say(f"report: {page}")
    if open_:
        _browse(page.resolve().as_uri())


def _serve(folder: Path, host: str, port: int, api_key: str | None, open_: bool) -> None:
    from kamerton.errors import KamertonError
    from kamerton.serving.guard import Guard, check_host
    from kamerton.serving.server import address, check_extra, listen

    check_host(host, api_key)
    check_extra()
    if folder.exists() and not folder.is_dir():
        raise KamertonError("is no folder", where=folder, mend="name the folder of a comparison")
    from kamerton.serving.report_app import report_app
    from kamerton.serving.runner import Server, serve

    bound = listen(host, port)
    app = Guard(report_app(folder), key=api_key, open_paths=("/healthz",))
    if not folder.exists():
        say(f"{folder} is not there yet: the page waits for it")

    def ready() -> None:
        where = address(bound, host)
        say(f"open {where}" + (" (it asks for the key)" if api_key else ""))
        say("Ctrl-C stops the page; a comparison that runs goes on")
        if open_:
            _browse(where)

    serve(Server(app), bound, ready=ready)
    say("stopped")


def _browse(where: str) -> None:
    import webbrowser

    if not webbrowser.open(where):
        say("no browser was found here; open the address in one")
