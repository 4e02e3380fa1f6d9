"""Find the uses of private and undocumented parts of libraries in the modules of a checkout.

A use is

- an import of, or an attribute with, a name that begins with an underscore (`library._name`,
  `value._name`, `getattr(value, "_name")`);
- in a subclass of a library's class, `self._name` or a definition of `_name` if the library's class
  defines that name, too: as an attribute, or by `self._name = ...` in one of its methods;
- an import of, or an attribute of, a module in UNDOCUMENTED; and each of its members that a
  subclass overrides or uses;
- a member in MEMBERS;
- a line with the comment `# private: LIBRARY.NAME: reason`, for uses that the other rules miss.

The modules are read and not imported; the libraries are imported.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import re
import sys
import textwrap
import tokenize
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache, cached_property
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SOURCES = ("todo_api/**/*.py", "migrations/**/*.py", "gunicorn.conf.py", "wsgi.py")

# Modules and functions that are not in their library's documentation, whatever their names.
UNDOCUMENTED = {
    "flask_smorest.spec.plugins": "only Api and Blueprint are documented",
    "gunicorn.arbiter": "hooks get an Arbiter, whose attributes are not documented",
    "gunicorn.config": "the settings are documented, the class Config is not",
    "gunicorn.glogging": "a logger_class is documented, its members are not",
    "gunicorn.http": "gunicorn's parser and its WSGI response",
    "gunicorn.sock": "gunicorn's listeners",
    "gunicorn.util": "gunicorn's own helpers",
    "gunicorn.workers": "a worker_class is documented, its members are not",
    "joserfc.util": "joserfc's own helpers",
    "prometheus_client.values": "where samples are stored",
    "psycopg.errors.error_from_result": "the exception classes are documented, this is not",
    "psycopg.types.string": "the loaders' classes are not documented",
}

# If code uses one of these attributes, the object is of this undocumented class.
MEMBERS = {
    "START_CTX": "gunicorn.arbiter.Arbiter",
    "WORKERS": "gunicorn.arbiter.Arbiter",
    "force_close": "gunicorn.http.wsgi.Response",
    "finish_body": "gunicorn.http.parser.RequestParser",
    "dump_sequence": "psycopg.adapt.Transformer",
    "load_rows": "psycopg.adapt.Transformer",
    "set_pgresult": "psycopg.adapt.Transformer",
}

# Names with an underscore that their library documents for use.
DOCUMENTED = {
    "marshmallow.fields.*._deserialize": "marshmallow, Custom fields",
    "flask.request._get_current_object": "werkzeug, Context locals; flask, The Request Context",
    "os._exit": "os",
    "*._asdict": "collections.namedtuple",
    "*._replace": "collections.namedtuple",
}

MARKER = re.compile(r"# private: ([\w.]+): \S")


class Use(NamedTuple):
    """A use of a private name. A name begins with `?` if its library is not known."""

    file: str
    line: int
    name: str


def is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def is_undocumented(name: str) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in UNDOCUMENTED)


def is_documented(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in DOCUMENTED)


def is_of_library(name: str) -> bool:
    root = name.partition(".")[0]
    return root not in sys.stdlib_module_names and root not in {"todo_api", "wsgi", "migrations"}


@cache
def library_object(name: str) -> object:
    """Import the object of a dotted name. Raises ImportError."""
    module, _, attribute = name.rpartition(".")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        if not module:
            raise
    try:
        return getattr(library_object(module), attribute)
    except AttributeError:
        raise ImportError(name) from None


@cache
def members(of: type) -> frozenset[str]:
    """Return the names that a class defines itself, in its body or by `self.name = ...`."""
    names = {*vars(of), *inspect.get_annotations(of)}
    try:
        source = ast.parse(textwrap.dedent(inspect.getsource(of)))
    except (OSError, TypeError):  # a class in C
        return frozenset(names)
    for node in ast.walk(source):
        match node:
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                names.add(name)
    return frozenset(names)


class Class(NamedTuple):
    """A class of this project, and the dotted names of its bases."""

    node: ast.ClassDef
    bases: tuple[str, ...]


@dataclass
class Module:
    """A parsed module of this project."""

    file: str
    name: str
    source: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    @cached_property
    def imports(self) -> dict[str, str]:
        """Return the full dotted name of each imported name."""
        names: dict[str, str] = {}
        for node in ast.walk(self.tree):
            match node:
                case ast.Import(names=aliases):
                    for alias in aliases:
                        root = alias.name.partition(".")[0]
                        names[alias.asname or root] = alias.name if alias.asname else root
                case ast.ImportFrom(module=str(module), names=aliases, level=0):
                    for alias in aliases:
                        names[alias.asname or alias.name] = f"{module}.{alias.name}"
        return names

    @cached_property
    def classes(self) -> dict[str, Class]:
        return {
            f"{self.name}.{node.name}": Class(node, tuple(map(self.dotted, node.bases)))
            for node in ast.walk(self.tree)
            if isinstance(node, ast.ClassDef)
        }

    def dotted(self, node: ast.expr) -> str:
        """Return the dotted name of an expression, its import resolved; `?` without a name."""
        match node:
            case ast.Name(id=name):
                return self.imports.get(name, f"{self.name}.{name}")
            case ast.Attribute(value=value, attr=name):
                return f"{self.dotted(value)}.{name}"
            case ast.Subscript(value=value):
                return self.dotted(value)
        return "?"


class Project:
    """The modules of a checkout."""

    def __init__(self, modules: list[Module]) -> None:
        self.modules = modules
        self.classes = {name: each for module in modules for name, each in module.classes.items()}

    def library_classes(self, bases: tuple[str, ...]) -> Iterator[type]:
        """Yield the classes of libraries from which a class with these bases inherits."""
        for base in bases:
            if base in self.classes:
                yield from self.library_classes(self.classes[base].bases)
            elif is_of_library(base):
                library_class = library_object(base)
                if isinstance(library_class, type):
                    yield from (each for each in library_class.__mro__ if each is not object)

    def inherited(self, of: Class, name: str) -> str | None:
        """Return the full name of a member that a library's class defines, or None."""
        for each in self.library_classes(of.bases):
            if is_of_library(each.__module__) and name in members(each):
                return f"{each.__module__}.{each.__qualname__}.{name}"
        return None

    def uses(self) -> list[Use]:
        """Return all uses, each once for a line."""
        uses = {use for module in self.modules for use in self.uses_of(module)}
        return sorted(use for use in uses if not is_documented(use.name))

    def uses_of(self, module: Module) -> Iterator[Use]:
        skipped = set(typing_only(module.tree))
        for node in ast.walk(module.tree):
            if node not in skipped:
                for name in module_uses(module, node):
                    yield Use(module.file, getattr(node, "lineno", 0), name)
        for each in module.classes.values():
            for line, name in self.class_uses(each):
                yield Use(module.file, line, name)
        for token in tokenize.generate_tokens(io.StringIO(module.source).readline):
            if token.type == tokenize.COMMENT and (match := MARKER.search(token.string)):
                yield Use(module.file, token.start[0], match[1])

    def class_uses(self, of: Class) -> Iterator[tuple[int, str]]:
        """Yield line and name of each member of a library's class that the class has or uses."""
        nodes: list[tuple[str, ast.stmt | ast.expr]] = [
            (name, node) for node in of.node.body for name in defined_names(node)
        ]
        own = {name for name, _ in nodes}
        for node in ast.walk(of.node):
            match node:
                case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name):
                    if name not in own:
                        nodes.append((name, node))
                case ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr=name):
                    nodes.append((name, node))
        for name, node in nodes:
            full = None if name.startswith("__") else self.inherited(of, name)
            if full and (is_private(name) or is_undocumented(full)):
                yield node.lineno, full


