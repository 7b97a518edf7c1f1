"""Physics of ManiSkill3 on machines without a Vulkan device.

SAPIEN starts its renderer when a material is constructed, even with `render_backend="none"`. That
fails without a Vulkan device ("failed to find a rendering device"). `install_stand_ins` replaces
materials and textures by inert objects, and the `add_*_visual*` methods of the actor builder by
no-ops. Collision shapes, masses and joints do not change, so the physics is the same.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache

_PROBE = "import sapien; sapien.render.RenderMaterial()"
_VISUAL_TYPES = ("RenderMaterial", "RenderTexture2D", "RenderTexture")


class InertVisual:
    """A material or texture of SAPIEN that accepts all arguments and setters and does nothing."""

    def __init__(
        self, *args: object, base_color: Sequence[float] = (1.0, 1.0, 1.0, 1.0), **kwargs: object
    ) -> None:
        self.base_color = base_color

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("set_"):
            return lambda *args, **kwargs: None
        raise AttributeError(name)


@cache
def has_render_device() -> bool:
    """Whether SAPIEN can start its renderer here. A subprocess tries it, since it may abort."""
    probe = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, timeout=120)
    return probe.returncode == 0


@cache
def install_stand_ins() -> None:
    """Let this process build ManiSkill environments without a render device."""
    import sapien
    from sapien.wrapper import actor_builder

    # Modules that are imported already may have their own references to the types.
    loaded = [m for n, m in sys.modules.items() if n.split(".")[0] in ("sapien", "mani_skill")]
    for name in _VISUAL_TYPES:
        real = getattr(sapien.render, name)
        for module in loaded:
            if vars(module).get(name) is real:
                setattr(module, name, InertVisual)
    for name in dir(actor_builder.ActorBuilder):
        if name.startswith("add_") and "_visual" in name:
            setattr(actor_builder.ActorBuilder, name, _without_visual)

    find = sapien.Entity.find_component_by_type
    sapien.Entity.find_component_by_type = lambda entity, kind: _find(find, entity, kind)


class _InertBody:
    """A visual body without shapes, for tasks that change the look of their objects."""

    parts: tuple[()] = ()  # of a shape

    @property
    def render_shapes(self) -> "_InertBody":
        return self

    def __getitem__(self, index: int) -> "_InertBody":
        return self

    def __iter__(self) -> Iterator["_InertBody"]:
        return iter(())


def _find(find: Callable, entity: object, kind: type) -> object:
    """The entity's component of a type; an inert one in place of a visual body."""
    import sapien

    found = find(entity, kind)
    return _InertBody() if found is None and kind is sapien.render.RenderBodyComponent else found


def _without_visual(builder, *args, **kwargs):
    return builder
