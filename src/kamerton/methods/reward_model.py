"""Train a reward model: a parameterisation × the reward objective, saved as a sequence classifier with one label.

The policy's own weights are the backbone, with a scalar head in place of the output layer (`objectives/
reward_modeling.py`). What was trained is merged into plain weights, so that the folder needs neither peft nor us:
`AutoModelForSequenceClassification` loads it. Parameterisations that weights cannot hold (soft prompts) are refused.

What it leaves out: a search for the learning rate; the method's default is taken where none is given, and the best
checkpoint by the loss on validation judgements is kept.
"""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kamerton.base.encoder_decoder import causal
from kamerton.base.load import DTYPES, Base
from kamerton.base.work import Work, flops
from kamerton.errors import KamertonError, ModelError, RecipeError
from kamerton.files import moved_into, write_json
from kamerton.inference.reward_model import RewardModel
from kamerton.methods.keys import fit_key
from kamerton.methods.merge import merged_weights
from kamerton.methods.method import FitRecord, Run
from kamerton.methods.search import space_of
from kamerton.methods.trained import DEFAULT_BUDGET, TrainedMethod
from kamerton.objectives.reward_modeling import RewardModeling, RewardOptions, ScalarHead
from kamerton.rendering import Renderer
from kamerton.tasks.example import Message, Task
from kamerton.training import Budget, Diverged, Progress, Settings, fit

METHODS = ("full", "lora", "qlora", "ia3")
"""Methods whose training plain weights can hold."""
ABOUT = "reward.json"
"""Written last: its presence means that the rest is there."""


def check_method(name: str) -> None:
    """Refuse a method whose training plain weights cannot hold."""
    if name not in METHODS:
        raise RecipeError(
            f"no reward model is made by {name}: it is saved as plain weights, which have to hold what is trained",
            mend=f"use one of: {', '.join(METHODS)}",
        )


def check_base(base: Base) -> None:
    """Refuse a base of which no reward model can be made."""
    causal(base.model, "a reward model")
    _classifier_class(base.model.hf)


def train_reward_model(
    base: Base, task: Task, method: TrainedMethod, options: Any, reward: RewardOptions, budget: Budget, run: Run
) -> tuple[RewardModel, FitRecord]:
    """Train within the budget; what was stopped in `run.folder` goes on from there.

    Args:
        base: what the backbone starts from: a base, or a merged supervised fine-tune.
        task: judged answers of its training and validation examples.
        method: gives parameterisation and training options; its objective is not used.
        reward: options of the loss.

    Raises:
        KamertonError: nothing was judged, a method or base that cannot be used, or the loss is not a number.
    """
    check_method(method.name)
    check_base(base)
    budget = DEFAULT_BUDGET if budget.unlimited else budget
    tuned = method.parameterisation.attach(base, options, task, run.seed)
    head = ScalarHead(base.model.config.hidden_size).to(base.model.device)
    limit = method._limit(base, options)
    objective = RewardModeling(
        base.renderer, task.train, task.validation, head, reward, batch_size=options.batch_size,
        max_tokens=options.max_tokens, limit=limit, seed=run.seed,
    )  # fmt: skip
    rate = options.learning_rate or space_of(method)["learning_rate"][0]
    settings = Settings(
        learning_rate=rate, warmup=options.warmup, weight_decay=options.weight_decay, clip=options.clip,
        validations=options.validations, patience=options.patience, bfloat16=base.model.dtype == torch.bfloat16,
        trackers=run.trackers, seed=run.seed,
    )  # fmt: skip

    def watch(p: Progress) -> None:
        held_out = "" if p.validation_loss is None else f", validation {p.validation_loss:.3f}"
        text = f"loss {p.loss:.3f}{held_out}, accuracy {p.metrics['accuracy']:.2f}, {p.seconds_left:.0f} s left"
        run.watch(f"reward model, learning rate {rate:g}", p)
        run.report(f"reward model, learning rate {rate:g}", p.share, text)

    key = fit_key(method.name, base, task, options, budget, run.seed, reward=reward.model_dump())
    module = nn.ModuleDict({"model": tuned.module, "head": head})
    try:
        result = fit(tuned.model, module, objective, settings, budget, run.folder, key=key, watch=watch)
    except Diverged as error:
        raise KamertonError(f"reward model: {error.message}", mend="set a lower learning_rate, or float32") from error
    record = FitRecord(
        learning_rate=rate, seconds=result.state.seconds, tokens=result.state.tokens, curve=result.state.curve,
        flops=flops(Work(**result.state.work), tuned.model.hf), notes=[*objective.notes, *result.notes],
        trainable_parameters=sum(p.numel() for p in module.parameters() if p.requires_grad),
    )  # fmt: skip
    module.requires_grad_(False)
    method.finish(base, tuned)
    hf = tuned.model.hf if tuned.peft is None else merged_weights(base, tuned, method.name)
    return RewardModel(classifier(hf, base, head), base.renderer, max_batch_tokens=run.max_batch_tokens), record


