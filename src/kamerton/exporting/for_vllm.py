"""Adapted models in vLLM: which of them it takes, in which form, and whether it computes the same.

| what was adapted | how vLLM gets it |
| --- | --- |
| nothing, or how the model is asked | the base's own weights; prompts as tokens, what they begin with is read once |
| LoRA | an adapter beside the base's weights, from the folder that peft saves |
| soft prompts, made of the query or not | embeddings beside the prompt's tokens |
| all weights, DoRA, IA³, anything that merges | weights of its own |

Trained keys and values, bottleneck adapters, encoders and encoder–decoders are refused. Every model is compared with
the torch backend on a few prompts before it answers. Weights stay in vLLM for as long as their `Pool` is open, for all
models that are asked for meanwhile.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from kamerton.backends import check_backend
from kamerton.base import CausalModel
from kamerton.base.load import DTYPES, Base
from kamerton.base.recurrent_model import RecurrentModel
from kamerton.errors import KamertonError, ModelError
from kamerton.exporting import weights as plain
from kamerton.inference import Engine
from kamerton.inference.vllm.library import Needs, start
from kamerton.methods.merge import TOLERANCE
from kamerton.methods.method import Adapted, Wrapped, decode_through
from kamerton.retrieval.joint import QueryingModel
from kamerton.tasks.example import Message

WHERE = "backend: vllm"
MEND = "use the backend torch"
ROWS = 256
"""Answers that are decoded at once where nobody says otherwise."""
_SPARE = 256
"""Tokens of keys and values beyond those that are asked for: vLLM keeps a block to itself, and fills blocks."""
_PROBES = ("Name a colour.", "What is the capital of France, and how far is it from there to Lyon?")
_UNFIT = {
    "prefix-tuning": "it trains keys and values, which vLLM does not take",
    "adapter": "its bottleneck layers stand between the base's, where vLLM has none",
    "head": "vLLM has no place for its head",
}


def _refused(method: str, why: str) -> KamertonError:
    return KamertonError(f"vLLM does not run {method}: {why}", where=WHERE, mend=MEND)


def check_runs(base: Base, method: Any, options: Any) -> None:
    """Refuse a method whose models vLLM does not run, before anything is trained.

    Raises:
        KamertonError: it is one, or the base is none for vLLM.
    """
    _check_base(base.model, base.info.architecture)
    if hasattr(options, "over"):
        from kamerton.methods.prompted import method_inside

        check_runs(base, *method_inside(options))
    name = getattr(getattr(method, "parameterisation", None), "name", "")
    if name in _UNFIT:
        raise _refused(method.name, _UNFIT[name])
    if getattr(options, "into", None) == "keys-values":
        raise _refused(method.name, _UNFIT["prefix-tuning"])


def _check_base(model: Any, name: str) -> None:
    if not isinstance(model, CausalModel) or isinstance(model, RecurrentModel):
        raise _refused(name, "it is no causal transformer")


# -- in which form ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """How vLLM gets an adapted model.

    Attributes:
        kind: `base` (the base's weights), `adapter` (and a LoRA adapter), `soft` (and soft tokens) or `own` (weights
            of its own).
        rank: of the adapter.
    """

    kind: Literal["base", "adapter", "soft", "own"]
    rank: int = 0


def form_of(adapted: Adapted) -> Form:
    """The form of a model.

    Raises:
        KamertonError: vLLM does not run it.
    """
    inner, model = innermost(adapted), adapted.engine.model
    _check_base(model, inner.method)
    if isinstance(model, QueryingModel):
        raise _refused(inner.method, "it has a query encoder of its own")
    assert isinstance(model, CausalModel)
    front, inserts = model.front(), model.inserts
    if front.keys is not None or (inserts is not None and inserts.keys):
        raise _refused(inner.method, _UNFIT["prefix-tuning"])
    tuned, four_bits = inner.tuned, inner.base.info.quantised is not None
    if len(front) or inserts is not None:
        if four_bits:
            raise _refused(inner.method, "its soft tokens stand before a base in 4 bits")
        return Form("soft")
    if tuned is None and not four_bits:
        return Form("base")
    rank = 0 if four_bits or tuned is None else _lora_rank(tuned.peft)
    if rank:
        return Form("adapter", rank)
    try:
        plain.check_plain(inner)
    except KamertonError as error:
        raise _refused(inner.method, error.message.partition(": ")[2] or error.message) from None
    return Form("own")


def innermost(adapted: Adapted) -> Adapted:
    """The model inside all that stands around it."""
    while isinstance(adapted, Wrapped):
        adapted = adapted.inner
    return adapted


def _lora_rank(peft: Any) -> int:
    """The largest rank of an adapter that vLLM runs as it is; 0 for anything else."""
    config = None if peft is None else peft.active_peft_config
    if config is None or not str(config.peft_type).endswith(".LORA"):
        return 0
    odd = (
        config.use_dora, config.bias != "none", config.modules_to_save, config.rank_pattern, config.alpha_pattern,
        isinstance(config.init_lora_weights, str), getattr(config, "layer_replication", None),
        getattr(config, "lora_bias", False), getattr(config, "trainable_token_indices", None),
    )  # fmt: skip
    named = config.target_modules or ()
    leaves = {str(name).rpartition(".")[2] for name in ([named] if isinstance(named, str) else named)}
    return 0 if any(odd) or leaves & {"lm_head", "embed_tokens"} else int(config.r)


# -- in vLLM ----------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Pool:
    """The weights that are in vLLM, and the models that answer through them. To be closed.

    Args:
        tokens: whose keys and values are kept at once; default: each model's `max_batch_tokens`.
        rows: answers that are decoded at once.
    """

    tokens: int | None = None
    rows: int = ROWS
    _open: dict[str, Any] = field(default_factory=dict)
    _before: list[tuple[Adapted, Engine]] = field(default_factory=list)
    _folder: Any = None

    def __post_init__(self) -> None:
        check_backend("vllm")
        self._folder = tempfile.TemporaryDirectory(prefix="kamerton-vllm-", ignore_cleanup_errors=True)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def attach(self, *models: Adapted) -> None:
        """Let models answer through vLLM.

        Raises:
            KamertonError: vLLM does not run one, or computes something else than the torch backend.
        """
        forms = [form_of(adapted) for adapted in models]
        needs: dict[str, Needs] = {}
        for adapted, form in zip(models, forms, strict=True):
            key, own = self._key(adapted, form), self._needs(adapted, form)
            there = needs.get(key)
            needs[key] = own if there is None else replace(
                there | own, adapters=there.adapters + (form.kind == "adapter")
            )  # fmt: skip
        for adapted, form in zip(models, forms, strict=True):
            key = self._key(adapted, form)
            self._attach(adapted, form, self._weights(key, adapted, form, needs[key]))

    def detach(self, *models: Adapted) -> None:
        """Let models answer as before; weights that only they have leave vLLM."""
        for adapted, engine in [pair for pair in self._before if any(pair[0] is m for m in models)]:
            decode_through(adapted, engine)
            self._before.remove((adapted, engine))
            found = self._open.pop(f"own {id(innermost(adapted))}", None)
            if found is not None:
                found.close()

    @contextmanager
    def answering(self, *models: Adapted) -> Iterator[None]:
        """While it is open, models answer through vLLM; what they share with others stays there."""
        self.attach(*models)
        try:
            yield
        finally:
            self.detach(*models)

    def close(self) -> None:
        """Let all models answer as before, and give the memory back."""
        self.detach(*[adapted for adapted, _ in self._before])
        while self._open:
            self._open.popitem()[1].close()
        if self._folder is not None:
            self._folder.cleanup()

    @staticmethod
    def _key(adapted: Adapted, form: Form) -> str:
        if form.kind == "own":
            return f"own {id(innermost(adapted))}"
        return f"base {adapted.base.info.fingerprint} {adapted.base.info.dtype}"

    def _needs(self, adapted: Adapted, form: Form) -> Needs:
        engine = adapted.engine
        tokens = self.tokens or engine.max_batch_tokens
        longest = engine.model.max_length
        return Needs(
            tokens, min(tokens, longest or tokens), self.rows, form.rank, adapters=1, soft=form.kind == "soft"
        )  # fmt: skip

    def _weights(self, key: str, adapted: Adapted, form: Form, needs: Needs) -> Any:
        """Weights with room for what is needed; those that have too little are started anew, and keep what they had."""
        there = self._open.get(key)
        if there is not None and there.needs.covers(needs):
            return there
        if there is not None:
            needs = there.needs | needs
            users = [pair for pair in self._before if getattr(pair[0].engine, "weights", None) is there]
            if users:
                raise KamertonError(
                    "vLLM was started with less room than this model needs, and others still answer through it",
                    where=WHERE, mend="attach all models at once",
                )  # fmt: skip
            there.close()
        from kamerton.inference.vllm.batch import Weights

        base = adapted.base
        source, trusted = self._source(key, adapted, form)
        config = base.model.config
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        kept = 2 * config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or heads) * width
        engine = start(
            source, needs, dtype=base.info.dtype, device=base.info.device, trusted=trusted,
            cache_bytes=(needs.tokens + _SPARE) * kept * DTYPES[base.info.dtype].itemsize,
        )  # fmt: skip
        self._open[key] = Weights(engine, needs)
        return self._open[key]

    def _source(self, key: str, adapted: Adapted, form: Form) -> tuple[str, bool]:
        """What vLLM reads: the base's own files, or weights that are written for it."""
        base = adapted.base
        if form.kind != "own":
            return base.info.source, bool(base.request.get("trust_remote_code"))
        folder = Path(self._folder.name) / key.replace(" ", "-")
        inner, dtype = innermost(adapted), DTYPES[base.info.dtype]
        plain.check_room(folder, base.info.parameters * dtype.itemsize, plain.copied_bytes(inner, dtype))
        plain.write_folder(plain.plain_weights(inner, dtype), base.renderer, folder, "5GB")
        return str(folder), False

    def _attach(self, adapted: Adapted, form: Form, weights: Any) -> None:
        from kamerton.inference.vllm.engine import VllmEngine

        adapter = None
        if form.kind == "adapter":
            tuned = innermost(adapted).tuned
            assert tuned is not None
            folder = Path(tempfile.mkdtemp(prefix="adapter-", dir=self._folder.name))
            tuned.save(folder)
            adapter = weights.adapter(folder)
        before = adapted.engine
        engine = VllmEngine(before, weights, adapter)
        try:
            check_same(before, engine, adapted.base.info.dtype)
        except Exception as error:
            if isinstance(error, KamertonError):
                raise
            reason = " ".join(f"{error}".split())[:300]
            raise _refused(adapted.method, f"{type(error).__name__}: {reason}") from error
        decode_through(adapted, engine)
        self._before.append((adapted, before))


