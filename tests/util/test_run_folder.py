import json
import shutil

import pytest

from util.config import load_config
from util.errors import UserError
from util.options import parse_options
from util.run_folder import git_hash, prepare_folder, record_run, require_space


def test_folder_is_made_with_its_parents(tmp_path):
    prepare_folder(tmp_path / "a/b")
    assert list((tmp_path / "a/b").iterdir()) == []


def test_a_file_in_the_way_is_an_error(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(UserError, match=str(tmp_path / "a")):
        prepare_folder(tmp_path / "a")


def test_space_for_the_checkpoints_is_required(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=199))
    require_space(tmp_path, 99, 2)
    with pytest.raises(UserError, match="--output_dir"):
        require_space(tmp_path, 100, 2)


def test_a_config_written_by_hand_is_kept(tmp_path):
    config = tmp_path / "config.py"
    config.write_text("lr = 0.5  # as in the paper\n")
    options = parse_options(load_config(config))
    with pytest.raises(UserError, match="config.py: give that another name"):
        record_run(tmp_path, options, {"config_file": config})
    assert config.read_text() == "lr = 0.5  # as in the paper\n"
    config.rename(tmp_path / "mine.py")
    record_run(tmp_path, options, {"config_file": tmp_path / "mine.py"})
    record_run(tmp_path, options.replaced(lr=0.25), {"config_file": config})  # one that a run wrote
    assert load_config(config).lr == 0.25


def test_the_recorded_config_runs_again(tmp_path):
    options = parse_options({"lr": 0.5, "lr_backbone_names": ["a"], "num_expansion": 3})
    record_run(tmp_path, options, {"note": "x"})
    assert parse_options(load_config(tmp_path / "config.py")) == options
    assert json.loads((tmp_path / "run.json").read_text())["git"] == git_hash()
