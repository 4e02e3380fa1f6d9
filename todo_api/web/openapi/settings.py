"""The settings of the OpenAPI document that no operation decides: title, description, servers."""

from importlib.metadata import version

DESCRIPTION = """\
A todo backend in which every user owns tasks, and sees no other's.

**Who you are.** Send a token as `Authorization: Bearer TOKEN`; `GET /api/session` tells the
`user_id` that it is for. A path of any other user is 404, whether or not that user exists.

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

OPENAPI = {
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
                        "verified as RFC8725 has it."
                    ),
                }
            }
        },
    },
}
