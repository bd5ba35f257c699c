"""An object's attributes are assigned by its own class."""
import ast
from pathlib import Path

FILES = sorted(Path("models").rglob("*.py"))
OWN = {"self", "cls", "ctx"}  # ctx: of an autograd function
MARK = "# assigned from outside:"  # followed by the reason, in the line of the assignment


def targets(node):
    """The single targets of an assignment."""
    parts = getattr(node, "targets", None) or [node.target]
    for part in parts:
        yield from part.elts if isinstance(part, (ast.Tuple, ast.List)) else [part]


def owner(node):
    """x of x.y.z and x.y[i]; None of plain names and of x[i]."""
    attribute = False
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        attribute |= isinstance(node, ast.Attribute)
        node = node.value
    return getattr(node, "id", "an expression") if attribute else None


def assigned_from_outside(source):
    """Lines that assign x.y, x.y.z or x.y[...] for an x other than self, cls or ctx, and give no reason."""
    lines = source.splitlines()
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            continue
        for target in targets(node):
            if owner(target) not in OWN | {None} and MARK not in lines[node.lineno - 1]:
                found.append(node.lineno)
    return sorted(set(found))


def test_what_is_found():
    assert assigned_from_outside("a.b = 1\nself.b = 2\na.b.c, d = 1, 2\na.b[0] += 1\na[0] = 1\nself.a.b = 3\n"
                                 "a.b = 1  # assigned from outside: reason\na.b: int = 3\na[b.c] = 1\nf().a = 1") == [
                                     1, 3, 4, 8, 10]


def test_only_a_class_assigns_its_attributes():
    found = {str(path): lines for path in FILES if (lines := assigned_from_outside(path.read_text()))}
    assert len(FILES) > 30 and found == {}
