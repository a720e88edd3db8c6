"""DPO: losses and gradients against TRL's, what must not change them, learning, the stage, what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tiny
from judged_words import words_task
from kamerton.base import Base, load_base
from kamerton.cli.main import app
from kamerton.errors import KamertonError
from kamerton.methods import get_method, load_adapted
from kamerton.methods.preference_findings import preference_warnings
from kamerton.objectives import dpo
from kamerton.objectives.dpo import Dpo, Look, Preferences, preference_loss
from kamerton.objectives.dpo_options import DpoOptions
from kamerton.objectives.preference_pairs import answer_rows, pair_batch, row_pairs
from kamerton.tasks.example import Graded, Message
from kamerton.tasks.preferences import pairs_of
from kamerton.training import Budget, fit
from kamerton.training.loop import Settings
from kamerton.tuning import get_parameterisation

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")

SIZES: dict[str, dict[str, Any]] = {
    "full": {}, "lora": {"rank": 4, "dropout": 0.1}, "ia3": {}, "adapter": {}, "prefix-tuning": {"tokens": 6},
    "prompt-tuning": {"tokens": 6}, "p-tuning": {"tokens": 6},
    "prompt-generator": {"tokens": 6, "generated": 3, "rank": 4, "key_size": 4, "noise": 2},
}  # fmt: skip


def started(base: Base, kind: str = "full", *, max_tokens: int = 4096, batch_size: int = 6, **options: Any
            ) -> tuple[Dpo, Any]:  # fmt: skip
    parameterisation, task = get_parameterisation(kind), words_task(24, 8, 8)
    tuned = parameterisation.attach(base, parameterisation.options(**SIZES[kind]), task, 0)
    objective = Dpo(base, task, DpoOptions(**options), batch_size=batch_size, max_tokens=max_tokens, limit=None, seed=0)
    objective.begin(tuned.model, tuned.module)
    return objective, tuned


@torch.no_grad()
def moved(module: nn.Module, size: float = 0.02) -> None:
    """Trained parameters somewhere else than at the start."""
    generator = torch.Generator().manual_seed(1)
    for p in module.parameters():
        if p.requires_grad:
            p += size * torch.randn(p.shape, generator=generator)


def loss_and_gradient(objective: Dpo, tuned: Any, batches: Any) -> tuple[float, dict[str, Tensor]]:
    """Of the mean over the pairs of some microbatches, as the loop computes it."""
    count, total = sum(b.count for b in batches), 0.0
    for batch in batches:
        loss = objective.loss(tuned.model, batch).total / count
        loss.backward()
        total += float(loss.detach())
    found = {n: p.grad.clone() for n, p in tuned.module.named_parameters() if p.grad is not None}
    tuned.module.zero_grad(set_to_none=True)
    return total, found


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, other[name], atol=tolerance, rtol=1e-4, msg=name)


# -- against TRL ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trl_trainer(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """TRL's DPOTrainer on the tiny model with the tiny model as its reference; its import takes long."""
    import transformers
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    model, reference = (
        transformers.AutoModelForCausalLM.from_pretrained(small_folder, dtype=torch.float32) for _ in range(2)
    )
    rows = [{"prompt": "a", "chosen": " red", "rejected": " blue"}]
    arguments = DPOConfig(output_dir=str(tmp_path_factory.mktemp("trl")), report_to=[], use_cpu=True, bf16=False,
                          gradient_checkpointing=False, beta=0.1)  # fmt: skip
    return DPOTrainer(model=model, ref_model=reference, args=arguments, train_dataset=Dataset.from_list(rows),
                      processing_class=transformers.AutoTokenizer.from_pretrained(small_folder))  # fmt: skip


def padded(rows: list[Any], pad: int = 0) -> dict[str, Tensor]:
    """Rows as TRL's collator makes them: padded on the right, masks beside them."""
    width = max(len(r.tokens) for r in rows)
    out = {name: torch.zeros(len(rows), width, dtype=torch.long)
           for name in ("input_ids", "attention_mask", "completion_mask")}  # fmt: skip
    out["input_ids"] += pad
    for i, r in enumerate(rows):
        out["input_ids"][i, : len(r.tokens)] = torch.tensor(r.tokens)
        out["attention_mask"][i, : len(r.tokens)] = 1
        out["completion_mask"][i, r.prompt_length : len(r.tokens)] = 1
    return out


