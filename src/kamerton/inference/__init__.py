"""Generate answers and score continuations, fast."""

from kamerton.inference.engine import Answer, Engine, Usage
from kamerton.inference.sampling import Sampling

__all__ = ["Answer", "Engine", "Sampling", "Usage"]
