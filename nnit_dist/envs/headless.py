"""ManiSkill3 physics on machines that have no Vulkan device.

SAPIEN starts its renderer as soon as a material is constructed, even with
`render_backend="none"`, and a machine without a Vulkan device fails there
("failed to find a rendering device"). `install_stand_ins` replaces the
materials and textures by inert objects and makes every `add_*_visual*` call of
the actor builder a no-op. Collision shapes, masses and joints are untouched, so
the physics is the same with and without it.
"""

import subprocess
import sys
from functools import cache

_PROBE = "import sapien; sapien.render.RenderMaterial()"
_VISUAL_TYPES = ("RenderMaterial", "RenderTexture2D", "RenderTexture")


class InertVisual:
    """Accepts whatever a SAPIEN material or texture accepts, and does nothing."""

    def __init__(self, *args, base_color=(1.0, 1.0, 1.0, 1.0), **kwargs) -> None:
        self.base_color = base_color

    def __getattr__(self, name: str):
        if name.startswith("set_"):
            return lambda *args, **kwargs: None
        raise AttributeError(name)


@cache
def has_render_device() -> bool:
    """Whether SAPIEN can start its renderer here (asked in a subprocess: it may abort)."""
    probe = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, timeout=120)
    return probe.returncode == 0


@cache
def install_stand_ins() -> None:
    """Make ManiSkill environments buildable in this process without a render device."""
    import sapien
    from sapien.wrapper import actor_builder

    # Modules that are already imported hold the types under names of their own.
    loaded = [m for n, m in sys.modules.items() if n.split(".")[0] in ("sapien", "mani_skill")]
    for name in _VISUAL_TYPES:
        real = getattr(sapien.render, name)
        for module in loaded:
            if vars(module).get(name) is real:
                setattr(module, name, InertVisual)
    for name in dir(actor_builder.ActorBuilder):
        if name.startswith("add_") and "_visual" in name:
            setattr(actor_builder.ActorBuilder, name, _without_visual)


def _without_visual(builder, *args, **kwargs):
    return builder
