"""`make token`: the bare token on standard output, and the id for paths on standard error."""

import re
import uuid

import pytest

from todo_api.auth.keys import FixedKey, parse_secret
from todo_api.auth.tokens import Verifier
from todo_api.commands.development import EXAMPLE_USER
from todo_api.commands.run import format_start_message
from todo_api.commands.token import LIFETIME, main
from todo_api.startup import load_settings

SECRET = "a-secret-of-the-tests-that-is-long-enough"
ISSUER = "https://issuer.example"


@pytest.fixture
def make_token(monkeypatch, tmp_path, capsys):
    """Run the command in an empty folder; return its settings and both of its outputs."""
    monkeypatch.chdir(tmp_path)

    def make(user, **variables):
        environ = {"DATABASE_URL": "postgresql://", "JWT_SECRET": SECRET} | variables
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        main([user])
        return load_settings(environ), capsys.readouterr()

    return make


def identify(settings, token):
    return Verifier(settings, FixedKey(parse_secret(SECRET))).identify(token)


@pytest.mark.parametrize("variables", [{}, {"JWT_ISSUER": ISSUER}])
def test_derived_user_id_is_printed_on_standard_error(make_token, variables):
    settings, printed = make_token("alice", **variables)

    identity = identify(settings, printed.out.removesuffix("\n"))

    namespace = uuid.uuid5(uuid.NAMESPACE_URL, variables.get("JWT_ISSUER", ""))
    assert identity.user_id == uuid.uuid5(namespace, "alice")
    assert printed.err == f"The user_id of alice in paths: {identity.user_id}\n"


@pytest.mark.parametrize("user", [EXAMPLE_USER, EXAMPLE_USER.upper()])
def test_uuid_that_is_the_user_id_prints_no_hint(make_token, user):
    settings, printed = make_token(user)

    assert str(identify(settings, printed.out.strip()).user_id) == EXAMPLE_USER
    assert printed.err == ""


def test_uuid_whose_user_id_is_derived_is_explained(make_token):
    settings, printed = make_token(EXAMPLE_USER, JWT_USER_IDS="derived")

    identity = identify(settings, printed.out.strip())

    assert str(identity.user_id) != EXAMPLE_USER
    assert printed.err == f"The user_id of {EXAMPLE_USER} in paths: {identity.user_id}\n"


@pytest.mark.parametrize("ids", ["subject", "derived"])
def test_invitation_has_a_token_for_its_path(ids):
    settings = load_settings(
        {"DATABASE_URL": "postgresql://", "JWT_SECRET": SECRET, "JWT_USER_IDS": ids}
    )

    start_message = format_start_message(settings, "")

    user_id = re.search(r"TASKS=http://127\.0\.0\.1:8000/api/(\S+)/tasks\n", start_message)[1]
    token = re.search(r"TOKEN=(\S+)\n", start_message)[1]
    assert str(identify(settings, token).user_id) == user_id


def test_readme_says_how_long_a_token_lives(request):
    tour = (request.config.rootpath / "README.md").read_text().partition("\n## A tour")[2]

    hours = LIFETIME.total_seconds() / 3600

    assert f"valid for {hours:.0f} hours" in tour.partition("\n## ")[0]
