"""The nginx of deploy/, its files as they are but for ports and paths, for tests and faults."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fault_injection import MissingProgramError
from fault_injection.servers import HOST, ROOT, free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

NGINX_FOLDER = ROOT / "deploy" / "nginx"

# An ordinary user's PATH is without the folder into which Debian installs it.
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")

TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


class Nginx:
    """nginx in front of what listens at `upstream`, with its files in `folder`."""

    def __init__(self, upstream: tuple[str, int], folder: Path) -> None:
        if NGINX is None:
            raise MissingProgramError("The program nginx is missing: the package nginx-light.")
        self.folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        shutil.copytree(NGINX_FOLDER, folder, dirs_exist_ok=True)
        temporary = "".join(f"    {name}_temp_path {folder}/{name};\n" for name in TEMPORARY)
        host, port = upstream
        self.substitute("todo-api/upstream.conf", "server 127.0.0.1:8000", f"server {host}:{port}")
        self.substitute("todo-api/server.conf", "/var/log/nginx", str(folder))
        self.substitute("nginx.conf", "/var/log/nginx", str(folder))
        self.substitute("nginx.conf", "http {\n", "http {\n" + temporary)
        for file in ("nginx.conf", "todo-api/tls.conf"):
            self.substitute(file, "listen 80;", f"listen {HOST}:{self.port};")
            self.substitute(
                file, "listen [::]:80;", f"listen [::1]:{self.port};" if has_ipv6() else ""
            )

    def substitute(self, file: str, old: str, new: str) -> None:
        """Put `new` for `old` in one of the files. It is there, or it was not understood."""
        path = self.folder / file
        text = path.read_text()
        assert old in text, f"{file} does not say {old!r}."
        path.write_text(text.replace(old, new))

    @property
    def address(self) -> tuple[str, int]:
        return HOST, self.port

    @property
    def access_log(self) -> Path:
        return self.folder / "access.log"

    def command(self, *arguments: str) -> list[str]:
        assert NGINX
        rest = f"daemon off; pid {self.folder}/pid; lock_file {self.folder}/lock;"
        log = f"{self.folder}/error.log"
        conf = f"{self.folder}/nginx.conf"
        return [NGINX, "-p", f"{self.folder}/", "-e", log, "-c", conf, "-g", rest, *arguments]

    def verify(self) -> str:
        """What `nginx -t` says of the files; AssertionError if it would not start with them."""
        checked = subprocess.run(
            self.command("-t"), capture_output=True, text=True, timeout=30, check=False
        )
        assert checked.returncode == 0, checked.stderr
        return checked.stderr

    def start(self) -> None:
        with (self.folder / "stderr").open("wb") as stderr:
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )
        wait_until(self._answers, "nginx listens")

    def _answers(self) -> bool:
        assert self._process
        assert self._process.poll() is None, (self.folder / "stderr").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(self.address) == 0

    def stop(self) -> None:
        if self._process and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(30)


def has_ipv6() -> bool:
    """Whether this machine can listen on its IPv6 loopback: many containers cannot."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@contextmanager
def nginx_proxy(upstream: tuple[str, int], *changes: tuple[str, str, str]) -> Iterator[Nginx]:
    """A running nginx that passes requests to `upstream`; for `changes` see Nginx.substitute."""
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)  # started by root, its workers run as nobody
        nginx = Nginx(upstream, Path(folder))
        try:
            for change in changes:
                nginx.substitute(*change)
            nginx.start()
            yield nginx
        finally:
            nginx.stop()