def check_same(one: Engine, other: Engine, dtype: str) -> None:
    """Compare what two engines say of the token behind a few prompts.

    Raises:
        ModelError: their log-probabilities differ by more than rounding explains.
    """
    prompts = [one.renderer.prompt((Message("user", text),)) for text in _PROBES]
    a, b = one.next_log_probs(prompts), other.next_log_probs(prompts)
    likely = a > torch.finfo(torch.float32).min
    difference = float((a - b)[likely].abs().nan_to_num(nan=float("inf")).max())
    if not difference <= TOLERANCE[dtype]:
        raise ModelError(
            f"vLLM gives other log-probabilities than torch, off by {difference:.3g}", where=WHERE, mend=MEND
        )


@contextmanager
def decoding(
    backend: str, models: Sequence[Adapted] | Mapping[str, Adapted], *, tokens: int | None = None, rows: int = ROWS
) -> Iterator[None]:
    """While it is open, models answer through a backend: torch or vllm.

    Args:
        tokens, rows: as in `Pool`; for vLLM alone.

    Raises:
        KamertonError: there is no such backend, or it does not run one of the models.
    """
    check_backend(backend)
    if backend == "torch":
        yield
        return
    with Pool(tokens, rows) as pool:
        pool.attach(*(models.values() if isinstance(models, Mapping) else models))
        yield
