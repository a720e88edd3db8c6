"""`kamerton serve` as a command, several targets in one memory, and requests made from the server's own description."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import HealthCheck, given, settings

import tiny
from kamerton.base import load_base
from kamerton.errors import KamertonError
from kamerton.methods.method import Adapted
from kamerton.together import load_together, split_name
from served import MESSAGES, Running
from tiny import fit

pytest_plugins = ("tiny", "served")
pytestmark = pytest.mark.usefixtures("one_thread")


# -- the command --------------------------------------------------------------------------------------------------------


def test_the_command_serves_and_stops(small_folder: Path, models: dict[str, Adapted], tmp_path: Path) -> None:
    models["lora"].save(tmp_path / "tuned")
    command = [
        sys.executable,
        "-m",
        "kamerton",
        "serve",
        f"base={small_folder}",
        str(tmp_path / "tuned"),
        "--port",
        "0",
    ]
    environment = {**os.environ, "COLUMNS": "300", "KAMERTON_API_KEY": "open", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        said = []
        for line in iter(process.stdout.readline, ""):
            said.append(line)
            if "serving on" in line:
                break
        assert "serving on" in said[-1], (said, process.stderr.read() if process.stderr else "")
        url = said[-1].split()[2].rstrip(";")
        client = openai.OpenAI(base_url=url, api_key="open", max_retries=0)
        assert [m.id for m in client.models.list().data][:2] == ["base", "tuned"]
        stream = client.chat.completions.create(
            model="tuned", messages=MESSAGES, max_tokens=300, temperature=1, seed=5, stream=True
        )
        pieces = iter(stream)
        next(pieces)
        process.send_signal(signal.SIGTERM)
        rest = list(pieces)
        assert rest[-1].choices[0].finish_reason in ("stop", "length")
        out, errors = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            process.kill()
    assert "Traceback" not in errors
    assert "stopped" in out
    assert process.returncode in (0, -signal.SIGTERM)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["demo", "--host", "0.0.0.0"], "there is no key; give --api-key or set KAMERTON_API_KEY"),
        pytest.param(
            ["demo", "--backend", "vllm"],
            "vllm is not installed",
            marks=pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vllm is installed"),
        ),
        (["demo", "--backend", "gpu"], "no backend 'gpu'"),
        (["demo", "--dtype", "float31"], "--dtype: 'float31' is not known here; did you mean float32?"),
        (["demo", "--api-key", "a\nb"], "the API key"),
        (["demo", "--host", "no such host", "--api-key", "k"], "cannot listen: "),
        (["nowhere/at/all", "--port", "0"], "nowhere/at/all"),
        (["demo", "a/demo", "--port", "0"], "two models are called 'demo'"),
        (["=demo", "--port", "0"], "names no model"),
    ],
)
def test_the_command_says_what_is_wrong(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from kamerton.cli.main import run

    monkeypatch.delenv("KAMERTON_API_KEY", raising=False)
    monkeypatch.setattr(sys, "argv", ["kamerton", "serve", *arguments])
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert words in error


def test_targets_share_their_base(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "base")
    base = load_base(folder, dtype="float32", device="cpu")
    fit(base, "lora", tmp_path / "fit", rank=2, learning_rate=0.05).save(tmp_path / "one")
    fit(base, "prompt-tuning", tmp_path / "fit2", tokens=3, learning_rate=0.1).save(tmp_path / "two")
    together = load_together([f"plain={folder}", tmp_path / "one", f"soft={tmp_path / 'two'}"])
    assert list(together) == ["plain", "one", "soft"]
    held = {p.data_ptr(): p.numel() for m in together.values() for p in m.engine.model.hf.parameters()}
    own = sum(p.numel() for p in base.model.hf.parameters())
    # on a machine where the folder's own data type is another one, the two are different bases
    if together["plain"].base.info.fingerprint == together["one"].base.info.fingerprint:
        assert sum(held.values()) < 1.3 * own
    assert together["one"].base is together["soft"].base
    for name in ("float32", "bfloat16"):
        assert load_together([folder], dtype=name)["base"].base.info.dtype == name
    with pytest.raises(KamertonError, match="it was made in float32 and answers in float32; leave --dtype out"):
        load_together([folder, tmp_path / "one"], dtype="bfloat16")


def test_names_of_targets(tmp_path: Path) -> None:
    (tmp_path / "a=b").mkdir()
    assert split_name("demo") == ("demo", "demo")
    assert split_name("runs/dates-lora/") == ("dates-lora", "runs/dates-lora/")
    assert split_name("dates=runs/x=y") == ("dates", "runs/x=y")
    assert split_name(str(tmp_path / "a=b")) == ("a=b", str(tmp_path / "a=b"))
    assert split_name("owner/model")[0] == "model"


# -- the description ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_requests_made_from_the_description_never_fail_the_server(server: Running, mode: str) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    checks = schemathesis.checks
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    seen = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        seen += 1

        @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
        def probe(case: Any) -> None:
            answer = case.call(timeout=60)
            case.validate_response(answer, checks=[checks.not_a_server_error, checks.content_type_conformance])
            if answer.status_code >= 400 and case.method != "HEAD":
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

        try:
            probe()
        except Exception as error:
            if "Unsatisfiable" not in type(error).__name__ and "negate" not in str(error):
                raise
    assert seen == 11
