"""Methods: the search inside its budget, resuming, what stays frozen, saving and loading, few-shot, costs."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from kamerton.base import Base, load_base
from kamerton.errors import KamertonError, ModelError, RecipeError
from kamerton.evaluation.answering import answer
from kamerton.inference import Sampling
from kamerton.methods import METHODS, get_method, load_adapted, parse_options
from kamerton.methods.lora import LoraMethod
from kamerton.methods.method import Adapted
from kamerton.methods.search import space_of
from kamerton.training import Budget
from kamerton.tuning import get_parameterisation
from tiny import QUICK, fit

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = ("prompt-tuning", "prefix-tuning", "p-tuning", "p-tuning-v2")
TRAINED = (*PROMPTS, "ia3", "adapter", "lora", "qlora", "full")
GREEDY = Sampling(max_tokens=6)
CHAIN = {"chain-of-thought": {"max_tokens": 8}}
SMALL: dict[str, dict[str, Any]] = {
    **QUICK, **CHAIN, "self-consistency": {"over": CHAIN, "samples": 2}, "few-shot": {"selection": "nearest"},
    "prompt-search": {"questions": 4}, "calibration": {"questions": 4},
    "thinking-budget": {"max_tokens": 12},
}  # fmt: skip
"""Options with which methods that do much do less."""


def record(adapted: Adapted) -> dict[str, Any]:
    """What a fit did, times aside."""
    out = asdict(adapted.record)
    out.pop("seconds")
    out["curve"] = [{k: v for k, v in row.items() if k != "seconds"} for row in out["curve"]]
    return out


def weights(adapted: Adapted) -> dict[str, torch.Tensor]:
    assert adapted.tuned is not None
    return {n: p.detach().clone() for n, p in adapted.tuned.module.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


# -- every method ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_it_is_and_answers(small_base: Base, name: str, tmp_path: Path) -> None:
    method = get_method(name)
    assert method.name == name
    assert method.summary
    assert method.trains
    assert method.paper
    assert all(field.description for field in method.options.model_fields.values()), "an option without a meaning"
    if name not in tiny.CAUSAL:
        return  # test_encoders.py, test_head_tasks.py
    adapted = fit(small_base, name, tmp_path, **SMALL.get(name, {}))
    task = tiny.colour_task()
    prompts = QUICK["rag"]["passages"] if name == "rag" else 1  # it writes once for each passage
    said = answer(adapted, task.test, GREEDY)
    assert len(said.texts) == len(task.test)
    if getattr(method, "reads_answers", False):
        return
    assert said.prompt_tokens == [adapted.prompt_tokens(e.messages) for e in task.test]
    assert all(0 < n <= 6 * prompts for n in said.generated_tokens)
    ranked = answer(adapted, [replace(e, choices=tiny.COLOURS) for e in task.test], GREEDY)
    assert set(ranked.texts) <= set(tiny.COLOURS)
    scores = adapted.score([e.messages for e in task.test], [tiny.COLOURS] * len(task.test))
    assert ranked.texts == [tiny.COLOURS[max(range(4), key=row.__getitem__)] for row in scores]


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("lroa", {}, "unknown method 'lroa'; did you mean lora"),
        ("zzz", {}, "unknown method 'zzz'; use one of: majority, zero-shot"),
        ("lora", {"ranks": 8}, "lora has no option 'ranks'; did you mean rank"),
        ("zero-shot", {"x": 1}, "no option 'x'; use one of: no option"),
        ("lora", {"rank": -1}, "lora.rank: input should be greater than 0, not -1; see: kamerton methods lora"),
        ("lora", {"rank": "many"}, "valid integer"),
        ("lora", {"learning_rate": 0}, "greater than 0"),
        ("lora", {"learning_rate": math.inf}, "finite"),
        ("lora", {"dropout": 1}, "less than 1"),
        ("lora", {"objective": "kto"}, "unknown objective 'kto'; use one of: supervised"),
        ("full", {"rank": 8}, "full has no option 'rank'"),
        ("few-shot", {"shots": 0}, "greater than 0"),
        ("few-shot", {"selection": "best"}, "'random', 'nearest'"),
        ("prompt-tuning", {"tokens": 1.5}, "valid integer"),
    ],
)
def test_wrong_methods_and_options_are_one_line(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_options(get_method(name), options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [n for n in TRAINED if n != "full"])
def test_what_is_not_trained_keeps_its_bits(small_base: Base, name: str, tmp_path: Path) -> None:
    adapted = fit(small_base, name, tmp_path, learning_rate=0.05)
    start = small_base.reload(quantise="nf4" if name == "qlora" else None)  # from disk
    own = dict(start.model.hf.named_parameters())
    kept = {
        n: p
        for n, p in adapted.engine.model.hf.named_parameters()
        if not any(p in n for p in ("lora_", "ia3_", "bottleneck_"))
    }
    assert len(kept) == len(own)
    for name_, value in kept.items():
        assert torch.equal(value, own[name_.replace(".base_layer.", ".")]), name_
    assert adapted.record.curve[-1]["loss"] < adapted.record.curve[0]["loss"]


@pytest.mark.parametrize("name", TRAINED)
def test_the_base_keeps_its_bits_and_frozen_weights_are_in_memory_once(
    small_base: Base, name: str, tmp_path: Path
) -> None:
    fit(small_base, name, tmp_path / "fit", learning_rate=0.05).save(tmp_path / "saved")
    again = load_adapted(tmp_path / "saved", small_base)
    answer(again, tiny.colour_task().test, GREEDY)
    from_disk = dict(small_base.reload().model.hf.named_parameters())
    own = dict(small_base.model.hf.named_parameters())
    assert all(torch.equal(value, from_disk[n]) for n, value in own.items())
    places = {p.data_ptr() for p in again.engine.model.hf.parameters()}
    shared = [n for n, value in own.items() if value.data_ptr() in places]
    assert len(shared) == (0 if name in ("full", "qlora") else len(own)), name


PARTS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "dora": ("qwen2", "lora", {"dora": True}, r"lora_"),
    "biases of the adapted layers": (
        "qwen2",
        "lora",
        {"bias": "lora_only", "targets": ["q_proj"]},
        r"lora_|q_proj.*bias",
    ),
    "all biases": ("qwen2", "lora", {"bias": "all"}, r"lora_|bias"),
    "all biases, those of norms too": ("gpt2", "lora", {"bias": "all"}, r"lora_|bias"),
    "upper layers": ("llama", "full", {"freeze_layers": 1}, r"layers\.[12]|model\.norm|lm_head"),
    "all but the embeddings": ("llama-tied", "full", {"freeze_embeddings": True}, r"layers|norm"),
}
"""Architecture, method, options, and what is trained then, as an expression over names."""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", PARTS)
def test_what_a_variant_does_not_train_keeps_its_bits(
    tiny_folder: Callable[[str], Path], case: str, dtype: Any, tmp_path: Path
) -> None:
    """Weights, buffers and data types of the base; everything else moves, in float32 while it is trained."""
    architecture, name, options, pattern = PARTS[case]
    base = load_base(tiny_folder(architecture), dtype=dtype, device="cpu")
    parsed = parse_options(get_method(name), options)
    tuned = get_parameterisation(name).attach(base, parsed, tiny.colour_task(), 0)
    assert {p.dtype for p in tuned.module.parameters() if p.requires_grad} == {torch.float32}
    adapted = fit(base, name, tmp_path / "fit", learning_rate=0.02, budget=Budget(steps=3), **options)
    fresh = base.reload().model.hf  # from disk
    buffers = dict(fresh.named_buffers())
    own = {**dict(fresh.named_parameters()), **buffers}
    assert all(torch.equal(value, own[n]) for n, value in base.model.hf.named_parameters())
    hf = adapted.engine.model.hf
    found = {n.replace(".base_layer.", "."): v for n, v in (*hf.named_parameters(), *hf.named_buffers())}
    assert own.keys() <= found.keys()
    for key, value in found.items():
        if key in own:
            assert value.dtype == own[key].dtype, key
            moves = key not in buffers and re.search(pattern, key) is not None
            assert torch.equal(value, own[key]) is not moves, key
    adapted.save(tmp_path / "saved")
    asked = [e.messages for e in tiny.colour_task().test[:6]]
    again = load_adapted(tmp_path / "saved", base)
    assert again.score(asked, [["red", "blue"]] * 6) == adapted.score(asked, [["red", "blue"]] * 6)


@pytest.mark.parametrize("name", TRAINED)
def test_training_and_asking_render_alike(small_base: Base, name: str, tmp_path: Path) -> None:
    """The tokens before the answer in training are the tokens of the question in evaluation."""
    adapted = fit(small_base, name, tmp_path, budget=Budget(steps=1), learning_rate=1e-3)
    for e in tiny.colour_task().test:
        trained = small_base.renderer.example(e.messages, e.answers[0])
        assert list(trained.tokens[: trained.prompt_length]) == adapted.renderer.prompt(adapted.prepare(e.messages))
    said = adapted.generate([e.messages for e in tiny.colour_task().test], GREEDY)
    front = len(adapted.engine.model.front())
    assert front == (100 if name in PROMPTS else 0)
    assert [a.prompt_tokens - front for a in said] == [
        len(small_base.renderer.prompt(e.messages)) for e in tiny.colour_task().test
    ]


# -- the search -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "budget", [Budget(steps=20), Budget(tokens=9_000), Budget(examples=200), Budget(epochs=4), Budget(steps=3)], ids=str
)
def test_the_search_stays_inside_the_budget(small_base: Base, budget: Budget, tmp_path: Path) -> None:
    adapted = fit(small_base, "lora", tmp_path, budget=budget, batch_size=8, patience=99)
    found, tried = adapted.record, space_of(get_method("lora"))["learning_rate"]
    assert [row["learning_rate"] for row in found.search] == list(tried)
    best = min(found.search, key=lambda row: row["validation_loss"])
    assert found.chosen == {"learning_rate": best["learning_rate"]}
    step = max(row["tokens"] - before["tokens"] for row, before in zip(found.curve[1:], found.curve, strict=False))
    step = max(step, found.curve[0]["tokens"])
    tokens = len(tiny.colour_task().train)
    mean = sum(
        len(small_base.renderer.example(e.messages, e.answers[0]).tokens) for e in tiny.colour_task().train
    ) / tokens  # fmt: skip
    limits = {"steps": 8 * mean, "tokens": 1.0, "examples": mean, "epochs": tokens * mean}
    limit = min(value * limits[name] for name, value in asdict(budget).items() if value is not None)
    assert found.tokens <= limit * 1.05 + len(tried) * step
    assert found.tokens >= 0.9 * limit, "the budget is used"
    others = [row["tokens"] for row in found.search if row is not best]
    assert found.tokens == found.curve[-1]["tokens"] + sum(others), "what the others spent counts"
    assert found.curve[-1]["learning_rate"] < 0.6 * best["learning_rate"], "the winner's schedule comes to its end"


class Crash(Exception):
    """Stands for the end of the process."""


def test_a_fit_killed_anywhere_ends_the_same(small_base: Base, tmp_path: Path) -> None:
    """In every third report of progress: in the search, between its candidates, and in the training after it."""
    budget = Budget(steps=16)
    expected = fit(small_base, "lora", tmp_path / "straight", budget=budget)
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    fit(small_base, "lora", tmp_path / "counted", budget=budget, report=count)
    assert calls > 14
    for place in range(1, calls + 1, 3):
        left = place

        def crash(*_: Any) -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                raise Crash

        folder = tmp_path / f"killed-{place}"
        with pytest.raises(Crash):
            fit(small_base, "lora", folder, budget=budget, report=crash)
        left = 4  # and once more
        with pytest.raises(Crash):
            fit(small_base, "lora", folder, budget=budget, report=crash)
        again = fit(small_base, "lora", folder, budget=budget)
        assert record(again) == record(expected), place
        assert same(weights(again), weights(expected)), place


def test_the_decision_of_the_search_is_kept(small_base: Base, tmp_path: Path) -> None:
    """A decision that is in the folder is followed, and one of another run is not."""
    first = fit(small_base, "lora", tmp_path)
    path = tmp_path / "search.json"
    decision = json.loads(path.read_text())
    other = next(r for r in LoraMethod.space["learning_rate"] if r != first.record.chosen["learning_rate"])
    place = LoraMethod.space["learning_rate"].index(other)
    decision["rungs"][0][place]["validation_loss"] = 0.0
    path.write_text(json.dumps(decision))
    assert fit(small_base, "lora", tmp_path).record.chosen == {"learning_rate": other}
    path.write_text(json.dumps({**decision, "key": "of another run"}))
    assert fit(small_base, "lora", tmp_path).record.chosen == first.record.chosen


class Wild(LoraMethod):
    """One of its rates is far too high."""

    learning_rates = (1e30, 1e-3)


class Wilder(LoraMethod):
    """All of its rates are."""

    learning_rates = (1e30, 1e28)


def test_a_rate_that_diverges_loses_and_does_not_end_the_search(small_base: Base, tmp_path: Path) -> None:
    options = {"search_share": 0.6, "batch_size": 4}
    adapted = fit(small_base, "", tmp_path, method=Wild(), budget=Budget(steps=20), **options)
    assert adapted.record.chosen == {"learning_rate": 1e-3}
    assert [row["validation_loss"] is None for row in adapted.record.search] == [True, False]
    json.dumps(adapted.record.search, allow_nan=False)
    assert adapted.record.tokens > adapted.record.curve[-1]["tokens"]
    with pytest.raises(KamertonError, match=r"every learning rate diverged \(1e\+30, 1e\+28\); set a lower"):
        fit(small_base, "", tmp_path / "b", method=Wilder(), budget=Budget(steps=20), **options)


def test_without_validation_the_first_rate_is_taken_and_said(small_base: Base, tmp_path: Path) -> None:
    task = replace(tiny.colour_task(), validation=())
    adapted = fit(small_base, "lora", tmp_path, task=task)
    assert adapted.record.search == []
    assert adapted.record.notes == ["no validation examples to choose a learning rate on: 0.001 was taken"]


def test_a_named_rate_is_not_searched(small_base: Base, tmp_path: Path) -> None:
    adapted = fit(small_base, "lora", tmp_path, learning_rate=2e-3, patience=99)
    assert (adapted.record.search, adapted.record.chosen) == ([], {})
    assert len(adapted.record.curve) == 8


def test_seeds_differ_and_repeat(small_base: Base, tmp_path: Path) -> None:
    one = fit(small_base, "lora", tmp_path / "a", learning_rate=1e-3)
    again = fit(small_base, "lora", tmp_path / "b", learning_rate=1e-3)
    other = fit(small_base, "lora", tmp_path / "c", learning_rate=1e-3, seed=1)
    assert same(weights(one), weights(again))
    assert not same(weights(one), weights(other))


# -- saving and loading ---------------------------------------------------------------------------------------------

ASK = """
import json, sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
import tiny
from kamerton.inference import Sampling
from kamerton.methods import load_adapted
task = tiny.colour_task()
out = {}
for folder in sys.argv[2:]:
    adapted = load_adapted(folder)
    said = adapted.generate([e.messages for e in task.test], Sampling(max_tokens=6))
    scores = adapted.score([e.messages for e in task.test], [tiny.COLOURS] * len(task.test))
    out[folder] = [[list(a.tokens) for a in said], scores]
