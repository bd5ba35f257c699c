import pytest

from util.errors import UserError
from util.optional import require


def test_missing_packages_are_named_with_what_installs_them():
    require("torch", "numpy")
    with pytest.raises(UserError, match="this needs no_such_one and no_such_two: pip install no_such_one no_such_two"):
        require("torch", "no_such_one", "no_such_two")
