"""The stages in order: what each reads and writes, and when it is skipped."""

import contextlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnit_dist.artifacts.manifest import Stage
from nnit_dist.core.errors import NnitError
from nnit_dist.core.files import read_json
from nnit_dist.core.splits import WITHIN, TopologySplit, spread
from nnit_dist.core.storage import beside, path_of
from nnit_dist.core.topology import Hidden
from nnit_dist.runtime.progress import console, quiet_libraries, short_time
from nnit_dist.runtime.ray_session import ray_session
from nnit_dist.stages.config import RunConfig
from nnit_dist.training.state import METRICS, read_metrics

if TYPE_CHECKING:
    from nnit_dist.nnit.model import NNiTModel

ALIGNED = "align/ghn.safetensors"
TRAINED = "train/nnit.safetensors"
STUDIED = 24  # unseen topologies that the studies are about
STAGES = ("population", "align", "train", "generate", "evaluate", "report")


class Run:
    """One run in the directory `out`, one subdirectory a stage.

    Every stage method does its stage unless it is done, and returns its manifest.
    """

    def __init__(self, config: RunConfig, out: Path) -> None:
        self.config, self.out = config, path_of(out)
        self._shared: contextlib.ExitStack | None = None  # a session of Ray for every stage

    @cached_property
    def split(self) -> TopologySplit:
        """Seen and unseen topologies, once there is a population."""
        from nnit_dist.core.zoo import Zoo

        return self.config.split(Zoo(self._of("population", "zoo")).topologies())

    def all(self) -> dict[str, Any]:
        """Every stage, in one session of Ray; returns the manifests by stage."""
        self._check_gpus("train")
        with contextlib.ExitStack() as self._shared:
            return {stage: getattr(self, stage)() for stage in STAGES}

    def population(self) -> dict[str, Any]:
        from nnit_dist.envs.tasks import check_task
        from nnit_dist.population.train import run_population

        c, known = self.config, self._known("population")
        for task in c.tasks:
            check_task(task)
        config = self._about("tasks", "control_mode", "population")
        recipes = {task: c.population.recipe_of(task).model_dump() for task in c.tasks}
        config["population"] |= {"recipes": recipes}
        return self._stage(
            "population",
            config,
            {"known": known / "zoo"} if known else {},
            lambda out: run_population(c.population, c.tasks, c.control_mode, out, known),
        )

    def align(self) -> dict[str, Any]:
        from nnit_dist.core.zoo import Zoo
        from nnit_dist.envs.sim import task_info
        from nnit_dist.stages.align import Alignment

        self._check_gpus("align")
        c, zoo, known = self.config, self._of("population", "zoo"), self._known(ALIGNED)
        config = self._about("tasks", "control_mode", "align", "topologies", "seed")
        return self._stage(
            "align",
            config,
            {"zoo": zoo} | ({"known": known} if known else {}),
            lambda out: Alignment(
                c.align,
                list(Zoo(zoo).members()),
                [task_info(task, c.control_mode) for task in c.tasks],
                self.split.seen,
                c.topologies.variation,
                out,
                c.training,
                c.seed,
                c.ray.actors,
                c.ray.sim_backend,
                known,
            ).run(),
        )

    def train(self) -> dict[str, Any]:
        from nnit_dist.stages.train import run_nnit

        self._check_gpus("train")
        c, ghn, known = self.config, self._of("align", "ghn.safetensors"), self._known(TRAINED)
        return self._stage(
            "train",
            self._about("nnit", "seed"),
            {"ghn": ghn} | ({"known": known} if known else {}),
            lambda out: run_nnit(c.nnit, ghn, out, c.training, c.seed, known),
        )

    def generate(self) -> dict[str, Any]:
        from nnit_dist.nnit.model import NNiTModel

        model = self._of("train", "nnit.safetensors")
        return self._stage(
            "generate",
            self._about("topologies", "generate", "seed"),
            {"model": model},
            lambda out: self._write_policies(NNiTModel.load(model), out),
            ray=False,
        )

    def _write_policies(self, model: "NNiTModel", out: Path) -> dict[str, Any]:
        from nnit_dist.stages.generate import generate_policies, generate_studies

        c, networks, spent, studied = self.config, 0, 0.0, 0
        inside = [h for kind in WITHIN for h in self.split.unseen.get(kind, [])]
        for task in c.tasks:
            own = model.for_task(task)
            written = generate_policies(
                own,
                self.measured_topologies(),
                c.generate.samples,
                out / "policies" / task,
                c.seed,
                c.generate.sampler_steps,
                guidance=c.generate.guidance,
            )
            networks += written["networks"]
            spent += written["networks"] * written["milliseconds_a_network"]
            if c.generate.studies:
                chosen = spread(inside or self.split.seen, STUDIED)
                studied += generate_studies(own, chosen, out / "studies" / task, c.seed)
        figures = {"networks": networks, "milliseconds_a_network": round(spent / networks, 2)}
        return figures | ({"studied": studied} if studied else {})

    def evaluate(self) -> dict[str, Any]:
        from nnit_dist.stages.evaluate import run_evaluation

        c = self.config
        inputs = {
            "policies": self._of("generate", "policies"),
            "ghn": self._of("align", "ghn.safetensors"),
            "zoo": self._of("population", "zoo"),
        }
        if c.generate.studies:
            inputs["studies"] = self._of("generate", "studies")
        return self._stage(
            "evaluate",
            self._about("tasks", "topologies", "generate", "evaluate", "seed"),
            inputs,
            lambda out: run_evaluation(
                c.tasks,
                inputs["policies"],
                inputs.get("studies"),
                inputs["ghn"],
                inputs["zoo"].parent,
                self.split,
                self.measured_topologies(),
                c.generate.samples,
                c.evaluate.episodes,
                c.align.min_success,
                c.seed,
                out,
                c.ray.actors,
                c.ray.sim_backend,
            ),
        )

    def report(self) -> dict[str, Any]:
        from nnit_dist.report.build import build_report

        inputs = {
            "results": self._of("evaluate", "results.json"),
            "model": self._of("train", "nnit.safetensors"),
        }
        return self._stage(
            "report",
            {"name": self.config.name},
            inputs,
            lambda out: build_report(self, out),
            ray=False,
        )

    def measured_topologies(self) -> list[Hidden]:
        """Unseen topologies of every kind, and an even choice of seen ones beside them."""
        generate, unseen = self.config.generate, self.split.unseen
        counts = generate.unseen_topologies
        chosen = [
            held if counts is None else spread(held, counts.get(kind, 0))
            for kind, held in unseen.items()
        ]
        chosen.append(spread(self.split.seen, generate.seen_topologies))
        return [hidden for some in chosen for hidden in some]

    def manifest(self, stage: str) -> dict[str, Any]:
        return read_json(self.out / stage / "manifest.json")

    def _check_gpus(self, stage: str) -> None:
        """NnitError where a local Ray would wait forever for GPUs that `stage` is to have."""
        training = self.config.training
        wanted = (training.min_workers or training.workers) if training.gpu else 0
        if self.config.ray.address or (self.out / stage / "manifest.json").exists():
            return
        import torch

        if (found := torch.cuda.device_count()) < wanted:
            raise NnitError(
                f"training.gpu asks for {wanted} GPU(s), a worker each, and torch finds {found} on "
                "this machine. Set training.gpu=false, or ray.address to a cluster that has some."
            )

    def _known(self, artefact: str) -> Path | None:
        """An artefact of the finished run that this one continues from."""
        before = self.config.continue_from
        if before is None:
            return None
        path = path_of(before) / artefact
        if not path.exists():
            raise NnitError(
                f"{before} lacks {artefact}; continue_from names the directory of a finished run."
            )
        return path

    def _about(self, *keys: str) -> dict[str, Any]:
        return self.config.model_dump(mode="json", include=set(keys))

    def _of(self, stage: str, name: str) -> Path:
        """A finished stage's artefact."""
        directory = self.out / stage
        if not (directory / "manifest.json").exists():
            raise NnitError(
                f"the {stage} stage of {self.out} is not finished; run `nnit {stage}` with the "
                "same configuration first, or `nnit run` for the whole chain."
            )
        return directory / name

    def _stage(
        self,
        name: str,
        config: dict,
        inputs: dict[str, Path],
        work: Callable[[Path], dict[str, Any]],
        ray: bool = True,
    ) -> dict[str, Any]:
        stage = Stage(name, self.out / name, config, inputs)
        if stage.is_done():
            console.print(f"[green]✓[/] {name:<11} already done: {stage.directory}")
            return self.manifest(name)
        stage.begin()
        console.print(f"[bold]•[/] {name}")
        log = beside(self.out, "logs") / f"{name}.log"
        with quiet_libraries(log), contextlib.ExitStack() as own:
            if ray:
                where = self.config.ray
                session = ray_session(where.address, where.num_cpus, claim=self.out)
                (self._shared or own).enter_context(session)
            figures = work(stage.directory)
        manifest = stage.finish(figures)
        self._log(name, figures)
        console.print(
            f"[green]✓[/] {name:<11} {short_time(manifest['seconds'])}, wrote {stage.directory}"
        )
        return manifest

    def _log(self, stage: str, figures: dict[str, Any]) -> None:
        """Curves and figures to Weights & Biases, grouped by run, when it is switched on."""
        if self.config.logging.wandb == "off":
            return
        import wandb

        numbers = {f"{stage}/{k}": v for k, v in figures.items() if isinstance(v, int | float)}
        run = wandb.init(
            project="nnit_dist",
            group=self.config.name,
            name=f"{self.config.name}-{stage}",
            mode=self.config.logging.wandb,
            dir=str(beside(self.out, "wandb").parent),  # it makes a directory of this name
            config=self.config.model_dump(mode="json"),
            settings=wandb.Settings(silent=True),
        )
        for row in read_metrics(self.out / stage / METRICS):
            run.log({f"{stage}/{k}": v for k, v in row.items()}, step=int(row["step"]))
        run.summary.update(numbers)
        run.finish()
