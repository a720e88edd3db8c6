"""Load a base: a hub id, a folder of safetensors, a GGUF file, or the name `demo` or `minilm`.

`sources.py` finds the folder that is read. Weights are read as safetensors only; code that comes with a model is not
run unless the recipe says `trust_remote_code: true`. A model that would be computed wrongly is refused.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import psutil
import torch

from kamerton.base import encoder_decoder
from kamerton.base import quantise as bits
from kamerton.base.encoder import EncoderModel, Head, head_class, is_encoder, is_pooler, with_head
from kamerton.base.encoder import probe as probe_encoder
from kamerton.base.encoder_decoder import EncoderDecoderModel, model_for
from kamerton.base.gguf_header import check_gguf
from kamerton.base.model import CausalModel, LanguageModel, probe
from kamerton.base.quantise import Quantise
from kamerton.base.sharing import with_own_weights
from kamerton.base.sizes import check_shape, check_shards, weights_bytes
from kamerton.base.sources import first_line, resolve
from kamerton.errors import KamertonError, ModelError
from kamerton.files import expanded
from kamerton.packaged import demo_gguf
from kamerton.rendering import Renderer
from kamerton.tasks.example import fingerprint

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 1.5, torch.float16: 0.5}
"""Largest difference in log-probability on the probe: rounding is far below, a wrong architecture far above."""

_OTHER_MODEL = (
    "use a causal model with transformers' attention interface (Llama, Qwen, Gemma, …), T5 or BART, or an encoder "
    "(BERT, RoBERTa, …)"
)

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class BaseInfo:
    """What was loaded, in plain words and numbers.

    Attributes:
        name: as the user gave it.
        source: the folder or hub id that was read.
        architecture: the transformers class.
        parameters: number of weights.
        dtype, device: how it is computed; `reason` says why.
        bytes: memory of the weights; `free_bytes`: memory that was free before loading.
        fingerprint: SHA-256 over configuration and weights as loaded.
        quantised: the format of the layers' weights (`nf4`), None where they are plain numbers.
    """

    name: str
    source: str
    architecture: str
    parameters: int
    dtype: str
    device: str
    reason: str
    bytes: int
    free_bytes: int
    fingerprint: str
    quantised: str | None = None

    def __str__(self) -> str:
        stored = f"stored as {self.quantised}, " if self.quantised else ""
        return (
            f"{self.name}: {self.architecture}, {self.parameters / 1e6:,.1f} M parameters, {stored}{self.dtype} on "
            f"{self.device} ({self.reason}), {self.bytes / 2**30:.2f} GiB of {self.free_bytes / 2**30:.1f} GiB free"
        )


@dataclass
class Base:
    """A pretrained model with its renderer. Methods never change it in place; they load their own copy."""

    info: BaseInfo
    model: LanguageModel
    renderer: Renderer
    request: dict[str, Any] = field(default_factory=dict)

    def reload(self, dtype: DtypeName | None = None, *, quantise: Quantise | None = None, frozen: bool = False) -> Base:
        """A fresh copy (adapters change modules in place), from disk.

        Args:
            dtype: another data type.
            quantise: quantise the copy, also where the base is not.
            frozen: nobody will change the weights of the copy: modules of its own, and the base's weights in them
                where they are stored alike, so that they are in memory once.
        """
        other = {"dtype": dtype, "quantise": quantise if self.info.quantised is None else None}
        changes = {k: v for k, v in other.items() if v}
        # reading every weight once more for its sum takes about as long as loading it
        known = None if changes else self.info.fingerprint
        shared = None
        if frozen and not changes and not isinstance(self.model, EncoderModel):  # an encoder's copy gets a head
            shared = with_own_weights(self.model.hf)
        if shared is not None:
            return Base(self.info, model_for(shared), self.renderer, self.request)
        return load_base(**{**self.request, **changes, "verify": False, "known": known})

    def release(self) -> None:
        """Give the memory of the weights back: names and shapes stay, and nothing can be computed any more."""
        for module in self.model.hf.modules():
            for name, weight in module._parameters.items():
                if weight is not None:  # not hf.to("meta"): weights in 4 bits cannot go there
                    empty = torch.empty(weight.shape, dtype=weight.dtype, device="meta")
                    module._parameters[name] = torch.nn.Parameter(empty, requires_grad=False)


def load_base(
    name: str | Path,
    *,
    dtype: DtypeName = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    chat_template: str | Path | None = None,
    quantise: Quantise | None = None,
    verify: bool = True,
    known: str | None = None,
    head: Head | None = None,
) -> Base:
    """Load a base by hub id, folder, GGUF file or the name `demo` or `minilm`.

    Args:
        name: what to load.
        dtype: `auto` takes bfloat16 where this machine gains from it (measured on a CPU), else float32.
        device: `auto` takes the first GPU, else the CPU.
        trust_remote_code: run Python code that comes with the model.
        chat_template: path of a Jinja file that replaces the model's template.
        quantise: `nf4` stores the layers' weights in 4 bits; they compute in `dtype`.
        verify: compare our packed forward pass with the model's own on a probe.
        known: the fingerprint, where the same weights were loaded before.
        head: put a fresh head on an encoder; the fingerprint stays the encoder's.

    Raises:
        ModelError: nothing to load there, weights missing or not safetensors, too little memory, or an architecture
            that cannot be computed through packs (or, an encoder–decoder, in its parts).
        MissingExtra: quantised weights without bitsandbytes.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    request = {"name": name, "dtype": dtype, "device": device, "trust_remote_code": trust_remote_code,
               "chat_template": chat_template, "quantise": quantise}  # fmt: skip
    if head is not None:
        request["head"] = head  # type: ignore[assignment]
    source, label = resolve(str(name))
    check_shards(Path(source))
    target = _device(device)
    kind, reason = choose_dtype(dtype, target)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        _no_foreign_kernels(config, trust_remote_code, source)
        free = _free_bytes(target)
        packed = _packing(config, quantise, kind, target, source)
        own_format = getattr(config, "quantization_config", None) is not None
        if known is None and not own_format:
            check_shape(config, lambda: _kind(config, bare=True).from_config(config), source)
        needed = weights_bytes(source, kind, stored_as=own_format, four_bits=quantise is not None)
        # what is not packed for its device goes through the memory of the processor
        for place in (target,) if packed else dict.fromkeys((target, torch.device("cpu"))):
            _check_room(needed or 0, place, source)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # of a pooler that the folder leaves out
            hf, loaded = _kind(config, bare=True).from_pretrained(
                source,
                config=config,
                dtype=kind,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                **packed,
            )
    except KamertonError:
        raise
    except MemoryError as error:
        raise ModelError("the model does not fit into memory", where=source, mend="choose a smaller model") from error
    except Exception as error:  # transformers raises many kinds; every one is about what the user named
        raise _explain(error, source, label) from error
    encoder = is_encoder(config)
    poolers = [name for name in loaded["missing_keys"] if encoder and is_pooler(name)]
    _whole({"missing_keys": set(loaded["missing_keys"]) - set(poolers)}, source)
    bits.settle(hf)
    print_ = known or _fingerprint(hf)
    if head is not None:
        hf = with_head(hf, head, poolers, kind)
    bytes_ = bits.stored_bytes(hf)
    if target.type != "cpu":
        _check_room(bytes_, target, source)
    hf = hf.to(target).eval()
    hf.requires_grad_(False)
    try:
        renderer = Renderer(
            tokenizer, chat_template=_read_template(chat_template), end_ids=_end_ids(hf),
            encoder_decoder=hf.config.is_encoder_decoder or encoder,  # what is asked is read by an encoder
        )  # fmt: skip
        model = model_for(hf)
    except ModelError as error:
        raise ModelError(error.message, where=error.where or chat_template or source, mend=error.mend) from error
    if isinstance(model, EncoderModel):
        model.new_pooler = bool(poolers)
    if verify:
        _verify(model, renderer, label)
    info = BaseInfo(
        name=label,
        source=source,
        architecture=type(hf).__name__,
        parameters=bits.parameters(hf),
        dtype=str(kind).removeprefix("torch."),
        device=str(target),
        reason=reason,
        bytes=bytes_,
        free_bytes=free,
        fingerprint=print_,
        quantised=bits.kind_of(hf),
    )
    return Base(info, model, renderer, request)


