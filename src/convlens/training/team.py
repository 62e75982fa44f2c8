"""Several processes that train one network together (``torchrun``): one global batch, shared out by rank.

Every process holds the same weights and takes its share of each batch; the gradients, each scaled to the global
batch, are added up in one message per step, together with loss, hits and the wish to stop. So all processes have
the same state after every step, the first one alone writes files, and any number of them can go on from its
checkpoint. Batch norm uses the statistics of the global batch.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.nn.functional import all_reduce
from torch.distributed.rendezvous import rendezvous

from convlens.environment import rank_and_world, restarts
from convlens.errors import RecipeError, TrainingError
from convlens.training.recipe import Recipe

__all__ = ["ALONE", "Team", "check_for_team", "explained", "join", "synchronise_norms"]


@dataclass(frozen=True)
class Team:
    """This process among those that train together."""

    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        """True in the process that writes files and talks to the user."""
        return self.rank == 0

    def add_up(self, tensors: Sequence[Tensor], extras: Tensor) -> Tensor:
        """Sum ``tensors`` (in place) and ``extras`` (returned) over all processes, in one message."""
        if self.world == 1:
            return extras
        flat = torch.cat([*(tensor.reshape(-1) for tensor in tensors), extras.to(torch.float32)])
        dist.all_reduce(flat)
        parts: tuple[Tensor, ...] = flat.split([*(tensor.numel() for tensor in tensors), len(extras)])
        for tensor, part in zip(tensors, parts, strict=False):
            tensor.copy_(part.view(tensor.shape))
        return parts[-1]

    def total(self, values: Tensor) -> Tensor:
        """``values`` summed over all processes."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def tell(self, text: str, sender: int = 0) -> str:
        """The ``text`` of process number ``sender``, in every process. Bytes are sent, nothing is unpickled."""
        if self.world == 1:
            return text
        size = torch.tensor([len(text.encode())])
        dist.broadcast(size, sender)
        content = torch.zeros(int(size), dtype=torch.uint8)
        if self.rank == sender and len(content):
            content = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        dist.broadcast(content, sender)
        return content.numpy().tobytes().decode()

    def collect(self, text: str) -> list[str]:
        """The ``text`` of every process, by number, in every process."""
        return [self.tell(text, sender) for sender in range(self.world)]

    def wait(self) -> None:
        """Until every process has come here."""
        if self.world > 1:
            dist.all_reduce(torch.zeros(1))  # of the CPU, whatever computes: a barrier may choose a busy GPU


ALONE = Team()


def join() -> Team:
    """The team that ``torchrun`` started, or `ALONE`."""
    rank, world = rank_and_world()
    if world == 1:
        return ALONE
    if not dist.is_initialized():
        cuda = torch.cuda.is_available() and dist.is_nccl_available()
        # Keys of its own for every restart: the launcher's store still holds the addresses of lost processes.
        store = PrefixStore(f"convlens-{restarts()}", next(rendezvous("env://"))[0])
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world)
        atexit.register(_leave)  # else its threads may abort a process that ends well
    return Team(rank, world)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def explained(team: Team) -> Iterator[None]:
    """Turn what a backend says when another process is lost into our own error.

    Raises:
        TrainingError: a message did not come through; the run can go on from its checkpoint.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if team.world == 1 or not (isinstance(error, dist.DistError) or "gloo" in text.lower()):
            raise
        raise TrainingError(
            f"process {team.rank} of {team.world}: another process was lost ({text.splitlines()[0][:200]}). "
            "The run goes on from its checkpoint with --resume; torchrun --max-restarts N does so by itself."
        ) from None


def check_for_team(recipe: Recipe, team: Team) -> None:
    """Refuse what several processes cannot share.

    Raises:
        RecipeError: a time budget, or a batch that cannot be dealt out evenly.
    """
    if team.world > 1 and recipe.time_budget:
        raise RecipeError("time_budget: expected none with several processes, whose clocks differ; set epochs.")
    if recipe.batch_size is not None and recipe.batch_size % team.world:
        raise RecipeError(
            f"batch_size: expected a multiple of the {team.world} processes, received {recipe.batch_size}."
        )


def synchronise_norms(network: nn.Module) -> None:
    """Let every batch norm of ``network`` use the global batch; names and weights stay."""
    for module in network.modules():
        if type(module) in _SYNCHRONISED:
            module.__class__ = _SYNCHRONISED[type(module)]


class _GlobalStatistics(nn.modules.batchnorm._BatchNorm):
    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.running_mean is None or self.running_var is None:
            return super().forward(input)
        axes = [axis for axis in range(input.dim()) if axis != 1]
        shape = [1, -1] + [1] * (input.dim() - 2)
        count = torch.full((1,), float(input.numel() // input.shape[1]), device=input.device)
        sums = all_reduce(torch.cat([input.sum(axes), count]))
        total = sums[-1].detach()
        mean = sums[:-1] / total
        centred = input - mean.view(shape)
        variance = all_reduce((centred * centred).sum(axes)) / total
        with torch.no_grad():
            share = self.momentum if self.momentum is not None else 0.1
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance * (total / (total - 1)), share)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        normal: Tensor = centred * torch.rsqrt(variance + self.eps).view(shape)
        return normal if self.weight is None else normal * self.weight.view(shape) + self.bias.view(shape)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of axes: the class that was exchanged has checked the model already."""


_SYNCHRONISED: dict[type[nn.Module], type[nn.Module]] = {
    kind: type(f"Synchronised{kind.__name__}", (_GlobalStatistics,), {"__doc__": "Batch norm over all processes."})
    for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
}
