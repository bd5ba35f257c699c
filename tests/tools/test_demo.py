"""make demo, without its training: what it starts, and what it does when a program fails."""
import pytest

from tools import demo


def test_it_trains_evaluates_and_draws(monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(demo, "generate", lambda root, **options: started.append(root))
    monkeypatch.setattr(demo, "run", lambda *command: started.append(command))
    demo.main()
    data, training, evaluation, drawing = started
    assert data == demo.ROOT / demo.DATA
    assert training[:3] == ("main.py", "-c", demo.CONFIG) and "auto" in training and "--eval" not in training
    assert "--eval" in evaluation and f"{demo.OUTPUT}/checkpoint_best.pth" in evaluation
    assert drawing[:2] == ("tools/draw_results.py", demo.OUTPUT)
    assert all((demo.ROOT / name).is_file() for name in (training[0], demo.CONFIG, drawing[0]))


def test_a_failure_ends_the_demo_with_its_exit_code(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    (tmp_path / "fails.py").write_text("import sys; sys.exit(7)")
    with pytest.raises(SystemExit) as end:
        demo.run("fails.py")
    assert end.value.code == 7
