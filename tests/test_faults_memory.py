"""Memory that runs out: microbatches and passes are halved, results stay what they are, and it is said."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import faulty_runs
import tiny
from kamerton.base import Base, CausalModel
from kamerton.errors import ResourceError
from kamerton.inference import Engine, Sampling
from kamerton.inference.continuous import Batch, Job, Token
from kamerton.memory import out_of_memory
from kamerton.objectives.masked import Masked
from kamerton.objectives.packed_contexts import PackedContexts
from kamerton.objectives.policy_batches import PolicyBatch
from kamerton.objectives.preference_pairs import RowPair, pair_batch
from kamerton.objectives.supervised import Supervised
from kamerton.objectives.truncated import Truncated
from kamerton.pretraining.run import pretrain
from kamerton.rendering import Rendered
from kamerton.training import Budget
from kamerton.training.batches import make_batch
from training_runs import objective, run, weights

pytestmark = pytest.mark.usefixtures("one_thread")
pytest_plugins = ("tiny",)


def exhaust() -> None:
    """Ask for more memory than any machine has: torch's own error."""
    torch.empty(2**60, dtype=torch.uint8)


def tight(monkeypatch: pytest.MonkeyPatch, kind: type, most: int, *, backward: bool = False) -> list[int]:
    """Let the loss of an objective need more memory than there is where a microbatch has more tokens than `most`.

    Args:
        backward: memory runs out when gradients of some microbatches have been added up already.

    Returns:
        The tokens of all microbatches whose loss was computed.
    """
    real, seen = kind.loss, list[int]()

    def loss(self: Any, model: Any, batch: Any) -> Any:
        carried = getattr(batch, "carry", True)  # streams that are only validated on are read piece by piece
        if batch.tokens > most and carried and not backward:
            exhaust()
        found = real(self, model, batch)
        if batch.tokens > most and found.total.requires_grad:
            found.total.register_hook(lambda _: exhaust())
        seen.append(batch.tokens)
        return found

    monkeypatch.setattr(kind, "loss", loss)
    return seen


