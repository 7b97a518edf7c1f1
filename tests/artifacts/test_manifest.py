import os

import pytest

from nnit_dist.artifacts.manifest import StageManifest
from nnit_dist.core.errors import NnitError
from nnit_dist.core.files import read_json, write_json


def test_stage_is_done_only_after_its_manifest(tmp_path):
    source = tmp_path / "input"
    source.write_text("1")
    stage = StageManifest("align", tmp_path / "align", {"a": 1}, {"zoo": source})
    assert not stage.is_done()
    stage.begin()
    assert not StageManifest("align", tmp_path / "align", {"a": 1}, {"zoo": source}).is_done()
    manifest = stage.finish({"figure": 2})
    assert StageManifest("align", tmp_path / "align", {"a": 1}, {"zoo": source}).is_done()
    assert manifest["figures"] == {"figure": 2}


def test_time_between_two_tries_is_not_counted(tmp_path):
    stage = StageManifest("align", tmp_path, {}, {})
    stage.begin()
    for path in (tmp_path / ".key.json", tmp_path / "work"):
        path.touch()
    begun = read_json(tmp_path / ".key.json")
    begun["started"] -= 1000  # the first try worked for 100 s, then 900 s went by
    write_json(tmp_path / ".key.json", begun)
    for path in (tmp_path / ".key.json", tmp_path / "work"):
        os.utime(path, (begun["started"] + 100,) * 2)
    stage.begin()
    assert 100 <= stage.finish({})["seconds"] < 110


def test_stage_of_another_run_is_refused_and_kept(tmp_path):
    source = tmp_path / "input"
    source.write_text("1")
    stage = StageManifest("align", tmp_path / "align", {"a": {"b": 1}}, {"zoo": source})
    stage.begin()
    with pytest.raises(NnitError, match=r"config\.a\.b: 1, now 2"):
        StageManifest("align", tmp_path / "align", {"a": {"b": 2}}, {"zoo": source}).is_done()
    source.write_text("2")
    with pytest.raises(NnitError, match=r"inputs\.zoo"):
        StageManifest("align", tmp_path / "align", {"a": {"b": 1}}, {"zoo": source}).is_done()


def test_a_stage_that_only_measures_is_done_again_for_another_config(tmp_path):
    first = StageManifest("evaluate", tmp_path, {"evaluate": {"episodes": 2}}, {}, repeatable=True)
    first.begin()
    first.finish({})
    again = StageManifest("evaluate", tmp_path, {"evaluate": {"episodes": 3}}, {}, repeatable=True)
    assert first.is_done()
    assert not again.is_done()
    again.begin()
    assert not (tmp_path / "manifest.json").exists()  # killed now, it is not done
    again.finish({})
    assert again.is_done()
    assert not first.is_done()


def test_a_stage_that_an_older_version_finished_is_done(tmp_path):
    old = {"nnit": {"time_mean": 0.5, "networks": 4, "gone": None}, "evaluate": {"samples": 2}}
    write_json(tmp_path / "manifest.json", {"key": {"config": old, "inputs": {}}})
    settings = {"nnit": {"logit_mean": 0.5, "networks_per_topology": 4}}
    assert StageManifest("train", tmp_path, settings, {}).is_done()
    settings["nnit"]["logit_mean"] = 0.6
    with pytest.raises(NnitError, match=r"config\.nnit\.logit_mean: 0\.5, now 0\.6"):
        StageManifest("train", tmp_path, settings, {}).is_done()
