"""How several processes share one training: microbatches are dealt out, gradients are summed; alone, nothing happens.

Every process has the same step before it and computes its share of the microbatches; the sum of the gradients over all
processes is the gradient that one process would have had, because the loss is a sum divided by the step's whole count.
Parameters are whole in each process (data parallelism), or each process holds a part of every matrix, of its gradient
and of its optimiser's moments, and matrices are put together for the layer that needs them (FSDP2, PyTorch's
`fully_shard`; Zhao et al. 2023, arXiv 2304.11277).

An objective says in `dealt` what of it may be computed in different processes: its `steps`, its `validation`. What is
not named leaves something in the objective and is computed by all processes alike, which is right, and not faster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kamerton import processes
from kamerton.base.model import LanguageModel
from kamerton.errors import KamertonError

BUCKET = 2**23
"""Numbers that are summed over processes in one go."""
_ATTRIBUTES = ("rate", "decays", "matrix", "settles")
"""What parameters say of themselves (`optimisers.py`, `tuning`)."""


@dataclass(frozen=True)
class Share:
    """A microbatch that this process computes.

    Attributes:
        number: of the microbatch in its step.
        weight: what its loss counts in sums over processes: 1; 0 where it only keeps other processes company; a share
            of 1 where all compute it alike.
        scale: what its loss is multiplied with for the gradient.
    """

    number: int
    batch: Any
    weight: float
    scale: float


class Distribution:
    """The processes of this launch.

    Args:
        objective: what they optimise together.

    Attributes:
        count: of processes; `first`: whether this one writes.
        sharded: whether each holds a part of the parameters only.
        notes: what the user should know.
    """

    def __init__(self, objective: Any) -> None:
        self.count, self.first, self.sharded = processes.count(), processes.first(), processes.sharded()
        self.notes: list[str] = []
        self._dealt: tuple[str, ...] = getattr(objective, "dealt", ())
        self._root: nn.Module | None = None
        if self.count == 1:
            return
        if hasattr(objective, "accumulation"):  # microbatches small enough that each process has one
            objective.accumulation = max(objective.accumulation, self.count)
        if "steps" not in self._dealt:
            self.notes.append(
                f"each of the {self.count} processes computes all of the objective {objective.name}: its steps cannot "
                "be dealt out"
            )
        if self.sharded and (hasattr(objective, "begin") or hasattr(objective, "look")):
            what = f"the objective {objective.name}" if hasattr(objective, "begin") else "whoever looks at samples"
            raise KamertonError(
                f"{what} reads the model outside of the loss, where sharded parameters are not whole",
                mend="leave out --use_fsdp" if hasattr(objective, "begin") else "leave out samples, or --use_fsdp",
            )

    def prepare(self, step: nn.Module, model: LanguageModel) -> None:
        """Begin with the first process's trained parameters, and shard a step's module where that was asked for."""
        if self.count == 1:
            return
        with torch.no_grad(), processes.meeting() as group:
            for parameter in step.parameters():
                if parameter.requires_grad:
                    group.broadcast(parameter.data, src=0)
        if not self.sharded:
            return
        if any(not (p.is_floating_point() and p.ndim) for p in step.parameters()):
            raise KamertonError("quantised weights cannot be sharded", mend="leave out --use_fsdp")
        if model.frozen is not None:
            model.frozen = None
            self.notes.append("what frozen layers give is computed in every epoch: sharded, it is not kept")
        self._root = step
        _shard(step, model.hf)

    def settle(self) -> None:
        """After a pass without gradient: what it put together is shared out again."""
        if self._root is not None:
            self._root.reshard()  # type: ignore[operator]

    def release(self) -> None:
        """Whole parameters in every process again."""
        if self._root is not None:
            _put_together(self._root)
            self._root = None

    # -- a step -------------------------------------------------------------------------------------------------------

    def shares(self, batches: Sequence[Any], what: str = "steps") -> list[Share]:
        """What this process computes of a step's microbatches, or of a validation's (`what`: as in `dealt`)."""
        if self.count == 1:
            return [Share(i, batch, 1.0, 1.0) for i, batch in enumerate(batches)]
        # FSDP2 takes the mean of the processes' gradients
        sum_of_all = float(self.count) if self.sharded else 1.0
        if what not in self._dealt:
            part = 1 / self.count
            return [Share(i, batch, part, part * sum_of_all) for i, batch in enumerate(batches)]
        plan = deal_out([b.tokens for b in batches], self.count)
        own = [Share(i, batches[i], 1.0, sum_of_all) for i in plan[processes.rank()]]
        if self.sharded:  # a layer is put together by all processes at once
            least = min(batches, key=lambda b: b.tokens)
            own += [Share(0, least, 0.0, 0.0)] * (max(map(len, plan)) - len(own))
        return own

    def seed(self, seed: int, share: Share) -> None:
        """Random numbers (dropout) of a microbatch that is dealt out: the same whichever process computes it."""
        if self.count > 1 and "steps" in self._dealt:
            torch.manual_seed((seed + 1_000_033 * (share.number + 1)) % 2**63)

    @torch.no_grad()
    def reduce(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum gradients over processes; a parameter that has none anywhere still has none."""
        if self.count == 1 or self.sharded:
            return
        with processes.meeting() as group:
            there = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32)
            there = there.to(parameters[0].device)
            group.all_reduce(there)
            reached = [p for p, n in zip(parameters, there.tolist(), strict=True) if n]
            for parameter in reached:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            for bucket in _buckets([p.grad for p in reached if p.grad is not None]):
                flat = torch.cat([g.reshape(-1) for g in bucket])
                group.all_reduce(flat)
                for g, summed in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                    g.copy_(summed.view_as(g))

    def sums(self, own: Mapping[str, float]) -> dict[str, float]:
        """Sums of numbers by name over all processes; not all need have all names."""
        if self.count == 1:
            return dict(own)
        out: dict[str, float] = {}
        for numbers in processes.gathered(dict(own)):
            for name, value in numbers.items():
                out[name] = out.get(name, 0.0) + value
        return out


