"""The command line: help, every command on a tiny model, errors, Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import tiny
from kamerton.cli import options
from kamerton.cli.display import Bars
from kamerton.cli.options import say, terminal
from kamerton.methods import METHODS
from tiny import Cli

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200", "NO_COLOR": "1"}
LORA = "- lora: {learning_rate: 0.01, batch_size: 8, validations: 2}"


@pytest.fixture(scope="module")
def recipe(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_recipe(tmp_path_factory.mktemp("cli"), small_folder, f"- zero-shot\n{LORA}", seeds="[0]")


def test_texts_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Names of pictures and markup among them; no command has a console of another kind."""
    text = "ends :smile: [bold]so"
    say(text)
    Bars().line(text)
    terminal().print(text, markup=False)
    said = capsys.readouterr()
    assert (said.out, said.err) == (f"{text}\n" * 2, f"{text}\n")
    commands = Path(options.__file__).parent
    assert [p.name for p in commands.glob("*.py") if "Console(" in p.read_text()] == ["options.py"]


# -- help -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        (),
        ("compare",),
        ("tune",),
        ("align",),
        ("eval",),
        ("chat",),
        ("merge",),
        ("methods",),
        ("recipe", "check"),
        *(("reward", name) for name in ("train", "eval", "score")),
        *(("index", name) for name in ("add", "update", "remove", "list", "search")),
        *(("corpus", name) for name in ("build", "steps")),
        *(("corpus", "classifier", name) for name in ("train", "eval")),
        ("feedback", "export"),
        ("feedback", "import"),
    ],
)
def test_help_has_examples(cli: Cli, command: tuple[str, ...]) -> None:
    status, out, err = cli(*command, "--help")
    assert (status, err) == (0, "")
    assert f"kamerton {' '.join(command)}".strip() in out
    examples = out.partition("Examples:")[2] if command else out.partition("Start with:")[2]
    assert re.search(rf"kamerton {' '.join(command)}", examples), "an example of the command"


def test_every_command_is_listed(cli: Cli) -> None:
    out = cli("--help")[1]
    assert all(
        re.search(rf"\b{name}\b", out)
        for name in (
            "compare",
            "tune",
            "align",
            "reward",
            "eval",
            "chat",
            "merge",
            "methods",
            "recipe",
            "index",
            "corpus",
            "feedback",
        )
    )
    assert "--install-completion" in out


