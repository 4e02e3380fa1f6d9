"""Settings: defaults, and errors that name every invalid setting but no secret."""

import json
import os
import re
import subprocess
import sys
from dataclasses import MISSING, fields

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey
from psycopg.conninfo import conninfo_to_dict

from tests.support.differences import assert_same_lines
from todo_api.auth.keys import parse_public_key
from todo_api.settings import Settings, SettingsError, load_database_settings
from todo_api.startup import load_process_settings, load_settings

VALID = {"DATABASE_URL": "postgresql://user:s3cret@localhost/todo", "AUTH_MODE": "none"}

WITH_TOKENS = {"DATABASE_URL": VALID["DATABASE_URL"]}
ISSUER = {"JWT_ISSUER": "https://issuer.example", "JWT_AUDIENCE": "todo-api"}
SECRET = {"JWT_SECRET": "s3cret-" * 5}
KEY_SET = {"JWT_JWKS_URL": "https://issuer.example/jwks"}
P256 = ECKey.generate_key("P-256")
PUBLIC_KEY = {"JWT_PUBLIC_KEY": P256.as_pem(private=False).decode()}


def test_unset_settings_have_their_defaults():
    assert load_settings(VALID) == Settings(
        database_url=VALID["DATABASE_URL"],
        migration_database_url=VALID["DATABASE_URL"],
        log_level="info",
        auth_mode="none",
        jwt_jwks_url=None,
        jwt_public_key=None,
        jwt_secret=None,
        jwt_issuer=None,
        jwt_audience=None,
        jwt_user_claim="sub",
        jwt_user_ids="subject",
        require_if_match=False,
        cors_origins=(),
        host="127.0.0.1",
        port=8000,
        web_concurrency=2,
        web_threads=4,
        request_timeout=5.0,
        database_prepare=True,
        metrics=False,
    )


def test_error_names_every_invalid_setting():
    with pytest.raises(SettingsError) as fault:
        load_settings(
            {
                "MIGRATION_DATABASE_URL": "mysql://localhost",
                "AUTH_MODE": "maybe",
                "JWT_USER_IDS": "some",
                "LOG_LEVEL": "loud",
                "PORT": "80000",
                "WEB_CONCURRENCY": "many",
                "WEB_THREADS": "0",
                "REQUEST_TIMEOUT": "0",
                "DATABASE_PREPARE": "perhaps",
                "METRICS": "some",
            }
        )

    invalid = {line.split(":")[0].strip() for line in str(fault.value).splitlines()[1:]}
    assert invalid == {
        "DATABASE_URL",
        "MIGRATION_DATABASE_URL",
        "AUTH_MODE",
        "JWT_USER_IDS",
        "LOG_LEVEL",
        "PORT",
        "WEB_CONCURRENCY",
        "WEB_THREADS",
        "REQUEST_TIMEOUT",
        "DATABASE_PREPARE",
        "METRICS",
    }


@pytest.mark.parametrize("case", [str.lower, str.upper, str.title, str.swapcase])
def test_words_are_accepted_in_any_case(case):
    written = {
        "AUTH_MODE": case("None"),
        "LOG_LEVEL": case("Warning"),
        "JWT_USER_IDS": case("Derived"),
        "METRICS": case("True"),
        "DATABASE_PREPARE": case("Off"),
    }

    settings = load_settings(VALID | written)

    assert settings.auth_mode == "none"
    assert settings.log_level == "warning"
    assert settings.jwt_user_ids == "derived"
    assert settings.metrics is True
    assert settings.database_prepare is False


@pytest.mark.parametrize("mode", ["JWT", "Jwt"])
def test_rules_on_several_settings_accept_words_in_any_case(mode):
    assert load_settings(WITH_TOKENS | SECRET | {"AUTH_MODE": mode}).auth_mode == "jwt"
    assert load_faults(WITH_TOKENS | {"AUTH_MODE": mode}).keys() == {"AUTH_MODE"}
    assert load_faults(WITH_TOKENS | KEY_SET | {"AUTH_MODE": mode}).keys() == ISSUER.keys()


