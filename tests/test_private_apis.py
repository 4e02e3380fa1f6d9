"""The check of private APIs: what it finds in a module, and what it asks of the table."""

from __future__ import annotations

from textwrap import dedent

import pytest

from tools.library_uses import Module, Project, Use
from tools.private_apis import Row, faults, read_rows


def names_in(*sources: str) -> list[str]:
    """The names used in modules m0, m1, ... of this source."""
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
        ("f(1)  # private: library.name: nothing public does it", "library.name"),
    ],
)
def test_private_name_is_found(source, name):
    assert name in names_in(source)


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
def test_other_name_is_not_counted(source):
    assert names_in(source) == []


def test_member_that_a_library_class_defines_is_found():
    source = """
        from flask_smorest import Blueprint

        class Ours(Blueprint):
            def __init__(self):
                super().__init__()
                self._docs = {}

            def _prepare_response_doc(self):
                return super()._prepare_arguments_doc()
    """

    assert names_in(source) == [
        "flask_smorest.blueprint.Blueprint._docs",
        "flask_smorest.response.ResponseMixin._prepare_response_doc",
        "flask_smorest.arguments.ArgumentsMixin._prepare_arguments_doc",
    ]


def test_member_is_found_through_a_class_of_another_module():
    base = "from flask_smorest import Blueprint\nclass Base(Blueprint): ..."
    source = "from todo_api.m0 import Base\nclass Ours(Base):\n    _docs = 1"

    assert names_in(base, source) == ["flask_smorest.blueprint.Blueprint._docs"]


def test_public_member_of_an_undocumented_class_is_found():
    source = "from gunicorn.http import wsgi\nclass Ours(wsgi.Response):\n    def write(self): ..."

    assert "gunicorn.http.wsgi.Response.write" in names_in(source)


PAGE = """
| name | where | why | fault or gain | test | pin |
|---|---|---|---|---|---|
| `library.Class`, `._name` | `a.py` | `no` reason | a fault | `test_it` | `library==1.0` |
"""
USES = [Use("a.py", 1, "library.Class"), Use("a.py", 2, "library.Class._name")]
TESTS = "def test_it(client):"
SETUP = "    library==1.0\n"


def test_row_names_members_by_their_ending():
    names = frozenset({"library.Class", "library.Class._name"})

    assert list(read_rows(PAGE)) == [
        Row(names, frozenset({"a.py"}), frozenset({"test_it"}), frozenset({"library==1.0"}))
    ]


@pytest.mark.parametrize(
    ("uses", "tests", "setup", "words"),
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
        (USES, TESTS, "    library>=1.0\n", ["library==1.0 does not stand in setup.cfg"]),
    ],
)
def test_table_and_uses_agree(uses, tests, setup, words):
    found = list(faults(uses, list(read_rows(PAGE)), tests, setup))

    assert len(found) == len(words)
    assert all(word in line for word, line in zip(words, found, strict=True))
