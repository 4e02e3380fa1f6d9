"""The application that gunicorn serves: `gunicorn wsgi:app`."""

from todo_api.app import create_app
from todo_api.logs import configure_logging
from todo_api.settings import server_settings

settings = server_settings()
configure_logging(settings.log_level)
app = create_app(settings)
