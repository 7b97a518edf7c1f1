"""Process groups of torch over the network by which nodes of Ray reach each other.

Left to itself, torch's rendezvous listens on all interfaces, without a token, and Gloo at the
address of the machine's name. On many machines that is the loopback interface, which workers of
other nodes cannot reach: Debian's /etc/hosts has `127.0.1.1 name`. Here both use the address of
the node in the cluster alone. A single worker has neither.
"""

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psutil
import ray
import torch.distributed as dist
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend

INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_servers: list[dist.TCPStore] = []  # of this process, the first worker: they live as long


@dataclass
class NodeNetwork(TorchConfig):
    """Ray Train's configuration of torch, on the network of the cluster alone."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """The backend that Ray Train starts process groups with."""
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """As Ray's, with another rendezvous."""
        workers = len(worker_group)
        if workers == 1:
            return
        on_gpus = worker_group.get_resources_per_worker().get("GPU", 0) > 0
        worker_group.execute(_use_node_interface)
        worker_group.execute(_set_torch_distributed_env_vars)
        address, port = worker_group.execute_single(0, _start_rendezvous, workers)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank,
                    join_group,
                    backend_config.backend or ("nccl" if on_gpus else "gloo"),
                    address,
                    port,
                    worker=rank,
                    workers=workers,
                    timeout_s=backend_config.timeout_s,
                )
                for rank in range(workers)
            ]
        )


def _use_node_interface() -> None:
    if name := interface_of(ray.util.get_node_ip_address()):
        for variable in INTERFACES:
            os.environ.setdefault(variable, name)


def _start_rendezvous(workers: int) -> tuple[str, int]:
    return start_rendezvous(ray.util.get_node_ip_address(), workers)


def start_rendezvous(address: str, workers: int) -> tuple[str, int]:
    """Serve torch's key-value store at an address of this machine; returns the address and port.

    It is served until this process ends.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.bind((address, 0))
        listening.listen()
        port = listening.getsockname()[1]
        server = dist.TCPStore(
            address,
            port,
            workers,
            is_master=True,
            wait_for_workers=False,
            master_listen_fd=listening.detach(),
        )
    _servers.append(server)
    return address, port


def join_group(
    backend: str, address: str, port: int, *, worker: int, workers: int, timeout_s: float
) -> None:
    """Make this process that worker, from 0, of the group whose rendezvous is at an address."""
    timeout = timedelta(seconds=timeout_s)
    store = dist.TCPStore(address, port, workers, is_master=False, timeout=timeout)
    dist.init_process_group(backend, store=store, rank=worker, world_size=workers, timeout=timeout)


def interface_of(address: str) -> str | None:
    """Name of the network interface with an IPv4 or IPv6 address; None if there is none."""
    families = (socket.AF_INET, socket.AF_INET6)
    for name, addresses in psutil.net_if_addrs().items():
        if any(a.family in families and a.address.split("%")[0] == address for a in addresses):
            return name
    return None
