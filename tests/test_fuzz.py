"""Broken files, configurations and command lines: an error in one line, and no harm.

Nothing may end in a traceback, write outside its output, or take more than 1 GB of memory.
"""

import contextlib
import copy
import itertools
import json
import os
import resource
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save
from support.commands import ROOT, nnit
from support.networks import random_policy

from nnit_dist.core.errors import NnitError
from nnit_dist.core.files import canonical_safetensors
from nnit_dist.core.policy import Policy, load_policy, policy_bytes
from nnit_dist.core.zoo import Member, Zoo
from nnit_dist.core.zoo_file import SCHEMA
from nnit_dist.hypernet.model import HypernetModel
from nnit_dist.nnit.model import NNiTModel
from nnit_dist.stages.config import RunConfig
from nnit_dist.stages.config_file import load_config

MOST_BYTES = 1 << 30
fuzzed = settings(
    max_examples=int(os.environ.get("NNIT_FUZZ", "60")),
    deadline=None,
    derandomize="NNIT_FUZZ" not in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

NAN, INF = float("nan"), float("inf")
TEXTS = st.sampled_from(
    (
        *("", " ", "../../x", "/tmp/x", "[red]x[/foo]", "\x1b[31m", "a\nb", "é", "\x00", "-0"),
        *("NaN", "1e400", "[", "{}", "null", "PushCube-v1", "tanh", "9" * 400, "[" * 5000),
        "x" * 5000,
    )
)
NUMBERS = st.sampled_from(
    [0, -1, 1, 2, 8, 10**6, 10**12, 10**30, -(10**30), 0.5, 1e300, -1e300, NAN, INF, True, None]
)
VALUES = st.recursive(
    TEXTS | NUMBERS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(TEXTS.map(lambda t: t[:9]), inner, max_size=2)
    ),
    max_leaves=4,
)


@pytest.fixture(autouse=True)
def bounded_memory():
    """1 GB more than now, and no more: beyond it, allocations fail."""
    data = next(
        int(line.split()[1]) << 10
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmData:")
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (data + MOST_BYTES, hard))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


_allowed: list[Path] = []
_outside: list[str] = []


def _audit(event: str, args: tuple) -> None:
    if not _allowed:
        return
    if event == "open":
        path, _, flags = args
        paths = [path] if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC) else []
    elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.truncate", "shutil.rmtree"):
        paths = [args[0]]
    elif event in ("os.rename", "os.link", "os.symlink"):
        paths = list(args[:2])
    else:
        return
    for path in paths:
        if isinstance(path, str | bytes | os.PathLike):
            place = Path(os.path.realpath(os.fsdecode(path)))
            if place != Path(os.devnull) and not any(place.is_relative_to(a) for a in _allowed):
                _outside.append(f"{event} {place}")


sys.addaudithook(_audit)


@contextlib.contextmanager
def writing_only_in(*directories: Path):
    """Fail if Python code changes files elsewhere, libraries' caches apart."""
    _outside.clear()
    caches = (Path.home() / name for name in (".cache", ".config"))
    _allowed.extend(Path(os.path.realpath(path)) for path in (*directories, *caches))
    try:
        yield
    finally:
        _allowed.clear()
    assert _outside == []


def _places(value, path=()):
    """Paths to all values in nested dictionaries and lists."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from _places(value[key], (*path, key))


@st.composite
def changed(draw, value):
    """The value with up to three of its parts replaced, removed or joined by others."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        *above, last = (None, *draw(st.sampled_from(list(_places(value)))))
        if last is None:
            return draw(VALUES)
        holder = value
        for key in above[1:]:
            holder = holder[key]
        match draw(st.sampled_from(["replace", "replace", "remove", "add"])):
            case "replace":
                holder[last] = draw(VALUES)
            case "remove":
                del holder[last]
            case _ if isinstance(holder, dict):
                holder[draw(TEXTS)[:40]] = draw(VALUES)
    return value


