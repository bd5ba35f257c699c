"""Who may import whom, and where a source file's tests lie: read from the sources, imports within functions too."""
import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What a room may import beside itself. Nobody may import main, tools or run_with_submitit, and trainer only main.
# Tools may import those of their own that are no programs.
BELOW = {"util", "datasets", "models"}
ARROWS = {
    "util": set(), "datasets": {"util"}, "models": {"util"},
    "measure": BELOW, "reports": BELOW, "inference": BELOW | {"reports"}, "engine": BELOW,
    "deploy": BELOW | {"inference"}, "hubconf": BELOW | {"inference"},
    "trainer": BELOW | {"measure", "reports", "engine"},
    "main": BELOW | {"measure", "reports", "engine", "trainer"},
    "tools": BELOW | {"measure", "reports", "inference", "deploy", "engine"},
    "run_with_submitit": {"util"}, "weights": set(),
}

# Sources with functions whose tests lie elsewhere.
TESTED_IN = {
    "models/ops/setup.py": "tests/models/ops/test_build.py",
    "models/ops/test.py": "tests/models/ops/test_build.py",
}


def sources(root):
    """Name and path of every module. Tools are started as programs and import each other without their folder."""
    packages = {path.parent.name for path in root.glob("*/__init__.py")} | {"tools", "weights"}
    packages -= {"tests"}
    paths = [*root.glob("*.py"), *(path for package in packages for path in (root / package).rglob("*.py"))]
    paths = sorted(path for path in paths if "build" not in path.relative_to(root).parts)
    return {module_name(path.relative_to(root)): path for path in paths}


def module_name(path):
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(root):
    """{module: the modules of the project that it imports}"""
    modules = sources(root)
    by_short_name = {name.removeprefix("tools."): name for name in modules if name.startswith("tools.")}

    def resolve(name):
        """The module that a dotted name is, or lies in."""
        first, _, rest = name.partition(".")
        if first in by_short_name and first not in modules:
            name = f"{by_short_name[first]}.{rest}"
        while name and name not in modules:
            name = name.rpartition(".")[0]
        return name

    graph = {}
    for module, path in modules.items():
        names = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
                start = package[:len(package) - node.level + 1] if node.level else []
                whole = ".".join([*start, *([node.module] if node.module else [])])
                names |= {f"{whole}.{alias.name}" for alias in node.names}
        graph[module] = {resolve(name) for name in names} - {"", module}
    return graph


def programs(root):
    return {name for name, path in sources(root).items() if '__name__ == "__main__"' in path.read_text("utf-8")}


def forbidden(graph, programs):
    """The imports against the arrows, and the modules of rooms that have none."""
    found = []
    for module, imported in sorted(graph.items()):
        room = module.split(".")[0]
        if room not in ARROWS:
            found.append(f"{module}: say in ARROWS what {room} may import")
            continue
        for name in sorted(imported):
            other = name.split(".")[0]
            if other not in ARROWS[room] | {room} or (room == other == "tools" and name in programs):
                found.append(f"{module} imports {name}")
    return found


def cycle(graph):
    """The modules of one cycle, or none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def without_tests(root):
    """The sources X/Y.py with functions that have no tests/X/test_Y.py. A package's __init__ is tested with it."""
    lacking = []
    for path in sources(root).values():
        path = path.relative_to(root)
        functions = [node for node in ast.walk(ast.parse((root / path).read_text(encoding="utf-8")))
                     if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        mirror = TESTED_IN.get(str(path), Path("tests") / path.parent / f"test_{path.name}")
        if functions and path.name != "__init__.py" and not (root / mirror).exists():
            lacking.append(f"{path}: {mirror}")
    return lacking


def test_imports_follow_the_arrows():
    graph = imports(ROOT)
    assert {"trainer", "util.errors", "models.ops.reference"} <= graph.keys()
    assert "models.ops.reference" in graph["models.ops.functional"] and "tools.common" in graph["tools.detect"]
    assert {"main", "tools.detect"} <= programs(ROOT) and "tools.common" not in programs(ROOT)
    assert forbidden(graph, programs(ROOT)) == []


def test_no_module_imports_itself_by_way_of_others():
    assert cycle(imports(ROOT)) == []


def test_every_source_has_its_tests_where_one_looks_for_them():
    assert without_tests(ROOT) == []
    assert all((ROOT / path).exists() for path in TESTED_IN)


# The checks themselves, on small projects

def write(root, files):
    """Packages get their __init__.py."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        for folder in path.relative_to(root).parents[:-1]:
            if folder.parts[0] not in ("tools", "tests"):
                (root / folder / "__init__.py").touch()
    return root


@pytest.mark.parametrize("files, problem", [
    ({"util/a.py": "from models import b", "models/b.py": ""}, "util.a imports models.b"),
    ({"util/a.py": "def f():\n    import engine", "engine.py": ""}, "util.a imports engine"),
    ({"datasets/a.py": "from models.b import C", "models/b.py": "C = 1"}, "datasets.a imports models.b"),
    ({"models/a.py": "import datasets.b as b", "datasets/b.py": ""}, "models.a imports datasets.b"),
    ({"reports/a.py": "import engine", "engine.py": ""}, "reports.a imports engine"),
    ({"measure/a.py": "from reports import b", "reports/b.py": ""}, "measure.a imports reports.b"),
    ({"inference/a.py": "if True:\n    from measure.b import c", "measure/b.py": ""}, "inference.a imports measure.b"),
    ({"engine.py": "import trainer", "trainer.py": ""}, "engine imports trainer"),
    ({"trainer.py": "from main import parse_args", "main.py": ""}, "trainer imports main"),
    ({"tools/a.py": "from trainer import Trainer", "trainer.py": ""}, "tools.a imports trainer"),
    ({"tools/a.py": "import detect", "tools/detect.py": 'if __name__ == "__main__": ...'},
     "tools.a imports tools.detect"),
    ({"models/a.py": "from common import ROOT", "tools/common.py": ""}, "models.a imports tools.common"),
    ({"newcomer/a.py": ""}, "newcomer: say in ARROWS what newcomer may import"),
    ({"models/x/a.py": "from . import b\nfrom ..y import c", "models/x/b.py": "", "models/y/c.py": "import util.d",
      "util/d.py": "import torch", "tools/t.py": "from common import ROOT\nimport measuring", "tools/common.py": "",
      "tools/measuring.py": "import engine", "engine.py": "from models.x.a import A", "main.py": "import trainer",
      "trainer.py": "import engine, reports.r", "reports/r.py": "import models.x"}, None),
])
def test_a_forbidden_import_is_found(tmp_path, files, problem):
    found = forbidden(imports(write(tmp_path, files)), programs(tmp_path))
    assert problem in found if problem else found == []


def test_a_cycle_is_found(tmp_path):
    files = {"util/a.py": "from util.b import f", "util/b.py": "def f():\n    from util import c", "util/c.py": ""}
    assert cycle(imports(write(tmp_path, files))) == []
    assert set(cycle(imports(write(tmp_path, {"util/c.py": "import util.a"})))) == {"util.a", "util.b", "util.c"}
    assert cycle({"a": {"a.b"}, "a.b": {"a"}})


def test_a_source_without_tests_is_found(tmp_path):
    write(tmp_path, {"util/a.py": "def f(): ...", "util/b.py": "class B:\n    def f(self): ...", "util/c.py": "C = 1",
                     "engine.py": "async def f(): ...", "tests/util/test_b.py": "", "tests/test_c.py": ""})
    assert without_tests(tmp_path) == ["engine.py: tests/test_engine.py", "util/a.py: tests/util/test_a.py"]
