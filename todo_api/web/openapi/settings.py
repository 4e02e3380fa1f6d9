"""The settings of the OpenAPI document that no operation decides: title, description, servers."""

from importlib.metadata import version
from typing import Any

DESCRIPTION = """\
A todo backend in which every user owns tasks, and sees no other's.

**Who you are.** Send a token as `Authorization: Bearer TOKEN`; `GET /api/session` tells the
`user_id` that it is for. A path of any other user is 404, whether or not that user exists.

**A token** comes from the issuer that signs your users in. On a server that `make run` has started,
`make token USER_ID=5f0c2a5e-8f3b-4f6e-9d53-0c9a4f1f7a10` prints one. Paste it behind `Authorize` to
try requests on the page `/docs`.

**Sending again.** PUT, PATCH and DELETE can be sent again as they are. A POST that creates takes an
`Idempotency-Key`: sent again with the same one, it gets the first one's answer, marked by
`Idempotent-Replayed: true`, and creates nothing. An answer of 503 asks for that, after
`Retry-After` seconds.

**Safe editing.** A task's `ETag` goes into `If-Match`: where the task has changed meanwhile, the
answer is 412, with the task as it is now in `current`. `If-None-Match` makes an unchanged read 304.

**Errors** are problem details (RFC 9457), as `application/problem+json`. Nothing is ignored in
silence: an unknown field, or an unknown or repeated query parameter, is 422 and named in `errors`.
A method that a path does not know is 405, with `Allow`.

Every answer has an `X-Request-Id`: the one that was sent, if it is of 1 to 128 letters, digits,
`.`, `_` and `-`; else one that the server made.
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
                "description": "Where this document comes from, be it local or production.",
                "x-internal": False,
            },
            {
                "url": "https://{host}",
                "description": "A production server of yours.",
                "x-internal": False,
                "variables": {
                    "host": {"default": "todo.internal", "description": "Its name, and port."}
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
                        "verified as RFC8725 has it. For a server of `make run`, "
                        "`make token` prints one."
                    ),
                }
            }
        },
    },
}