@pytest.mark.parametrize("scheme", ["postgresql+psycopg", "postgres+asyncpg", "postgresql+"])
@pytest.mark.parametrize("name", ["DATABASE_URL", "MIGRATION_DATABASE_URL"])
def test_database_url_with_a_driver_says_what_to_drop(name, scheme):
    assert load_faults(VALID | {name: f"{scheme}://user:s3cret@localhost/todo"}) == {
        name: "Drop the + and the driver's name after it: postgresql://."
    }


@pytest.mark.parametrize(
    "url",
    [
        "postgres://user:s3cret@ep-cool-1-pooler.eu-central-1.aws.neon.tech/todo?sslmode=require",
        "postgresql://user:s3cret@ep-cool-1.aws.neon.tech/todo?sslmode=require&channel_binding=require",
        "postgresql://postgres@/todo?host=/tmp/socket",
    ],
)
def test_database_url_is_stored_unchanged(url):
    assert load_settings(VALID | {"DATABASE_URL": url}).database_url == url
    direct = load_database_settings({"DATABASE_URL": "postgres://", "MIGRATION_DATABASE_URL": url})
    assert direct.migration_database_url == url


@pytest.mark.parametrize(
    "url", ["localhost/todo", "sqlite://", "postgresql://s3cret@h/d?nonsense=1"]
)
def test_error_does_not_contain_an_invalid_database_url(url):
    """The URL may contain a password."""
    with pytest.raises(SettingsError, match="DATABASE_URL") as fault:
        load_settings(VALID | {"DATABASE_URL": url})

    assert "s3cret" not in str(fault.value)


UNESCAPED_PASSWORDS = {
    "at": "postgresql://todo:{}@{}@db.example/todo",
    "at-first": "postgresql://todo:@{}{}@db.example/todo",
    "at-last": "postgresql://todo:{}{}@@db.example/todo",
    "at-in-user": "postgresql://{}@{}:pass@db.example/todo",
    "slash": "postgresql://todo:{}/{}@db.example/todo",
    "slash-after-digits": "postgresql://todo:5432/{}{}@db.example/todo",
    "question-mark": "postgresql://todo:{}?{}@db.example/todo",
    "question-mark-and-slash": "postgresql://todo:{}?a=/{}@db.example/todo",
    "like-a-parameter": "postgresql://todo:5432/{}?sslmode={}@db.example/todo",
    "hash": "postgresql://todo:{}#{}@db.example/todo",
    "brackets": "postgresql://todo:{}[{}]@db.example/todo",
    "percent": "postgresql://todo:{}%{}@db.example/todo",
    "space": "postgresql://todo:{} {}@db.example/todo",
    "lone-surrogate": "postgresql://todo:{}\udcff{}@db.example/todo",
    "no-host": "postgresql://todo:{}{}",
    "instead-of-the-port": "postgresql://todo@db.example:{}{}/todo",
    "after-the-port": "postgres://todo@db.example:5432{}{}/todo",
}


@pytest.mark.parametrize("template", UNESCAPED_PASSWORDS.values(), ids=UNESCAPED_PASSWORDS.keys())
@pytest.mark.parametrize("name", ["DATABASE_URL", "MIGRATION_DATABASE_URL"])
def test_error_does_not_contain_an_unescaped_password(name, template):
    with pytest.raises(SettingsError) as fault:
        load_settings(VALID | {name: template.format("s3cret", "pr1vate")})

    message = str(fault.value)
    assert re.fullmatch(rf"These settings are invalid:\n  {name}: [^\n]+", message)
    assert "Percent-encode special characters in the password: %40 for @" in message
    assert "s3cret" not in message
    assert "pr1vate" not in message
    assert fault.value.__cause__ is None


@pytest.mark.parametrize(
    ("url", "password"),
    [
        ("postgresql://todo:p%40ss@db.example/todo", "p@ss"),
        ("postgresql://todo:%40%2F%3F%23%5B%5D%3A%25%20@db.example:5432/todo", "@/?#[]:% "),
        ("postgresql://todo:p:ss:@db.example/todo", "p:ss:"),
        ("postgresql://todo:a,b;c&d=e+f!g$h'(i)*~-._@db.example/todo", "a,b;c&d=e+f!g$h'(i)*~-._"),
        ("postgresql://todo:p%40ss@one.example:5432,two.example:,[::1]:5433/todo", "p@ss"),
        ("postgresql://todo:p%40ss@/todo?host=/run/postgresql", "p@ss"),
        ("postgresql://db.example/todo?user=todo&password=p%40ss", "p@ss"),
    ],
)
def test_database_url_with_an_escaped_password_is_valid(url, password):
    settings = load_database_settings({"DATABASE_URL": url, "MIGRATION_DATABASE_URL": url})

    assert settings.database_url == settings.migration_database_url == url
    assert conninfo_to_dict(url)["password"] == password