def classifier(hf: Any, base: Base, head: ScalarHead) -> Any:
    """A sequence classifier with one label: the backbone of a causal model, and the head."""
    config = copy.deepcopy(hf.config)
    config.num_labels, config.architectures = 1, None
    config.get_text_config().pad_token_id = None  # a new one would be beyond the embeddings
    made = _classifier_class(hf)._from_config(config, dtype=DTYPES[base.info.dtype])
    made.base_model.load_state_dict(hf.base_model.state_dict())
    pad = padding(base)
    if pad >= made.get_input_embeddings().weight.shape[0]:
        made.resize_token_embeddings(pad + 1, mean_resizing=False)
        made.get_input_embeddings().weight.data[pad:] = 0
    made.config.get_text_config().pad_token_id = pad
    made.score.weight.data.copy_(head.score.weight)
    made.requires_grad_(False)
    return made.to(base.model.device).eval()


def padding(base: Base) -> int:
    """A token for padding that no conversation holds: the score is read before the first padding from the right.

    The tokenizer's own where it is neither the end token nor in the template; else another such special token; else a
    new one. Many models pad with their end token, and with that the score would be read before the end of an answer.
    """
    tokenizer = base.renderer.tokenizer
    turns = (Message("system", "a"), Message("user", "b"), Message("assistant", "c"), Message("user", "d"))
    used = {*base.renderer.end_ids, *base.renderer.prompt(turns), *base.renderer.conversation(turns[:-1])}
    named = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id)
    others = sorted({*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder})
    found = next((int(i) for i in (*named, *others) if i is not None and i not in used), None)
    return len(tokenizer) if found is None else found


def save_reward_model(model: RewardModel, base: Base, record: FitRecord, about: dict[str, Any], folder: Path) -> None:
    """Write the folder: config, safetensors, tokenizer with template and padding token; `reward.json` last."""
    tokenizer = _tokenizer(base)
    with moved_into(folder) as partial:
        model.hf.save_pretrained(partial, safe_serialization=True)
        tokenizer.save_pretrained(partial)
        (folder / ABOUT).unlink(missing_ok=True)
    write_json(folder / ABOUT, {
        **about, "base": base.info.name, "base_fingerprint": base.info.fingerprint,
        "renderer_fingerprint": base.renderer.fingerprint, "fit": asdict(record),
    })  # fmt: skip


def _tokenizer(base: Base) -> Any:
    """The base's tokenizer, so that its own template and padding write what the model was trained on."""
    renderer = base.renderer
    tokenizer, pad = copy.deepcopy(renderer.tokenizer), padding(base)
    # a base without a template starts its texts with a token that ours does not write
    first = renderer.prompt((Message("user", "a"),))[:1]
    bos = "{{ bos_token }}" if renderer.plain and first == [tokenizer.bos_token_id] else ""
    tokenizer.chat_template = bos + renderer.template
    if pad >= len(tokenizer):
        tokenizer.add_special_tokens({"pad_token": "<|padding|>"})
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    tokenizer.padding_side = "right"
    probe = (Message("user", "a b"), Message("assistant", "c"), Message("user", "d"), Message("assistant", "e"))
    if Renderer(tokenizer).conversation(probe) != renderer.conversation(probe):
        mend = "report this: the tokenizer did not survive saving"
        raise ModelError("the reward model's tokenizer writes conversations in another way", mend=mend)
    return tokenizer


def _classifier_class(hf: Any) -> Any:
    """transformers' sequence classifier for a causal model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    kind = type(hf.config)
    if kind not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ModelError(
            f"transformers has no sequence classifier for {type(hf).__name__}, as which a reward model is saved",
            mend="use a base of another family (Llama, Qwen, Gemma, Mistral, GPT-2, …)",
        )
    return MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[kind]
