"""What the pages name exists: links and their anchors, pictures, programs, configs, files of the tree, imports."""
import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/**/*.md"))
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(<?([^)\s>]+)>?\)")
PROGRAM = re.compile(r"\bpython(?:3)? (?:-m torch\.distributed\.launch )?(?:--\S+ )*((?:tools/|models/ops/)?\w+\.py)")
CONFIG = re.compile(r"\b(?:config|weights)/[\w./]+\.py\b")
README_WORDS = 1300


def targets(text):
    """The links of a page to files: [(path, anchor)]."""
    found = []
    for link in LINK.findall(FENCE.sub("", text)):
        if not re.match(r"[a-z]+:", link):
            path, _, anchor = link.partition("#")
            found.append((path, anchor))
    return found


def anchors(text):
    """What a heading is called in a link."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", TEXTS)
def test_links_and_pictures_lead_somewhere(page):
    for path, anchor in targets(TEXTS[page]):
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page}: {path}"
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{page}: {path}#{anchor}"


@pytest.mark.parametrize("page", TEXTS)
def test_programs_and_configs_exist(page):
    folder = ROOT / "models/ops"  # some commands begin with cd models/ops
    shown = re.findall(r"^```python\n# (\w+\.py)$", TEXTS[page], re.MULTILINE)  # by the page itself
    for name in set(PROGRAM.findall(TEXTS[page])) - set(shown):
        assert (ROOT / name).exists() or (folder / name).exists(), f"{page}: {name}"
    for name in CONFIG.findall(TEXTS[page]):
        assert (ROOT / name).exists() or name.startswith("outputs/"), f"{page}: {name}"


@pytest.mark.parametrize("page", [page for page in TEXTS if page != "docs/architecture.md"])
def test_python_in_the_pages_imports_what_there_is(page):
    """The examples of architecture.md are run by test_architecture.py."""
    for block in re.findall(r"^```python\n(.*?)^```$", TEXTS[page], re.MULTILINE | re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


@pytest.mark.parametrize("page", TEXTS)
def test_code_says_its_language_and_tables_are_even(page):
    fences = re.findall(r"^ *```(.*)$", TEXTS[page], re.MULTILINE)
    assert len(fences) % 2 == 0 and all(fences[::2]), f"{page}: a fence without a language"
    for table in re.findall(r"(?:^\|.*\|$\n)+", TEXTS[page], re.MULTILINE):
        widths = {len(re.sub(r"\\\||`[^`]*`", "", row).split("|")) for row in table.splitlines()}
        assert len(widths) == 1, f"{page}: {table}"


@pytest.mark.parametrize("page", TEXTS)
def test_the_pages_use_the_words_of_the_field(page):
    assert re.findall(r"\b(?:dear(?:er|est)?|(?:has|have) no say|mend(?:ed|s)?|per cent)\b", TEXTS[page]) == []


def test_the_readme_is_short_and_names_every_room():
    readme = TEXTS["README.md"]
    assert len(readme.split()) < README_WORDS
    tree = readme[readme.index("## The code"):].split("```")[1]
    names = [line.split()[0] for line in tree.splitlines()[1:] if line.strip()]
    assert all((ROOT / name).exists() for name in names)
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert {f"{room}/" for room in rooms} <= set(names)
    assert {"make test", "make demo"} <= set(re.findall(r"make \w+", readme))


def test_the_checks_see_a_broken_page():
    text = "[a](nope.md#x) ![b](c.png)\n```text\n[not](a_link)\n```\n[far](https://a.b)\n"
    assert targets(text) == [("nope.md", "x"), ("c.png", "")]
    assert PROGRAM.findall("python -m torch.distributed.launch --nproc_per_node=8 main.py -c x") == ["main.py"]
    assert anchors("# The H2L2, `a`\n") == {"the-h2l2-a"}
