"""The Dockerfile and the compose file of deploy/: parsed, and with --full run step by step.

No container engine is needed: each COPY and RUN of the Dockerfile is executed in a minimal Debian
of the image's release, and the image's command is started in it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from faults.clients import Client
from faults.servers import HOST, ROOT, await_that, free_port, postgresql

pytestmark = pytest.mark.slow

FOLDER = ROOT / "deploy" / "docker"
DOCKERFILE = FOLDER / "Dockerfile"
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text())

HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")

CHROOT = shutil.which("chroot", path="/usr/sbin:/sbin:/usr/bin")
CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"


@dataclass
class Stage:
    """A stage of the Dockerfile: the image of its FROM, and its instructions in order."""

    image: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def last(self, instruction: str) -> str:
        return [text for name, text in self.steps if name == instruction][-1]


def stages() -> dict[str, Stage]:
    """Return the Dockerfile's stages by name; the last one is `final`."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    arguments, stages_by_name = {}, {}
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        instruction, _, rest = line.partition(" ")
        if instruction == "ARG":
            name, _, value = rest.partition("=")
            arguments[name] = value
        elif instruction == "FROM":
            image, _, name = rest.partition(" AS ")
            image = re.sub(r"\$\{(\w+)\}", lambda match: arguments[match[1]], image)
            stage = stages_by_name[name or "final"] = Stage(image)
        elif instruction:
            stage.steps.append((instruction, rest))
    return stages_by_name


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed")
def test_hadolint_finds_no_errors():
    process = subprocess.run(
        [HADOLINT, DOCKERFILE], capture_output=True, text=True, timeout=60, check=False
    )

    assert (process.returncode, process.stdout) == (0, "")


def test_image_runs_as_an_unprivileged_user_without_build_tools():
    built, final = stages()["build"], stages()["final"]

    assert final.image == built.image
    assert final.last("USER") == "10001:10001"
    assert "uninstall --yes setuptools pip" in built.last("RUN")
    assert not [text for name, text in final.steps if name == "RUN" and "install" in text]


def test_installed_packages_are_checked_by_hash():
    installs = [
        step
        for name, text in stages()["build"].steps
        if name == "RUN"
        for step in text.split(" && ")
        if "pip install " in step
    ]

    assert installs
    for step in installs:
        assert "--require-hashes" in step or "--no-index" in step, step


def test_build_context_contains_only_copied_files():
    allowed = {
        line[1:]
        for line in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        source
        for stage in stages().values()
        for name, text in stage.steps
        if name == "COPY" and "--from" not in text
        for source in text.split()[:-1]
    }

    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)


def test_image_contains_the_files_of_gunicorn_and_alembic():
    copied = " ".join(text for name, text in stages()["final"].steps if name == "COPY")

    for name in ("wsgi.py", "gunicorn.conf.py", "pyproject.toml", "migrations", "/opt/venv"):
        assert name in copied


def test_compose_starts_services_in_the_order_of_their_dependencies():
    services = COMPOSE["services"]
    conditions = {
        (name, dependency): options["condition"]
        for name, service in services.items()
        for dependency, options in service.get("depends_on", {}).items()
    }

    assert conditions == {
        ("migrate", "database"): "service_healthy",
        ("api", "migrate"): "service_completed_successfully",
        ("nginx", "api"): "service_healthy",
    }
    assert [name for name, service in services.items() if "ports" in service] == ["nginx"]


def test_compose_contains_no_secret_and_names_the_missing_one():
    text = (FOLDER / "compose.yaml").read_text()

    assert set(re.findall(r"\$\{(\w+):\?", text)) == {"POSTGRES_PASSWORD"}
    for service in COMPOSE["services"].values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|KEY", name):
                assert re.fullmatch(r"\$\{\w+:[?-].*\}", value), name
    assert re.fullmatch(
        r"postgresql://todo:\$\{POSTGRES_PASSWORD:\?[^}]+\}@database:5432/todo",
        COMPOSE["services"]["api"]["environment"]["DATABASE_URL"],
    )


def test_compose_limits_connections_like_the_nginx_configuration():
    servers = [
        re.search(r"^server \S+ (.*);$", path.read_text(), re.MULTILINE)[1]
        for path in (FOLDER / "upstream.conf", ROOT / "deploy/nginx/todo-api/upstream.conf")
    ]

    assert servers[0] == servers[1]


def test_compose_mounts_existing_files():
    for volume in COMPOSE["services"]["nginx"]["volumes"]:
        assert (FOLDER / volume.partition(":")[0]).exists(), volume