def deal_out(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Numbers of microbatches for each process: the largest first, each to whoever has least so far."""
    plan: list[list[int]] = [[] for _ in range(count)]
    load = [0] * count
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        to = load.index(min(load))
        plan[to].append(i)
        load[to] += sizes[i] + 1  # of microbatches without tokens each process gets some too
    return [sorted(own) for own in plan]


def _buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    out: list[list[Tensor]] = []
    used = 0
    for tensor in tensors:
        if not out or used + tensor.numel() > BUCKET or tensor.dtype != out[-1][0].dtype:
            out.append([])
            used = 0
        out[-1].append(tensor)
        used += tensor.numel()
    return out


# -- sharded parameters -----------------------------------------------------------------------------------------------


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each process may hold a part, put together; all processes call it."""
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, the same in all processes, on the device of another one, and sharded as that one is."""
    tensor = tensor.to(like.device)
    if not hasattr(like, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)  # type: ignore[attr-defined]


def _shard(step: nn.Module, hf: Any) -> None:
    """Shard each layer by itself, and whatever else there is as one group."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(next(step.parameters()).device.type, (processes.count(),))
    said = [{a: getattr(p, a) for a in _ATTRIBUTES if hasattr(p, a)} for p in step.parameters()]
    layers = set(getattr(hf, "_no_split_modules", None) or ())
    for module in [m for m in step.modules() if type(m).__name__ in layers]:
        fully_shard(module, mesh=mesh)
    fully_shard(step, mesh=mesh)
    _say(step, said)


def _say(step: nn.Module, said: Sequence[Mapping[str, Any]]) -> None:
    for parameter, attributes in zip(step.parameters(), said, strict=True):
        for name, value in attributes.items():
            setattr(parameter, name, value)


@torch.no_grad()
def _put_together(step: nn.Module) -> None:
    """Undo `_shard`: PyTorch has no function for it, and whoever saves or runs the model wants an ordinary one."""
    from torch.distributed.fsdp import FSDPModule

    states = [(m, m._get_fsdp_state()) for m in step.modules() if isinstance(m, FSDPModule)]
    for sharded, _ in states:
        sharded.reshard()
    said = [{a: getattr(p, a) for a in _ATTRIBUTES if hasattr(p, a)} for p in step.parameters()]
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in step.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            if parameter not in made:  # tied weights are one parameter again
                made[parameter] = nn.Parameter(whole(parameter.detach()), requires_grad=parameter.requires_grad)
            module._parameters[name] = made[parameter]
    _say(step, said)
    for sharded, state in states:
        handles = [state._pre_forward_hook_handle, state._post_forward_hook_handle]
        for group in state._fsdp_param_groups:
            handles += group._module_to_pre_save_state_dict_hook_handle.values()
            handles += group._module_to_pre_load_state_dict_hook_handle.values()
        for handle in handles:
            handle.remove()
        sharded.__class__ = type(sharded).__mro__[FSDPModule._orig_cls_mro_index]
