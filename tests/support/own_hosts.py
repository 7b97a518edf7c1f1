"""Hosts on this machine: network namespaces with an SSH server each, as `ray up` wants them.

Each has its own address, processes, home and directories of Ray, and shares the other files of this
machine, as hosts with a common NFS do. Root and Debian's iproute2, openssh-server and rsync make
them.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

TOOLS = ("ip", "unshare", "sshd", "ssh-keygen", "rsync")
BRIDGE, NET = "nnitbr0", "10.213.77"
_SBIN = f"{os.environ['PATH']}:/usr/sbin:/sbin"

# In a mount and a process namespace of its own; a home of its own is where /etc/passwd says.
_INSIDE = """set -e
mount --make-rprivate /
for shared in /tmp/ray /tmp/nnit-$(id -u); do mkdir -p $shared && mount -t tmpfs tmpfs $shared; done
mount --bind {passwd} /etc/passwd
exec {sshd} -D -e -f {config}
"""


@dataclass(frozen=True)
class Host:
    """One of the hosts: its namespace and its address."""

    namespace: str
    address: str
    home: Path

    def commands(self) -> list[str]:
        """The command lines of all its processes but the SSH server's own."""
        pids = _run("ip", "netns", "pids", self.namespace).split()
        found = []
        for pid in pids:
            with suppress(psutil.NoSuchProcess):
                found.append(" ".join(psutil.Process(int(pid)).cmdline()))
        return [line for line in found if "sshd" not in line and not line.startswith("unshare")]


def missing() -> str:
    """Why this machine cannot make hosts, if it cannot."""
    if absent := [tool for tool in TOOLS if not shutil.which(tool, path=_SBIN)]:
        return f"not installed: {', '.join(absent)} (Debian: iproute2 openssh-server rsync)"
    if os.geteuid():
        return "network namespaces need root"
    try:
        _run("ip", "netns", "add", "nnit-trial")
        _run("ip", "netns", "delete", "nnit-trial")
    except subprocess.CalledProcessError as error:
        return f"no network namespaces here: {error.stderr.strip()}"
    return ""


@contextmanager
def own_hosts(count: int, place: Path) -> Iterator[tuple[list[Host], Path]]:
    """`count` hosts and the private key that root enters them with; gone afterwards."""
    key = place / "key"
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
    hosts = []
    servers: list[subprocess.Popen] = []
    _remove(count)  # what a killed run left
    try:
        _run("ip", "link", "add", BRIDGE, "type", "bridge")
        _run("ip", "address", "add", f"{NET}.1/24", "dev", BRIDGE)
        _run("ip", "link", "set", BRIDGE, "up")
        for number in range(count):
            hosts.append(_link(number, place))
            servers.append(_serve(hosts[-1], key, place))
        for host in hosts:
            _await_ssh(host, key)
        yield hosts, key
    finally:
        for server in servers:
            server.kill()  # and all that is in its process namespace
            server.wait(30)
        _remove(count)


def _link(number: int, place: Path) -> Host:
    """A namespace with an address, reached over the bridge."""
    host = Host(f"nnit-{number}", f"{NET}.{11 + number}", place / f"home-{number}")
    host.home.mkdir()
    inside, outside = f"nnit-in{number}", f"nnit-out{number}"
    _run("ip", "netns", "add", host.namespace)
    _run("ip", "link", "add", outside, "type", "veth", "peer", "name", inside)
    _run("ip", "link", "set", inside, "netns", host.namespace)
    _run("ip", "link", "set", outside, "master", BRIDGE, "up")
    within = ("ip", "-n", host.namespace)
    _run(*within, "address", "add", f"{host.address}/24", "dev", inside)
    _run(*within, "link", "set", "lo", "up")
    _run(*within, "link", "set", inside, "up")
    _run(*within, "route", "add", "default", "via", f"{NET}.1")
    return host


def _serve(host: Host, key: Path, place: Path) -> subprocess.Popen:
    """The SSH server of a host, first of its processes."""
    Path("/run/sshd").mkdir(exist_ok=True)
    passwd = place / f"passwd-{host.namespace}"
    lines = Path("/etc/passwd").read_text().splitlines()
    passwd.write_text(
        "".join(
            (f"root:x:0:0:root:{host.home}:/bin/bash" if line.startswith("root:") else line) + "\n"
            for line in lines
        )
    )
    config = place / f"sshd-{host.namespace}"
    config.write_text(
        f"ListenAddress {host.address}\nHostKey {key}\nAuthorizedKeysFile {key}.pub\n"
        "PermitRootLogin prohibit-password\nStrictModes no\nUsePAM no\nPidFile none\n"
    )
    sshd = shutil.which("sshd", path=_SBIN)
    inside = _INSIDE.format(passwd=passwd, sshd=sshd, config=config)
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return subprocess.Popen(
        ["ip", "netns", "exec", host.namespace, *unshare, "sh", "-c", inside],
        env=os.environ | {"PATH": _SBIN},
        stdout=subprocess.DEVNULL,
        stderr=(place / f"sshd-{host.namespace}.log").open("w"),
    )


def _await_ssh(host: Host, key: Path) -> None:
    options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-i", key]
    for _ in range(50):
        result = subprocess.run(
            ["ssh", *options, f"root@{host.address}", "echo ~"], capture_output=True, text=True
        )
        if result.stdout.strip() == str(host.home):
            return
        time.sleep(0.2)
    raise TimeoutError(f"{host.address} does not answer: {result.stderr or result.stdout}")


def _remove(count: int) -> None:
    commands = [("netns", "delete", f"nnit-{number}") for number in range(count)]
    commands += [("link", "delete", f"nnit-out{number}") for number in range(count)]
    for command in [*commands, ("link", "delete", BRIDGE)]:
        with suppress(subprocess.CalledProcessError):
            _run("ip", *command)


def _run(*command: str) -> str:
    result = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"PATH": _SBIN}
    )
    return result.stdout