@pytest.fixture(scope="session")
def debian(request, tmp_path_factory):
    """A minimal Debian of the image's release with Python, in place of the image in FROM."""
    if not request.config.option.full:
        pytest.skip("takes minutes; runs with --full")
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        pytest.skip("needs root and debootstrap (Debian: apt install debootstrap)")
    root = tmp_path_factory.mktemp("debian")
    release = stages()["build"].image.rpartition("-")[2]
    subprocess.run(
        [
            "debootstrap",
            "--variant=minbase",
            # The Python image contains the headers, too.
            "--include=python3,python3-venv,python3-dev,ca-certificates",
            release,
            root,
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=900,
    )
    (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    (root / "dev/shm").mkdir(parents=True, exist_ok=True)
    (root / "dev/shm").chmod(0o1777)
    # Use this machine's host names and certificates, as a container engine does.
    for name in ("etc/resolv.conf", "etc/hosts", "etc/pip.conf", CERTIFICATES):
        if Path("/", name).exists():
            shutil.copy(Path("/", name), root / name)
    yield root
    shutil.rmtree(root)


class Container:
    """A root folder in which the steps of a stage are executed, without a container engine."""

    def __init__(self, root: Path, others: dict[str, Container]) -> None:
        self.root = root
        self._others = others
        self.folder = "/"
        self.user = "0:0"
        self.environ = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}

    def build(self, stage: Stage) -> None:
        """Execute the steps of the stage in order."""
        steps = {"WORKDIR": self.workdir, "ENV": self.env, "RUN": self.run, "COPY": self.copy}
        for instruction, text in stage.steps:
            if instruction == "USER":
                self.user = text
            elif instruction in steps:
                steps[instruction](text)
            else:
                assert instruction in {"EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "CMD"}

    def workdir(self, text: str) -> None:
        self.folder = text
        (self.root / text.lstrip("/")).mkdir(parents=True, exist_ok=True)

    def env(self, text: str) -> None:
        self.environ |= dict(pair.split("=", 1) for pair in shlex.split(text))

    def run(self, text: str) -> None:
        # Use this machine's network settings, as a container engine does.
        names = ("PIP_INDEX_URL", "PIP_CERT", "SSL_CERT_FILE", "HTTPS_PROXY", "https_proxy")
        network = {name: os.environ[name] for name in names if name in os.environ}
        process = subprocess.run(
            self.command("/bin/sh", "-c", text),
            env=network | self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
            check=False,
        )
        assert process.returncode == 0, f"{text}\n{process.stdout[-3000:]}"

    def copy(self, text: str) -> None:
        *sources, target = text.split()
        origin = ROOT
        if sources[0].startswith("--from="):
            origin = self._others[sources.pop(0).partition("=")[2]].root
        for source in sources:
            path = origin / source.lstrip("/")
            destination = self.root / (self.folder + "/" + target).lstrip("/")
            if target.startswith("/"):
                destination = self.root / target.lstrip("/")
            if path.is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(
                    path, destination, symlinks=True, dirs_exist_ok=True, ignore=ignored
                )
            else:
                shutil.copy2(path, destination)

    def command(self, *arguments: str) -> list[str]:
        """Return the command line that runs the command in this root, with its user and WORKDIR."""
        script = f"cd {shlex.quote(self.folder)} && exec {shlex.join(arguments)}"
        return [CHROOT, f"--userspec={self.user}", str(self.root), "/bin/sh", "-c", script]


@pytest.fixture
def image(debian, tmp_path):
    """The container of the final stage, after every step of the Dockerfile."""
    containers: dict[str, Container] = {}
    for name, stage in stages().items():
        root = tmp_path / name
        subprocess.run(["cp", "-a", debian, root], check=True, timeout=300)
        containers[name] = Container(root, containers)
        containers[name].build(stage)
    yield containers["final"]
    for container in containers.values():
        shutil.rmtree(container.root)


def test_dockerfile_steps_make_a_running_service(image):
    """Run the migrations as compose does, then CMD, HEALTHCHECK and SIGTERM."""
    final = stages()["final"]
    start = json.loads(final.last("CMD"))
    probe = json.loads(final.last("HEALTHCHECK").partition("CMD ")[2])
    with postgresql() as server:
        environ = image.environ | {
            "DATABASE_URL": server.url(),
            "AUTH_MODE": "none",
            "PORT": str(free_port()),
        }

        def run(*command: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                image.command(*command),
                env=environ,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )

        migrated = run(*COMPOSE["services"]["migrate"]["command"])
        unhealthy = run(*probe)
        with started(image.command(*start), environ) as (process, address):
            healthy = [run(*probe).returncode for _ in range(2)]
            with Client(address) as client:
                ready = client.request("GET", "/health").status
            uid = Path(f"/proc/{process.pid}").stat().st_uid
        tools = run("sh", "-c", "command -v pip gcc; python -c 'import pip, setuptools'")

    assert migrated.returncode == 0, migrated.stderr
    assert unhealthy.returncode == 1
    assert healthy == [0, 0]
    assert ready == 200
    assert uid == 10001
    assert process.returncode == 0
    assert "No module named 'pip'" in tools.stderr
    assert tools.stdout == ""


@contextmanager
def started(command, environ):
    """Start the command, wait until it listens, and stop it with the image's signal."""
    address = HOST, int(environ["PORT"])
    with subprocess.Popen(command, env=environ, start_new_session=True) as process:
        try:
            with Client(address) as client:
                await_that(lambda: process.poll() is not None or is_live(client), "/livez responds")
            assert process.poll() is None, "the process has ended; its output is above"
            yield process, address
        finally:
            process.send_signal(getattr(signal, stages()["final"].last("STOPSIGNAL")))
            process.wait(30)


def is_live(client) -> bool:
    try:
        return client.request("GET", "/livez").status == 200
    except OSError:
        return False
