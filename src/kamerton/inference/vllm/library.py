"""Start vLLM in this process, quietly, on a folder of weights.

It is never given a tokenizer: Kamerton's renderer makes the tokens and reads them. It sends no statistics of its use,
and runs in this process, so that what chooses tokens (`choosing.py`) is at hand.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kamerton.backends import check_vllm
from kamerton.errors import KamertonError, ResourceError
from kamerton.memory import out_of_memory

_QUIET = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # which takes no choice of tokens from outside yet
}
_SETTINGS = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
"""Set where the user has not."""
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks of LoRA that vLLM makes room for."""
BLOCK = 32
"""Tokens of a block of keys and values on a CPU: what prompts begin with is shared in whole blocks."""
MOST_TOP = 64
"""Likeliest tokens that can be told of at each place."""


@dataclass(frozen=True)
class Needs:
    """What one set of weights is asked for.

    Attributes:
        tokens: whose keys and values are kept at once.
        positions: the longest prompt with its answer, at most `tokens`.
        rows: answers that are decoded at once.
        rank: the largest rank of LoRA, 0 where there is none; `adapters`: how many of them at once.
        soft: prompts hold soft tokens.
    """

    tokens: int
    positions: int
    rows: int = 256
    rank: int = 0
    adapters: int = 1
    soft: bool = False

    def __or__(self, other: Needs) -> Needs:
        """What both ask for."""
        return Needs(*(max(a, b) for a, b in zip(self._all(), other._all(), strict=True)))  # type: ignore[arg-type]

    def _all(self) -> tuple[int, ...]:
        return (self.tokens, self.positions, self.rows, self.rank, self.adapters, self.soft)

    def covers(self, other: Needs) -> bool:
        """Whether nothing is missing for another one."""
        return self | other == self


def start(folder: str | Path, needs: Needs, *, dtype: str, device: str, cache_bytes: int, trusted: bool) -> Any:
    """vLLM's engine on the weights of a folder.

    Args:
        folder: a model folder, or a hub id.
        needs: what it must have room for.
        dtype: float32, bfloat16 or float16.
        device: where the base is; vLLM takes the kind of device that it was built for, which must be the same.
        cache_bytes: memory for keys and values.
        trusted: the model's own code may run.

    Raises:
        MissingExtra: vLLM is not installed.
        ResourceError: there is too little memory.
        KamertonError: vLLM does not take the model, or was built for another device.
    """
    check_vllm()
    os.environ.update(_QUIET)
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    threads, set_threads = torch.get_num_threads(), torch.set_num_threads
    try:
        from vllm.engine.arg_utils import EngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.llm_engine import LLMEngine

        from kamerton.inference.vllm.choosing import Choosing
    except Exception as error:
        raise _refused(error, "cannot be loaded", folder) from error
    kind = current_platform.device_type
    if kind != torch.device(device).type:
        raise KamertonError(
            f"this vLLM computes on {kind or 'no device here'}, the base is on {device}", where="backend: vllm",
            mend=f"set base.device to {kind}, install the vLLM for {device}, or use the backend torch"
            if kind else "use the backend torch",
        )  # fmt: skip
    warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")  # of its own calls of torch
    on_cpu = kind == "cpu"
    lora: dict[str, Any] = {}
    if needs.rank:
        fitting = next((r for r in RANKS if r >= needs.rank), None)
        if fitting is None:
            raise KamertonError(
                f"a LoRA of rank {needs.rank}, and vLLM takes at most {RANKS[-1]}", where="backend: vllm",
                mend="merge it (kamerton merge), or use the backend torch",
            )  # fmt: skip
        lora = {"enable_lora": True, "max_lora_rank": fitting, "max_loras": needs.adapters}
    try:
        return LLMEngine.from_engine_args(EngineArgs(
            model=str(folder), dtype=dtype, skip_tokenizer_init=True, trust_remote_code=trusted,
            max_model_len=needs.positions, max_num_seqs=needs.rows, kv_cache_memory_bytes=cache_bytes,
            enable_prompt_embeds=needs.soft, logits_processors=[Choosing], max_logprobs=MOST_TOP,
            enforce_eager=on_cpu,  # compiling takes longer there than most evaluations
            disable_log_stats=True, use_tqdm_on_load=False, **({"block_size": BLOCK} if on_cpu else {}), **lora,
        ))  # fmt: skip
    except KamertonError:
        raise
    except Exception as error:  # it raises many kinds; every one is about this model or this machine
        if out_of_memory(error):
            raise ResourceError(
                "memory ran out while vLLM loaded the model", where="backend: vllm",
                mend="lower evaluation.max_batch_tokens or --batch-tokens, or use the backend torch",
            ) from error  # fmt: skip
        raise _refused(error, "does not take this model", folder) from error
    finally:
        torch.set_num_threads = set_threads  # it puts one there that does nothing
        torch.set_num_threads(threads)


def _refused(error: Exception, what: str, folder: str | Path) -> KamertonError:
    reason = " ".join(f"{error}".split())[:300]
    return KamertonError(
        f"vLLM {what} ({type(error).__name__}: {reason})", where=folder, mend="use the backend torch"
    )  # fmt: skip
