"""Load a model (hub id, folder, GGUF, embedded demo) and see it as packs of tokens."""

from kamerton.base.load import Base, BaseInfo, load_base
from kamerton.base.model import CausalModel, Front, Hidden, Shared

__all__ = ["Base", "BaseInfo", "CausalModel", "Front", "Hidden", "Shared", "load_base"]
