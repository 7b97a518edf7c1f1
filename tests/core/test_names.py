"""Names from files cannot be paths, and foreign text is shown as it is."""

import io
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from support.commands import nnit
from support.networks import random_policy

from nnit_dist.core.errors import NnitError
from nnit_dist.core.names import check_name, name_from
from nnit_dist.core.policy import load_policy, policy_bytes, save_policies, save_policy
from nnit_dist.core.task import TaskInfo
from nnit_dist.core.zoo import Member, Zoo
from nnit_dist.runtime.progress import PlainConsole, styled

BAD = [
    "../../evil",
    "/tmp/evil",
    "..",
    ".hidden",
    "a/b",
    "a\\b",
    "",
    "x" * 129,
    "[red]x[/foo]",
    "a b",
]
BAD += ["a\n", "\x1b[31m", "é", "a\x00"]


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_name_is_refused_wherever_it_comes_from(name, tmp_path):
    with pytest.raises(NnitError, match="cannot be a name"):
        check_name(name, "id")
    policy = replace(random_policy(), id=name)
    with pytest.raises(NnitError, match="cannot be a name"):
        save_policies([policy], tmp_path / "out")
    if name:  # without an id, a policy is named for its file
        (tmp_path / "in.safetensors").write_bytes(policy_bytes(policy))
        with pytest.raises(NnitError, match="cannot be a name"):
            load_policy(tmp_path / "in.safetensors")
        assert nnit("refine", tmp_path, "--out", tmp_path / "out").returncode == 1
    zoo = Zoo(tmp_path / "zoo")
    zoo.append([Member(policy, "", 0, 0, 0.0, 0.0, 0.0)])
    result = nnit("zoo", "export", zoo.path, "--out", tmp_path / "out")
    assert result.returncode == 1, result.stdout
    with pytest.raises(NnitError, match="cannot be a name"):
        TaskInfo(name, "pd_joint_delta_pos", 1, 1, 1)
    written = {path.name for path in tmp_path.rglob("*")} - {file.name for file in zoo.files()}
    assert written <= {"in.safetensors", "zoo"}


@given(st.text(max_size=200))
def test_a_name_can_be_made_of_any_text(text):
    assert check_name(name_from(text), "id") == name_from(text)
    if text and text == name_from(text):
        assert check_name(text, "id")


def test_a_file_without_an_id_gives_its_own_name(tmp_path):
    path = tmp_path / "ppo[seed1].safetensors"
    path.write_bytes(policy_bytes(replace(random_policy(), id="")))
    assert load_policy(path).id == "ppo_seed1_"


def test_another_policy_is_not_overwritten_unasked(tmp_path):
    first, other = random_policy(seed=0), random_policy(seed=1)
    save_policies([first], tmp_path)
    save_policies([first], tmp_path)  # the same
    more = replace(other, id="more")
    with pytest.raises(NnitError, match="holds another policy"):
        save_policies([more, other], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["p.safetensors"]
    assert load_policy(tmp_path / "p.safetensors").fingerprint() == first.fingerprint()
    save_policies([other], tmp_path, overwrite=True)
    assert load_policy(tmp_path / "p.safetensors").fingerprint() == other.fingerprint()


def test_generate_and_export_keep_what_is_there(tmp_path):
    out = tmp_path / "policies"
    words = ("generate", "--hidden", "32", "--out", out)
    assert nnit(*words, "--success", "0.3").returncode == 0
    kept = {path: path.read_bytes() for path in out.iterdir()}
    assert nnit(*words, "--success", "0.3").returncode == 0
    for other in (("--success", "0.9"), ("--task", "PickCube-v1"), ("--steps", "4")):
        result = nnit(*words, *other)
        assert result.returncode == 1
        assert "--overwrite" in result.stdout
    assert {path: path.read_bytes() for path in out.iterdir()} == kept
    assert nnit(*words, "--success", "0.9", "--overwrite").returncode == 0
    assert {path: path.read_bytes() for path in out.iterdir()} != kept
    zoo = Zoo(tmp_path / "zoo")
    policy = replace(random_policy(), id=next(iter(kept)).stem)
    zoo.append([Member(policy, "", 0, 0, 0.0, 0.0, 0.0)])
    assert nnit("zoo", "export", zoo.path, "--out", out).returncode == 1


def test_what_is_refined_is_not_taken_for_more_of_the_same(tmp_path):
    out = tmp_path / "policies"
    nnit("generate", "--hidden", "32", "--out", out)
    (file,) = out.iterdir()
    for policies in (out, file):
        assert nnit("refine", policies, "--steps", "2").returncode == 0
        assert list(out.iterdir()) == [file]
        (refined,) = (tmp_path / "policies-refined").iterdir()
        refined.unlink()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_file_has_weights_that_are_not_finite(value, tmp_path):
    policy = random_policy()
    policy.layers[1][0][0, 0] = value
    with pytest.raises(NnitError, match="NaN or infinite weights in layer 1"):
        save_policy(policy, tmp_path / "policy.safetensors")
    result = nnit("generate", "--hidden", "32", "--out", tmp_path, "--guidance", value)
    assert result.returncode in (1, 2)
    assert not list(tmp_path.iterdir())


def test_foreign_text_is_shown_as_it_is():
    file = io.StringIO()
    console = PlainConsole(
        file=file,
        highlight=False,
        markup=False,
        emoji=False,
        force_terminal=True,
        width=80,
    )
    table = Table("id", title="[bold]title")
    table.add_row("[red]x[/foo] \x1b[31m")
    console.print(table)
    console.print("[/red] \x1b]0;evil\x07 :smile:")
    console.print(styled(("error:", "bold"), " [b]x \x1b[2J"))
    shown = file.getvalue()
    for text in ("[red]x[/foo] \\x1b[31m", "[bold]title", "[/red] \\x1b]0;evil\\x07 :smile:"):
        assert text in shown
    assert "[b]x \\x1b[2J" in shown
    assert "\x1b]0" not in shown and "\x1b[2J" not in shown and "\x1b[31m" not in shown


def test_a_zoo_of_strange_ids_is_shown_in_one_message(tmp_path):
    zoo = Zoo(tmp_path / "zoo")
    zoo.append([Member(replace(random_policy(), id="[/red]x"), "", 0, 0, 0.0, 0.0, 0.0)])
    assert pq.read_table(zoo.files()[0])["id"].to_pylist() == ["[/red]x"]
    result = nnit("zoo", "ls", zoo.path)
    assert "Traceback" not in result.stdout + result.stderr