@pytest.mark.parametrize("port", ["0", "65536", "99999999999", "-1", "+1", "5432x", "\u0665"])
def test_invalid_port_in_a_database_url_is_refused(port):
    assert load_faults(VALID | {"DATABASE_URL": f"postgresql://h:{port}/todo"}).keys() == {
        "DATABASE_URL"
    }


@pytest.mark.parametrize(
    "command",
    [
        ["gunicorn", "--config", "gunicorn.conf.py"],
        ["alembic", "upgrade", "head"],
        ["todo_api.commands.purge"],
        ["todo_api.commands.run"],
    ],
    ids=lambda command: command[0],
)
def test_output_of_a_command_does_not_contain_an_unescaped_password(command, request):
    url = "postgresql://todo:s3cret@pr1vate@127.0.0.1/todo"

    result = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=request.config.rootpath,
        env=os.environ | {"DATABASE_URL": url, "AUTH_MODE": "none"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert result.returncode != 0
    assert "DATABASE_URL: Percent-encode special characters" in result.stderr
    assert "s3cret" not in result.stderr + result.stdout
    assert "pr1vate" not in result.stderr + result.stdout


def test_empty_variable_is_the_same_as_an_unset_one():
    assert load_settings(VALID | {"PORT": "", "MIGRATION_DATABASE_URL": ""}) == load_settings(VALID)


def test_database_settings_need_no_other_settings():
    settings = load_database_settings(
        {
            "DATABASE_URL": "postgresql://pooled/todo",
            "MIGRATION_DATABASE_URL": "postgresql://h/todo",
        }
    )

    assert settings.migration_database_url == "postgresql://h/todo"


@pytest.mark.parametrize("module", ["gunicorn", "alembic"])
def test_command_with_invalid_settings_exits_with_a_message(module, request):
    arguments = {"gunicorn": ["--config", "gunicorn.conf.py"], "alembic": ["upgrade", "head"]}
    environ = {k: v for k, v in os.environ.items() if k not in ("DATABASE_URL", "AUTH_MODE")}

    result = subprocess.run(
        [sys.executable, "-m", module, *arguments[module]],
        cwd=request.config.rootpath,
        env=environ,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert result.returncode != 0
    assert "DATABASE_URL: Must be set." in result.stderr
    assert "Traceback" not in result.stderr


def test_environment_variable_overrides_the_dotenv_file(tmp_path, request):
    (tmp_path / ".env").write_text("PORT=9001\nHOST=from-file\n")
    script = "from todo_api.settings import read_environment as e; print(e()['PORT'], e()['HOST'])"

    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"HOST": "from-environment", "PYTHONPATH": str(request.config.rootpath)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert result.stdout == "9001 from-environment\n"


def load_faults(environ: dict[str, str]) -> dict[str, str]:
    """Return the fault of each invalid variable; the message must not contain a secret."""
    with pytest.raises(SettingsError) as fault:
        load_settings(environ)
    message = str(fault.value)
    assert "s3cret" not in message
    assert "PRIVATE" not in message
    return dict(line.strip().split(": ", 1) for line in message.splitlines()[1:])


@pytest.mark.parametrize("key", [SECRET, PUBLIC_KEY, KEY_SET | ISSUER])
def test_one_source_of_keys_is_valid(key):
    settings = load_settings(WITH_TOKENS | key)

    assert settings.auth_mode == "jwt"


def test_default_auth_mode_needs_a_key():
    assert load_faults(WITH_TOKENS) == {
        "AUTH_MODE": "Set one of JWT_JWKS_URL, JWT_PUBLIC_KEY, JWT_SECRET to verify tokens, or"
        " AUTH_MODE=none."
    }


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        (SECRET | PUBLIC_KEY, "JWT_PUBLIC_KEY and JWT_SECRET"),
        (SECRET | KEY_SET | ISSUER, "JWT_JWKS_URL and JWT_SECRET"),
        (PUBLIC_KEY | KEY_SET | ISSUER, "JWT_JWKS_URL and JWT_PUBLIC_KEY"),
        (
            SECRET | PUBLIC_KEY | KEY_SET | ISSUER,
            "JWT_JWKS_URL and JWT_PUBLIC_KEY and JWT_SECRET",
        ),
    ],
)
def test_more_than_one_source_of_keys_is_refused(keys, names):
    assert load_faults(WITH_TOKENS | keys) == {"AUTH_MODE": f"Set only one of {names}."}


