import pytest

from util.errors import LostProcess, UserError, nearest


def test_a_mistake_can_be_told_from_a_lost_process():
    """main.py and run_with_submitit.py go by the exit codes; both are values that something refused."""
    assert UserError.exit_code == 2 and LostProcess.exit_code == 75
    with pytest.raises(ValueError, match="no file x"):
        raise LostProcess("no file x")


@pytest.mark.parametrize("name, known, said", [
    ("num_querys", ["num_queries", "num_classes"], " Did you mean 'num_queries'?"),
    ("num_querys", iter(["backbone", "num_queries"]), " Did you mean 'num_queries'?"),
    ("x", ["num_queries"], ""), ("x", [], "")])
def test_the_nearest_name_is_suggested(name, known, said):
    assert nearest(name, known) == said
