"""What import-linter cannot say: a module's private names are its own."""

from __future__ import annotations

import ast
from pathlib import Path

import segunc_ops

PACKAGE = Path(segunc_ops.__file__).parent
NAMELESS = {"argparse._ArgumentGroup"}
"""Types that have no public name."""


def private(name: str) -> bool:
    of_named_tuples = ("_asdict", "_field_defaults", "_fields", "_make", "_replace")
    return name.startswith("_") and not name.startswith("__") and name not in of_named_tuples


def private_uses(source: str) -> list[str]:
    """Private names of other modules that a module imports, or reads off one that it imports."""
    tree = ast.parse(source)
    modules: set[str] = set()
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
            # `from . import _module` names a module, which is the package's own.
            found += [name for name in names if private(name) and node.module is not None]
            modules.update(alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            modules.update(alias.asname or alias.name.partition(".")[0] for alias in node.names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr):
            owner = node.value
            while isinstance(owner, ast.Attribute):
                owner = owner.value
            if isinstance(owner, ast.Name) and owner.id in modules:
                found.append(ast.unparse(node))
    return found


def test_private_names_stay_in_their_module():
    modules = {path: private_uses(path.read_text()) for path in PACKAGE.rglob("*.py")}
    assert len(modules) > 40
    # There all stands that is used of torch beyond its public interface.
    assert any("torch._C" in use for use in modules.pop(PACKAGE / "_torch.py"))
    found = {str(path.relative_to(PACKAGE)): uses for path, uses in modules.items()}
    assert {name: uses for name, uses in found.items() if set(uses) - NAMELESS} == {}


def test_integrations_are_imported_by_their_users_alone():
    """They need packages that most users do not have."""
    folder = PACKAGE / "integrations"
    others = [path for path in PACKAGE.rglob("*.py") if folder not in path.parents]
    imports = [
        path
        for path in others
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom) and "integrations" in ast.unparse(node)
    ]
    assert imports == []


def test_private_uses_are_found():
    assert private_uses("from ..a import _b, c") == ["_b"]
    assert private_uses("import torch\ntorch._C.f()") == ["torch._C"]
    assert private_uses("from .. import functional\nfunctional._check(1)") == ["functional._check"]
    assert private_uses("from . import _types\nself._x = torch.f(_types.__doc__)") == []