def test_error_names_every_invalid_key_setting():
    faults = load_faults(
        WITH_TOKENS
        | {
            "JWT_JWKS_URL": "http://issuer.example/jwks",
            "JWT_PUBLIC_KEY": "no-such-file-s3cret.pem",
            "JWT_SECRET": "s3cret",
            "CORS_ORIGINS": "*",
        }
    )

    assert faults.keys() == {
        "AUTH_MODE",
        "JWT_JWKS_URL",
        "JWT_PUBLIC_KEY",
        "JWT_SECRET",
        "JWT_ISSUER",
        "JWT_AUDIENCE",
        "CORS_ORIGINS",
    }


@pytest.mark.parametrize(
    "secret", ["s3cret", "s3cret".ljust(31, "-"), "s3cret-\N{BEAR FACE}\u00e9"]
)
def test_secret_shorter_than_32_bytes_is_refused(secret):
    assert load_faults(WITH_TOKENS | {"JWT_SECRET": secret}) == {
        "JWT_SECRET": "The secret needs at least 32 bytes: openssl rand -hex 32."
    }


@pytest.mark.parametrize("secret", ["s3cret".ljust(32, "-"), "\u00e9" * 16, " " * 32])
def test_secret_of_32_bytes_is_stored_unchanged(secret):
    assert load_settings(WITH_TOKENS | {"JWT_SECRET": secret}).jwt_secret == secret


@pytest.mark.parametrize("secret", [PUBLIC_KEY["JWT_PUBLIC_KEY"], "s3cret-\udcff" * 9])
def test_public_key_or_invalid_text_as_secret_is_refused(secret):
    faults = load_faults(WITH_TOKENS | {"JWT_SECRET": secret})

    assert faults["JWT_SECRET"].startswith("This is not a shared secret")


@pytest.mark.parametrize(
    "url",
    [
        "https://issuer.example/.well-known/jwks.json?x=1",
        "https://10.0.0.1:8443/jwks",
        "http://localhost:3000/api/auth/jwks",
        "http://127.0.0.1/jwks",
        "http://[::1]:3000/jwks",
        "HTTP://LOCALHOST/jwks",
    ],
)
def test_key_set_url_may_be_https_or_loopback_http(url):
    settings = load_settings(WITH_TOKENS | ISSUER | {"JWT_JWKS_URL": url})

    assert settings.jwt_jwks_url == url


@pytest.mark.parametrize(
    "url",
    [
        "http://issuer.example/jwks",
        "http://10.0.0.1/jwks",
        "http://localhost.issuer.example/jwks",
        "http://127.0.0.1.issuer.example/jwks",
        "http://127.0.0.1@issuer.example/jwks",
        "http://issuer.example/127.0.0.1",
        "http://localhos\u0165/jwks",
        "http://[::2]/jwks",
        "ftp://localhost/jwks",
        "file:///etc/keys",
        "//localhost/jwks",
        "localhost/jwks",
        "https:///jwks",
        "https:issuer.example",
    ],
)
def test_key_set_url_without_https_is_refused(url):
    assert load_faults(WITH_TOKENS | ISSUER | {"JWT_JWKS_URL": url}) == {
        "JWT_JWKS_URL": "Must be an https:// URL, or an http:// URL of this machine (localhost)."
    }


