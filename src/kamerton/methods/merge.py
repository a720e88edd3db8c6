"""Merge what a method trained into the weights: an ordinary model folder that needs no adapter any more.

The adapter is put on a copy of the weights that it was trained beside, in float32, and merged there by peft; the sum is
rounded once, to the base's data type. For a base in 4 bits the copy is dequantised first: merging into 4-bit codes
would round the sum to them, and most of a small change would be lost. What was written is read back, and its logits on
real prompts are compared with the adapted model's.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kamerton.base.encoder_decoder import causal
from kamerton.base.load import DTYPES, Base, load_base
from kamerton.base.model import CausalModel
from kamerton.base.quantise import dequantise, kind_of
from kamerton.errors import KamertonError, ModelError
from kamerton.evaluation.general_prompts import PROMPTS
from kamerton.files import whole_folder
from kamerton.methods.method import Adapted, Wrapped
from kamerton.retrieval.joint import QueryingModel
from kamerton.tasks.example import Message
from kamerton.tuning import Tuned

TOLERANCE = {"float32": 1e-2, "float16": 0.5, "bfloat16": 4.0}
"""Largest difference of a logit that rounding explains, by the data type of the merged weights.

Measured with a trained adapter of the demo model: 0.0001 in float32; up to 2.3 in bfloat16, where computing the base
alone in that type moves a logit by 1.2; an adapter that is forgotten differs by 17.
"""

_PROMPTS = 8
_MERGEABLE = "merge a method that changes weights: lora, qlora, full"


@dataclass(frozen=True)
class Merged:
    """A merged model.

    Attributes:
        folder: the model folder that was written.
        difference: largest absolute difference between its logits and the adapted model's on real prompts.
        tolerance: what would have been an error.
        positions: token positions that were compared, over the whole vocabulary each.
        dtype: of the weights.
        bytes: of the weights' files.
    """

    folder: Path
    difference: float
    tolerance: float
    positions: int
    dtype: str
    bytes: int


def merge(adapted: Adapted, output: str | Path) -> Merged:
    """Write an adapted model as a model folder that transformers loads and `base:` takes.

    Args:
        adapted: a model whose method changed weights (LoRA, DoRA, QLoRA, full, …).
        output: a folder that is not there yet, or is empty.

    Raises:
        KamertonError: nothing was trained, or it stands beside the weights; or the folder is taken.
        ModelError: the merged model's logits are not the adapted model's; nothing is left in `output` then.
    """
    folder = Path(output)
    causal(adapted.engine.model, "merging")
    tuned = mergeable(adapted)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise KamertonError("is there already", where=folder, mend="choose another --output")
    base = adapted.base
    with whole_folder(folder) as partial:
        hf = tuned.model.hf if tuned.peft is None else merged_weights(base, tuned, adapted.method)
        hf.save_pretrained(partial, safe_serialization=True)
        del hf
        save_tokenizer(base, partial)
        written = load_base(partial, dtype=base.info.dtype, device=base.info.device)  # type: ignore[arg-type]
        if written.renderer.fingerprint != base.renderer.fingerprint:
            mend = "report this: the tokenizer did not survive saving"
            raise ModelError("the merged model's tokenizer writes prompts in another way", where=folder, mend=mend)
        rows = [base.renderer.prompt((Message("user", text),)) for text in PROMPTS[:_PROMPTS]]
        difference = largest_difference(causal(adapted.engine.model, "merging"), causal(written.model, "merging"), rows)
        tolerance = TOLERANCE[base.info.dtype]
        if not difference <= tolerance:
            raise ModelError(
                f"the merged model's logits differ from the adapted model's by {difference:.3g}, more than {tolerance}",
                where=folder,
                mend="use the adapter unmerged, or tune with dtype: float32",
            )
    size = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
    return Merged(folder, difference, tolerance, sum(map(len, rows)), base.info.dtype, size)


def mergeable(adapted: Adapted) -> Tuned:
    """The trained part, where weights can hold it.

    Raises:
        KamertonError: nothing was trained, or it stands beside the weights.
    """
    if isinstance(adapted, Wrapped):
        raise KamertonError(
            f"{adapted.method} changes how the model is asked, which weights cannot hold",
            where="merge",
            mend=f"merge the {adapted.inner.method} inside it (folder over/), or leave {adapted.method} out",
        )
    tuned = adapted.tuned
    if tuned is None:
        raise KamertonError(f"{adapted.method} changed no weights", where="merge", mend=_MERGEABLE)
    if isinstance(tuned.model, QueryingModel):
        raise KamertonError(
            f"{adapted.method} answers with a query encoder and an index, which weights cannot hold",
            where="merge", mend=_MERGEABLE,
        )  # fmt: skip
    if tuned.peft is not None and tuned.peft.active_peft_config.is_prompt_learning:
        raise KamertonError(
            f"what {adapted.method} trained stands in front of the text and cannot be merged into weights",
            where="merge", mend=_MERGEABLE,
        )  # fmt: skip
    return tuned


def merged_weights(base: Base, tuned: Tuned, method: str, dtype: torch.dtype | None = None) -> Any:
    """The weights that the adapter was trained beside, with the adapter merged into them in float32.

    Args:
        dtype: what the sum is rounded to; default: the base's data type.
    """
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    fresh = base.reload(quantise="nf4" if kind_of(tuned.model.hf) else None).model.hf
    if kind_of(fresh):
        dequantise(fresh)
    fresh.float()
    state: dict[str, Tensor] = {n: t.float() for n, t in get_peft_model_state_dict(tuned.peft).items()}
    _untie(fresh, state)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        # about the transposed matrices of GPT-2 that were quantised, and the output layer that was tied: both are right
        warnings.simplefilter("ignore")
        peft = get_peft_model(fresh, copy.deepcopy(tuned.peft.active_peft_config))
    set_peft_model_state_dict(peft, state)
    own = get_peft_model_state_dict(peft)
    if own.keys() != state.keys() or not all(_same(own[n].float(), state[n]) for n in state):
        raise ModelError(f"what {method} trained does not fit its own base", where="merge", mend="tune it again")
    try:
        merged = peft.merge_and_unload(safe_merge=True)
    except NotImplementedError:
        message = f"what {method} trained stands beside the weights and cannot be merged into them"
        raise KamertonError(message, where="merge", mend=_MERGEABLE) from None
    except ValueError as error:  # not a number somewhere
        raise ModelError(" ".join(f"{error}".split()), where="merge", mend="tune the method again") from None
    return merged.to(dtype or DTYPES[base.info.dtype])


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


def _untie(hf: Any, adapted: dict[str, Tensor]) -> None:
    """Give an output layer that is adapted a weight of its own, or the merge would change the embeddings too."""
    head = hf.get_output_embeddings()
    name = next(n for n, m in hf.named_modules() if m is head)
    if head.weight is hf.get_input_embeddings().weight and any(f".{name}.lora" in n for n in adapted):
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        hf.config.tie_word_embeddings = False


def save_tokenizer(base: Base, folder: Path) -> None:
    """Write the tokenizer with the template that the base is asked by."""
    tokenizer = copy.deepcopy(base.renderer.tokenizer)
    if not base.renderer.plain:
        tokenizer.chat_template = base.renderer.template  # the recipe may have given another one than the model's
    tokenizer.save_pretrained(folder)


@torch.no_grad()
def largest_difference(one: CausalModel, other: CausalModel, rows: list[list[int]]) -> float:
    """Largest absolute difference of a logit over all positions of some rows of tokens."""
    worst = 0.0
    for row in rows:  # one at a time: a position has as many logits as the vocabulary has tokens
        a, b = (model.output(model.forward([row]).rows).float() for model in (one, other))
        worst = max(worst, float((a - b).abs().nan_to_num(nan=float("inf")).max()))
    return worst
