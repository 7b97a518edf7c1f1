"""Process groups of torch over the network by which nodes of Ray reach each other.

By default Gloo listens at the address of the machine's name. On many machines that is the loopback
interface, which workers of other nodes cannot reach: Debian's /etc/hosts has `127.0.1.1 name`.
"""

import os
import socket
from dataclasses import dataclass

import psutil
import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

INTERFACE = "GLOO_SOCKET_IFNAME"


@dataclass
class NodeNetwork(TorchConfig):
    """Ray Train's configuration of torch, with Gloo on the interface of the node's address."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """The backend that Ray Train starts process groups with."""
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group, backend_config):
        if len(worker_group) == 1:
            return  # no group: torch's rendezvous listens on all interfaces, without a token
        worker_group.execute(_listen_at_node_address)
        super().on_start(worker_group, backend_config)


def _listen_at_node_address() -> None:
    name = interface_of(ray.util.get_node_ip_address())
    if name:
        os.environ.setdefault(INTERFACE, name)


def interface_of(address: str) -> str | None:
    """Name of the network interface with an IPv4 or IPv6 address; None if there is none."""
    families = (socket.AF_INET, socket.AF_INET6)
    for name, addresses in psutil.net_if_addrs().items():
        if any(a.family in families and a.address.split("%")[0] == address for a in addresses):
            return name
    return None