def load_weights_folder(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """A transformers model from a folder that full fine-tuning wrote (weights and config, no tokenizer)."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    try:
        hf, loaded = _kind(transformers.AutoConfig.from_pretrained(str(folder))).from_pretrained(
            str(folder), dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:
        raise _explain(error, str(folder), folder.name) from error
    _whole(loaded, str(folder))
    hf = hf.to(device).eval()
    hf.requires_grad_(False)
    return hf


def _packing(
    config: Any, quantise: Quantise | None, dtype: torch.dtype, device: torch.device, source: str
) -> dict[str, Any]:
    """What `from_pretrained` needs to quantise, or to read a folder that is quantised already."""
    own = getattr(config, "quantization_config", None)
    if own is not None:
        method = (own if isinstance(own, dict) else own.to_dict()).get("quant_method")
        if quantise is not None:
            mend = "leave quantise out, or use the model's plain weights"
            raise ModelError(f"the model is quantised already ({method})", where=source, mend=mend)
        if method == "bitsandbytes":
            bits.require_bitsandbytes()
        return {"device_map": {"": str(device)}}
    if quantise is None:
        return {}
    if quantise not in get_args(Quantise):  # a caller in Python may give any name
        raise ModelError(f"unknown quantise '{quantise}'", where="base.quantise", mend="use nf4, or leave it out")
    return bits.loading(quantise, dtype, device)


def _kind(config: Any, *, bare: bool = False) -> Any:
    """The class of transformers' that loads a model with this configuration; an encoder `bare`, without its head."""
    import transformers

    if is_encoder(config):
        return transformers.AutoModel if bare else head_class(config, None)
    return transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM


def _no_foreign_kernels(config: Any, trusted: bool, source: str) -> None:
    """Refuse a configuration that names attention code on the hub, which transformers would fetch and run."""
    named = [getattr(config, name, None) for name in ("_attn_implementation", "_experts_implementation")]
    found = next((one for one in named if isinstance(one, str) and ("/" in one or ":" in one)), None)
    if found and not trusted:
        mend = "take attn_implementation out of its config.json"
        raise ModelError(f"its configuration asks for code from elsewhere ({found[:60]})", where=source, mend=mend)


def _whole(loaded: dict[str, Any], source: str) -> None:
    missing = sorted(loaded["missing_keys"])
    if missing:  # transformers would go on with random numbers in their place
        raise ModelError(
            f"{len(missing)} weights are missing, the first is {missing[0]}",
            where=source,
            mend="check that its files are whole",
        )


def choose_dtype(dtype: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The data type for `auto` and the reason for it; a named one is taken as it is."""
    if dtype != "auto":
        if dtype not in DTYPES:
            raise ModelError(f"unknown dtype '{dtype}'", mend=f"use auto, {', '.join(DTYPES)}")
        return DTYPES[dtype], "as asked"
    if device.type == "cuda":
        good = torch.cuda.is_bf16_supported()
        return (torch.bfloat16, "the GPU computes it") if good else (torch.float32, "the GPU has no bfloat16")
    if device.type != "cpu":
        return torch.float32, "safe on this device"
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.float32, "this processor has no bfloat16 instructions"
    if torch.cpu._is_amx_tile_supported():
        return torch.bfloat16, "this processor has matrix tiles for it (AMX)"
    gain = _bfloat16_gain()
    if gain > 1.5:
        return torch.bfloat16, f"measured {gain:.1f}× faster than float32 on this processor"
    return torch.float32, f"bfloat16 measured only {gain:.1f}× as fast on this processor"


def _bfloat16_gain() -> float:
    """How many times faster one matrix product is in bfloat16 than in float32, best of several turns."""
    best = {}
    for kind in (torch.float32, torch.bfloat16):
        a, b = torch.ones(256, 768, dtype=kind), torch.ones(1536, 768, dtype=kind)
        times = []
        for _ in range(8):
            start = time.perf_counter()
            torch.nn.functional.linear(a, b)
            times.append(time.perf_counter() - start)
        best[kind] = min(times)
    return best[torch.float32] / best[torch.bfloat16]


def _explain(error: Exception, source: str, label: str) -> ModelError:
    text = first_line(error)
    if isinstance(error, OSError) and not Path(source).exists():
        return ModelError(
            f"cannot be loaded from the hub ({text})",
            where=f"base: {label}",
            mend="check the id and the network, or use a folder, a GGUF file, 'demo' or 'minilm'",
        )
    return ModelError(
        f"cannot be loaded ({type(error).__name__}: {text})", where=source, mend="check that its files are whole"
    )


def _device(device: str) -> torch.device:
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("cpu")
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        mend = "use auto or cpu"
        raise ModelError(f"device '{device}' cannot be used here", where="base.device", mend=mend) from error
    return target


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def _check_room(needed: int, device: torch.device, source: str) -> None:
    """Refuse weights that the free memory of a device cannot hold."""
    free = _free_bytes(device)
    if needed <= free:
        return
    size, left = f"{needed / 2**30:.1f} GiB", f"{free / 2**30:.1f} GiB"
    place, other = ("this machine", "") if device.type == "cpu" else (str(device), ", or device: cpu")
    mend = f"choose a smaller model, dtype: bfloat16, quantise: nf4{other}, or end other programs"
    raise ModelError(f"the weights take {size} and {place} has {left} of memory free", where=source, mend=mend)


def _end_ids(hf: Any) -> list[int]:
    eos = getattr(getattr(hf, "generation_config", None), "eos_token_id", None)
    ids = eos if isinstance(eos, list) else [eos]
    size = hf.get_input_embeddings().weight.shape[0]
    return [i for i in ids if isinstance(i, int) and 0 <= i < size]


def _read_template(path: str | Path | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ModelError("the chat template cannot be read", where=path, mend="check the path") from error


def _verify(model: LanguageModel, renderer: Renderer, label: str) -> None:
    tokens = renderer.raw("A tuning fork gives one true note, again and again: 440 Hz.")[:16]
    how = "through packs" if isinstance(model, CausalModel) else "in parts, encoder and decoder"
    how = "in padded rows" if isinstance(model, EncoderModel) else how
    try:
        if isinstance(model, EncoderDecoderModel):
            difference = encoder_decoder.probe(model, tokens)
        elif isinstance(model, EncoderModel):
            difference = probe_encoder(model, tokens)
        else:
            assert isinstance(model, CausalModel)
            difference = probe(model, tokens)
    except Exception as error:
        raise ModelError(
            f"{type(model.hf).__name__} cannot be computed {how} ({type(error).__name__}: {first_line(error)})",
            where=f"base: {label}",
            mend=_OTHER_MODEL,
        ) from error
    if not difference <= _TOLERANCE[model.dtype]:
        raise ModelError(
            f"{type(model.hf).__name__} gives other numbers {how} (off by {difference:.2g})",
            where=f"base: {label}",
            mend=_OTHER_MODEL,
        )


@torch.no_grad()
def _fingerprint(hf: Any) -> str:
    """SHA-256 over the configuration and two checksums of every weight (sums of bit patterns)."""
    views = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums: dict[str, list[int]] = {}
    for name, parameter in hf.named_parameters():
        sums[name] = []
        for stored in bits.parts(parameter):
            weight = stored.detach().contiguous().as_subclass(torch.Tensor)
            integers = weight.view(views[weight.element_size()]).flatten()
            first, second = integers.sum(dtype=torch.int64), integers[::7].sum(dtype=torch.int64)
            sums[name] += [int(first), int(second), weight.numel()]
    config = {k: v for k, v in hf.config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
    return fingerprint({"config": repr(sorted(config.items())), "weights": sums})


def check_source(name: str | Path, *, device: str = "auto", chat_template: str | Path | None = None) -> None:
    """Find what is wrong with a base as far as that can be known without loading it.

    Raises:
        ModelError: nothing to load there, weights missing or not safetensors, no such device or template.
    """
    path = expanded(name)
    if str(name) == "demo":
        demo_gguf()
    elif path.suffix == ".gguf" and path.is_file():
        check_gguf(path)
    else:
        source, _ = resolve(str(name))
        check_shards(Path(source))
    _device(device)
    _read_template(chat_template)
