import os
from pathlib import Path

from util.loggers.protocol import Place, default_environment


def test_a_run_has_the_name_of_its_folder():
    assert Place(Path("outputs/r50"), "a1", 0).name == "r50"


def test_what_the_user_set_in_the_environment_stays(monkeypatch):
    monkeypatch.setenv("SET_BY_USER", "1")
    monkeypatch.setenv("NOT_SET", "x")
    monkeypatch.delenv("NOT_SET")
    default_environment(SET_BY_USER="2", NOT_SET="3")
    assert os.environ["SET_BY_USER"] == "1" and os.environ["NOT_SET"] == "3"
