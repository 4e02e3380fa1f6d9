"""Rules for all test modules: their folders, no imports of each other, no patches of todo_api."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

import pytest

from tests.support import ROOT
from tests.support.differences import assert_same_lines

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TESTS = ROOT / "tests"
SOURCES = sorted(path for path in TESTS.rglob("*.py") if "node_modules" not in path.parts)


# Folders of tests for code outside todo_api.
OTHER_FOLDERS = {"deploy", "migrations"}


def is_test_module(module: str) -> bool:
    """Return whether an import names a test module or conftest.py, in any folder."""
    return any(part == "conftest" or part.startswith("test_") for part in module.split("."))


def find_test_imports(tree: ast.Module) -> Iterator[int]:
    """Return the numbers of lines that import a test module or conftest.py."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                modules = [alias.name for alias in names]
            case ast.ImportFrom(module=module, names=names):
                modules = [f"{module or ''}.{alias.name}" for alias in names]
                # Any other module may define names that begin with test_.
                if module and not module.startswith("tests") and not is_test_module(module):
                    modules = []
            case _:
                continue
        if any(map(is_test_module, modules)):
            yield node.lineno


def find_patches(tree: ast.Module) -> Iterator[int]:
    """Return the numbers of lines that replace an attribute of todo_api's modules and classes."""
    own_names = {
        alias.asname or alias.name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        if (getattr(node, "module", None) or alias.name).partition(".")[0] == "todo_api"
    }
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[target, *_]):
                patched = name in {"setattr", "delattr", "patch", "object"} and (
                    is_own(target, own_names)
                )
            case ast.Attribute(ctx=ast.Store() | ast.Del()):
                patched = is_own(node.value, own_names)
            case _:
                continue
        if patched:
            yield node.lineno


def is_own(target: ast.expr, own_names: set[str]) -> bool:
    """Return whether the target is a name of todo_api, its attribute, or a path as a text."""
    while isinstance(target, ast.Attribute):
        target = target.value
    match target:
        case ast.Name(id=name):
            return name in own_names
        case ast.Constant(value=str(path)):
            return path.partition(".")[0] == "todo_api"
    return False


def format_lines(path: Path, lines: Iterator[int]) -> list[str]:
    return [f"{path.relative_to(ROOT)}:{line}" for line in lines]


def test_folders_mirror_those_of_the_package():
    package = {path.parent.name for path in (ROOT / "todo_api").glob("*/__init__.py")}
    folders = {path.parent for path in SOURCES if path.name.startswith("test_")} - {TESTS}

    assert_same_lines(
        sorted({folder.name for folder in folders} - package - OTHER_FOLDERS),
        [],
        "Move the test to the folder that mirrors its folder of todo_api, or to the top of tests/.",
    )


def test_no_test_module_imports_another_one():
    imports = [
        line
        for path in SOURCES
        for line in format_lines(path, find_test_imports(ast.parse(path.read_text())))
    ]

    assert_same_lines(imports, [], "Move code that tests share to tests/support.")


def test_no_test_patches_todo_api():
    patches = [
        line
        for path in SOURCES
        for line in format_lines(path, find_patches(ast.parse(path.read_text())))
    ]

    assert_same_lines(
        patches,
        [],
        "Pass the value as an argument, with the constant as its default, instead of patching it.",
    )


@pytest.mark.parametrize(
    "source",
    [
        "import test_tasks",
        "import tests.tasks.test_tasks as other",
        "from test_tasks import ids",
        "from tests.tasks.test_tasks import ids",
        "from tests.tasks import test_tasks",
        "from . import test_tasks",
        "from .test_tasks import ids",
        "from conftest import execute",
        "from tests import conftest",
        "def test_it():\n    from tests.conftest import execute",
    ],
)
def test_find_test_imports_reports_an_import_of_a_test_module(source):
    assert list(find_test_imports(ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "from tests.support.api import etag",
        "from tests.support import ROOT",
        "from flask.testing import FlaskClient",
        "from werkzeug import test_app",
        "import pytest",
    ],
)
def test_find_test_imports_ignores_other_imports(source):
    assert not list(find_test_imports(ast.parse(source)))


@pytest.mark.parametrize(
    "statement",
    [
        "monkeypatch.setattr(pool, 'LIMIT', 1)",
        "monkeypatch.setattr(pool.time, 'sleep', print)",
        "monkeypatch.setattr('todo_api.db.pool.LIMIT', 1)",
        "monkeypatch.delattr(pool, 'LIMIT')",
        "monkeypatch.setattr(Pool, 'open', print)",
        "setattr(pool, 'LIMIT', 1)",
        "mock.patch('todo_api.db.pool.LIMIT', 1)",
        "mock.patch.object(pool, 'LIMIT', 1)",
        "pool.LIMIT = 1",
        "pool.LIMIT += 1",
        "todo_api.db.pool.LIMIT = 1",
        "del pool.LIMIT",
    ],
)
def test_find_patches_reports_a_patch_of_todo_api(statement):
    imports = (
        "import todo_api.db.pool\nfrom todo_api.db import pool\nfrom todo_api.db.pool import Pool\n"
    )

    assert list(find_patches(ast.parse(imports + statement))) == [4]


@pytest.mark.parametrize(
    "statement",
    [
        "monkeypatch.setenv('DATABASE_URL', '')",
        "monkeypatch.setattr(socket, 'create_connection', print)",
        "Model.client = client",
        "limit = pool.LIMIT",
    ],
)
def test_find_patches_ignores_patches_of_other_code(statement):
    source = f"import socket\nfrom todo_api.db import pool\n{statement}"

    assert not list(find_patches(ast.parse(source)))
