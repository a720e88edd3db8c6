"""The whole path: one held-out text for all, resuming after any stop, what runs again after a change, what is refused."""

from __future__ import annotations

import copy
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from typer.testing import CliRunner

import kamerton as kt
import tiny
from kamerton.cli.main import app
from kamerton.errors import KamertonError
from kamerton.from_scratch.page import page, sentences
from kamerton.from_scratch.recipe import ChatSpec, HeldOutSpec, NgramSpec, TokenizerSpec, TurnsSpec, load_from_scratch
from kamerton.from_scratch.run import Made, check, from_scratch
from kamerton.from_scratch.text import divide
from kamerton.from_scratch.turns import conversations
from kamerton.text.lines import documents
from kamerton.text.ngrams import NgramModel, estimate, open_units

pytestmark = pytest.mark.usefixtures("one_thread")
pytest_plugins = ("tiny",)

SPEAKERS = ("ANNA", "BORIS", "CLARA", "DAVID")
MODEL = {"width": 32, "depth": 1}
TRAINING = {"batch_size": 4, "validations": 2, "learning_rate": 0.01}
RECIPE: dict[str, Any] = {
    "corpus": {"sources": "plays", "steps": ["normalise", "exact-duplicates"]},
    "held_out": {"share": 0.2},
    "tokenizer": {"vocab_size": 300},
    "ngrams": {"3-gram": {"order": 3}, "bytes-4": {"order": 4, "tokens": "bytes"}},
    "budget": {"steps": 6},
    "models": {
        "lstm": {"model": {"preset": "lstm", **MODEL}, "context": 16, "training": TRAINING},
        "llama": {
            "model": {"preset": "llama", **MODEL, "heads": 2, "config": {"max_position_embeddings": 128}},
            "context": 16, "training": TRAINING, "samples": {"prompts": ["ANNA:"], "tokens": 8},
        },
    },
    "turns": {"speaker": "[A-Z]+:\n", "most_characters": 60},
    "tune": {"methods": [{"full": {"learning_rate": 0.01, "batch_size": 4}}], "budget": {"steps": 3}},
    "chat": {"prompts": ["ANNA:\ngood day"], "tokens": 8},
}  # fmt: skip
KINDS = ["corpus", "text", "tokenizer", "3-gram", "bytes-4", "lstm", "llama", "turns", "tuned", "chat"]


