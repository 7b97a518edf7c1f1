"""Files that are whole or absent, and hashes of what they hold."""

import json

import numpy as np
import pytest
from safetensors.numpy import load, save

from nnit_dist.core.errors import NnitError
from nnit_dist.core.files import canonical_safetensors, content_hash, read_json, write_atomic


def test_a_failed_write_leaves_the_old_file_and_no_scraps(tmp_path):
    path = tmp_path / "value.txt"
    path.write_text("old")

    def fail(partial):
        partial.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(NnitError, match="No space left on device"):
        write_atomic(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_equal_models_have_equal_files():
    tensors = {"b": np.arange(6.0).reshape(2, 3), "a": np.ones(5, np.float32)}
    metadata = {str(i): "x" * i for i in range(20)}
    shuffled = dict(reversed(metadata.items()))
    one, two = (canonical_safetensors(save(tensors, m)) for m in (metadata, shuffled))
    assert one == two
    assert all(np.array_equal(load(one)[name], tensors[name]) for name in tensors)
    header = json.loads(one[8 : 8 + int.from_bytes(one[:8], "little")])
    assert header["__metadata__"] == metadata


def test_hash_covers_names_and_contents(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").write_text("x")
    first = content_hash(tmp_path / "d")
    (tmp_path / "d" / "a").rename(tmp_path / "d" / "b")
    second = content_hash(tmp_path / "d")
    (tmp_path / "d" / "b").write_text("y")
    third = content_hash(tmp_path / "d")
    assert len({first, second, third}) == 3
    (tmp_path / "d" / ".a.123.tmp").write_text("what a killed process began")
    assert content_hash(tmp_path / "d") == third


def test_damaged_json_says_what_to_do(tmp_path):
    (tmp_path / "m.json").write_text("{")
    with pytest.raises(NnitError, match="Delete it to redo its stage"):
        read_json(tmp_path / "m.json")