@pytest.mark.parametrize(
    "missing", [{"JWT_ISSUER"}, {"JWT_AUDIENCE"}, {"JWT_ISSUER", "JWT_AUDIENCE"}]
)
def test_key_set_needs_an_issuer_and_an_audience(missing):
    issuer_settings = {name: value for name, value in ISSUER.items() if name not in missing}

    assert load_faults(WITH_TOKENS | KEY_SET | issuer_settings) == dict.fromkeys(
        missing, "Must be set with JWT_JWKS_URL."
    )


@pytest.mark.parametrize("key", [P256, OKPKey.generate_key("Ed25519"), RSAKey.generate_key(2048)])
def test_public_key_may_be_pem_jwk_or_a_file(tmp_path, key):
    pem, jwk = key.as_pem(private=False).decode(), json.dumps(key.as_dict(private=False))
    forms = [
        pem,
        pem.strip(),
        pem.replace("\n", "\\n"),
        pem.replace("\n", "\r\n"),
        jwk,
        f"\n {jwk}",
    ]
    for name, text in (("key.pem", pem), ("key.json", jwk)):
        (tmp_path / name).write_text(text)
        forms.append(str(tmp_path / name))

    loaded = [
        load_settings(WITH_TOKENS | {"JWT_PUBLIC_KEY": form}).jwt_public_key for form in forms
    ]

    assert {parse_public_key(text).thumbprint for text in loaded} == {key.thumbprint()}


@pytest.mark.parametrize(
    ("key", "fault"),
    [
        ("s3cret", "This is neither a key nor the path of a readable file."),
        ("/no/such/s3cret.pem", "This is neither a key nor the path of a readable file."),
        (".", "This is neither a key nor the path of a readable file."),
        ("s3cret" * 1000, "This is neither a key nor the path of a readable file."),
        ("s3cret\0", "This is neither a key nor the path of a readable file."),
        (__file__, "This is neither a PEM nor a JSON Web Key."),
        ("-----BEGIN PUBLIC KEY-----", "This is neither a PEM nor a JSON Web Key."),
        (
            "-----BEGIN PUBLIC KEY-----\ns3cret\n-----END PUBLIC KEY-----",
            "This is neither a PEM nor a JSON Web Key.",
        ),
        ("{", "This is neither a PEM nor a JSON Web Key."),
        ("{}", "This is neither a PEM nor a JSON Web Key."),
        ('{"kty": ["RSA"]}', "This is neither a PEM nor a JSON Web Key."),
        ('{"kty": "RSA", "n": "s3cret"}', "This is neither a PEM nor a JSON Web Key."),
        ('{"keys": []}', "This is neither a PEM nor a JSON Web Key."),
        ('{"a":' * 100_000, "This is neither a PEM nor a JSON Web Key."),
        (
            P256.as_pem(private=True).decode(),
            "This is a private key. Set the public key instead: the server needs no private key.",
        ),
        (
            json.dumps(P256.as_dict(private=True)),
            "This is a private key. Set the public key instead: the server needs no private key.",
        ),
        (
            json.dumps(OctKey.import_key("s3cret-" * 5).as_dict(private=True)),
            "This is a shared secret. Set it in JWT_SECRET.",
        ),
        (
            json.dumps({"kty": "oct", "k": "AAAA"}),
            "This is a shared secret. Set it in JWT_SECRET.",
        ),
        (
            OKPKey.generate_key("X25519").as_pem(private=False).decode(),
            "The key is not for verifying signatures.",
        ),
        (
            json.dumps(P256.as_dict(private=False, use="enc")),
            "The key is not for verifying signatures.",
        ),
        (
            json.dumps(P256.as_dict(private=False, alg="RS256")),
            "The key is not for verifying signatures.",
        ),
    ],
)
def test_invalid_public_key_is_refused(key, fault):
    assert load_faults(WITH_TOKENS | {"JWT_PUBLIC_KEY": key}) == {"JWT_PUBLIC_KEY": fault}


# joserfc warns about such a key, but accepts it.
@pytest.mark.filterwarnings("ignore:Key size should be:joserfc.errors.SecurityWarning")
def test_rsa_key_shorter_than_2048_bits_is_refused():
    key = rsa.generate_private_key(65537, 1024).public_key()
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    faults = load_faults(WITH_TOKENS | {"JWT_PUBLIC_KEY": pem})

    assert faults == {"JWT_PUBLIC_KEY": "An RSA key needs at least 2048 bits."}


