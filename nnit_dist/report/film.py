"""Films of several episodes, side by side in one video.

ManiSkill renders the frames if the machine has a Vulkan device. Otherwise they are drawn from
above, from the positions of the tool and the objects in the simulator.
"""

from dataclasses import dataclass
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
from einops import rearrange
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from nnit_dist.artifacts.run_directory import RunDirectory
from nnit_dist.core.files import write_atomic
from nnit_dist.core.splits import TopologySplit
from nnit_dist.core.topology import Hidden
from nnit_dist.envs.headless import has_render_device
from nnit_dist.envs.sim import TEST_SEED, SimEnv
from nnit_dist.nnit.model import NNiTModel
from nnit_dist.rollout.episodes import episode_functions
from nnit_dist.rollout.evaluable import Evaluable
from nnit_dist.rollout.evaluation import Evaluation

SIDE = 256  # pixels of one clip
COLUMNS = 3
CLIPS = 6
EVERY = 2  # env steps between frames
FPS = 10  # real time: ManiSkill controls at 20 Hz


@dataclass(frozen=True)
class Clip:
    """One episode of one policy, under a title."""

    policy: Evaluable
    seed: int
    title: str


def film(clips: list[Clip], path: Path) -> Path:
    """Write an MP4 of several episodes side by side; all policies must be of one task."""
    rendered = has_render_device()
    first = clips[0].policy
    env = SimEnv(first.task, first.control_mode, reward=False, render=rendered)
    shown = [_record(env, clip, rendered) for clip in clips]
    env.close()
    blank = np.full_like(shown[0], 255)
    shown += [blank] * (-len(shown) % COLUMNS)
    frames = rearrange(np.stack(shown), "(r k) t h w c -> t (r h) (k w) c", k=COLUMNS)
    return write_atomic(
        path,
        lambda partial: imageio.mimwrite(
            partial, list(frames), format="FFMPEG", fps=FPS, quality=6
        ),
    )


def film_unseen(run: RunDirectory, task: str, path: Path) -> Path:
    """Write an MP4 of a few unseen topologies: one NNiT sample and one episode of each."""
    model = NNiTModel.load(run.nnit()).for_task(task)
    policies = [model.generate(hidden, 1)[0] for hidden in _choose(run.split())]
    clips = [
        Clip(p, TEST_SEED + i, f"{p.topology.name}, {p.topology.num_params:,} weights")
        for i, p in enumerate(policies)
    ]
    return film(clips, path)


def film_extremes(result: Evaluation, directory: Path) -> list[Path]:
    """Write an MP4 each of the best, the median and the worst policy, failed episodes first."""
    rows = sorted(result.rows(), key=lambda row: (-row["success_once"], row["policy_id"]))
    if not rows:
        return []
    by_id = {policy.id: policy for policy in result.policies}
    picks = {"best": rows[0], "median": rows[len(rows) // 2], "worst": rows[-1]}
    written = []
    for name, row in picks.items():
        policy, success = by_id[row["policy_id"]], result.success(row["policy_id"])
        seeds = [result.scores.seeds[i] for i in np.argsort(success, kind="stable")[:CLIPS]]
        clips = [Clip(policy, seed, f"{policy.id}, start {seed}") for seed in seeds]
        written.append(film(clips, directory / f"{name}.mp4"))
    return written


def _choose(split: TopologySplit) -> list[Hidden]:
    """A few unseen topologies, from the smallest to the largest; seen ones if none is unseen."""
    unseen = sorted({h for kind in split.unseen.values() for h in kind}, key=lambda h: (sum(h), h))
    pool = unseen or split.seen
    count = min(CLIPS, len(pool))
    return [pool[i * (len(pool) - 1) // max(count - 1, 1)] for i in range(count)]


def _record(env: SimEnv, clip: Clip, rendered: bool) -> np.ndarray:
    """Frames [T, SIDE, SIDE, 3] of one episode."""
    act, take = episode_functions(env, clip.policy, clip.seed)
    obs, _ = env.reset(seed=clip.seed)
    frames, trail, step, truncated, success = [], [env.positions()], 0, False, False
    while not truncated:
        obs, _, _, truncated, info = take(act(obs))
        success, step = success or info["success"], step + 1
        trail.append(env.positions())
        if step % EVERY == 0 or truncated:
            frame = env.render() if rendered else _draw_from_above(trail)
            frames.append(_caption(frame, clip.title, success))
    return np.stack(frames)


def _caption(frame: np.ndarray, title: str, success: bool) -> np.ndarray:
    image = Image.fromarray(frame).resize((SIDE, SIDE))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, SIDE, 18), fill=(26, 127, 55) if success else (27, 31, 36))
    draw.text((6, 3), title + (": success" if success else ""), fill="white")
    return np.asarray(image)


def _draw_from_above(trail: list[dict[str, np.ndarray]]) -> np.ndarray:
    """Every object's position in the table's plane, and the tool's path."""
    figure = Figure(figsize=(4, 4), dpi=SIDE / 4)
    axes = figure.add_subplot()
    path = np.array([positions["tool"][:2] for positions in trail])
    axes.plot(path[:, 1], path[:, 0], color="#57606a", lw=1)
    for name, position in trail[-1].items():
        marker, size = {"tool": ("x", 60), "goal_region": ("o", 3200)}.get(name, ("s", 130))
        alpha = 0.25 if name.startswith("goal") else 1.0
        axes.scatter(position[1], position[0], marker=marker, s=size, alpha=alpha, label=name)
    axes.set_xlim(-0.4, 0.4)
    axes.set_ylim(-0.4, 0.45)
    axes.legend(loc="lower right", fontsize=7, markerscale=0.3, frameon=False)
    axes.set_axis_off()
    figure.subplots_adjust(0, 0, 1, 1)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
