"""The runs of a grid: which there are, what they cost, and what they share.

With the schedule warmup-stable-decay, which a grid takes where the recipe names none, runs of one size on several token
counts are the same run until the first of them begins its decay. So each size has one stable run, and every token count
is a decay that branches off from it (Hu et al. 2024, arXiv 2404.06395; Hägele et al. 2024, arXiv 2405.18392). A branch
is the run that it would have been alone, bit for bit. With another schedule every run goes from start to end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from kamerton.base.presets import Shape, build, parameters
from kamerton.base.show import flops_per_token, human
from kamerton.base.sizing import read_size, widths
from kamerton.errors import RecipeError
from kamerton.pretraining.models import CONTEXT, Plan, plan
from kamerton.recipe import BudgetSpec
from kamerton.recipe_pretrain import PretrainRecipe
from kamerton.recipe_scaling import COLUMN, Counted, ScalingSpec

FEWEST = 10
"""Steps below which a run is refused."""


@dataclass(frozen=True)
class Sized:
    """A model of the grid.

    Attributes:
        name: its size as the recipe has it.
        shape: what was picked for it.
        parameters: all of them; `non_embedding`: without token and position embeddings and the output layer.
        flops: training FLOPs of a token, by the shapes, attention and output layer included.
    """

    name: str
    shape: Shape
    parameters: int
    non_embedding: int
    flops: float

    def count(self, counted: Counted) -> int:
        """N."""
        return int(getattr(self, COLUMN[counted]))


@dataclass(frozen=True)
class Run:
    """One training of the grid: a size on a number of tokens with a seed."""

    sized: Sized
    tokens: int
    seed: int

    @property
    def flops(self) -> float:
        """Of the whole run, as if nothing were shared."""
        return self.sized.flops * self.tokens


def non_embedding(hf: Any) -> int:
    """Parameters without those of the vocabulary and of positions (Kaplan et al. 2020), each once."""
    apart = {id(p) for m in hf.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    head = hf.get_output_embeddings()
    apart |= {id(head.weight)} if head is not None else set()
    return sum(p.numel() for p in hf.parameters() if p.requires_grad and id(p) not in apart)


def counted(made: Plan, name: str) -> Sized:
    """A planned model in numbers; nothing is built but shapes."""
    hf = build(made.config, made.preset.kind, meta=True)
    return Sized(name, made.shape, parameters(hf), non_embedding(hf), flops_per_token(hf)[1])


def check(recipe: PretrainRecipe) -> ScalingSpec:
    """The grid of a recipe that can have one.

    Raises:
        RecipeError: it has none, or a grid says nothing about what it trains.
    """
    if recipe.scaling is None:
        mend = "add scaling: {sizes: [300k, 1m, 3m], tokens: [1m, 2m, 4m]}"
        raise recipe.error(("scaling",), "is missing, so there is no grid", mend=mend)
    if recipe.model is None:
        raise recipe.error(("base",), "a base has one size", mend="give model: {preset: llama} and a tokenizer")
    if recipe.model.width is not None or recipe.model.depth is not None or recipe.model.heads is not None:
        mend = "leave width, depth and heads out"
        raise recipe.error(("model",), "scaling.sizes choose the shapes", mend=mend)
    if recipe.data.held_out is False:
        mend = "give a share or other texts"
        raise recipe.error(("data", "held_out"), "scaling laws are of the loss on held-out text", mend=mend)
    for i, size in enumerate(recipe.scaling.sizes):
        try:
            read_size(size)
        except RecipeError as error:
            raise recipe.error(("scaling", "sizes", i), error.message, mend=error.mend) from None
    return recipe.scaling


def models(recipe: PretrainRecipe) -> tuple[list[Sized], Any]:
    """The models of the grid by rising size, and the tokenizer.

    Raises:
        RecipeError: a size cannot be had, or two sizes are the same shape.
    """
    spec = check(recipe)
    out, tokenizer = list[Sized](), None
    for i, size in enumerate(spec.sizes):
        try:
            made = plan(at_size(recipe, size), tokenizer)
        except RecipeError as error:
            if "model.size" not in (error.where or ""):
                raise
            raise recipe.error(("scaling", "sizes", i), error.message, mend=error.mend) from None
        if made.preset.kind != "causal":
            mend = "choose a causal preset: llama, gpt2, lstm"
            raise recipe.error(
                ("model", "preset"), f"scaling laws are of causal models, not {made.preset.kind}", mend=mend
            )
        tokenizer, found = made.tokenizer, counted(made, size)
        same = next((s for s in out if s.shape == found.shape), None)
        if same is not None:
            shape = f"width {found.shape.width}, depth {found.shape.depth}"
            mend = "set them further apart"
            raise recipe.error(("scaling", "sizes", i), f"{same.name} and {size} are one shape ({shape})", mend=mend)
        out.append(found)
    return sorted(out, key=lambda s: s.parameters), tokenizer


def at_size(recipe: PretrainRecipe, size: str) -> PretrainRecipe:
    """The recipe with a model of that size."""
    assert recipe.model is not None
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"size": size})})


def step_tokens(recipe: PretrainRecipe) -> int:
    """The most tokens of an optimiser step."""
    return recipe.training.batch_size * (recipe.context or CONTEXT)


def runs(recipe: PretrainRecipe, sized: Sequence[Sized]) -> list[Run]:
    """All runs of the grid, the cheapest first.

    Raises:
        RecipeError: a run is shorter than ten steps.
    """
    spec, step = check(recipe), step_tokens(recipe)
    out = []
    for one in sized:
        counts = {tokens: ("scaling", "tokens", i) for i, tokens in enumerate(spec.tokens)}
        for i, flops in enumerate(spec.flops):  # whole steps: the run ends with one
            counts.setdefault(round(flops / one.flops / step) * step, ("scaling", "flops", i))
        for tokens, field in counts.items():
            if tokens < FEWEST * step:
                mend = f"ask for at least {FEWEST * step:,} tokens, or make steps smaller (training.batch_size)"
                message = f"{one.name} would learn from {tokens:,} tokens, which is less than {FEWEST} steps"
                raise recipe.error(field, message, mend=mend)
            out += [Run(one, tokens, recipe.training.seed + n) for n in range(spec.seeds)]
    return sorted(out, key=lambda r: (r.flops, r.sized.parameters, r.seed))


def branches(recipe: PretrainRecipe) -> bool:
    """Whether runs share a stable part."""
    return recipe.training.schedule in (None, "warmup-stable-decay")


def warmup_steps(recipe: PretrainRecipe, every: Sequence[Run]) -> int | None:
    """The rise of runs that share a stable part: it cannot depend on how long each of them is.

    Where the recipe gives it as a share, it is that share of the shortest run.
    """
    t = recipe.training
    if not branches(recipe) or t.warmup_steps is not None:
        return t.warmup_steps
    shortest = min(r.tokens for r in every) / step_tokens(recipe)
    return max(1, round((0.05 if t.warmup is None else t.warmup) * shortest))


def own_recipe(recipe: PretrainRecipe, run: Run, warmup: int | None) -> PretrainRecipe:
    """The recipe of one run: an ordinary pretraining that is validated at its end."""
    t = recipe.training
    training = t.model_copy(
        update={
            "validations": 1, "patience": None, "seed": run.seed, "warmup_steps": warmup,
            "warmup": None if warmup is not None else t.warmup, "schedule": t.schedule or "warmup-stable-decay",
        }
    )  # fmt: skip
    more = {"training": training, "budget": BudgetSpec(tokens=run.tokens), "samples": None, "scaling": None}
    return at_size(recipe, run.sized.name).model_copy(update=more)


def branch_at(recipe: PretrainRecipe, run: Run) -> int:
    """Tokens after which a run leaves the stable part, at the latest a step before its decay begins; 0: it has none."""
    if not branches(recipe):
        return 0
    return max(0, int(run.tokens * (1 - recipe.training.decay)) - step_tokens(recipe))


def cost(recipe: PretrainRecipe, some: Sequence[Run]) -> float:
    """FLOPs of training some runs: of each size and seed the stable part once, and every decay."""
    total, stable = 0.0, dict[tuple[str, int], float]()
    for run in some:
        at = branch_at(recipe, run)
        total += run.sized.flops * (run.tokens - at)
        key = run.sized.name, run.seed
        stable[key] = max(stable.get(key, 0.0), run.sized.flops * at)
    return total + sum(stable.values())


def within(recipe: PretrainRecipe, every: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """The runs that the budget holds, the cheapest first, and a note about those that it does not.

    Raises:
        RecipeError: it holds none.
    """
    spec = check(recipe)
    if spec.budget is None:
        return list(every), []
    kept: list[Run] = []
    for run in every:
        if cost(recipe, [*kept, run]) <= spec.budget.flops:
            kept.append(run)
    if not kept:
        mend = f"give at least {every[0].flops:.3g}"
        raise recipe.error(("scaling", "budget", "flops"), "no run fits into the budget", mend=mend)
    out = len(every) - len(kept)
    if not out:
        return kept, []
    whole, given = human(cost(recipe, every)), human(spec.budget.flops)
    return kept, [f"{out} of {len(every)} runs are left out: the grid costs {whole} FLOPs, its budget is {given}"]


def shapes(recipe: PretrainRecipe, tokenizer: Any) -> Iterator[Sized]:
    """The models that the rule of sizes has, the smallest first."""
    assert recipe.model is not None
    for width in widths():
        model = recipe.model.model_copy(update={"size": None, "width": width})
        yield counted(plan(recipe.model_copy(update={"model": model}), tokenizer), f"width {width}")
