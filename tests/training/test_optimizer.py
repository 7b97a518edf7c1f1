"""Gradients of several workers."""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from nnit_dist.training.optimizer import average_gradients


def _worker(rank: int, world: int, store: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    used, unused = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))
    (used * (rank + 1)).sum().backward()
    average_gradients([used, unused])
    torch.save([used.grad, unused.grad], f"{out}-{rank}")
    dist.destroy_process_group()


def test_gradients_are_averaged_over_workers_and_missing_ones_count_as_zero(tmp_path):
    out = str(tmp_path / "grad")
    mp.spawn(_worker, args=(2, str(tmp_path / "store"), out), nprocs=2)
    for rank in range(2):
        used, unused = torch.load(f"{out}-{rank}", weights_only=True)
        assert torch.equal(used, torch.full((3,), 1.5))
        assert torch.equal(unused, torch.zeros(2))


def test_one_worker_keeps_its_gradients():
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.sum().backward()
    average_gradients([parameter])
    assert torch.equal(parameter.grad, torch.ones(3))