print(json.dumps(out))
"""


def test_a_new_process_answers_the_same(small_base: Base, tmp_path: Path) -> None:
    task, expected = tiny.colour_task(), {}
    for name in tiny.CAUSAL:
        adapted = fit(small_base, name, tmp_path / "fit" / name, **SMALL.get(name, {}))
        adapted.save(tmp_path / name)
        said = adapted.generate([e.messages for e in task.test], GREEDY)
        scores = adapted.score([e.messages for e in task.test], [tiny.COLOURS] * len(task.test))
        expected[str(tmp_path / name)] = [[list(a.tokens) for a in said], scores]
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(Path(__file__).parent), *expected], capture_output=True, text=True, timeout=120,
        cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == expected


def test_a_data_type_chosen_automatically_is_saved_as_chosen(small_folder: Path, tmp_path: Path) -> None:
    base = load_base(small_folder, dtype="auto")
    fit(base, "zero-shot", tmp_path).save(tmp_path)
    assert json.loads((tmp_path / "kamerton.json").read_text())["base"]["dtype"] == base.info.dtype != "auto"


@pytest.fixture
def saved(small_base: Base, tmp_path: Path) -> Path:
    folder = tmp_path / "saved"
    fit(small_base, "lora", tmp_path / "fit", budget=Budget(steps=1), learning_rate=1e-3).save(folder)
    return folder


EDITS: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "another base": (r"made for another base", lambda a: {**a, "base_fingerprint": "0" * 64}),
    "another renderer": (r"made for another renderer", lambda a: {**a, "renderer_fingerprint": "0" * 64}),
    "unknown method": (r"unknown method 'lroa'", lambda a: {**a, "method": "lroa"}),
    "unknown option": (r"lora has no option 'x'", lambda a: {**a, "options": {"x": 1}}),
    "no base": (r"has no 'base'", lambda a: {k: v for k, v in a.items() if k != "base"}),
    "no fingerprint": (r"has no 'base_fingerprint'", lambda a: {k: v for k, v in a.items() if k != "base_fingerprint"}),
    "a list": (r"cannot be read", lambda a: [a]),
    "options in words": (r"cannot be read|option", lambda a: {**a, "options": "none"}),
    "a base that is gone": (r"no such model folder", lambda a: {**a, "base": {**a["base"], "name": "/no/such/model"}}),
}


@pytest.mark.parametrize("edit", EDITS, ids=[name.replace(" ", "-") for name in EDITS])
def test_a_changed_record_is_one_line(small_base: Base, saved: Path, edit: str) -> None:
    path = saved / "kamerton.json"
    says, change = EDITS[edit]
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ModelError, match=says) as caught:
        load_adapted(saved, None if edit == "a base that is gone" else small_base)
    line = str(caught.value)
    assert "\n" not in line
    assert "; " in line
    assert edit == "a base that is gone" or line.startswith(str(path))


def test_a_folder_that_is_none(tmp_path: Path, saved: Path) -> None:
    with pytest.raises(ModelError, match=r"no kamerton\.json here; give the folder"):
        load_adapted(tmp_path)
    (saved / "kamerton.json").write_text('{"method": "lo')
    with pytest.raises(ModelError, match="cannot be read"):
        load_adapted(saved)


def test_another_base_or_template_is_refused(saved: Path, tmp_path: Path, small_folder: Path) -> None:
    other = load_base(tiny.save(tmp_path / "other", seed=5), dtype="float32")
    with pytest.raises(ModelError, match="another base"):
        load_adapted(saved, other)
    template = tmp_path / "t.jinja"
    template.write_text(tiny.TEMPLATE.replace("<|end|>", "<|end|> "))
    with pytest.raises(ModelError, match="another renderer"):
        load_adapted(saved, load_base(small_folder, dtype="float32", chat_template=template))
    with pytest.raises(ModelError, match="another base"):
        load_adapted(saved, load_base(small_folder, dtype="bfloat16"))
    assert load_adapted(saved).method == "lora"
