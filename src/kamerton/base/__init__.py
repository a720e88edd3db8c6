"""Load a model (hub id, folder, GGUF, embedded demo) and see it as packs of tokens, or as encoder and decoder."""

from kamerton.base.encoder_decoder import EncoderDecoderModel, model_for
from kamerton.base.load import Base, BaseInfo, load_base
from kamerton.base.model import CausalModel, LanguageModel
from kamerton.base.passes import Front, Hidden, Shared

__all__ = [
    "Base", "BaseInfo", "CausalModel", "EncoderDecoderModel", "Front", "Hidden", "LanguageModel", "Shared", "load_base",
    "model_for",
]  # fmt: skip
