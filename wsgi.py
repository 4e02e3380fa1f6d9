"""The WSGI application, as `wsgi:app`, with the settings of the environment."""

from todo_api.app import create_app
from todo_api.logs import configure_logging
from todo_api.startup import load_process_settings

settings = load_process_settings()
configure_logging(settings.log_level)
app = create_app(settings)
