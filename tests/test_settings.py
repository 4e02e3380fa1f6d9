"""Settings: all faults at once, by name, before anything starts."""

import os
import subprocess
import sys

import pytest

from todo_api.settings import Settings, SettingsError, load_database_settings, load_settings

FIT = {"DATABASE_URL": "postgresql://user:s3cret@localhost/todo", "AUTH_MODE": "none"}


def test_defaults_are_what_the_readme_says():
    assert load_settings(FIT) == Settings(
        database_url=FIT["DATABASE_URL"],
        migration_database_url=FIT["DATABASE_URL"],
        log_level="info",
        auth_mode="none",
        jwt_jwks_url=None,
        jwt_public_key=None,
        jwt_secret=None,
        jwt_issuer=None,
        jwt_audience=None,
        jwt_user_claim="sub",
        require_if_match=False,
        cors_origins=(),
        host="127.0.0.1",
        port=8000,
        web_concurrency=2,
        web_threads=4,
        request_timeout=5.0,
        database_prepare=True,
    )


def test_every_fault_is_named_at_once():
    with pytest.raises(SettingsError) as fault:
        load_settings(
            {
                "MIGRATION_DATABASE_URL": "mysql://localhost",
                "AUTH_MODE": "maybe",
                "LOG_LEVEL": "loud",
                "PORT": "80000",
                "WEB_CONCURRENCY": "many",
                "WEB_THREADS": "0",
                "REQUEST_TIMEOUT": "0",
                "DATABASE_PREPARE": "perhaps",
            }
        )

    named = {line.split(":")[0].strip() for line in str(fault.value).splitlines()[1:]}
    assert named == {
        "DATABASE_URL",
        "MIGRATION_DATABASE_URL",
        "AUTH_MODE",
        "LOG_LEVEL",
        "PORT",
        "WEB_CONCURRENCY",
        "WEB_THREADS",
        "REQUEST_TIMEOUT",
        "DATABASE_PREPARE",
    }


@pytest.mark.parametrize(
    "url",
    [
        "postgres://user:s3cret@ep-cool-1-pooler.eu-central-1.aws.neon.tech/todo?sslmode=require",
        "postgresql://user:s3cret@ep-cool-1.aws.neon.tech/todo?sslmode=require&channel_binding=require",
        "postgresql://postgres@/todo?host=/tmp/socket",
    ],
)
def test_a_url_is_taken_as_it_is_given(url):
    assert load_settings(FIT | {"DATABASE_URL": url}).database_url == url


@pytest.mark.parametrize(
    "url", ["localhost/todo", "sqlite://", "postgresql://s3cret@h/d?nonsense=1"]
)
def test_a_url_that_will_not_do_is_not_repeated(url):
    """It may hold a password."""
    with pytest.raises(SettingsError, match="DATABASE_URL") as fault:
        load_settings(FIT | {"DATABASE_URL": url})

    assert "s3cret" not in str(fault.value)


def test_an_empty_variable_is_an_unset_one():
    assert load_settings(FIT | {"PORT": "", "MIGRATION_DATABASE_URL": ""}) == load_settings(FIT)


def test_a_migration_needs_no_more_than_a_database():
    settings = load_database_settings(
        {
            "DATABASE_URL": "postgresql://pooled/todo",
            "MIGRATION_DATABASE_URL": "postgresql://h/todo",
        }
    )

    assert settings.migration_database_url == "postgresql://h/todo"


@pytest.mark.parametrize("module", ["gunicorn", "alembic"])
def test_a_command_says_what_is_wrong_and_starts_nothing(module, request):
    arguments = {"gunicorn": ["--config", "gunicorn.conf.py"], "alembic": ["upgrade", "head"]}
    environ = {k: v for k, v in os.environ.items() if k not in ("DATABASE_URL", "AUTH_MODE")}

    ended = subprocess.run(
        [sys.executable, "-m", module, *arguments[module]],
        cwd=request.config.rootpath,
        env=environ,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert ended.returncode != 0
    assert "DATABASE_URL: Missing" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_dotenv_file_is_read_and_the_environment_wins(tmp_path, request):
    (tmp_path / ".env").write_text("PORT=9001\nHOST=from-file\n")
    script = "from todo_api.settings import environment as e; print(e()['PORT'], e()['HOST'])"

    read = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"HOST": "from-environment", "PYTHONPATH": str(request.config.rootpath)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert read.stdout == "9001 from-environment\n"
