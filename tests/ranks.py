"""What each process of test_distributed.py runs. A module of its own, so that the processes import no test."""

import os
from pathlib import Path

import torch
from torch import distributed
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import gossamer as gs
from cases import FLAT, OPTIMIZERS, TOPOLOGIES, generator, mlp

STEPS, WORLD = 16, 2
WRAPPED = (
    "set",
    "rigl",
    "csst",
    "csst by flow",
    "csst regrowing",
)  # by DistributedDataParallel, which fixes the sizes of parameters
AVERAGED = ("snfs", "gmp", "csst pooled", "csst merging")  # by hand, where sizes change


def trained(name: str, share: slice, parallel: bool) -> dict[str, torch.Tensor]:
    """The end of a run on a share of every batch: weights, indices and losses."""
    model = gs.sparsify(mlp(), 0.3, rng=generator(3))
    whole = DistributedDataParallel(model) if parallel and name in WRAPPED else model
    opt = OPTIMIZERS["nesterov"](whole.parameters())
    rewirer = gs.Rewirer(whole, opt, TOPOLOGIES[name], rng=generator(5))
    losses = []
    for x, y in FLAT.batches(STEPS):
        loss = F.cross_entropy(whole(x[share]), y[share])
        loss.backward()
        if parallel and name in AVERAGED:
            for p in model.parameters():
                distributed.all_reduce(p.grad)
                p.grad /= WORLD
        rewirer.step()
        opt.zero_grad()
        losses.append(loss.detach())
    return {**model.state_dict(), "losses": torch.stack(losses)}


def work(rank: int, folder: str) -> None:
    """One rank: half of every batch."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    half = slice(rank * FLAT.size // WORLD, (rank + 1) * FLAT.size // WORLD)
    torch.save({name: trained(name, half, parallel=True) for name in WRAPPED + AVERAGED}, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()
