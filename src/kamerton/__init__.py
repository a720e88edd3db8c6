"""Kamerton finds out, with evidence, which way of adapting a language model is best for your examples.

    import kamerton as kt
    result = kt.compare("examples/dates.yaml")
    adapted = kt.tune("examples/dates.yaml", "lora")

Names are imported when they are first used, so that `import kamerton` is instant.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Read when PyTorch's threads start. Threads that wait by spinning stall others many times over where cores are fewer
# than threads; threads that sleep at once take 75 µs to wake, which doubles the time of a small model's step. So they
# spin for about 200 µs where this machine has cores to spare now, and else not at all. Set the variables yourself to
# have it otherwise; docs/performance.md has the figures.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    _idle = hasattr(os, "getloadavg") and os.getloadavg()[0] < 0.5 * (os.cpu_count() or 1)
    os.environ.setdefault("GOMP_SPINCOUNT", "20000" if _idle else "0")

_NAMES = {
    "compare": "kamerton.api",
    "Comparison": "kamerton.comparison.run",
    "tune": "kamerton.api",
    "evaluate": "kamerton.api",
    "export": "kamerton.api",
    "Exported": "kamerton.exporting.run",
    "fidelity": "kamerton.api",
    "load": "kamerton.api",
    "merge": "kamerton.api",
    "Evaluation": "kamerton.api",
    "plan": "kamerton.api",
    "Device": "kamerton.comparison.planning.device",
    "Plan": "kamerton.comparison.planning.plan",
    "scaling": "kamerton.api",
    "Scaling": "kamerton.assessment.scaling_page",
    "ScalingSettings": "kamerton.assessment.scaling_settings",
    "Fidelity": "kamerton.assessment.write",
    "FidelitySettings": "kamerton.assessment.settings",
    "load_base": "kamerton.base",
    "Base": "kamerton.base",
    "load_recipe": "kamerton.recipe",
    "Recipe": "kamerton.recipe",
    "load_task": "kamerton.tasks",
    "Task": "kamerton.tasks.example",
    "Example": "kamerton.tasks.example",
    "Message": "kamerton.tasks.example",
    "Budget": "kamerton.training",
    "Sampling": "kamerton.inference",
    "Answer": "kamerton.inference",
    "Adapted": "kamerton.methods.method",
    "KamertonError": "kamerton.errors",
}

if TYPE_CHECKING:
    from kamerton.api import Evaluation, compare, evaluate, export, fidelity, load, merge, plan, scaling, tune
    from kamerton.assessment.scaling_page import Scaling
    from kamerton.assessment.scaling_settings import ScalingSettings
    from kamerton.assessment.settings import FidelitySettings
    from kamerton.assessment.write import Fidelity
    from kamerton.base import Base, load_base
    from kamerton.comparison.planning.device import Device
    from kamerton.comparison.planning.plan import Plan
    from kamerton.comparison.run import Comparison
    from kamerton.errors import KamertonError
    from kamerton.exporting.run import Exported
    from kamerton.inference import Answer, Sampling
    from kamerton.methods.method import Adapted
    from kamerton.recipe import Recipe, load_recipe
    from kamerton.tasks import load_task
    from kamerton.tasks.example import Example, Message, Task
    from kamerton.training import Budget

__all__ = [
    "Adapted", "Answer", "Base", "Budget", "Comparison", "Device", "Evaluation", "Example", "Exported", "Fidelity",
    "FidelitySettings", "KamertonError", "Message", "Plan", "Recipe", "Sampling", "Scaling", "ScalingSettings", "Task",
    "compare", "evaluate", "export", "fidelity", "load", "load_base", "load_recipe", "load_task", "merge", "plan",
    "scaling", "tune",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'kamerton' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