@pytest.mark.parametrize(
    ("options", "theirs"),
    [
        ({"loss": "sigmoid"}, "sigmoid"), ({"loss": "sigmoid", "beta": 0.7}, "sigmoid"), ({"loss": "ipo"}, "ipo"),
        # of one pair alone, where nothing is sorted, it is the smoothed loss that TRL's `sigmoid` no longer has
        ({"loss": "sigmoid", "label_smoothing": 0.2}, "aot"),
    ],
)  # fmt: skip
def test_loss_and_gradient_are_those_of_trl(
    small_base: Base, trl_trainer: Any, options: dict[str, Any], theirs: str
) -> None:
    objective, tuned = started(small_base, **options)
    moved(tuned.module)
    batches = objective.batches(0, tuned.model)
    ours, gradient = loss_and_gradient(objective, tuned, batches)
    numbers = [n for b in batches for n in b.rows.numbers]
    assert len(numbers) == 6
    trl_trainer.model.load_state_dict(tuned.module.state_dict())
    trl_trainer.loss_types, trl_trainer.loss_weights, trl_trainer.beta = [theirs], [1.0], objective.o.beta
    trl_trainer.label_smoothing = objective.o.label_smoothing
    trl_trainer.model.zero_grad()
    parts = [[n] for n in numbers] if theirs == "aot" else [numbers]
    total = 0.0
    for part in parts:
        pairs = [objective.pairs[n] for n in part]
        rows = [p.chosen for p in pairs] + [p.rejected for p in pairs]
        loss = trl_trainer._compute_loss(trl_trainer.model, padded(rows), False) / len(parts)
        loss.backward()
        total += float(loss.detach())
    assert ours == pytest.approx(total, abs=1e-5)
    assert_same(gradient, {n: p.grad for n, p in trl_trainer.model.named_parameters() if p.grad is not None})


def test_by_hand() -> None:
    ratios, lengths = torch.tensor([[1.0, -2.0], [0.0, 0.0]]), torch.tensor([[2, 4], [3, 3]])
    found = preference_loss(ratios, lengths, DpoOptions(beta=0.5))
    assert found.tolist() == pytest.approx([np.log1p(np.exp(-1.5)), np.log(2)], abs=1e-6)
    smoothed = preference_loss(ratios, lengths, DpoOptions(beta=0.5, label_smoothing=0.1))
    assert float(smoothed[0]) == pytest.approx(0.9 * np.log1p(np.exp(-1.5)) + 0.1 * np.log1p(np.exp(1.5)), abs=1e-6)
    ipo = preference_loss(ratios, lengths, DpoOptions(beta=0.5, loss="ipo"))
    assert ipo.tolist() == pytest.approx([(0.5 + 0.5 - 1.0) ** 2, 1.0])


# -- what must not change anything ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["full", "lora", "prompt-generator"])
def test_passes_and_the_order_of_pairs_leave_the_loss(small_base: Base, kind: str) -> None:
    """In one pass, in one pass a pair, and in reverse order: the same loss, the same gradient."""
    found = []
    for max_tokens in (4096, 1):
        objective, tuned = started(small_base, kind, max_tokens=max_tokens)
        tuned.module.eval()  # dropout and noise differ from pass to pass
        moved(tuned.module)
        batches = objective.batches(0, tuned.model)
        assert len(batches) == (1 if max_tokens > 1 else 6)
        found.append(loss_and_gradient(objective, tuned, batches))
        (whole,) = started(small_base, kind)[0].batches(0, tuned.model) if max_tokens > 1 else (None,)
        if whole is not None:
            turned = pair_batch(objective.pairs, whole.rows.numbers[::-1])
            known = torch.stack([objective._known[n] for n in turned.numbers])
            found.append(loss_and_gradient(objective, tuned, [Preferences(turned, known)]))
    for loss, gradient in found[1:]:
        assert loss == pytest.approx(found[0][0], abs=1e-5)
        assert_same(gradient, found[0][1])


