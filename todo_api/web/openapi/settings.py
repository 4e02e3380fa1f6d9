"""The parts of the OpenAPI document that are not operations: title, description, servers."""

from importlib.metadata import version
from typing import Any

DESCRIPTION = """\
A todo backend. Every user owns tasks and lists, and no user sees those of another user.

**Authentication.** Send a token as `Authorization: Bearer TOKEN`. `GET /api/session` returns the
`user_id` of the token. For a path with another user's id, the response is 404, whether or not that
user exists.

**A token** comes from the issuer that signs your users in. On a server that `make run` has started,
`make token USER_ID=5f0c2a5e-8f3b-4f6e-9d53-0c9a4f1f7a10` prints one. To try requests on the page
`/docs`, select `Authorize` and paste the token.

**Retries.** Every write can be sent again as it is: if the resource is as requested, the response
is a success, even if `If-Match` has an older revision. To make a POST safe to repeat, send an `id`
that the client made, or an `Idempotency-Key`. After a 503, wait for the seconds in `Retry-After`,
and send the request again.

**Concurrent changes.** Send the `ETag` of a task or list in `If-Match` with a change. If another
request has changed it, the response is 412, and its member `current` is the task or list as it is
now. A read with `If-None-Match` gets a 304 if nothing has changed.

**Errors** are problem details (RFC 9457), as `application/problem+json`. `type` is the path of a
page that explains the problem and says what to do. The page needs no token. No part of a request is
ignored: for an unknown member, or an unknown or repeated query parameter, the response is 422, and
`errors` names each of them. For a method that the path does not have, the response is 405, with
`Allow`.

Every response has an `X-Request-Id`. It is the id in the request, if that consists of 1 to 128
letters, digits, `.`, `_` and `-`, or otherwise a new id.
"""

OPENAPI: dict[str, Any] = {
    "API_TITLE": "Todo API",
    "API_VERSION": version("todo-api"),
    "OPENAPI_VERSION": "3.1.0",
    "API_SPEC_OPTIONS": {
        "info": {
            "description": DESCRIPTION,
            "contact": {"name": "The todo-api authors"},
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [
            {
                "url": "/",
                # A word for the environment is required by Spectral's rules of OWASP.
                "description": "The server that sent this document, local or production.",
                "x-internal": False,
            },
            {
                "url": "https://{host}",
                "description": "Your production server.",
                "x-internal": False,
                "variables": {
                    "host": {
                        "default": "todo.internal",
                        "description": "The host name, with the port if it is not 443.",
                    }
                },
            },
        ],
        "components": {
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": (
                        "A JSON Web Token of the issuer that the server trusts (RFC 7519), "
                        "verified by the rules of RFC8725. "
                        "On a server of `make run`, `make token` prints one."
                    ),
                }
            }
        },
    },
}
