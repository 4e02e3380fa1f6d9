"""The Dockerfile and the compose file of deploy/: read here, and run step by step with --full.

No container engine is needed: each COPY and RUN of the Dockerfile is done in a bare Debian, of the
release that its image is made of, and what it would start is started there.
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

from fault_injection.clients import Client
from fault_injection.servers import HOST, ROOT, free_port, postgresql, wait_until

pytestmark = pytest.mark.slow

FOLDER = ROOT / "deploy" / "docker"
DOCKERFILE = FOLDER / "Dockerfile"
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text())

HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")

CHROOT = shutil.which("chroot", path="/usr/sbin:/sbin:/usr/bin")
CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"


@dataclass
class Stage:
    """A FROM and what follows it: the instructions in order, and what they come to."""

    image: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def last(self, instruction: str) -> str:
        return [text for name, text in self.steps if name == instruction][-1]


def stages() -> dict[str, Stage]:
    """The Dockerfile's stages by name, the last one as `final`."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    arguments, found = {}, {}
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        instruction, _, rest = line.partition(" ")
        if instruction == "ARG":
            name, _, value = rest.partition("=")
            arguments[name] = value
        elif instruction == "FROM":
            image, _, name = rest.partition(" AS ")
            image = re.sub(r"\$\{(\w+)\}", lambda match: arguments[match[1]], image)
            stage = found[name or "final"] = Stage(image)
        elif instruction:
            stage.steps.append((instruction, rest))
    return found


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not there for this platform")
def test_hadolint_finds_no_fault():
    linted = subprocess.run(
        [HADOLINT, DOCKERFILE], capture_output=True, text=True, timeout=60, check=False
    )

    assert (linted.returncode, linted.stdout) == (0, "")


def test_the_image_runs_as_nobody_that_is_anybody_and_holds_no_tools():
    built, final = stages()["build"], stages()["final"]

    assert final.image == built.image
    assert final.last("USER") == "10001:10001"
    assert "uninstall --yes setuptools pip" in built.last("RUN")
    assert not [text for name, text in final.steps if name == "RUN" and "install" in text]


def test_all_that_is_installed_is_locked_by_its_hash():
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


def test_only_what_is_copied_is_sent_to_the_builder():
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


def test_the_image_has_all_that_gunicorn_and_alembic_look_for():
    copied = " ".join(text for name, text in stages()["final"].steps if name == "COPY")

    for name in ("wsgi.py", "gunicorn.conf.py", "pyproject.toml", "migrations", "/opt/venv"):
        assert name in copied


def test_compose_starts_things_in_the_order_in_which_they_need_each_other():
    services = COMPOSE["services"]
    conditions = {
        (name, other): needed["condition"]
        for name, service in services.items()
        for other, needed in service.get("depends_on", {}).items()
    }

    assert conditions == {
        ("migrate", "database"): "service_healthy",
        ("api", "migrate"): "service_completed_successfully",
        ("nginx", "api"): "service_healthy",
    }
    assert [name for name, service in services.items() if "ports" in service] == ["nginx"]


def test_compose_holds_no_secret_and_says_which_one_is_missing():
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


def test_compose_has_the_same_gate_as_nginx_elsewhere():
    servers = [
        re.search(r"^server \S+ (.*);$", path.read_text(), re.MULTILINE)[1]
        for path in (FOLDER / "upstream.conf", ROOT / "deploy/nginx/todo-api/upstream.conf")
    ]

    assert servers[0] == servers[1]


def test_compose_mounts_what_there_is():
    for volume in COMPOSE["services"]["nginx"]["volumes"]:
        assert (FOLDER / volume.partition(":")[0]).exists(), volume


@pytest.fixture(scope="session")
def debian(request, tmp_path_factory):
    """A bare Debian of the image's release, with its Python: what the image's FROM stands for."""
    if not request.config.option.full:
        pytest.skip("it takes minutes: --full runs it")
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        pytest.skip("it takes root and debootstrap (Debian: apt install debootstrap)")
    root = tmp_path_factory.mktemp("debian")
    release = stages()["build"].image.rpartition("-")[2]
    subprocess.run(
        [
            "debootstrap",
            "--variant=minbase",
            # The image of Python holds its headers, too.
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
    # Names and certificates as they are on this machine, as an engine's network has them.
    for name in ("etc/resolv.conf", "etc/hosts", "etc/pip.conf", CERTIFICATES):
        if Path("/", name).exists():
            shutil.copy(Path("/", name), root / name)
    yield root
    shutil.rmtree(root)


class Container:
    """A tree in which a stage's steps are done, as far as they are about files and processes."""

    def __init__(self, root: Path, others: dict[str, Container]) -> None:
        self.root = root
        self._others = others
        self.folder = "/"
        self.user = "0:0"
        self.environ = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}

    def build(self, stage: Stage) -> None:
        """Do the steps of the stage in order."""
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
        # The network of this machine, as an engine's own settings would have it.
        kept = ("PIP_INDEX_URL", "PIP_CERT", "SSL_CERT_FILE", "HTTPS_PROXY", "https_proxy")
        network = {name: os.environ[name] for name in kept if name in os.environ}
        done = subprocess.run(
            self.command("/bin/sh", "-c", text),
            env=network | self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout[-3000:]}"

    def copy(self, text: str) -> None:
        *sources, target = text.split()
        origin = ROOT
        if sources[0].startswith("--from="):
            origin = self._others[sources.pop(0).partition("=")[2]].root
        for source in sources:
            path = origin / source.lstrip("/")
            into = self.root / (self.folder + "/" + target).lstrip("/")
            if target.startswith("/"):
                into = self.root / target.lstrip("/")
            if path.is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(path, into, symlinks=True, dirs_exist_ok=True, ignore=ignored)
            else:
                shutil.copy2(path, into)

    def command(self, *arguments: str) -> list[str]:
        """The command as it is run in this tree, by this user, where WORKDIR says."""
        there = f"cd {shlex.quote(self.folder)} && exec {shlex.join(arguments)}"
        return [CHROOT, f"--userspec={self.user}", str(self.root), "/bin/sh", "-c", there]


@pytest.fixture
def image(debian, tmp_path):
    """The tree of the final stage, after every step of the Dockerfile."""
    made: dict[str, Container] = {}
    for name, stage in stages().items():
        root = tmp_path / name
        subprocess.run(["cp", "-a", debian, root], check=True, timeout=300)
        made[name] = Container(root, made)
        made[name].build(stage)
    yield made["final"]
    for container in made.values():
        shutil.rmtree(container.root)


def test_the_steps_of_the_dockerfile_make_a_service_that_runs(image):
    """Migrated as compose does, started by CMD, healthy by HEALTHCHECK, stopped by SIGTERM."""
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
    """The process of the command, once it listens; ended by the image's signal."""
    address = HOST, int(environ["PORT"])
    with subprocess.Popen(command, env=environ, start_new_session=True) as process:
        try:
            with Client(address) as client:
                wait_until(
                    lambda: process.poll() is not None or answers(client), "/livez is answered"
                )
            assert process.poll() is None, "It has ended; what it says is above."
            yield process, address
        finally:
            process.send_signal(getattr(signal, stages()["final"].last("STOPSIGNAL")))
            process.wait(30)


def answers(client) -> bool:
    try:
        return client.request("GET", "/livez").status == 200
    except OSError:
        return False