def defined_names(node: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement in a class's body gives a value."""
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            yield name
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr()):
            yield name
        case ast.Assign(targets=targets):
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def typing_only(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield the imports that only a type checker runs, which cannot fail at run time."""
    for node in ast.walk(tree):
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING"), body=body):
                yield from body


def module_uses(module: Module, node: ast.AST) -> Iterator[str]:
    """Yield the private names in a node, without those that depend on a class's bases."""
    match node:
        case ast.Import(names=aliases):
            yield from private_imports(alias.name for alias in aliases)
        case ast.ImportFrom(module=str(source), names=aliases, level=0):
            yield from private_imports(f"{source}.{alias.name}" for alias in aliases)
        case ast.Attribute():
            yield from private_attributes(module, node)
        case ast.Call(
            func=ast.Name(id="getattr" | "setattr" | "hasattr" | "delattr"),
            args=[_, ast.Constant(value=str(name)), *_],
        ):
            if is_private(name):
                yield f"?.{name}"


def private_imports(names: Iterator[str]) -> Iterator[str]:
    for name in names:
        if is_of_library(name) and (is_undocumented(name) or any(map(is_private, name.split(".")))):
            yield name


def private_attributes(module: Module, node: ast.Attribute) -> Iterator[str]:
    match node.value:
        case ast.Name(id="self" | "cls") | ast.Call(func=ast.Name(id="super")):
            return  # see Project.class_uses
    name, full = node.attr, module.dotted(node)
    roots = {each.partition(".")[0] for each in module.imports.values()}
    is_imported = is_of_library(full) and full.partition(".")[0] in roots
    if name in MEMBERS:
        yield f"{MEMBERS[name]}.{name}"
    elif is_private(name):
        yield full if is_imported else f"?.{name}"
    elif is_undocumented(full):
        yield full


def read_project(root: Path) -> Project:
    modules = []
    for pattern in SOURCES:
        for path in sorted(root.glob(pattern)):
            file = path.relative_to(root).as_posix()
            name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            modules.append(Module(file, name, path.read_text()))
    return Project(modules)
