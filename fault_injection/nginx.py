"""An nginx with the files of deploy/, in which only ports and paths are changed."""

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

# Debian installs it in /usr/sbin, which is not in the PATH of an ordinary user.
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")

TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


class Nginx:
    """An nginx in front of the server at `upstream`, with its files in `folder`."""

    def __init__(self, upstream: tuple[str, int], folder: Path) -> None:
        if NGINX is None:
            raise MissingProgramError("nginx is not installed (Debian's package nginx-light).")
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
        """Replace `old` by `new` in one of the files. Raises AssertionError without `old` in it."""
        path = self.folder / file
        text = path.read_text()
        assert old in text, f"{file} does not contain {old!r}."
        path.write_text(text.replace(old, new))

    @property
    def address(self) -> tuple[str, int]:
        return HOST, self.port

    @property
    def access_log(self) -> Path:
        return self.folder / "access.log"

    def command(self, *arguments: str) -> list[str]:
        assert NGINX
        directives = f"daemon off; pid {self.folder}/pid; lock_file {self.folder}/lock;"
        log = f"{self.folder}/error.log"
        conf = f"{self.folder}/nginx.conf"
        return [NGINX, "-p", f"{self.folder}/", "-e", log, "-c", conf, "-g", directives, *arguments]

    def verify(self) -> str:
        """Return the output of `nginx -t`. Raises AssertionError if the files have an error."""
        process = subprocess.run(
            self.command("-t"), capture_output=True, text=True, timeout=30, check=False
        )
        assert process.returncode == 0, process.stderr
        return process.stderr

    def start(self) -> None:
        with (self.folder / "stderr").open("wb") as stderr:
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )
        wait_until(self._listens, "nginx listens")

    def _listens(self) -> bool:
        assert self._process
        assert self._process.poll() is None, (self.folder / "stderr").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(self.address) == 0

    def stop(self) -> None:
        if self._process and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(30)


def has_ipv6() -> bool:
    """Return True if this machine has an IPv6 loopback address; many containers have none."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@contextmanager
def nginx_proxy(upstream: tuple[str, int], *changes: tuple[str, str, str]) -> Iterator[Nginx]:
    """Run an nginx that passes requests to `upstream`; Nginx.substitute explains `changes`."""
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)  # if root starts nginx, its workers run as nobody
        nginx = Nginx(upstream, Path(folder))
        try:
            for change in changes:
                nginx.substitute(*change)
            nginx.start()
            yield nginx
        finally:
            nginx.stop()
