"""The check of private APIs finds their uses in modules, and compares these uses with the table."""

from __future__ import annotations

from textwrap import dedent

import pytest

from tools.library_uses import Module, Project, Use
from tools.private_apis import Row, faults, read_rows


def find_names(*sources: str) -> list[str]:
    """Return the names that the check reports for modules m0, m1, ... with these sources."""
    modules = [
        Module(f"m{number}.py", f"todo_api.m{number}", dedent(source))
        for number, source in enumerate(sources)
    ]
    return [use.name for use in Project(modules).uses()]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import flask\nflask._hidden", "flask._hidden"),
        ("import flask as f\nf.ctx._hidden.shown", "flask.ctx._hidden"),
        ("from flask import _hidden", "flask._hidden"),
        ("from flask._hidden import shown", "flask._hidden.shown"),
        ("def f(view):\n    return view._apidoc", "?._apidoc"),
        ("def f(view):\n    return getattr(view, '_apidoc', {})", "?._apidoc"),
        ("def f(view):\n    setattr(view, '_apidoc', {})", "?._apidoc"),
        ("from gunicorn import util", "gunicorn.util"),
        ("from gunicorn.http import wsgi as w\n", "gunicorn.http.wsgi"),
        ("def f(server):\n    server.START_CTX", "gunicorn.arbiter.Arbiter.START_CTX"),
        ("f(1)  # private: library.name: no public name exists", "library.name"),
    ],
)
def test_private_name_is_reported(source, name):
    assert name in find_names(source)


@pytest.mark.parametrize(
    "source",
    [
        "import flask\nflask.request",
        "import flask\nflask.__version__",
        "import flask\nflask.request._get_current_object()",
        "from todo_api.auth import _hidden",
        "class A:\n    def f(self):\n        self._own = self._other()",
        "from flask import Flask\nclass A(Flask):\n    def f(self):\n        self._own = 1",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from gunicorn import util",
        "from marshmallow import fields\nclass A(fields.Field):\n    def _deserialize(self): ...",
    ],
)
def test_public_or_own_name_is_not_reported(source):
    assert find_names(source) == []


def test_private_member_of_a_library_class_is_reported():
    source = """
        from flask_smorest import Blueprint

        class Ours(Blueprint):
            def __init__(self):
                super().__init__()
                self._docs = {}

            def _prepare_response_doc(self):
                return super()._prepare_arguments_doc()
    """

    assert find_names(source) == [
        "flask_smorest.blueprint.Blueprint._docs",
        "flask_smorest.response.ResponseMixin._prepare_response_doc",
        "flask_smorest.arguments.ArgumentsMixin._prepare_arguments_doc",
    ]


def test_private_member_is_reported_through_a_base_class_in_another_module():
    base = "from flask_smorest import Blueprint\nclass Base(Blueprint): ..."
    source = "from todo_api.m0 import Base\nclass Ours(Base):\n    _docs = 1"

    assert find_names(base, source) == ["flask_smorest.blueprint.Blueprint._docs"]


def test_public_member_of_an_undocumented_class_is_reported():
    source = "from gunicorn.http import wsgi\nclass Ours(wsgi.Response):\n    def write(self): ..."

    assert "gunicorn.http.wsgi.Response.write" in find_names(source)


PAGE = """
| name | where | why | fault or gain | test | pin |
|---|---|---|---|---|---|
| `library.Class`, `._name` | `a.py` | `no` reason | a fault | `test_it` | `library==1.0` |
"""
USES = [Use("a.py", 1, "library.Class"), Use("a.py", 2, "library.Class._name")]
TESTS = "def test_it(client):"
SETUP = "    library==1.0\n"


def test_row_may_shorten_the_name_of_a_member():
    names = frozenset({"library.Class", "library.Class._name"})

    assert list(read_rows(PAGE)) == [
        Row(names, frozenset({"a.py"}), frozenset({"test_it"}), frozenset({"library==1.0"}))
    ]


@pytest.mark.parametrize(
    ("uses", "tests", "setup", "messages"),
    [
        (USES, TESTS, SETUP, []),
        (
            [*USES, Use("a.py", 3, "library._new")],
            TESTS,
            SETUP,
            ["a.py:3: library._new has no row"],
        ),
        ([*USES, Use("b.py", 3, "library.Class")], TESTS, SETUP, ["b.py:3: library.Class has no"]),
        (USES[:1], TESTS, SETUP, ["library.Class._name is not used"]),
        (USES, "def test_it_not():", SETUP, ["no test is test_it"]),
        (USES, TESTS, "    library>=1.0\n", ["library==1.0 is not in setup.cfg"]),
    ],
)
def test_difference_between_table_and_uses_is_reported(uses, tests, setup, messages):
    actual = list(faults(uses, list(read_rows(PAGE)), tests, setup))

    assert len(actual) == len(messages)
    assert all(message in line for message, line in zip(messages, actual, strict=True))
