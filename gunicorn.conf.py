"""gunicorn's configuration. A comment gives the reason for each value that is not the default."""

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
from todo_api.server.worker_numbers import make_metrics_folder
from todo_api.settings import SettingsError
from todo_api.startup import load_process_settings

if TYPE_CHECKING:
    from todo_api.services import Services

try:
    settings = load_process_settings()
except SettingsError as error:
    sys.exit(str(error))


class OneStream(Logger):  # type: ignore[misc]  # gunicorn has no types
    """Sends gunicorn's log lines to the application's log. The application logs requests itself."""

    def setup(self, cfg: Config) -> None:
        self.cfg = cfg
        configure_logging(settings.log_level)
        self.error_log.setLevel(logging.NOTSET)
        self.error_log.propagate = True


wsgi_app = "wsgi:app"
bind = f"{settings.host}:{settings.port}"
logger_class = OneStream

workers = settings.web_concurrency
# The worker needs epoll, which only Linux has. Elsewhere gunicorn's slower threaded worker serves.
worker_class = "todo_api.server.worker.Worker" if hasattr(select, "epoll") else "gthread"
threads = settings.web_threads

# gunicorn replaces a worker after this number of requests, so that no memory leak grows without
# limit. With the jitter, the workers are replaced at different times.
max_requests = 200_000
max_requests_jitter = 20_000

# Longer than the idle timeout of the proxy in front, so that the proxy closes idle connections
# first. If gunicorn closed a connection on which the proxy is sending a request, the client would
# get a 502.
keepalive = 75

# After a stop signal, running requests may still take REQUEST_TIMEOUT.
graceful_timeout = round(settings.request_timeout) + 5

# The heartbeat file is in memory: on a slow disk, gunicorn would kill healthy workers.
worker_tmp_dir = "/dev/shm" if sys.platform == "linux" else None  # noqa: S108

# gunicorn ignores the proxy's headers X-Forwarded-*, so any client may send them.
forwarder_headers = ""
secure_scheme_headers: dict[str, str] = {}
forwarded_allow_ips = "*"

# The control socket is not used.
control_socket_disable = True

# A folder for the metrics, in which each worker has a number for its files. It must exist before a
# worker creates its metrics, which is when the worker loads the application.
worker_numbers = make_metrics_folder()
pre_fork = worker_numbers.pre_fork
post_fork = worker_numbers.post_fork
child_exit = worker_numbers.child_exit

# Seconds. After this time, a worker serves requests even without a database: /livez responds with
# 200, and requests that need the database get a 503.
FIRST_CONNECTION_TIMEOUT = 1

# Settings of gunicorn that the worker does not implement and would ignore without a message.
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
        sys.exit(f"Remove these settings, which this worker ignores: {', '.join(changed)}.")


def post_worker_init(worker: Worker) -> None:
    """Connect before the first request, in the worker: threads do not survive a fork."""
    services: Services = worker.wsgi.services
    services.pool.open()
    # Otherwise the first requests would hold all slots (db/admission.py) until a connection is
    # open.
    services.pool.await_connection(FIRST_CONNECTION_TIMEOUT)
    if isinstance(services.keys, IssuerKeys):
        services.keys.open()
    # The garbage collector skips the objects that exist now: the process keeps them until it ends.
    gc.freeze()


def pre_exec(server: Arbiter) -> None:
    """Start the new master of an upgrade as `python -m gunicorn`, however the old one was started.

    Otherwise gunicorn runs its `__main__.py` as a script. Python then puts gunicorn's folder first
    in sys.path, and `gunicorn/http` hides the standard library's `http`.
    """
    python, _, *arguments = server.START_CTX["args"]
    server.START_CTX["args"] = [python, "-m", "gunicorn", *arguments]
