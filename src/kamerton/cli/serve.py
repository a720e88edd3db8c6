"""`kamerton serve`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from kamerton.cli.options import DtypeOption, dtype_name, say, terminal

KEY = "KAMERTON_API_KEY"


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(
        epilog="Examples:\n\nkamerton serve demo\n\nkamerton serve demo dates=runs/dates-lora --port 8080\n\n"
        "kamerton serve demo runs/dates --feedback judged.sqlite\n\nkamerton serve demo --dtype float32\n\n"
        "kamerton serve demo dates=runs/dates-lora --backend vllm\n\n"
        "KAMERTON_API_KEY=… kamerton serve runs/dates --host 0.0.0.0\n\n"
        "Then: OpenAI(base_url='http://127.0.0.1:8000/v1', api_key='none')"
    )
    def serve(
        targets: Annotated[
            list[str],
            typer.Argument(
                help="Bases, tuned folders, comparisons (their winners); NAME=TARGET names one.", show_default=False
            ),
        ],
        host: Annotated[
            str, typer.Option(help="Address to listen on; other than this machine's own wants a key.")
        ] = "127.0.0.1",
        port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
        api_key: Annotated[
            str | None,
            typer.Option(envvar=KEY, help="What requests must bring.", show_default=False, show_envvar=True),
        ] = None,
        cors: Annotated[
            list[str] | None, typer.Option(metavar="ORIGIN", help="A page's origin that may call; default: none.")
        ] = None,
        feedback: Annotated[
            Path | None,
            typer.Option(dir_okay=False, help="SQLite file for judgements on the page; default: none are asked for."),
        ] = None,
        dtype: DtypeOption = "auto",
        backend: Annotated[str, typer.Option(help="What decodes: torch or vllm.")] = "torch",
        rows: Annotated[int, typer.Option(min=1, help="Answers that are decoded at once, for each model.")] = 64,
        batch_tokens: Annotated[
            int, typer.Option(min=128, help="Tokens whose keys and values are kept at once, for each model.")
        ] = 65536,
        max_requests: Annotated[int, typer.Option(min=1, help="Requests at once; more get 429.")] = 64,
        max_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 1024,
        max_n: Annotated[int, typer.Option(min=1, help="Answers to one prompt.")] = 16,
        max_messages: Annotated[int, typer.Option(min=1, help="Messages of a conversation.")] = 256,
        max_prompts: Annotated[int, typer.Option(min=1, help="Prompts, or texts to embed, in a request.")] = 64,
        max_body: Annotated[int, typer.Option(min=1024, help="Bytes of a request.")] = 2 * 2**20,
        timeout: Annotated[float, typer.Option(min=1, help="Seconds that a request may take.")] = 600,
        grace: Annotated[float, typer.Option(min=0, help="Seconds for running answers when stopped.")] = 10,
    ) -> None:
        """Serve models over HTTP, as OpenAI's API does."""
        _check(host, api_key, backend)
        kind = dtype_name(dtype)
        from kamerton.serving.server import address, check_extra, listen

        check_extra("prometheus_client")

        from kamerton.feedback.store import FeedbackStore
        from kamerton.serving.app import make_app, make_server
        from kamerton.serving.runner import serve as run
        from kamerton.serving.settings import Limits, Settings
        from kamerton.together import load_together

        sock = listen(host, port)  # before the models: a taken port is known at once
        store, closing = None, ExitStack()
        try:
            store = FeedbackStore(feedback) if feedback else None
            with terminal().status("loading") as status:
                models = load_together(targets, report=lambda text: status.update(text), dtype=kind)
                if backend == "vllm":
                    status.update("starting vLLM")
                    from kamerton.exporting.for_vllm import Pool

                    pool = closing.enter_context(Pool(batch_tokens, rows))
                    pool.attach(*models.values())
            limits = Limits(
                body=max_body, messages=max_messages, prompts=max_prompts, answer=max_tokens, n=max_n,
                requests=max_requests, rows=rows, tokens=batch_tokens, seconds=timeout, grace=grace,
            )  # fmt: skip
            hosts = ("localhost", "127.0.0.1", "[::1]") if api_key is None else ()
            settings = Settings(limits, api_key, hosts, tuple(cors or ()), _embeddings())
            for label, adapted in models.items():
                say(f"{label}: method {adapted.method}, {adapted.base.info}")

            def ready() -> None:
                url = address(sock, sock.getsockname()[0])
                say(f"serving on {url}v1; the page: {url}; Ctrl-C stops")

            app = make_app(models, settings, store)
            try:
                run(make_server(app), sock, ready=ready)
            finally:
                app.state.hub.close()  # a second Ctrl-C leaves the application's own end out
        except KeyboardInterrupt:
            pass
        finally:
            closing.close()
            sock.close()
            if store is not None:
                store.close()
        say("stopped")


def _check(host: str, key: str | None, backend: str) -> None:
    """Refuse what would be unsafe, or is not there."""
    from kamerton.backends import check_backend
    from kamerton.errors import KamertonError
    from kamerton.serving.guard import is_loopback

    check_backend(backend)
    if key is not None and (not key.strip() or not key.isprintable()):
        raise KamertonError("the API key is empty or holds what a header cannot", mend="choose another key")
    if key is None and not is_loopback(host):
        raise KamertonError(
            f"--host {host} can be reached by other machines, and there is no key",
            mend=f"give --api-key or set {KEY}, or leave --host out",
        )


def _embeddings() -> str | None:
    """The encoder of /v1/embeddings, where one is installed."""
    from kamerton.errors import KamertonError
    from kamerton.retrieval.encoder import MINILM, find_encoder

    try:
        find_encoder(MINILM)
    except KamertonError:
        return None
    return MINILM