def test_what_says_that_memory_ran_out() -> None:
    with pytest.raises(RuntimeError) as caught:
        exhaust()
    assert out_of_memory(caught.value)
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert out_of_memory(MemoryError())
    assert not out_of_memory(RuntimeError("shape '[3]' is invalid for input of size 4"))
    assert not out_of_memory(ResourceError("memory ran out"))


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "backward"), [("lora", True), ("prefix-tuning", False)])
def test_a_halved_run_ends_as_the_undisturbed_one(
    small_base: Base, kind: str, backward: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few: dict[str, Any] = {"budget": Budget(steps=4), "changes": {"validations": 2, "checkpoint_seconds": 60.0}}
    straight, first = run(small_base, kind, tmp_path / "straight", **few)
    goal = objective(small_base)
    most = goal.batches(0, None)[0].tokens // 3  # type: ignore[arg-type]
    seen = tight(monkeypatch, Supervised, most, backward=backward)
    halved, result = run(small_base, kind, tmp_path / "halved", goal=goal, **few)
    assert not backward or max(seen) > most
    notes = [n for n in result.notes if "memory ran out" in n]
    assert len(notes) == 1, "one note, whatever happened after it"
    assert "microbatches are halved" in notes[0]
    for a, b in zip(first.state.curve, result.state.curve, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
        assert (a["tokens"], a.get("validation_loss") is None) == (b["tokens"], b.get("validation_loss") is None)
    for name, value in weights(straight).items():
        torch.testing.assert_close(weights(halved)[name], value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("model", "kind", "most"),
    [
        ({}, PackedContexts, 70),
        ({"model": {"preset": "lstm", "width": 32}}, Truncated, 70),
        ({"model": {**faulty_runs.SMALL, "preset": "bert", "dropout": 0.0}}, Masked, 70),
        ({"attention": "documents"}, PackedContexts, 70),
    ],
    ids=["llama", "lstm", "bert", "within-documents"],
)
def test_pretraining_is_halved_to_the_same_model(
    model: dict[str, Any], kind: type, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    given = json.loads(faulty_runs.pretrain_recipe(tmp_path, budget={"steps": 3}, **model).read_text())
    pretrain(given, output=tmp_path / "straight")
    tight(monkeypatch, kind, most)
    halved = pretrain(given, output=tmp_path / "halved")
    assert halved is not None
    notes = [n for n in halved.results["notes"] if "memory ran out" in n]
    assert [n.split(":")[0].rsplit(" ", 1)[0] for n in notes if "measuring" not in n] == ["memory ran out at step"]
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("straight", "halved"))
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, atol=1e-5, rtol=1e-4)


def test_an_example_that_does_not_fit_is_one_line_that_says_what_would(
    small_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goal = objective(small_base)
    longest = max(len(r.tokens) for r in goal._train)
    tight(monkeypatch, Supervised, longest - 1)
    with pytest.raises(ResourceError, match=rf"a single example of {longest} tokens does not fit") as caught:
        run(small_base, "lora", tmp_path, goal=goal)
    assert "limit (longest example in tokens)" in str(caught.value)
    assert "\n" not in str(caught.value)


def rows(count: int, seed: int) -> list[Rendered]:
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        prompt, answer = int(rng.integers(2, 6)), int(rng.integers(1, 5))
        tokens = (1, 2, *rng.integers(3, 50, prompt + answer).tolist())
        out.append(Rendered(tokens, (0.0,) * (prompt + 2) + (1.0,) * answer))
    return out


@pytest.mark.parametrize("count", [2, 3, 7])
def test_halves_are_what_they_were_made_of(count: int) -> None:
    given = rows(count, count)
    whole = make_batch(given)
    parts = whole.halves()
    assert [row for part in parts for row in part.rows] == list(whole.rows)
    assert sum(part.tokens for part in parts) == whole.tokens
    for part, own in zip(parts, (given[: count // 2], given[count // 2 :]), strict=True):
        alone = make_batch(own, share=False)
        behind = len(part.prefix)
        assert (part.targets == alone.targets).all()
        assert (part.weights == alone.weights).all()
        starts = np.cumsum([0, *(len(r.tokens) for r in own)])[part.owners]
        assert (part.positions + behind * (part.owners + 1) == alone.positions).all(), starts
    assert make_batch(given[:1]).halves() == ()


def test_halves_of_pairs_and_of_rollouts() -> None:
    pairs = [RowPair(a, b) for a, b in zip(rows(5, 1), rows(5, 2), strict=True)]
    whole = pair_batch(pairs, range(5))
    for first, last in ((0, 2), (2, 5)):
        part, alone = whole.part(first, last), pair_batch(pairs, range(first, last))
        assert part.numbers == alone.numbers
        assert (part.owners == alone.owners).all()
        assert (part.lengths == alone.lengths).all()
        assert (part.batch.targets == alone.batch.targets).all()
    batch = make_batch(rows(5, 3))
    values = {"weights": torch.arange(len(batch.targets), dtype=torch.float32)}
    policy = PolicyBatch(batch, values, 5.0, 4, batch.tokens + 100, {"reward": 0.5}, 0.1)
    parts = policy.halves()
    assert torch.equal(torch.cat([p.values["weights"] for p in parts]), values["weights"])
    assert all(len(p.values["weights"]) == len(p.batch.targets) for p in parts)
    assert sum(p.count for p in parts) == pytest.approx(5.0)
    assert (sum(p.examples for p in parts), sum(p.tokens for p in parts)) == (4, policy.tokens)


# -- answers ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let a pass of more rows than so many need more memory than there is."""
    real = CausalModel.forward

    def let(most: int) -> None:
        def forward(self: CausalModel, given: Any, *args: Any, **more: Any) -> Any:
            if len(given) > most:
                exhaust()
            return real(self, given, *args, **more)

        monkeypatch.setattr(CausalModel, "forward", forward)

    return let


def engine(base: Base) -> Engine:
    return Engine(base.model, base.renderer)


def test_answers_and_scores_are_halved_to_the_same(small_base: Base, crowded: Callable[[int], None]) -> None:
    asked = [e.messages for e in tiny.colour_task().test]
    sampling = Sampling(max_tokens=8, temperature=0.8, n=2, seed=4)
    choices = [tiny.COLOURS] * len(asked)
    whole = engine(small_base)
    answers, scores, best = whole.generate(asked, sampling), whole.score(asked, choices), whole.rank(asked, choices)
    crowded(3)
    few, told = engine(small_base), list[tuple[int, int]]()
    again = few.generate(asked, sampling, on_token=lambda i, token: told.append((i, token)))
    assert [a.tokens for a in again] == [a.tokens for a in answers]
    for i, one in enumerate(again):
        assert [token for j, token in told if j == i] == list(one.tokens), "no token is told of twice"
    assert len(few.notes) == 1
    assert "answers are the same" in few.notes[0]
    few = engine(small_base)
    np.testing.assert_allclose(few.score(asked, choices), scores, atol=1e-4)
    assert few.rank(asked, choices) == best
    assert few.max_batch_tokens < 8192
    assert len(few.notes) == 1
    crowded(0)
    for call in (
        lambda: few.generate(asked[:2], sampling), lambda: few.score(asked[:2], choices[:2]),
        lambda: few.next_log_probs([[1, 2, 3]]),
    ):  # fmt: skip
        with pytest.raises(ResourceError, match=r"memory ran out .*a question with its answers? of [0-9]+ tokens"):
            call()


def test_a_running_batch_is_halved_and_its_answers_stay(small_base: Base, crowded: Callable[[int], None]) -> None:
    asked = [small_base.renderer.prompt(e.messages) for e in tiny.colour_task().test[:6]]
    sampling = Sampling(max_tokens=8, seed=4, temperature=0.8)

    def answered() -> tuple[list[list[int]], Batch]:
        heard: list[list[int]] = [[] for _ in asked]
        batch = Batch(small_base.model, small_base.renderer.end_ids, 65536, 64)

        def told(tokens: list[Token] | Exception) -> None:
            assert not isinstance(tokens, Exception), tokens
            for token in tokens:
                heard[token.index].append(token.token)

        batch.join(Job(asked, [8] * len(asked), sampling, told, lambda _: False))
        while batch.busy:
            batch.step()
        batch.rest()
        return heard, batch

    whole, _ = answered()
    crowded(2)
    halved, batch = answered()
    assert halved == whole
    assert batch.max_rows <= 2
    crowded(0)
    failed: list[Any] = []
    batch = Batch(small_base.model, small_base.renderer.end_ids, 65536, 64)
    batch.join(Job(asked[:2], [8, 8], sampling, failed.append, lambda _: False))
    while batch.busy:
        batch.step()
    assert [type(f) for f in failed] == [ResourceError]


# -- the real thing ---------------------------------------------------------------------------------------------------

STARVED = """
import json, resource, sys
from dataclasses import replace
from pathlib import Path
import psutil, torch
torch.set_num_threads(1)
import tiny, training_runs
from kamerton.base import load_base
from kamerton.objectives.supervised import Supervised
from kamerton.training import Budget, Settings, fit
base = load_base(sys.argv[1], dtype="float32", device="cpu")
task = tiny.colour_task(train=900)
def train(folder):
    goal = Supervised(base.renderer, task.train, (), batch_size=900, max_tokens=1_000_000, seed=3)
    tuned = training_runs.attach(base, "full")
    result = fit(tuned.model, tuned.module, goal, Settings(learning_rate=1e-2), Budget(steps=2), Path(folder))
    return training_runs.weights(tuned), result
tuned = training_runs.attach(base, "full")
Supervised(base.renderer, task.train[:8], (), batch_size=8).loss(tuned.model, Supervised(base.renderer, task.train[:8], (), batch_size=8).batches(0, None)[0]).total.backward()
a, first = train(sys.argv[2] + "/straight") if len(sys.argv) < 4 else (None, None)
if a is not None:
    torch.save({}, "/dev/null")
    from safetensors.torch import save_file
    save_file(a, sys.argv[2] + "/a.safetensors")
else:
    room = int(float(sys.argv[3]) * 2**20)
    now = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (now + room, now + room))
    b, second = train(sys.argv[2] + "/starved")
    from safetensors.torch import load_file
    a = load_file(sys.argv[2] + "/a.safetensors")
    print(json.dumps({"notes": second.notes, "largest": max(float((a[n] - b[n]).abs().max()) for n in a)}))
"""


@pytest.mark.slow
def test_a_process_with_little_memory_trains_the_same_model(small_folder: Path, tmp_path: Path) -> None:
    """RLIMIT_AS: torch's allocator fails for real, at whatever it asks for next."""

    def starved(*room: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", STARVED, str(small_folder), str(tmp_path), *map(str, room)], text=True, check=False,
            capture_output=True, env=faulty_runs.ENVIRONMENT, timeout=600,
        )  # fmt: skip

    straight = starved()
    assert straight.returncode == 0, straight.stderr
    ran = [starved(room) for room in (80, 30)]
    told = [json.loads(r.stdout.splitlines()[-1]) for r in ran if r.returncode == 0]
    assert told, ran[0].stderr[-2000:]
    assert any("memory ran out" in note for one in told for note in one["notes"]), "it was short of memory"
    assert all(one["largest"] < 1e-5 for one in told)
    for r in ran:
        assert r.returncode == 0 or "memory ran out" in r.stderr.splitlines()[-1], r.stderr[-2000:]
