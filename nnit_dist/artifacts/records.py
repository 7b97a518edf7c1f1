"""What a stage keeps about itself, as JSON: its manifest and, until that is there, its claim."""

from typing import TypedDict

from nnit_dist.core.files import JsonObject


class StageKey(TypedDict):
    """What a stage is made from. Another key means another run."""

    config: JsonObject  # the sections of the configuration that the stage reads
    inputs: dict[str, str]  # hash of each input, by label


class Manifest(TypedDict):
    """The manifest of a finished stage."""

    stage: str
    key: StageKey
    figures: JsonObject  # results of the stage
    seconds: float  # of work, in all tries together
    versions: dict[str, str]  # by package
    machine: str


class StageClaim(TypedDict):
    """The file by which an unfinished stage claims its directory."""

    key: StageKey
    started: float  # the current try, in seconds since the epoch
    spent: float  # seconds of work in earlier tries
