"""How gunicorn serves the application; every number that differs from its default has a reason."""

import gc
import logging
import select
import sys
from typing import TYPE_CHECKING

from gunicorn.arbiter import Arbiter
from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.workers.base import Worker

from todo_api.auth.jwks import IssuerKeys
from todo_api.logs import configure_logging
from todo_api.server import slots
from todo_api.settings import SettingsError, server_settings

if TYPE_CHECKING:
    from todo_api.services import Services

try:
    settings = server_settings()
except SettingsError as error:
    sys.exit(str(error))


class OneStream(Logger):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's lines in our stream; its access log is ours, one line for each request."""

    def setup(self, cfg: Config) -> None:
        self.cfg = cfg
        configure_logging(settings.log_level)
        self.error_log.setLevel(logging.NOTSET)
        self.error_log.propagate = True


wsgi_app = "wsgi:app"
bind = f"{settings.host}:{settings.port}"
logger_class = OneStream

workers = settings.web_concurrency
# The worker needs epoll, which is Linux's. Elsewhere gunicorn's own threaded worker serves, slower.
worker_class = "todo_api.server.worker.Worker" if hasattr(select, "epoll") else "gthread"
threads = settings.web_threads

# A worker starts anew now and then, so that nothing can grow for ever; not all at the same time.
max_requests = 200_000
max_requests_jitter = 20_000

# Longer than the idle timeout of the proxy in front, which must be the one to close: a proxy that
# sends on a connection that is just being closed answers 502.
keepalive = 75

# What is in flight at a stop may take its whole time.
graceful_timeout = round(settings.request_timeout) + 5

# The heartbeat goes to memory: on a slow disk, gunicorn would kill workers that are well.
worker_tmp_dir = "/dev/shm" if sys.platform == "linux" else None  # noqa: S108

# No field changes what a path or a scheme means, whoever sends it; so that nobody's address has to
# be looked up in a list of those who may.
forwarder_headers = ""
secure_scheme_headers: dict[str, str] = {}
forwarded_allow_ips = "*"

# Nobody asks it, and it would be one more thing that listens.
control_socket_disable = True

# Before anything counts: which is when a worker loads the application.
slots.share_metrics()
pre_fork, post_fork, child_exit = slots.pre_fork, slots.post_fork, slots.child_exit


# Seconds. Without a database, a worker serves all the same: /livez, and refusals.
FIRST_CONNECTION = 1


# Settings of gunicorn that our worker does not implement, and would silently ignore.
UNSUPPORTED = (
    *("certfile", "keyfile", "http_protocols", "proxy_protocol"),
    *("pre_request", "post_request", "accesslog"),
)


def on_starting(server: Arbiter) -> None:
    """Refuse to start with a setting that would have no effect."""
    if worker_class == "gthread":
        return
    defaults = Config()
    changed = [name for name in UNSUPPORTED if getattr(server.cfg, name) != getattr(defaults, name)]
    if changed:
        sys.exit(f"This server does not support gunicorn's settings {', '.join(changed)}.")


def post_worker_init(worker: Worker) -> None:
    """Connect before the first request, in the worker: threads do not survive a fork."""
    services: Services = worker.wsgi.services
    services.pool.open()
    # The first requests would wait for that, and later ones would find no free slot.
    services.pool.await_connection(FIRST_CONNECTION)
    if isinstance(services.keys, IssuerKeys):
        services.keys.open()
    # What is there now stays: without this, it is looked through again and again for garbage.
    gc.freeze()


def pre_exec(server: Arbiter) -> None:
    """Start an upgrade's master as `python -m gunicorn`, however this one was started.

    gunicorn would run the module's file: its folder, then the first to import from, has an `http`.
    """
    python, _, *arguments = server.START_CTX["args"]
    server.START_CTX["args"] = [python, "-m", "gunicorn", *arguments]
