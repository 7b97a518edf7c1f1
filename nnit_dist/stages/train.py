"""The train stage: NNiT learns to write the networks of the hypernetwork.

Reads: the hypernetwork, and the model of the run that this one continues from, if any.
Does: trains the diffusion transformer under Ray Train.
Writes: `train/nnit.safetensors` and the training losses.
"""

from pathlib import Path

from nnit_dist.artifacts.run_directory import RunDirectory, TrainDirectory
from nnit_dist.nnit.model import NNiTModel
from nnit_dist.nnit.train import BAR, NNiTTraining, TrainSegment
from nnit_dist.runtime.progress import StageProgress
from nnit_dist.stages.plan import Figures, RunContext, StagePlan
from nnit_dist.training.state import read_metrics, steps_logged


def plan(context: RunContext) -> StagePlan:
    """Plan the stage; raises NnitError if the align stage is not finished."""
    context.run.require("align")
    hypernet, earlier = context.run.hypernet(), context.earlier(RunDirectory.nnit)
    return StagePlan(
        "train",
        context.reads("nnit", "seed"),
        {"ghn": hypernet} | ({"known": earlier} if earlier else {}),
        lambda out: _train(context, earlier, TrainDirectory(out)),
    )


def _train(context: RunContext, earlier: Path | None, out: TrainDirectory) -> Figures:
    config = context.config
    training = NNiTTraining(config.nnit, context.run.hypernet(), out, config.training, config.seed)
    with StageProgress("steps") as view:
        view.add(BAR, config.nnit.steps, steps_logged(out.metrics))
        training.run(TrainSegment("train", config.nnit.steps, continue_from=earlier), view)
    return {
        "steps": config.nnit.steps,
        "flow_loss": read_metrics(out.metrics)[-1]["flow"],
        "parameters": NNiTModel.load(out.nnit).parameters,
    }