def test_help_and_import_load_nothing_heavy() -> None:
    code = (
        "import sys\nsys.argv = ['kamerton', '--help']\nimport kamerton\nfrom kamerton.cli.main import run\n"
        "try:\n    run()\nexcept SystemExit as ended:\n    assert not ended.code\n"
        "print('HEAVY', [m for m in ('torch', 'transformers', 'numpy', 'scipy', 'datasets', 'peft', 'accelerate',"
        " 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_an_index_is_opened_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom kamerton.cli.main import run\n"
        f"sys.argv = ['kamerton', 'index', 'list', {str(tmp_path)!r}]\n"
        "try:\n    run()\nexcept SystemExit as ended:\n    assert ended.code\n"
        "print('HEAVY', [m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_the_version(cli: Cli) -> None:
    from importlib.metadata import version

    assert cli("--version") == (0, f"kamerton {version('kamerton')}\n", "")


# -- commands -------------------------------------------------------------------------------------------------------


def test_methods_lists_all_and_their_options(cli: Cli) -> None:
    status, out, _ = cli("methods")
    assert status == 0
    assert all(name in out for name in METHODS)
    status, out, _ = cli("methods", "lora")
    assert status == 0
    assert "2106.09685" in out
    assert "searched inside the budget: learning_rate 0.001, 0.0003, 0.003; rank 16, 4, 64; batch_size 8, 16" in out
    assert re.search(r"rank +16 +rank r", out)
    assert cli("methods", "lorra")[::2] == (2, "error: unknown method 'lorra'; did you mean lora?\n")


def test_recipe_check_shows_what_is_asked(cli: Cli, recipe: Path) -> None:
    status, out, err = cli("recipe", "check", recipe, "--show", 1)
    assert (status, err) == (0, "")
    assert f"{recipe}: good" in out
    assert "48 train, 12 validation, 16 test" in out
    assert "zero-shot, lora" in out
    assert "6 steps" in out
    assert "Which colour is in the text?" in out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("base=./none", "base.model: ./none: no such model folder"),
        ("base=EMPTY", "the model folder has no config.json"),
        ("base=CUT", "the weights are not whole: model-2.safetensors is missing"),
        ("base=FILE.gguf", "not a GGUF file that can be read"),
        ("base.device=cuda:77", "base.device: device 'cuda:77' cannot be used here"),
        ("base.chat_template=none.jinja", "none.jinja: the chat template cannot be read"),
        ("budget.steps=0", "budget.steps"),
    ],
)
def test_recipe_check_looks_at_the_base_without_loading_it(
    cli: Cli, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("EMPTY", "CUT"):
        (tmp_path / name).mkdir()
    (tmp_path / "CUT/config.json").write_text("{}")
    (tmp_path / "CUT/model-1.safetensors").write_bytes(b"")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "CUT/model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "FILE.gguf").write_bytes(b"no")
    status, _, err = cli("recipe", "check", recipe, "--set", change)
    assert (status, err.count("\n")) == (2, 1)
    assert says in err


def test_recipe_check_of_good_bases_and_choices(
    cli: Cli, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kamerton.base.load.load_base", lambda *_, **__: pytest.fail("nothing is loaded"))
    for base in ("demo", "some/hub-id"):
        status, out, err = cli("recipe", "check", recipe, "--set", f"base={base}", "--set", "budget.steps=7")
        assert (status, err) == (0, "")
        assert f"base      {base}\n" in out
        assert "7 steps" in out
    rows = [("abc"[n % 3], n) for n in range(30)]
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"message {n},{label}\n" for label, n in rows))
    (tmp_path / "r.yaml").write_text("task: ./a.csv\nmethods: [zero-shot]\n")
    assert "choices   3: a, b, c\n" in cli("recipe", "check", tmp_path / "r.yaml")[1]
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"message {n},{'abcdef'[n % 6]}\n" for n in range(60)))
    assert "choices   6: a, b, c, d, e, …\n" in cli("recipe", "check", tmp_path / "r.yaml")[1]