@st.composite
def damaged(draw, data: bytes):
    """Bytes that are cut, or of which some are changed."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(0, 4))):
        # Most of what decides is at the beginning or at the end.
        place = draw(st.integers(0, 200) | st.integers(-200, -1)) % len(changed)
        changed[place] = draw(st.integers(0, 255))
    return bytes(changed[: draw(st.just(len(changed)) | st.integers(0, len(changed)))])


@st.composite
def tensor_files(draw, tensors: dict, metadata: dict):
    """A safetensors file of tensors and metadata (JSON values where they are JSON) with changes."""
    if draw(st.integers(0, 3)) == 0:
        return draw(damaged(canonical_safetensors(save(tensors, metadata))))
    tensors = dict(tensors)
    if draw(st.booleans()):
        name = draw(st.sampled_from(sorted(tensors)))
        old = tensors.pop(name)
        new = draw(
            st.sampled_from(
                [
                    None,
                    old.T.contiguous() if old.dim() == 2 else old[None],
                    *(old.flatten(), old[:1], torch.full_like(old, NAN)),
                    *(old.half(), old.bfloat16(), old.to(torch.int64)),
                    *(torch.zeros(0, 10**9), torch.zeros(())),
                ]
            )
        )
        tensors |= {} if new is None else {draw(st.just(name) | TEXTS): new}
    parsed = {name: _json_or_text(text) for name, text in metadata.items()}
    parsed = draw(changed(parsed))
    if not isinstance(parsed, dict):
        parsed = {}
    texts = {
        str(name): value if isinstance(value, str) else json.dumps(value)
        for name, value in parsed.items()
    }
    return canonical_safetensors(save(tensors, texts))


def _json_or_text(text: str):
    try:
        return json.loads(text)
    except ValueError:
        return text


def _contents(path: Path) -> tuple[dict, dict]:
    with safe_open(str(path), framework="pt") as file:
        return load_file(path), dict(sorted(file.metadata().items()))


POLICY = random_policy((16, 8))


def _policy_contents(tmp: Path) -> tuple[dict, dict]:
    path = tmp / "policy.safetensors"
    path.write_bytes(policy_bytes(POLICY))
    return _contents(path)


@fuzzed
@given(data=st.data())
def test_policy_files(data, tmp_path):
    bytes_ = data.draw(tensor_files(*_policy_contents(tmp_path)))
    file = tmp_path / "in.safetensors"
    file.write_bytes(bytes_)
    with writing_only_in():
        try:
            policy = load_policy(file)
        except NnitError as error:
            assert str(file) in str(error)
            return
    assert isinstance(policy, Policy)
    assert np.isfinite(policy.act(np.zeros(policy.topology.obs_dim, np.float32))).all()


@fuzzed
@given(data=st.data())
def test_model_files(data, small_run, tmp_path):
    model, path = data.draw(
        st.sampled_from([(NNiTModel, small_run.nnit()), (HypernetModel, small_run.hypernet())])
    )
    file = tmp_path / "model.safetensors"
    file.write_bytes(data.draw(tensor_files(*_contents(path))))
    with writing_only_in():
        try:
            loaded = model.load(file)
        except NnitError as error:
            assert str(file) in str(error)
            return
        write = loaded.generate if model is NNiTModel else loaded.policies
        with contextlib.suppress(NnitError):
            assert len(write((16, 8), 1, 0)) == 1


@st.composite
def zoo_tables(draw):
    """Rows of a zoo with other values and types."""
    member = Member(POLICY, "trial", 0, 1000, 0.5, 0.4, 1.0)
    row = {**member.row(), "weights": member.policy.flat().tolist()[: draw(st.integers(0, 800))]}
    for name in draw(st.lists(st.sampled_from(SCHEMA.names), max_size=2)):
        row[name] = draw(VALUES)
    columns = {}
    for name, value in row.items():
        kind = SCHEMA.field(name).type
        try:
            columns[name] = pa.array([value, value], kind)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            with contextlib.suppress(pa.ArrowException, TypeError, ValueError, OverflowError):
                columns[name] = pa.array([value, value])  # a column of another type
    return pa.table(columns)


@fuzzed
@given(data=st.data())
def test_zoos(data, tmp_path):
    directory = tmp_path / "zoo"
    directory.mkdir(exist_ok=True)
    file = directory / "part-a.parquet"
    try:
        pq.write_table(data.draw(zoo_tables()), file)
    except pa.ArrowException:
        return  # Parquet has no such type
    if data.draw(st.booleans()):
        file.write_bytes(data.draw(damaged(file.read_bytes())))
    out, zoo = tmp_path / "out", Zoo(directory)
    with writing_only_in(out):
        assert all(isinstance(problem, str) for problem in zoo.verify())
        for read in (zoo.rows, lambda: list(zoo.members())):
            with contextlib.suppress(NnitError):
                read()
        for words in (["ls"], ["show", POLICY.id], ["verify"], ["export", "--out", out]):
            check(nnit("zoo", words[0], directory, *words[1:]))


CONFIG = yaml.safe_load((ROOT / "configs/smoke.yaml").read_text())


@fuzzed
@given(data=st.data())
def test_configurations(data, tmp_path):
    file = tmp_path / "config.yaml"
    text = yaml.safe_dump(data.draw(changed(CONFIG)), allow_unicode=True).encode()
    if data.draw(st.booleans()):
        text = data.draw(damaged(text))
    file.write_bytes(text)
    overrides = data.draw(
        st.lists(st.sampled_from(["x", "=", "a=b", "name=", "nnit.steps=[", "seed=!!int x"]))
    )
    with writing_only_in():
        try:
            config = load_config(file, overrides)
        except NnitError as error:
            assert str(error)
            return
    assert isinstance(config, RunConfig)


def check(result) -> None:
    assert result.returncode in (0, 1, 2), result
    output = result.stdout + result.stderr
    assert "Traceback" not in output, output
    assert "unexpected error" not in output, output
    assert output.strip()


WORDS = st.sampled_from(
    (
        *("", "x\x00", "9" * 40, "-" * 30, "16" + "x16" * 90, "-", "--", "--out", "--task", "x"),
        *("../../x", "/proc/x", "/dev/null", ".", "é", "[red]x", "nan", "inf", "-1", "0", "1e99"),
        *("8x8", "8x", "PushCube-v1", "NoSuch-v1", "s3://", "s4://x", "x:y", "json:loads"),
        "http://127.0.0.1:8265",
    )
)
COMMANDS = [
    ["generate", "--hidden", "16x16", "--model", "MODEL", "--out", "OUT", "--overwrite"],
    ["generate", "--samples", "2", "--model", "RUN", "--out", "OUT", "--seed", "3", "--overwrite"],
    ["generate", "--hidden", "16", "--success", "0.5", "--guidance", "1", "--out", "OUT"],
    ["refine", "POLICIES", "--run", "RUN", "--steps", "1", "--out", "OUT", "--overwrite"],
    ["zoo", "export", "ZOO", "--out", "OUT", "--id", "p", "--overwrite"],
    ["zoo", "show", "ZOO", "p"],
    ["compare", "POLICIES", "OUT"],
    ["report", "CONFIG", "--out", "OUT"],
    ["evaluate", "POLICIES", "--task", "NoSuch-v1", "--out", "OUT"],
    ["evaluate", "POLICIES", "--episodes", "0", "--out", "OUT"],
    ["dashboard", "RUN"],
    ["keys", "nnit."],
]


@fuzzed
@given(data=st.data())
def test_command_lines(data, small_run, tmp_path):
    places = {
        "MODEL": small_run.nnit(),
        "RUN": small_run.path,
        "POLICIES": tmp_path / "policies",
        "ZOO": tmp_path / "zoo",
        "CONFIG": ROOT / "configs/smoke.yaml",
        "OUT": tmp_path / "out",
    }
    if not places["ZOO"].exists():
        Zoo(places["ZOO"]).append([Member(POLICY, "trial", 0, 1000, 0.5, 0.4, 1.0)])
        places["POLICIES"].mkdir()
        (places["POLICIES"] / "p.safetensors").write_bytes(policy_bytes(POLICY))
    words = [str(places.get(word, word)) for word in data.draw(st.sampled_from(COMMANDS))]
    unbroken = ("evaluate",)
    for _ in range(data.draw(st.integers(0 if words[0] in unbroken else 1, 2))):
        place = data.draw(st.integers(1, len(words) - 1))
        word = data.draw(WORDS)
        if words[place - 1] in ("--task", "--episodes", "--out"):
            continue
        words[place : place + data.draw(st.integers(0, 1))] = [word]
    cwd = tmp_path / "here"
    cwd.mkdir(exist_ok=True)
    with writing_only_in(tmp_path):
        check(nnit(*words, cwd=cwd))


def test_the_guards_of_these_tests_hold(tmp_path):
    with pytest.raises(MemoryError):
        bytearray(MOST_BYTES + (64 << 20))
    with pytest.raises(AssertionError), writing_only_in(tmp_path / "out"):
        (tmp_path / "other").write_text("x")
    assert len(set(itertools.chain(*COMMANDS))) > 30
