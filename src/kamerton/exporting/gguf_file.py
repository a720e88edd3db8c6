"""Write a GGUF file, the format of llama.cpp and what is built on it (Ollama, LM Studio, …), with the `gguf` package.

Tensors are written one after another, so no second copy of the model is in memory. Vectors (norms, biases) and learned
positions stay in float32, as llama.cpp wants them. In q8_0 each 32 numbers of a row share a scale; a matrix whose rows
are no multiple of 32 is written in f16 instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kamerton.errors import ModelError
from kamerton.exporting.gguf_layouts import Layout, frequency_factors, layout_of, turned
from kamerton.exporting.gguf_vocabulary import add_vocabulary
from kamerton.exporting.verify import check_bits, digest
from kamerton.rendering import Renderer

TYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
"""The types of matrices by their names; the value is the gguf package's."""
_FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
_BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32}
_LARGEST_F16 = 65504.0


@dataclass(frozen=True)
class Place:
    """A tensor of the model and where it stands in the file.

    Attributes:
        name: in the file.
        own: transformers'.
        weight: the tensor.
        kind: the gguf package's type.
        heads: of queries or keys whose rows change places; 0: they stay.
        transposed: it is stored the other way round.
    """

    name: str
    own: str
    weight: Any
    kind: Any
    heads: int
    transposed: bool

    def values(self) -> np.ndarray:
        """The numbers in float32, as the file has them."""
        data = self.weight.detach().float().cpu().numpy()
        data = data.T if self.transposed else data
        return turned(data, self.heads) if self.heads else np.ascontiguousarray(data)


def expected_bytes(parameters: int, kind: str) -> int:
    """About the size of the file."""
    return int(parameters * _BYTES[kind]) + 8 * 2**20


def check_gguf(hf: Any, renderer: Renderer) -> None:
    """Refuse a model or a tokenizer that cannot be written, before anything is computed.

    Raises:
        ModelError: see `layout_of` and `add_vocabulary`.
    """
    import gguf

    layout = layout_of(hf)
    add_vocabulary(gguf.GGUFWriter(None, layout.name), renderer, hf.get_input_embeddings().weight.shape[0])


def write_gguf(
    hf: Any, renderer: Renderer, path: Path, kind: str, *, name: str, progress: Callable[[float, str], None]
) -> list[str]:  # fmt: skip
    """Write a model and its tokenizer, read the file back and check that all bits are there.

    Args:
        hf: a transformers model of one of `LAYOUTS`, with plain weights.
        kind: of `TYPES`.
        name: the model's, for the file's header.
        progress: told the share that is written, and a few words.

    Returns:
        What the user should know, in words.

    Raises:
        ModelError: it cannot be written, a number is too large for f16, or the file is not what was written.
    """
    import gguf

    layout = layout_of(hf)
    writer = gguf.GGUFWriter(path, layout.name)
    writer.add_name(name)
    writer.add_file_type(getattr(gguf.LlamaFileType, _FILE_TYPES[kind]))
    if kind == "q8_0":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    layout.describe(writer, hf.config)
    notes = add_vocabulary(writer, renderer, hf.get_input_embeddings().weight.shape[0])
    places = list(_places(hf, layout, kind))
    plain = [p.own for p in places if kind == "q8_0" and p.kind == gguf.GGMLQuantizationType.F16]
    if plain:
        notes.append(f"{len(plain)} matrices, whose rows are no multiple of 32, are in f16 (the first: {plain[0]})")
    for p in places:
        shape = p.weight.shape[::-1] if p.transposed else p.weight.shape
        stored = _stored_shape(tuple(shape), p.kind)
        writer.add_tensor_info(p.name, stored, np.dtype(np.uint8), int(np.prod(stored)), raw_dtype=p.kind)
    factors = frequency_factors(hf.config)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    written = {}
    try:
        for done, p in enumerate(places):
            data = _stored(p)
            written[p.name] = digest(data)
            writer.write_tensor_data(data)
            progress((done + 1) / len(places), f"{done + 1} of {len(places)} tensors")
        if factors is not None:
            written["rope_freqs.weight"] = digest(factors)
            writer.write_tensor_data(factors)
    finally:
        writer.close()
    check_bits(written, file_digests(path), path)
    return notes


def file_digests(path: Path) -> dict[str, str]:
    """A sum over the bits of each tensor of a file."""
    import gguf

    return {tensor.name: digest(tensor.data) for tensor in gguf.GGUFReader(path).tensors}


def _places(hf: Any, layout: Layout, kind: str) -> Iterator[Place]:
    """Where each weight goes; one that is used twice (a tied output layer) is there once."""
    import gguf

    config = hf.config
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == layout.name)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    heads = {".attn_q.": config.num_attention_heads}
    heads[".attn_k."] = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    for own, weight in hf.named_parameters():
        name = names.get_name(own, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ModelError(
                f"{own} has no place in a GGUF file of the architecture {layout.name}", where="export",
                mend="use --format safetensors",
            )  # fmt: skip
        count = next((n for part, n in heads.items() if part in name), 0) if layout.turned else 0
        transposed = own.endswith(layout.transposed) if layout.transposed else False
        columns = weight.shape[0] if transposed else weight.shape[-1]
        wanted = "F32" if weight.ndim == 1 or "position_embd" in name else TYPES[kind]
        if wanted == "Q8_0" and columns % 32:
            wanted = "F16"
        yield Place(name, own, weight, getattr(gguf.GGMLQuantizationType, wanted), count, transposed)


def _stored_shape(shape: tuple[int, ...], kind: Any) -> tuple[int, ...]:
    """The shape in bytes of a tensor of this type."""
    from gguf.quants import quant_shape_to_byte_shape

    return tuple(quant_shape_to_byte_shape(shape, kind))


def _stored(place: Place) -> np.ndarray:
    """A tensor's bytes as they stand in the file."""
    from gguf import GGMLQuantizationType as Kind
    from gguf.quants import quantize

    data = place.values()
    if place.kind in (Kind.F16, Kind.Q8_0) and not np.abs(data).max() <= _LARGEST_F16:
        raise ModelError(
            f"{place.own} has numbers that f16 cannot hold", where="export", mend="use --type bf16 or f32"
        )  # fmt: skip
    return quantize(data, place.kind).view(np.uint8)