def write_plays(folder: Path) -> None:
    """Six plays of twelve speeches, two lines each."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for play in range(6):
        speeches = []
        for n in range(12):
            words = [tiny.WORDS[i] for i in rng.integers(0, 40, 6)]
            speeches.append(f"{SPEAKERS[n % 4]}:\n{' '.join(words[:3])}\n{' '.join(words[3:])}")
        (folder / f"{play}.txt").write_text("\n\n".join(speeches), encoding="utf-8")


def written(file: Path, recipe: dict[str, Any]) -> Path:
    """A recipe as a file, in its order and without anchors."""
    file.write_text(yaml.safe_dump(json.loads(json.dumps(recipe)), sort_keys=False))
    return file


def run(root: Path, output: str, recipe: dict[str, Any] | None = None, **more: Any) -> Made:
    made = from_scratch(recipe or RECIPE, output=root / output, data=root, workers=1, **more)
    assert isinstance(made, Made)
    return made


def stripped(folder: Path) -> list[Any]:
    """Everything that a path found, without times."""
    stages = json.loads((folder / "results.json").read_text())["stages"]
    for stage in stages:
        stage.pop("seconds", None)
        for name in ("training_seconds", "curve", "said"):
            stage.get("figures", {}).pop(name, None)
    return list(stages)


def weights(folder: Path) -> list[bytes]:
    return [(folder / name / "model.safetensors").read_bytes() for name in ("lstm", "llama", "chat")]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("path")
    write_plays(folder / "plays")
    return folder


@pytest.fixture(scope="module")
def whole(root: Path) -> Made:
    return run(root, "whole")


# -- what comes of it -------------------------------------------------------------------------------------------------


def test_every_stage_has_its_figure_and_the_page_shows_them(whole: Made) -> None:
    assert list(whole.ran) == KINDS
    assert whole.kept == ()
    stages = {stage["name"]: stage["figures"] for stage in whole.results["stages"]}
    shown = (whole.folder / "report.html").read_text()
    for name in ("3-gram", "bytes-4", "lstm", "llama", "chat"):
        assert 0 < stages[name]["bits_per_byte"] < 12
        assert f"{stages[name]['bits_per_byte']:.3f}" in shown
    assert stages["corpus"]["kept"][0] == 6
    assert stages["text"]["train"]["documents"] + stages["text"]["held_out"]["documents"] == 6
    assert "Training time" in shown
    assert "<script" not in shown


def test_no_model_learns_from_what_judges_it(whole: Made) -> None:
    train, held = (list(documents([whole.folder / "text" / f"{n}.jsonl"])) for n in ("train", "held_out"))
    assert held
    assert not set(train) & set(held)
    tokenizer = transformers.AutoTokenizer.from_pretrained(whole.folder / "tokenizer")
    assert tokenizer.chat_template
    for name in ("lstm", "llama"):
        data = json.loads((whole.folder / name / "pretraining.json").read_text())["data"]
        assert (data["bytes"], data["held_out_bytes"]) == (sum(map(len, train)), sum(map(len, held)))
    test = [json.loads(line) for line in (whole.folder / "turns" / "test.jsonl").read_text().splitlines()]
    said = b"\n\n".join(held).decode()
    assert all(m["content"] in said for row in test for m in row["messages"])


def test_bits_per_byte_are_the_code_length_of_the_held_out_documents(whole: Made) -> None:
    """Against sums over documents made by hand: of the n-gram model unit by unit, of the LSTM by its own forward pass."""
    figures = {stage["name"]: stage["figures"] for stage in whole.results["stages"]}
    texts = [text.decode() for text in documents([whole.folder / "text" / "held_out.jsonl"])]
    size = sum(len(text.encode()) for text in texts)
    model = NgramModel.load(whole.folder / "bytes-4")
    nats = 0.0
    for text in texts:
        history = [1]
        for unit in [*model.units.encode(text), 2]:
            nats -= math.log(model.following(history)[unit])
            history.append(unit)
    assert figures["bytes-4"]["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-6)
    tokenizer = transformers.AutoTokenizer.from_pretrained(whole.folder / "lstm")
    end = tokenizer.eos_token_id
    ids = [end]
    for text in texts:
        ids += [*tokenizer(text, add_special_tokens=False)["input_ids"], end]
    hf = kt.load(whole.folder / "lstm").engine.model.hf.float()
    row = torch.tensor([ids])
    with torch.no_grad():
        logits = hf(input_ids=row[:, :-1]).logits[0]
    nats = float(torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="sum"))
    assert figures["lstm"]["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-4)


def test_the_chat_is_a_base_of_its_own(whole: Made, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(whole.chat, moved)
    hf = transformers.AutoModelForCausalLM.from_pretrained(moved)
    assert hf.config.max_position_embeddings == 128
    answers = kt.load(moved).generate([(kt.Message("user", "ANNA:\ngood day"),)], kt.Sampling(max_tokens=8))
    tuned = kt.load(whole.folder / "tuned").generate(
        [(kt.Message("user", "ANNA:\ngood day"),)], kt.Sampling(max_tokens=8)
    )
    assert answers[0].tokens == tuned[0].tokens
    base = (whole.folder / "llama" / "model.safetensors").read_bytes()
    assert (moved / "model.safetensors").read_bytes() != base


# -- resuming ---------------------------------------------------------------------------------------------------------


class Stopped(KeyboardInterrupt):
    """Ctrl-C."""


def test_stopped_in_every_stage_it_goes_on_and_ends_the_same(root: Path, whole: Made) -> None:
    seen: list[str] = []
    for at in ("normalise", "text", "tokenizer", "3-gram", "lstm: training", "llama: measuring", "turns", "tuning:",
               "chat"):  # fmt: skip

        def report(stage: str, share: float, text: str, at: str = at) -> None:  # noqa: ARG001
            seen.append(stage)
            if stage.startswith(at):
                raise Stopped

        with pytest.raises(Stopped):
            run(root, "stopped", report=report)
        assert not (root / "stopped" / "stages" / f"{at.partition(':')[0]}.json").exists()
    made = run(root, "stopped")
    assert list(made.ran) == ["chat"]
    assert stripped(made.folder) == stripped(whole.folder)
    assert weights(made.folder) == weights(whole.folder)
    assert seen.count("corpus") == 1 + 1  # a finished stage is not asked for again


def test_a_change_runs_what_depends_on_it_and_nothing_else(root: Path, whole: Made) -> None:
    shutil.copytree(whole.folder, root / "changed")

    def changed(*overrides: str, recipe: dict[str, Any] | None = None) -> list[str]:
        return list(run(root, "changed", recipe, overrides=list(overrides)).ran)

    assert changed() == []
    assert changed("chat.tokens=4") == ["chat"]
    now = ["chat.tokens=4", "ngrams.bytes-4.order=3"]
    assert changed(*now) == ["bytes-4"]
    assert changed(*now, "models.lstm.budget.steps=2") == ["lstm"]
    now += ["models.lstm.budget.steps=2", "models.llama.budget.steps=2"]
    assert changed(*now) == ["llama", "tuned", "chat"]
    times = {file: file.stat() for file in (root / "plays").iterdir()}
    for file in times:  # other times, the same content
        os.utime(file, (1, 1))
    assert changed(*now) == ["corpus"]
    for file, was in times.items():
        os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert changed(*now) == ["corpus"]
    # held out as before: only the words that passages may share changed, and nothing was shared
    assert changed(*now, "held_out.words=12") == ["text"]
    assert changed(*now, "held_out.words=12", "tokenizer.vocab_size=310") == [
        "tokenizer", "3-gram", "lstm", "llama", "tuned", "chat"
    ]  # fmt: skip
    (root / "changed" / "llama" / "config.json").unlink()
    assert "llama" in changed(*now, "held_out.words=12", "tokenizer.vocab_size=310")


@pytest.mark.slow
def test_killed_processes_lose_nothing(root: Path, whole: Made) -> None:
    file = root / "killed.yaml"
    written(file, RECIPE)
    command = [sys.executable, "-m", "kamerton", "from-scratch", str(file), "--data", str(root), "--workers", "1",
               "--output", str(root / "killed")]  # fmt: skip
    for name in ("tokenizer", "llama"):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (root / "killed" / "stages" / f"{name}.begun.json").exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "finished before: corpus, text" in done.stdout
    assert "next: kamerton chat" in done.stdout
    assert weights(root / "killed") == weights(whole.folder)


# -- the parts --------------------------------------------------------------------------------------------------------


def write_corpus(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_passages_that_share_words_with_held_out_text_are_left_out(tmp_path: Path) -> None:
    common = " ".join(f"word{n}" for n in range(14))
    texts = [f"Play {n} begins.\n\nSo it is {common}, he said.\n\nYes.\n\nEnd of {n}." for n in range(12)]
    train, held = divide(write_corpus(tmp_path / "c.jsonl", texts), tmp_path / "t", 0.2, 13, lambda *_: None)
    assert held.documents > 0
    assert train.left_out == train.documents == 12 - held.documents
    kept = [t.decode() for t in documents([tmp_path / "t" / "train.jsonl"])]
    assert all(common not in text and "Yes." in text and text.startswith("Play") for text in kept)
    assert all(common in t.decode() for t in documents([tmp_path / "t" / "held_out.jsonl"]))
    more, _ = divide(tmp_path / "c.jsonl", tmp_path / "u", 0.2, 20, lambda *_: None)
    assert more.left_out == 0
    assert more.bytes == train.bytes + 0 * held.bytes + train.left_out * len(f"So it is {common}, he said.\n\n")


def test_turns_follow_each_other() -> None:
    text = "A:\none\n\nB:\ntwo\n\nnobody\n\nA:\nthree\n\nB:\n" + "long " * 30 + "\n\nA:\nfour\n\nB:\nfive\n\nA:\nsix"
    spec = TurnsSpec(speaker="[A-Z]:\n", most_characters=40)
    found = [[m["content"] for m in one] for one in conversations([text], spec)]
    assert found == [["A:\none", "B:\ntwo"], ["A:\nfour", "B:\nfive"], ["B:\nfive", "A:\nsix"]]
    longer = [[m["role"] for m in one] for one in conversations(["a\n\nb\n\nc\n\nd\n\ne"], TurnsSpec(turns=4))]
    assert longer == [["user", "assistant"] * 2] * 2 + [["user", "assistant"]] * 2


def test_ngrams_of_documents_reach_over_ends_of_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("ab\nab\n")
    units = open_units("bytes")
    whole, lined = (estimate([tmp_path / "a.txt"], units, 2, "mle", whole=w) for w in (True, False))
    a, b, newline = (units.number(f"{ord(c):02x}") for c in "ab\n")
    assert whole.following([1, a, b])[newline] == pytest.approx(1.0)
    assert whole.following([1, newline])[a] == pytest.approx(0.5)
    assert lined.following([1, a, b])[2] == pytest.approx(1.0)
    (tmp_path / "b.txt").write_text("some words\n")
    with pytest.raises(KamertonError, match="words cannot write the ends of lines"):
        estimate([tmp_path / "b.txt"], open_units("words", [tmp_path / "b.txt"]), 2, whole=True)


def test_a_path_that_does_not_fall_says_so(whole: Made) -> None:
    results = copy.deepcopy(whole.results)
    for stage, bits in zip(("3-gram", "bytes-4", "lstm", "llama"), (2.0, 1.9, 1.95, 1.5), strict=True):
        next(s for s in results["stages"] if s["name"] == stage)["figures"]["bits_per_byte"] = bits
    for stage, seconds in (("lstm", 10.0), ("llama", 30.0)):
        next(s for s in results["stages"] if s["name"] == stage)["figures"]["training_seconds"] = seconds
    told = sentences(results)
    assert told[0].endswith("3-gram 2.000 → bytes-4 1.900 → lstm 1.950 → llama 1.500.")
    assert told[1] == "It does not fall at every step: lstm is no better than bytes-4."
    assert told[2].startswith("Training time is NOT equal")
    chat = next(s for s in results["stages"] if s["name"] == "chat")["figures"]
    chat["samples"][0]["text"] = "<img src=x onerror=alert(1)>"
    assert "<img" not in page(results, whole.folder)


# -- what is refused --------------------------------------------------------------------------------------------------

BAD: list[tuple[str, Any, str, str]] = [
    ("corpus.steps.0", "normalize", ": corpus.steps.0", "no step 'normalize'; did you mean normalise?"),
    ("corpus.sources", "nowhere", ": corpus.sources", "there are no such files"),
    ("held_out.share", 2, ": held_out.share", "must be less than 1"),
    ("tokenizer.kind", "bpee", ": tokenizer.kind", "'bpee' is not known here"),
    ("tokenizer.kind", "words", ": tokenizer.kind", "words does not give every text back, so models would"),
    ("tokenizer.kind", "wordpiece", ": tokenizer.kind", "wordpiece does not give every text back"),
    ("tokenizer.kind", "bpe", ": tokenizer.kind", "bpe does not give every text back"),
    ("tokenizer.vocab_size", 20, ": tokenizer.vocab_size", "20 tokens are fewer than the 256 letters"),
    ("tokenizer.chat_template", "none.jinja", ": tokenizer.chat_template", "there is no such file"),
    ("ngrams.3-gram.tokens", "words", ": ngrams.3-gram.tokens", "'words' is not known here"),
    ("ngrams.text", {}, ": ngrams.text", "cannot name a model"),
    ("ngrams.LLAMA", {}, ": models.llama", "is there twice; give it another name"),
    ("models.llama.model.preset", "lama", ": models.llama.model.preset", "unknown preset 'lama'; did you mean llama?"),
    ("models.llama.model.preset", "bert", ": models.llama.model.preset", "bert has no bits per byte"),
    ("models.llama.training.learning_rat", 1, ": models.llama.training.learning_rat", "unknown field"),
    ("models.llama.data", "x", ": models.llama.data", "data is the path's own here; leave it out"),
    ("models.llama.tokenizer", "demo", ": models.llama.tokenizer", "another tokenizer than the path's"),
    ("models.llama.model.heads", 3, ": models.llama.model", "heads do not divide"),
    ("turns.speaker", "[", ": turns", "speaker is no regular expression"),
    ("turns.most_characters", 3, ": turns", "no conversations for train"),
    ("models.lstm.budget", {}, ": models.lstm.budget", "has no limit"),
    ("tune.budget", {}, ": tune.budget", "has no limit"),
    ("tune.base", "gpt", ": tune.base", "no model 'gpt' in this path"),
    ("tune.methods.0", {"fulll": {}}, ": tune.methods.0", "did you mean full?"),
    ("tune.methods.0", {"full": {"rank": 4}}, ": tune.methods.0.full.rank", "has no option"),
    ("tune.task", {"data": "x.jsonl"}, ": tune.task.data", "leave it out"),
    ("chat.temperature", -1, ": chat.temperature", "must be at least 0"),
    ("chatt", {}, ": chatt", "unknown field 'chatt'; did you mean chat?"),
]  # fmt: skip


def with_field(path: str, value: Any) -> dict[str, Any]:
    recipe = json.loads(json.dumps(RECIPE))  # nothing in it is shared
    *above, last = path.split(".")
    node: Any = recipe
    for part in above:
        node = node[int(part) if part.isdigit() else part]
    node[int(last) if last.isdigit() else last] = value
    return recipe


@pytest.mark.parametrize(("field", "value", "where", "what"), BAD, ids=[f"{b[0]}={b[1]}" for b in BAD])
def test_mistakes_are_one_line_at_their_field(
    root: Path, whole: Made, tmp_path: Path, field: str, value: Any, where: str, what: str
) -> None:
    file = tmp_path / "bad.yaml"
    written(file, with_field(field, value))
    output = root / "refused"
    if not output.exists():  # what comes before the mistake is finished already
        shutil.copytree(whole.folder, output)
    with pytest.raises(KamertonError) as raised:
        from_scratch(file, output=output, data=root, workers=1)
    line = str(raised.value)
    assert line.startswith(f"{file}:")
    assert where in line
    assert what in line
    named = int(line.removeprefix(f"{file}:").split(":")[0])
    last = [part for part in field.split(".") if not part.isdigit()][-1]
    content = file.read_text().splitlines()[named - 1].casefold()
    named_there = [last, *(value if isinstance(value, dict) else [])]
    assert any(one.casefold() in content for one in named_there) or field.startswith(
        ("corpus.steps", "tune.methods", "turns")
    )


def test_mistakes_without_a_field(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "path.yaml"
    written(file, {k: v for k, v in RECIPE.items() if k != "tune"})
    with pytest.raises(KamertonError, match="turns are for tuning"):
        load_from_scratch(file, data=root)
    written(file, {k: v for k, v in RECIPE.items() if k != "turns"})
    with pytest.raises(KamertonError, match="tuning needs examples"):
        load_from_scratch(file, data=root)
    written(file, {k: v for k, v in RECIPE.items() if k != "budget"})
    with pytest.raises(KamertonError, match=r"path.yaml:\d+: models.lstm: the budget is missing"):
        load_from_scratch(file, data=root)
    with pytest.raises(KamertonError, match="no such folder"):
        load_from_scratch(RECIPE, data=tmp_path / "none")
    with pytest.raises(KamertonError, match=r"--until: no stage 'lama'; did you mean llama\?"):
        from_scratch(RECIPE, data=root, output=tmp_path / "x", until="lama")


def test_an_override_is_not_blamed_on_a_line(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "path.yaml"
    written(file, RECIPE)
    with pytest.raises(KamertonError, match=r"^override models\.llama\.training\.batch_size: must be greater than 0"):
        load_from_scratch(file, data=root, overrides=["models.llama.training.batch_size=0"])


def test_a_file_of_instructions_in_place_of_turns(root: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"say {n % 3}", "completion": f"{n % 3} it is"} for n in range(40)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {k: v for k, v in RECIPE.items() if k != "turns"}
    recipe["tune"] = {**RECIPE["tune"], "task": {"data": str(tmp_path / "asked.jsonl")}}
    recipe["ngrams"], recipe["models"] = {}, {"llama": RECIPE["models"]["llama"]}
    shutil.copytree(root / "whole", root / "instructions")
    made = run(root, "instructions", recipe)
    assert list(made.ran) == ["tuned", "chat"]
    file = tmp_path / "path.yaml"
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": 1\n')
    recipe["tune"]["task"] = {"data": str(bad)}
    recipe["tokenizer"] = {"vocab_size": 330}  # nothing is run before the examples are read
    written(file, recipe)
    with pytest.raises(KamertonError, match=r"bad\.jsonl:2"):
        from_scratch(file, output=root / "instructions", data=root, workers=1)
    assert run(root, "instructions", {**recipe, "tune": False, "tokenizer": {"vocab_size": 300}}).ran == ()


def test_conversations_that_are_longer_than_the_model_are_left_out_and_counted(root: Path, whole: Made) -> None:
    shutil.copytree(whole.folder, root / "short")
    llama = RECIPE["models"]["llama"]
    model = {**llama["model"], "config": {"max_position_embeddings": 68}}
    recipe = {**RECIPE, "models": {**RECIPE["models"], "llama": {**llama, "model": model}}}
    made = run(root, "short", recipe)
    assert list(made.ran) == ["llama", "tuned", "chat"]
    before, after = (
        next(s["figures"] for s in json.loads((folder / "results.json").read_text())["stages"] if s["name"] == "chat")
        for folder in (whole.folder, root / "short")
    )
    assert before["left_out"] == 0
    assert 0 < after["answers"] < before["answers"] == after["answers"] + after["left_out"]
    assert f"{after['left_out']} are longer than" in page(made.results, made.folder)


def test_the_command_says_what_it_did(root: Path, whole: Made, tmp_path: Path) -> None:
    file = tmp_path / "path.yaml"
    written(file, RECIPE)
    said = CliRunner().invoke(
        app, ["from-scratch", str(file), "--data", str(root), "--output", str(whole.folder), "--until", "llama"]
    )
    assert said.exit_code == 0, said.output
    assert "finished before: corpus, text, tokenizer" in said.output
    assert "Bits per byte of the same held-out text: 3-gram" in said.output


ROOT = Path(__file__).resolve().parents[1]


def test_the_page_of_documentation_names_every_field_and_its_recipe_is_one(tmp_path: Path) -> None:
    told = (ROOT / "docs" / "from-scratch.md").read_text()
    rows = re.findall(r"^\|.*\|$", told, re.MULTILINE)
    named = {name for row in rows for code in re.findall(r"`([^`]+)`", row) for name in re.split(r"[.\s,]+", code)}
    for spec in (HeldOutSpec, TokenizerSpec, NgramSpec, TurnsSpec, ChatSpec):
        assert set(spec.model_fields) <= named, spec
    assert {"corpus", "budget", "models", "ngrams", "turns", "tune", "chat", "output"} <= {n.strip() for n in named}
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", told, re.MULTILINE | re.DOTALL)
    (tmp_path / "docs.yaml").write_text(block)
    assert list(load_from_scratch(tmp_path / "docs.yaml").models) == ["lstm", "llama"]


@pytest.mark.parametrize("name", ["from_scratch", "from_scratch_plays"])
def test_the_examples_are_recipes(name: str) -> None:
    loaded = load_from_scratch(ROOT / "examples" / f"{name}.yaml")
    check(loaded)
    assert loaded.base == "llama"
    seconds = {one.budget and one.budget.seconds for one in loaded.models.values()}
    assert len(seconds) == 1  # the same for all


@pytest.mark.slow
def test_what_two_minutes_of_a_core_read_beats_the_5_gram(tmp_path: Path) -> None:
    """Counted in tokens, as many as docs/from-scratch.md had in two minutes, so that no clock decides."""
    data = Path(os.environ.get("KAMERTON_DATA", ROOT.parent / "shared" / "data"))
    if not (data / "tinyshakespeare").is_dir():
        pytest.skip(f"{data / 'tinyshakespeare'} is not there; set KAMERTON_DATA to the folder of data sets")
    fewer = ["models.llama.budget={tokens: 794624}", "models.lstm.budget={tokens: 512}"]
    made = from_scratch(
        ROOT / "examples" / "from_scratch.yaml", output=tmp_path / "path", data=data, overrides=fewer, until="llama",
        workers=1,
    )  # fmt: skip
    assert isinstance(made, Made)
    bits = {s["name"]: s.get("figures", {}).get("bits_per_byte") for s in made.results["stages"]}
    assert bits["llama"] < bits["5-gram"] < 2.21
