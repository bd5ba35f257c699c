"""Fixtures of these tests."""
import shutil

import pytest


@pytest.fixture
def root(coco_root, tmp_path):
    """A copy of the set that a test may damage."""
    return shutil.copytree(coco_root, tmp_path / "set")