def test_the_reference_does_not_depend_on_what_was_asked_before(small_base: Base) -> None:
    """Steps in another order, and a model that has moved since: the same reference, bit for bit."""
    for kind in ("full", "prompt-generator"):
        known = []
        for steps in ((0, 1, 2, 3), (3, 1, 0, 2)):
            objective, tuned = started(small_base, kind, max_tokens=200)
            for step in steps:
                objective.batches(step, tuned.model)
                moved(tuned.module)
            known.append(objective._known)
        assert known[0].keys() == known[1].keys() == set(range(24))
        assert all((known[0][n] == known[1][n]).all() for n in known[0])


def test_at_the_start_nothing_has_moved(small_base: Base) -> None:
    objective, tuned = started(small_base)
    objective.look(0, tuned.model)
    assert objective.looks[0].kl == 0.0
    (batch,) = objective.batches(0, tuned.model)
    assert float(objective.loss(tuned.model, batch).total) == pytest.approx(6 * np.log(2), abs=1e-4)
    assert batch.tokens == sum(objective.pairs[n].tokens for n in batch.rows.numbers)
    before = {n: p.clone() for n, p in tuned.module.named_parameters()}
    moved(tuned.module, 0.05)
    moved_to = {n: p.clone() for n, p in tuned.module.named_parameters()}
    objective.look(1, tuned.model)
    # by hand: one row after another, through transformers' own pass
    from kamerton.base.load import load_base as again

    start = again(small_base.info.source, dtype="float32", device="cpu").model.hf
    total, count = 0.0, 0
    for row in dict.fromkeys(p.chosen for p in objective.held_out):
        ids = torch.tensor([row.tokens])
        with torch.no_grad():
            now, then = (
                hf(ids).logits[0, row.prompt_length - 1 : -1].log_softmax(-1) for hf in (tuned.model.hf, start)
            )
        total, count = total + float((now.exp() * (now - then)).sum()), count + len(now)
    assert objective.looks[1].kl == pytest.approx(total / count, rel=1e-3)
    assert all((p == moved_to[n]).all() for n, p in tuned.module.named_parameters())
    assert any((p != before[n]).any() for n, p in tuned.module.named_parameters())


# -- learning ---------------------------------------------------------------------------------------------------------


def held_out_accuracy(base: Base, adapted: Any) -> float:
    """The share of test pairs that the implicit reward, against the untouched base, puts in the right order."""
    plain = tiny.fit(base, "zero-shot", Path("unused"))
    pairs = [p for e in words_task().test for p in pairs_of(e)]
    asked, answers = [p.messages for p in pairs], [[p.chosen, p.rejected] for p in pairs]
    now, then = adapted.score(asked, answers), plain.score(asked, answers)
    return float(np.mean([(a - c) > (b - d) for (a, b), (c, d) in zip(now, then, strict=True)]))


def trained(base: Base, folder: Path, **options: Any) -> Any:
    return tiny.fit(base, "full", folder, task=words_task(), budget=Budget(steps=60), learning_rate=3e-3,
                    objective="dpo", dpo={"share": 1, "rate": 1.0, **options})  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"loss": "ipo", "beta": 0.3}])
def test_held_out_pairs_are_told_apart(small_base: Base, tmp_path: Path, options: dict[str, Any]) -> None:
    adapted = trained(small_base, tmp_path, **options)
    assert held_out_accuracy(small_base, adapted) >= 0.9
    assert any(note.startswith("accuracy on 30 held-out pairs: ") for note in adapted.record.notes)
    assert any("dpo training kept: on validation the loss on held-out pairs" in note for note in adapted.record.notes)
    titles = [f.title for f in adapted.record.findings]
    assert titles == [
        "DPO stage: loss and accuracy", "DPO stage: reward margin", "DPO stage: log-probabilities",
        "DPO stage: moved from the start", "DPO stage: held-out pairs", "DPO stage: KL",
    ]  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"loss": "ipo", "beta": 0.3}])
