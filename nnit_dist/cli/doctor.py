"""What this machine can do: cores, memory, GPU, rendering, versions."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import psutil

_PACKAGES = ("torch", "ray", "mani_skill", "sapien", "gymnasium", "numpy", "pyarrow")


def examine() -> list[tuple[str, str]]:
    """Describe this machine in (name, value) pairs, with what to do if something is missing."""
    import torch

    from nnit_dist.envs.headless import has_render_device
    from nnit_dist.nnit.trainer import has_bf16

    memory = psutil.virtual_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return [
        (
            "machine",
            f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        ),
        ("cores", f"{os.cpu_count()} ({psutil.cpu_count(logical=False)} physical)"),
        ("memory", f"{memory.total / 2**30:.0f} GiB, {memory.available / 2**30:.0f} GiB free"),
        ("GPU", _gpu(torch)),
        ("bfloat16", "yes" if has_bf16(device) else "no: training runs in float32"),
        ("rendering", _rendering(has_render_device())),
        ("packages", ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)),
    ]


def _gpu(torch) -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name(0)}; set training.gpu=true to use it"
    return "none: everything runs on the CPU"


def _rendering(found: bool) -> str:
    if found:
        return "a Vulkan device: the report shows rendered videos"
    return (
        "no Vulkan device: physics runs all the same, videos need one. Without a GPU, Mesa's "
        "lavapipe 24 or newer does (Debian: mesa-vulkan-drivers)"
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