def test_auth_mode_none_ignores_key_settings():
    assert load_settings(VALID | KEY_SET | SECRET).auth_mode == "none"


def test_cors_origins_are_separated_by_commas():
    settings = load_settings(
        VALID | {"CORS_ORIGINS": "https://app.example, http://localhost:5173,https://[::1]:8443"}
    )

    assert settings.cors_origins == (
        "https://app.example",
        "http://localhost:5173",
        "https://[::1]:8443",
    )


@pytest.mark.parametrize(
    "origins",
    [
        "*",
        "https://*.app.example",
        "null",
        "app.example",
        "https://app.example/",
        "https://app.example/path",
        "https://app.example?x",
        "https://app.example#x",
        "https://app.example https://admin.example",
        "https://app.example,",
        "https://app.example,,https://admin.example",
        "ftp://app.example",
        "https://",
        "capacitor:",
        "https://app.example\nhttps://admin.example",
    ],
)
def test_invalid_origin_is_refused(origins):
    assert load_faults(VALID | {"CORS_ORIGINS": origins}) == {
        "CORS_ORIGINS": "Each part must be an origin without a path: https://app.example."
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JWT_JWKS_URL", "https://[::1"),
        ("JWT_JWKS_URL", "https://issuer.example/a set"),
        ("JWT_JWKS_URL", "https://issuer.example:port/jwks"),
        ("JWT_JWKS_URL", "https://issuer.example:99999999/jwks"),
        ("JWT_JWKS_URL", "https://user:s3cret@issuer.example/jwks"),
        ("CORS_ORIGINS", "https://App.example"),
        ("CORS_ORIGINS", "https://app.example:443"),
        ("CORS_ORIGINS", "http://app.example:80"),
        ("CORS_ORIGINS", "https://user:s3cret@app.example"),
    ],
)
def test_invalid_url_or_origin_is_refused(name, value):
    with pytest.raises(SettingsError, match=name) as fault:
        load_settings(VALID | {"JWT_ISSUER": "i", "JWT_AUDIENCE": "a", name: value})

    assert "s3cret" not in str(fault.value)


@pytest.mark.parametrize(
    "origins",
    ["https://app.example", "http://localhost:3000,https://a.example:8443", "http://[::1]:5"],
)
def test_origins_are_stored_unchanged(origins):
    assert load_settings(VALID | {"CORS_ORIGINS": origins}).cors_origins == tuple(
        origins.split(",")
    )


def test_process_settings_do_not_change_after_the_first_load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", "postgresql://")
    load_process_settings.cache_clear()
    (tmp_path / ".env").write_text("AUTH_MODE=none\nPORT=9001\n")
    before = load_process_settings()
    (tmp_path / ".env").write_text("AUTH_MODE=none\nPORT=nonsense\n")

    assert load_process_settings() is before
    assert before.port == 9001
    load_process_settings.cache_clear()


def show_default(field):
    """Return the default of a setting as README.md shows it."""
    if field.metadata["default_from"]:
        return f"`{field.metadata['default_from'].upper()}`"
    if field.default is MISSING:
        return "required"
    if field.default in (None, ()):
        return ""
    text = str(field.default)
    return f"`{text.lower() if isinstance(field.default, bool) else text}`"


def test_the_readme_describes_every_setting(request):
    page = (request.config.rootpath / "README.md").read_text()
    section = page.split("\n## Settings\n")[1].split("\n## ")[0]

    rows = [line for line in section.splitlines() if line.startswith("| `")]

    assert_same_lines(
        rows,
        [
            f"| `{field.name.upper()}` | {show_default(field)} | {field.metadata['doc']} |".replace(
                "|  |", "| |"
            )
            for field in fields(Settings)
        ],
        "The table of settings in README.md needs a row for each field of Settings in"
        " todo_api/settings.py, in the same order, with its default and its description.",
    )


def test_dotenv_example_has_every_setting_once(request):
    example = (request.config.rootpath / ".env.example").read_text()

    assert_same_lines(
        sorted(re.findall(r"^#([A-Z_]+)=", example, re.MULTILINE)),
        sorted(field.name.upper() for field in fields(Settings)),
        ".env.example needs a line, commented out, for each field of Settings in"
        " todo_api/settings.py.",
    )
