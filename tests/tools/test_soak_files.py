"""Disks that fill, and how files are damaged."""
import copy
import json
import random
import time

import pytest

from tools.soak_files import damage, fill_disks, mutate, places, shallow_copy
from tools.soaking import Soak, Workshop


def test_every_entry_of_nested_containers_has_its_place():
    content = {"a": [1, {"b": 2}], "c": {}}
    found = {path: container[key] for container, key, path in places(content)}
    assert found == {"/a": content["a"], "/a/0": 1, "/a/1": {"b": 2}, "/a/1/b": 2, "/c": {}}


def test_a_mutation_changes_a_copy_in_one_place():
    content = {"images": [{"id": 1}, {"id": 2}], "info": {"x": [1, 2]}}
    original, kinds, changed = copy.deepcopy(content), set(), 0
    for seed in range(200):
        mutated = shallow_copy(content)
        action, path = mutate(mutated, random.Random(seed), plain=True).split()
        kinds.add(action)
        assert path.startswith(("/images", "/info"))
        json.dumps(mutated)
        changed += mutated != original
        assert content == original
    assert kinds == {"replace", "remove", "add"} and changed > 150


@pytest.mark.slow
@pytest.mark.soak
def test_a_full_disk_costs_nothing(tmp_path, capsys):
    soak = Soak("part", Workshop(tmp_path), random.Random(0), time.monotonic() + 20)
    fill_disks(soak)
    output = capsys.readouterr().out
    if "part: skipped" in output:
        pytest.skip(output)
    assert "met a full disk" in output
    assert soak.faults == 0, output


@pytest.mark.slow
@pytest.mark.soak
def test_every_kind_of_file_is_damaged(tmp_path, capsys):
    soak = Soak("part", Workshop(tmp_path), random.Random(0), time.monotonic() + 20)
    damage(soak)
    assert soak.faults == 0
    counts = capsys.readouterr().out.splitlines()[-1]
    assert counts.startswith("part: ") and counts.count(" of a") == 5 and " 0 " not in f" {counts} "