@pytest.mark.parametrize("command", [("compare",), ("tune",), ("eval", "demo"), ("recipe", "check")])
def test_a_missing_recipe_is_said_before_anything_slow_is_imported(command: tuple[str, ...]) -> None:
    code = (
        "import sys\nfrom kamerton.cli.main import run\n"
        f"sys.argv = ['kamerton', *{command!r}, 'none.yaml']\n"
        "try:\n    run()\nexcept SystemExit as ended:\n    assert ended.code == 2\n"
        "print('HEAVY', [m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"
    assert "no such file" in done.stderr


def test_tune_eval(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tuned"
    status, out, err = cli("tune", recipe, "lora", "--output", folder, "--option", "rank=2", "--set", "budget.steps=12")
    assert (status, "Traceback" in err) == (0, False)
    assert f"saved: {folder}" in out
    assert re.search(r"validation loss \d\.\d+, [\d,]+ tokens in \d+ s, [\d,]+ trained parameters", out)
    about = json.loads((folder / "kamerton.json").read_text())
    assert about["options"]["rank"] == 2

    answers = tmp_path / "answers.jsonl"
    status, out, err = cli("eval", folder, recipe, "--show", 2, "--answers", answers)
    assert status == 0
    assert len(re.findall(r"^expected +(red|green|blue|white)$", out, re.M)) == 2
    value = re.search(r"exact-match +(\d\.\d{4})", out)
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert len(rows) == 16
    right = sum(row["answer"].strip().lower() in row["expected"] for row in rows)
    assert value
    assert float(value[1]) == pytest.approx(right / 16, abs=1e-4)
    assert cli("eval", folder, recipe, "--split", "validation", "--show", 0)[1].count("12 questions") == 1


def test_tune_tells_what_a_search_tried(
    cli: Cli, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was searched, by its name; a candidate that diverged has no loss."""
    from kamerton.methods.lora import LoraMethod

    monkeypatch.setattr(LoraMethod, "space", {"learning_rate": (0.01, 1e30), "rank": (4, 2)})
    steps = ("--set", "budget.steps=12", "--option", "validations=2", "--option", "batch_size=8")
    status, out, err = cli("tune", recipe, "lora", "--output", tmp_path / "a", *steps, "--option", "learning_rate=null")
    assert (status, "Traceback" in err) == (0, False)
    assert re.search(r"^learning rate 0\.01: validation loss \d\.\d{4}$", out, re.MULTILINE)
    assert re.search(r"^learning rate 1e\+30: diverged$", out, re.MULTILINE)
    status, out, err = cli("tune", recipe, "lora", "--output", tmp_path / "b", *steps, "--option", "candidates=2")
    assert (status, "Traceback" in err) == (0, False)
    assert re.findall(r"^rank (\d): validation loss \d\.\d{4}$", out, re.MULTILINE) == ["4", "2"]
    status, out, err = cli("tune", recipe, "prompt-search", "--output", tmp_path / "c")
    assert (status, "Traceback" in err) == (0, False)
    assert re.search(r"^phrasing .+: exact-match \d\.\d{4}$", out, re.MULTILINE)


def test_compare_then_eval_the_winner(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    status, out, err = cli("compare", recipe, "--output", folder, "--workers", 1, "--set", "budget.steps=60")
    assert status == 0, err
    assert f"report: {folder}/report.html" in out
    assert "lora, seed 0: exact-match" in err
    status, out, _ = cli("eval", folder, recipe, "--show", 0)
    assert status == 0
    results = json.loads((folder / "results.json").read_text())
    best = next(m for m in results["methods"] if m["label"] == results["verdict"]["rows"][0]["label"])
    assert f"{best['metrics']['exact-match']['value']:.4f}" in out
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    broken = f"methods.1={{lora: {{objective: language-modeling, texts: {empty}, learning_rate: 0.001}}}}"
    status, out, err = cli(
        "compare", recipe, "--output", folder, "--workers", 1, "--set", "budget.steps=60", "--set", broken
    )
    assert status == 1, "a comparison with a failed cell"
    assert "1 cells failed; run the same command" in out
    assert "FAILED: " in err
    assert "empty.txt" in err


# -- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("compare", "none.yaml"), "none.yaml: no such file"),
        (("recipe", "check", "none.yaml"), "none.yaml: no such file"),
        (("tune", "none.yaml", "lora"), "none.yaml: no such file"),
        (("tune", "RECIPE", "lroa"), "unknown method 'lroa'; did you mean lora?"),
        (("tune", "RECIPE"), "the recipe has 2 methods; name one: zero-shot, lora"),
        (("tune", "RECIPE", "lora", "--option", "rank"), "--option rank has no value; write --option name=value"),
        (("tune", "RECIPE", "lora", "--option", "rank=-3"), "greater than 0, not -3"),
        (("tune", "RECIPE", "lora", "--option", "rank=[1"), "--option rank"),
        (("tune", "RECIPE", "lora", "--option", "ranks=3"), "did you mean rank"),
        (("tune", "RECIPE", "lora", "--set", "budget.steps=-1"), "budget.steps"),
        (("tune", "RECIPE", "lora", "--set", "budget"), "is not field=value"),
        (("eval", "no/such/folder/x", "RECIPE"), "no such model folder"),
        (("eval", "./none", "RECIPE"), "no such model folder"),
        (("eval", "SMALL", "RECIPE", "--split", "dev"), "no split 'dev'; use test, validation or train"),
        (("eval", "SMALL", "RECIPE", "--answers", "FILE/a.jsonl"), "FILE"),
        (("chat", "./none"), "no such model folder"),
        (("compare", "RECIPE", "--data", "nowhere"), "nowhere: no such file or folder"),
        (("compare", "RECIPE", "--set", "base.model=./none"), "no such model folder"),
        (("compare", "RECIPE", "--set", "base.dtype=float31"), "float31"),
        (("compare", "RECIPE", "--set", "base.device=cuda:77"), "device 'cuda:77' cannot be used here"),
        (("compare", "RECIPE", "--set", "forgetting={text: none.txt}"), "none.txt: the general text cannot be read"),
        (("compare", "RECIPE", "--output", "FILE"), "FILE"),
        (("tune", "RECIPE", "lora", "--output", "FILE"), "FILE"),
    ],
)
def test_a_mistake_is_one_line_and_status_two(
    cli: Cli, recipe: Path, small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...], says: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("a file")
    names = {"RECIPE": str(recipe), "SMALL": str(small_folder)}
    status, _, err = cli(*(names.get(a, a) for a in arguments))
    assert status == 2
    line = err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert says in line
    assert "Traceback" not in err
    assert len([row for row in err.splitlines() if row.startswith("error")]) == 1


def test_a_model_whose_base_is_gone_says_who_needs_it(cli: Cli, tmp_path: Path) -> None:
    tuned, base = tmp_path / "tuned", tiny.save(tmp_path / "base")
    recipe = tiny.write_recipe(tmp_path / "r", base, "- zero-shot")
    assert cli("tune", recipe, "--output", tuned)[0] == 0
    base.rename(tmp_path / "moved")
    status, _, err = cli("eval", tuned, recipe)
    assert status == 2
    assert f"{tuned}/kamerton.json: its base, {base}: no such model folder" in err.splitlines()[-1]
    status, _, err = cli("tune", recipe, "--output", tmp_path / "again")
    assert status == 2
    assert err.splitlines()[-1].startswith(f"error: {recipe}:6: base.model: {base}: no such model folder; ")


@pytest.mark.parametrize(
    "arguments", [("compare",), ("tune", "--no"), ("eval", "x"), ("nothing",), ("compare", "a", "--workers", "0")]
)
def test_wrong_usage_is_status_two(cli: Cli, arguments: tuple[str, ...]) -> None:
    status, _, err = cli(*arguments)
    assert status == 2
    assert "Usage: " in err
    assert "Traceback" not in err


# -- Ctrl-C ---------------------------------------------------------------------------------------------------------


def wait_for(pattern: str, folder: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 90
    while not list(folder.glob(pattern)):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("command", ["compare", pytest.param("tune", marks=pytest.mark.slow)])
def test_ctrl_c_leaves_what_can_go_on(recipe: Path, tmp_path: Path, command: str) -> None:
    output, changes = tmp_path / "out", ["--set", "budget.steps=100000", "--set", f"methods=[{LORA[2:]}]"]
    extra = ["--workers", "1"] if command == "compare" else []
    process = subprocess.Popen(
        [sys.executable, "-m", "kamerton", command, str(recipe), "--output", str(output), *extra, *changes],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    wait_for("**/learning-rate-*", output, process)
    time.sleep(0.5)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.strip().splitlines()[-1] == "stopped; what was finished is kept, run the same command to go on"
    assert "Traceback" not in err
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive, "workers end too"
    changes[1] = "budget.steps=10"
    done = subprocess.run(
        [sys.executable, "-m", "kamerton", command, str(recipe), "--output", str(output), *extra, *changes],
        capture_output=True, text=True, env=ENVIRONMENT, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
