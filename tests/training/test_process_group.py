"""Which network workers speak over."""

import os

import psutil
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from nnit_dist.training.process_group import interface_of, join_group, start_rendezvous

HERE = "127.0.0.1"


def test_the_interface_of_an_address_is_found():
    assert interface_of(HERE).startswith("lo")
    assert interface_of("203.0.113.9") is None


def _worker(rank: int, port: int, out: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = interface_of(HERE)
    join_group("gloo", HERE, port, worker=rank, workers=2, timeout_s=60)
    total = torch.tensor([float(rank + 1)])
    dist.all_reduce(total)
    with open(f"{out}-{rank}", "w") as file:
        file.write(" ".join([str(total.item()), *sorted(_listening())]))
    dist.barrier()
    dist.destroy_process_group()


def _listening() -> set[str]:
    connections = psutil.Process().net_connections("inet")
    return {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}


def test_workers_meet_and_listen_at_one_address_alone(tmp_path):
    before = _listening()
    address, port = start_rendezvous(HERE, 2)
    assert address == HERE
    assert _listening() - before <= {HERE}
    owners = {c.laddr.ip for c in psutil.Process().net_connections() if c.laddr[1:] == (port,)}
    assert owners == {HERE}
    mp.spawn(_worker, args=(port, str(tmp_path / "worker")), nprocs=2)
    for rank in range(2):
        assert (tmp_path / f"worker-{rank}").read_text() == f"3.0 {HERE}"
