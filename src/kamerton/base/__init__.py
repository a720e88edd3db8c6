"""Load a model (hub id, folder, GGUF, embedded demo) and see it as packs of tokens, as encoder and decoder, or as an
encoder with a head."""

from kamerton.base.encoder import EncoderModel, Head
from kamerton.base.encoder_decoder import EncoderDecoderModel, model_for
from kamerton.base.load import Base, BaseInfo, load_base
from kamerton.base.model import CausalModel, LanguageModel
from kamerton.base.passes import Front, Hidden, Shared

__all__ = [
    "Base", "BaseInfo", "CausalModel", "EncoderDecoderModel", "EncoderModel", "Front", "Head", "Hidden",
    "LanguageModel", "Shared", "load_base", "model_for",
]  # fmt: skip