def test_with_the_sign_turned_it_would_not_learn(
    small_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """The planted bug that the test above must see: worse answers in the place of better ones."""
    right = dpo.preference_loss
    monkeypatch.setattr(dpo, "preference_loss", lambda ratios, *rest: right(ratios.flip(1), *rest))
    # the checkpoint that is validated with the same bug is "best", so nothing hides it
    assert held_out_accuracy(small_base, trained(small_base, tmp_path, **options)) < 0.3


# -- the stage --------------------------------------------------------------------------------------------------------

QUICK: dict[str, Any] = {"task": words_task(24, 8, 8), "learning_rate": 0.01, "objective": "dpo"}


@pytest.mark.parametrize("kind", SIZES)
def test_every_parameterisation_goes_on_from_its_start_and_is_saved(
    small_base: Base, tmp_path: Path, kind: str
) -> None:
    adapted = tiny.fit(small_base, kind, tmp_path / "fit", budget=Budget(steps=16), **QUICK, **SIZES[kind],
                       dpo={"rate": 1.0, "validations": 2})  # fmt: skip
    rows = [row for row in adapted.record.curve if "margin" in row]
    assert len(rows) == 8
    assert rows[0]["loss"] == pytest.approx(np.log(2), abs=0.05 if kind in ("lora", "prompt-generator") else 1e-4)
    adapted.save(tmp_path / "saved")
    loaded = load_adapted(tmp_path / "saved", small_base)
    pairs = [p for e in words_task(24, 8, 8).test for p in pairs_of(e)]
    asked, answers = [p.messages for p in pairs], [[p.chosen, p.rejected] for p in pairs]
    assert loaded.score(asked, answers) == adapted.score(asked, answers)


@pytest.mark.parametrize("kind", SIZES)
def test_every_parameterisation_learns_a_batch(small_base: Base, kind: str) -> None:
    objective, tuned = started(small_base, kind, beta=1.0)
    (batch,) = objective.batches(0, tuned.model)
    tuned.module.eval()
    optimiser = torch.optim.Adam([p for p in tuned.module.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(20):
        loss = objective.loss(tuned.model, batch)
        losses.append(float(loss.total.detach()) / 6)
        loss.total.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert losses[0] == pytest.approx(np.log(2), abs=0.15)  # noise, and positions of dropout, at the most
    assert losses[-1] < losses[0] - 0.2
    assert loss.metrics["accuracy"] >= 5


def test_an_encoder_decoder_learns_too(tmp_path: Path) -> None:
    base = load_base(tiny.save_encoder_decoder(tmp_path / "t5"), dtype="float32", device="cpu")
    adapted = tiny.fit(base, "full", tmp_path / "fit", budget=Budget(steps=12), **QUICK,
                       dpo={"share": 1, "rate": 1.0, "validations": 2})  # fmt: skip
    rows = adapted.record.curve
    assert rows[0]["loss"] == pytest.approx(np.log(2), abs=1e-4)
    assert rows[-1]["margin"] > 0.1
    assert not any(f.title == "DPO stage: KL" for f in adapted.record.findings)


@pytest.mark.parametrize("kind", ["full", "lora", "prompt-generator"])
def test_stopped_anywhere_it_goes_on_bit_for_bit(small_base: Base, tmp_path: Path, kind: str) -> None:
    """With dropout, with noise, with an average: a stage stopped at every step ends the same."""
    ends = []
    for stops in ((), (1, 2, 3, 4, 5)):
        folder = tmp_path / f"{len(stops)}"
        for stop in (*stops, None):
            objective, tuned = started(small_base, kind, max_tokens=200)
            settings = Settings(learning_rate=0.01, validations=2, average=0.8, validate_start=True)
            result = fit(tuned.model, tuned.module, objective, settings, Budget(steps=6), folder, stop_after=stop)
        weights = {n: p.detach().clone() for n, p in tuned.module.named_parameters() if p.requires_grad}
        ends.append((weights, objective.looks, result.state.curve, result.validation_loss))
    for (name, one), two in zip(ends[0][0].items(), ends[1][0].values(), strict=True):
        assert (one == two).all(), name
    assert ends[0][1] == ends[1][1]
    timeless = [[{k: v for k, v in row.items() if k != "seconds"} for row in end[2]] for end in ends]
    assert json.dumps(timeless[0]) == json.dumps(timeless[1])
    assert ends[0][3] == ends[1][3]


def test_without_a_gain_the_start_is_kept(small_base: Base, tmp_path: Path) -> None:
    plain = tiny.fit(small_base, "lora", tmp_path / "plain", budget=Budget(steps=6), learning_rate=0.01,
                     task=QUICK["task"])  # fmt: skip
    ruined = tiny.fit(small_base, "lora", tmp_path / "ruined", budget=Budget(steps=12), **QUICK,
                      dpo={"rate": 1000.0, "beta": 5.0})  # fmt: skip
    assert any("brought nothing on validation (the loss on held-out pairs)" in n for n in ruined.record.notes)
    assert plain.tuned is not None
    assert ruined.tuned is not None
    one, two = ({n: p for n, p in a.tuned.module.named_parameters() if "lora_" in n} for a in (plain, ruined))
    assert all((one[n] == two[n]).all() for n in one)


def test_without_pairs_in_validation_answers_decide(small_base: Base, tmp_path: Path) -> None:
    task = QUICK["task"]
    bare = replace(task, validation=tuple(replace(e, graded=()) for e in task.validation))
    adapted = tiny.fit(small_base, "full", tmp_path, budget=Budget(steps=8), **{**QUICK, "task": bare},
                       dpo={"rate": 0.1, "validations": 1})  # fmt: skip
    assert any(n == "no validation example has a pair: token-f1 on answers decides what is kept"
               for n in adapted.record.notes)  # fmt: skip
    assert any("token-f1" in n and "dpo training" in n for n in adapted.record.notes)
    assert not any(f.title == "DPO stage: held-out pairs" for f in adapted.record.findings)


# -- rows -------------------------------------------------------------------------------------------------------------


def test_both_answers_stand_behind_one_prompt_when_cut(small_base: Base) -> None:
    messages = (Message("user", " ".join(tiny.WORDS * 3)),)
    rows = answer_rows(small_base.renderer, messages, ("red", " ".join(tiny.WORDS)), 60)
    assert [len(r.tokens) - r.prompt_length for r in rows][1] == 30
    assert rows[0].tokens[: rows[0].prompt_length] == rows[1].tokens[: rows[1].prompt_length]
    assert max(len(r.tokens) for r in rows) <= 60
    assert rows[0].cut
    assert rows[1].cut


def test_pairs_that_say_nothing_are_counted(small_base: Base) -> None:
    example = words_task(24, 8, 8).train[0]
    long = " ".join(tiny.WORDS)
    same = replace(example, graded=(Graded(f"{long} red", 1.0), Graded(f"{long} blue", 0.0)))
    bare = replace(example, graded=())
    pairs, notes = row_pairs(small_base.renderer, [example, same, bare], 60, "training")
    assert len(pairs) == 1
    assert notes == [
        "1 of 3 training examples have no pair of judged answers",
        "1 training pairs were left out: their two answers are the same tokens (within 60 tokens)",
    ]


def test_of_a_ranking_all_pairs_are_learned_from(small_base: Base) -> None:
    task = words_task(4, 2, 2, answers=4, gap=1)
    pairs, _ = row_pairs(small_base.renderer, task.train, None, "training")
    assert len(pairs) == 4 * 6


def test_a_task_without_pairs_is_refused_before_anything_is_computed(small_base: Base, tmp_path: Path) -> None:
    import kamerton as kt

    recipe = tiny.write_recipe(tmp_path, small_base.info.source, "- lora: {objective: dpo}")
    with pytest.raises(KamertonError, match="no training example has two answers with different scores; give pref"):
        kt.tune(str(recipe), output=tmp_path / "out")
    assert not (tmp_path / "out" / "fit").exists()
    with pytest.raises(KamertonError, match="no training example has two answers"):
        kt.compare(str(recipe), output=tmp_path / "compared", progress=False)


# -- warnings ---------------------------------------------------------------------------------------------------------


def looked(base: Base, *looks: Look) -> Dpo:
    objective = started(base)[0]
    objective.looks = list(looks)
    return objective


@pytest.mark.parametrize(
    ("last", "curve", "says"),
    [
        ([8.0, 7.0, 2.0, -80.0, -160.0], 0.9, "chosen answers have become less likely: 10.0 nats an answer"),
        ([8.0, 7.0, 2.0, -1.0, -160.0], 0.9, None),  # a little less likely
        ([8.0, 4.0, 2.0, -80.0, -160.0], 0.5, None),  # less likely, and no better at pairs: not displacement
        ([8.0, 4.0, 0.0, 0.0, 0.0], 0.95, "training pairs are learned by heart: accuracy 0.95 on them, 0.50 on held"),
    ],
)
def test_warnings_fire_when_due(small_base: Base, last: list[float], curve: float, says: str | None) -> None:
    objective = looked(small_base, Look(0, 0.0, [8.0, 4.0, 0.0, 0.0, 0.0]), Look(10, 0.1, last))
    found = preference_warnings(objective, [{"step": 10, "accuracy": curve}], 10)
    warned = [line for line in found if line.startswith("warning: ")]
    assert len(warned) == (says is not None)
    assert says is None or says in warned[0]
    assert found[-1] == f"accuracy on 8 held-out pairs: {last[1] / 8:.3f}"


def test_running_away_is_told_with_the_step_that_is_kept(small_base: Base) -> None:
    same = [8.0, 4.0, 0.0, 0.0, 0.0]
    found = preference_warnings(looked(small_base, Look(0, 0.0, same), Look(10, 0.9, same)), [], 0)
    assert "0.90 nats a token away from its start" in found[0]
    assert "the weights that are kept are those of the start" in found[0]


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def cli() -> Callable[..., tuple[int, str]]:
    from typer.testing import CliRunner

    def call(*arguments: object) -> tuple[int, str]:
        done = CliRunner().invoke(app, [str(a) for a in arguments])
        return done.exit_code, f"{done.output}{done.exception or ''}"

    return call


def test_align_trains_the_method_that_aligns(
    small_folder: Path, tmp_path: Path, cli: Callable[..., tuple[int, str]]
) -> None:
    methods = (
        "- zero-shot\n- lora: {learning_rate: 0.01}\n"
        "- gan-prompt: {learning_rate: 0.02, tokens: 6, generated: 3, rank: 4, key_size: 4, adversarial: "
        "{warmup_steps: 2, rank: 4, validations: 1}}"
    )
    recipe = tiny.write_recipe(tmp_path, small_folder, methods, seeds="[0]", budget="{steps: 4}")
    status, said = cli("align", recipe, "--output", tmp_path / "out")
    assert status == 0, said
    assert "adversarial: loss" in said
    assert f"next: kamerton eval {tmp_path / 'out'} {recipe}" in said
    assert (tmp_path / "out" / "kamerton.json").is_file()
    status, said = cli("align", recipe, "lora")
    assert status == 1
    assert "lora has objective supervised, which learns from no preference or reward; use an objective" in said
    status, said = cli("align", recipe, "zero-shot")
    assert "zero-shot has objective none" in said
    plain = tiny.write_recipe(tmp_path / "plain", small_folder, "- zero-shot\n- lora")
    assert "no method of the recipe aligns; give one an objective that aligns: dpo" in cli("align", plain)[1]
    assert "no training example has two answers" in cli("align", plain, "lora", "--option", "objective=dpo")[1]
    assert get_method("lora") is not None


def test_the_page_names_all_options_with_their_defaults() -> None:
    page = (Path(__file__).parents[1] / "docs" / "preference-optimisation.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", page, re.MULTILINE))
    assert told == {name: str(field.default) for name, field in DpoOptions.model_fields.items()}
