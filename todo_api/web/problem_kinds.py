"""The kinds of problems (RFC 9457, section 3.1.1), each declared once, with the texts of its page.

To add a kind, add an entry to KINDS. The page of the kind, and its example in the OpenAPI document,
are made from the entry.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from textwrap import dedent
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# The place and the detail of a fault in a request. The key of the place is "pointer" (JSON Pointer,
# RFC 6901), "parameter" or "header"; the other key is "detail".
Fault = dict[str, str]


@dataclass(frozen=True)
class ProblemKind:
    """A kind of problem: the common parts of its responses, and the texts of its page.

    `name` is the last part of the type. `detail`, `errors`, `quota` and `has_current` describe the
    example response; an actual response has the same members with its own values. `request` is an
    example of a request that succeeds. With `is_default_for_status`, a problem with this status
    has this kind unless it names another kind. In the texts of the page, names of members, headers
    and routes are in backticks.
    """

    name: str
    status: int
    title: str
    happened: str
    reason: str
    remedy: str
    detail: str
    errors: tuple[Fault, ...] = ()
    quota: Mapping[str, int] = field(default_factory=dict)
    has_current: bool = False
    request: str = ""
    is_default_for_status: bool = True

    @property
    def type(self) -> str:
        """The type of the problem: the path of its page."""
        return f"/problems/{self.name}"

    @property
    def request_text(self) -> str:
        return dedent(self.request).strip()


KINDS = (
    ProblemKind(
        name="malformed",
        status=400,
        title="Bad request",
        happened="The server could not read the request. Nothing has been changed.",
        reason=(
            "The body is not valid JSON (RFC 8259), the body ended before its `Content-Length`, or "
            "a header field has a wrong syntax. NaN, Infinity, an object with the same name twice, "
            "deep nesting and bytes that are not UTF-8 are not valid JSON here. If a header field "
            "is wrong, `errors` names it."
        ),
        remedy=(
            "Correct the request as `detail` and `errors` say. Let a JSON library write the body. "
            "The same request fails again, so do not repeat it unchanged, unless the connection "
            "broke while the body was sent."
        ),
        detail="Send the body as valid JSON: Expecting value at character 10.",
        request="""
            POST /api/USER_ID/tasks HTTP/1.1
            Authorization: Bearer TOKEN
            Content-Type: application/json

            {"title": "Buy oat milk"}
        """,
    ),
    ProblemKind(
        name="unauthorized",
        status=401,
        title="Unauthorized",
        happened="The server does not know which user sends the request. Nothing has been changed.",
        reason=(
            "The request has no token, or its token has expired, or the server cannot verify the "
            "token: it comes from another issuer, is for another audience, or is damaged. If a "
            'token was sent, the header `WWW-Authenticate` has `error="invalid_token"`.'
        ),
        remedy=(
            "Get a new token from the issuer, in most cases by a refresh or a new login, and send "
            "it in the header `Authorization`. Then repeat the request. `GET /api/session` returns "
            "the user and the expiry of a token."
        ),
        detail="Send a token: Authorization: Bearer TOKEN.",
        request="""
            GET /api/session HTTP/1.1
            Authorization: Bearer TOKEN
        """,
    ),
    ProblemKind(
        name="https-required",
        status=403,
        title="Forbidden",
        happened="The request was sent over http, without encryption, and the proxy refused it.",
        reason=(
            "Others could read the token on its way to the server. The proxy in front of "
            "the service accepts https only."
        ),
        remedy=(
            "Treat the token as known to others: revoke it or let it expire, and get a new one. "
            "Configure the client with an address that begins with https."
        ),
        detail="Get another token and use https: this request was sent without encryption.",
        is_default_for_status=False,
    ),
    ProblemKind(
        name="not-found",
        status=404,
        title="Not found",
        happened="The path of the request has no resource that this token can use.",
        reason=(
            "The path is misspelled, the resource was deleted or never existed, or it belongs to "
            "another user. The response is the same in all these cases, so that no user learns "
            "what another user has."
        ),
        remedy=(
            "Compare the path with the OpenAPI document at `/openapi.json`, and its user with the "
            "`user_id` of `GET /api/session`. If a client has a copy of the resource, it can "
            "remove the copy. A deleted task is in the trash for 30 days and can be restored."
        ),
        detail="Check the path: the resource does not exist, or it belongs to another user.",
        request="""
            GET /api/USER_ID/trash HTTP/1.1
            Authorization: Bearer TOKEN
        """,
    ),
    ProblemKind(
        name="method-not-allowed",
        status=405,
        title="Method not allowed",
        happened="The path exists, but it does not have the method of the request.",
        reason="Each path has its own methods. The header `Allow` lists those of this path.",
        remedy=(
            "Use one of the methods in `Allow`. To change members of a task or list, send PATCH or "
            "PUT to its own path."
        ),
        detail="Use one of the methods in the Allow header.",
    ),
    ProblemKind(
        name="not-acceptable",
        status=406,
        title="Not acceptable",
        happened="The header `Accept` of the request excludes the format of the response.",
        reason="The API responds with `application/json`, and `Accept` does not include it.",
        remedy="Send `Accept: application/json`, or leave `Accept` out.",
        detail="Send Accept: application/json, or no Accept header.",
        request="""
            GET /api/USER_ID/tasks HTTP/1.1
            Authorization: Bearer TOKEN
            Accept: application/json
        """,
    ),
    ProblemKind(
        name="in-trash",
        status=409,
        title="Conflict",
        happened="The id for the new resource belongs to a resource in the trash.",
        reason=(
            "A POST with an `id` creates a resource under an id that the client chooses. A deleted "
            "resource keeps its id until it is purged, because it can still be restored."
        ),
        remedy="Restore the resource and then change it, or create a new one under another id.",
        detail="Use another id, or restore the resource: this id belongs to one in the trash.",
        request="""
            POST /api/USER_ID/tasks/TASK_ID/restore HTTP/1.1
            Authorization: Bearer TOKEN
        """,
        is_default_for_status=False,
    ),
    ProblemKind(
        name="archived-list",
        status=409,
        title="Conflict",
        happened="The list of the task is archived. Nothing has been changed.",
        reason=(
            "An archived list gets no new tasks: no request can create a task there, or move one "
            "there by `list_id` or `parent_id`. Its tasks can be changed."
        ),
        remedy="Set `archived` of the list to false, or choose another list.",
        detail="Use another list, or set archived of this list to false.",
        request="""
            PATCH /api/USER_ID/lists/LIST_ID HTTP/1.1
            Authorization: Bearer TOKEN
            Content-Type: application/merge-patch+json

            {"archived": false}
        """,
        is_default_for_status=False,
    ),
    ProblemKind(
        name="quota",
        status=409,
        title="Conflict",
        happened="The request would exceed a limit. Nothing has been changed.",
        reason=(
            "A user has at most MAX_TASKS tasks (with the trash, twice as many), 500 lists and "
            "MAX_BYTES bytes of data; a task has at most 500 subtasks directly below it. `limit` "
            "is the limit, and `used` is how much of it is in use. `GET /api/USER_ID` has all "
            "limits of the user."
        ),
        remedy=(
            "Delete what is not needed any more. If `limit` is one that counts the trash, empty "
            "the trash, too."
        ),
        detail="Delete something first: the limit is reached.",
        quota={"limit": 10000, "used": 10000},
        request="""
            DELETE /api/USER_ID/trash HTTP/1.1
            Authorization: Bearer TOKEN
        """,
        is_default_for_status=False,
    ),
    ProblemKind(
        name="already-exists",
        status=409,
        title="Conflict",
        happened="The id for the new resource belongs to a resource with other values.",
        reason=(
            "A POST with an `id` that is in use is a success only if the resource has the values "
            "of the request: it may be the same request, sent again. This resource has other "
            "values: another request has created or changed it."
        ),
        remedy="Change the existing resource, or create a new one under another id.",
        detail="Use another id, or change the resource: this id belongs to one with other values.",
        request="""
            PATCH /api/USER_ID/tasks/TASK_ID HTTP/1.1
            Authorization: Bearer TOKEN
            Content-Type: application/json

            {"title": "Buy oat milk"}
        """,
        is_default_for_status=False,
    ),
    ProblemKind(
        name="gone",
        status=410,
        title="Gone",
        happened="The server can no longer list all changes since this sync token.",
        reason=(
            "Resources that were deleted after this sync token have been removed for good, the "
            "user was erased, or the database was restored from a backup. A list of changes would "
            "have gaps, and the client would keep resources that no longer exist."
        ),
        remedy=(
            "Start a full sync: request `since=0`, follow `next` while `more` is true, and then "
            "replace the client's copy by what was received. Keep changes that the client has not "
            "yet sent, and send them afterwards."
        ),
        detail=(
            "Start a full sync with since=0: the server no longer has all changes since this "
            "sync token."
        ),
        request="""
            GET /api/USER_ID/changes?since=0 HTTP/1.1
            Authorization: Bearer TOKEN
        """,
    ),
    ProblemKind(
        name="length-required",
        status=411,
        title="Length required",
        happened="The request has a body in chunks, and the server does not read chunks.",
        reason=(
            "The request was sent with `Transfer-Encoding: chunked` and without `Content-Length`. "
            "Some servers that can run this API do not decode chunks."
        ),
        remedy=(
            "Send the length of the body in `Content-Length`. Most HTTP clients do so for a body "
            "that they have in memory."
        ),
        detail="Send Content-Length: this server does not read chunked bodies.",
        request="""
            POST /api/USER_ID/tasks HTTP/1.1
            Authorization: Bearer TOKEN
            Content-Type: application/json
            Content-Length: 25

            {"title": "Buy oat milk"}
        """,
    ),
    ProblemKind(
        name="precondition-failed",
        status=412,
        title="Precondition failed",
        happened=(
            "The resource is not in the state that `If-Match` or `If-None-Match` requires. Nothing "
            "has been changed. The member `current` has the resource as it is now, and the header "
            "`ETag` has its entity tag."
        ),
        reason=(
            "Another request has changed the resource since the client read it. Or the request has "
            "`If-None-Match: *`, which holds only if the resource does not exist."
        ),
        remedy=(
            "Apply the change to `current`, and send it again with the new `ETag` in `If-Match`. "
            "If both changes concern the same member, ask the user which one to keep."
        ),
        detail=(
            "Apply the change to the member `current`, and send it with the new ETag: the resource "
            "does not meet If-Match or If-None-Match."
        ),
        has_current=True,
        request="""
            PATCH /api/USER_ID/tasks/TASK_ID HTTP/1.1
            Authorization: Bearer TOKEN
            Content-Type: application/merge-patch+json
            If-Match: NEW_ETAG

            {"title": "Buy oat milk"}
        """,
    ),
    ProblemKind(
        name="too-large",
        status=413,
        title="Content too large",
        happened="The body of the request is longer than the server reads.",
        reason="A body has at most 256 KiB.",
        remedy="Send a shorter body. A description has at most 10,000 characters.",
        detail="Send a body of at most 256 KiB.",
    ),
    ProblemKind(
        name="uri-too-long",
        status=414,
        title="URI too long",
        happened="The path and query of the request are longer than the server reads.",
        reason="The server reads about 4,000 characters of path and query together.",
        remedy=(
            "Send fewer or shorter query parameters. Use a cursor from the header `Link` without "
            "changes."
        ),
        detail="Send a path and query of at most 4,000 characters.",
    ),
    ProblemKind(
        name="unsupported-media-type",
        status=415,
        title="Unsupported media type",
        happened="The server does not read bodies of this `Content-Type`.",
        reason=(
            "The header `Content-Type` is missing or names another format. Bodies are JSON; PATCH "
            "also accepts `application/merge-patch+json`."
        ),
        remedy="Send the body as JSON, with the `Content-Type` that `detail` names.",
        detail="Send the body with Content-Type: application/json.",
        request="""
            POST /api/USER_ID/tasks HTTP/1.1
            Authorization: Bearer TOKEN
            Content-Type: application/json

            {"title": "Buy oat milk"}
        """,
    ),
    ProblemKind(
        name="expectation-failed",
        status=417,
        title="Expectation failed",
        happened="The header `Expect` of the request has a value that the server does not support.",
        reason=(
            "The only expectation that HTTP defines is `100-continue` (RFC 9110, section 10.1.1)."
        ),
        remedy="Send `Expect: 100-continue`, or leave `Expect` out.",
        detail="Send Expect: 100-continue, or no Expect header.",
    ),
    ProblemKind(
        name="invalid",
        status=422,
        title="Unprocessable content",
        happened=(
            "The server could read the request, but at least one value in it is not allowed. "
            "Nothing has been changed."
        ),
        reason=(
            "`errors` has an entry for each fault. `pointer` is a JSON Pointer (RFC 6901) into the "
            "body, `parameter` is a parameter of the path or the query, and `header` is a header "
            "field. Unknown members and parameters are faults, too: nothing is ignored."
        ),
        remedy=(
            "Correct each value that `errors` names, and send the request again. A client with a "
            "form can show each `detail` beside the field that `pointer` names."
        ),
        detail="Correct each fault that the member `errors` lists.",
        errors=({"pointer": "/title", "detail": "Must have 1 to 255 characters."},),
        request="""
            POST /api/USER_ID/tasks HTTP/1.1
            Authorization: Bearer TOKEN
            Content-Type: application/json

            {"title": "Buy oat milk"}
        """,
    ),
    ProblemKind(
        name="key-reused",
        status=422,
        title="Unprocessable content",
        happened=(
            "The `Idempotency-Key` of the request belongs to another request. Nothing has been "
            "changed."
        ),
        reason=(
            "Another request has used this key, with another path or another body. A key marks one "
            "request, so that sending it again has no second effect, for at least 24 hours."
        ),
        remedy=(
            "Make a new key, such as a UUID, for each new request. Use a key again only to repeat "
            "the same request with the same body."
        ),
        detail="Correct each fault that the member `errors` lists.",
        errors=(
            {
                "header": "Idempotency-Key",
                "detail": "Send a new key: another request has used this one.",
            },
        ),
        request="""
            POST /api/USER_ID/tasks HTTP/1.1
            Authorization: Bearer TOKEN
            Content-Type: application/json
            Idempotency-Key: 0199c7a3-41d2-7b0e-a1f4-6c7d8e9f0a1b

            {"title": "Buy oat milk"}
        """,
        is_default_for_status=False,
    ),
    ProblemKind(
        name="precondition-required",
        status=428,
        title="Precondition required",
        happened="The request changes a resource without `If-Match`, which the server requires.",
        reason=(
            "With `If-Match`, a change applies only to the version that the client has read, so "
            "that no client overwrites a change that it has not seen. The operator requires it "
            "(`REQUIRE_IF_MATCH`)."
        ),
        remedy="Read the resource, and send its `ETag` in `If-Match` with the change.",
        detail="Send If-Match with the ETag of the resource, or its revision in the body.",
        request="""
            PATCH /api/USER_ID/tasks/TASK_ID HTTP/1.1
            Authorization: Bearer TOKEN
            Content-Type: application/merge-patch+json
            If-Match: ETAG

            {"title": "Buy oat milk"}
        """,
    ),
    ProblemKind(
        name="too-many-requests",
        status=429,
        title="Too many requests",
        happened="The proxy refused the request, because the client sends too many.",
        reason=(
            "The proxy in front of the service limits the requests and the connections of each "
            "network address. Clients behind one address share the limit."
        ),
        remedy=(
            "Wait for the seconds in `Retry-After`, and send the request again. Wait longer after "
            "each further 429, and keep connections open instead of opening one per request."
        ),
        detail="Send the request again after Retry-After seconds: this address sends too many.",
    ),
    ProblemKind(
        name="headers-too-large",
        status=431,
        title="Request header fields too large",
        happened="The request has too many header fields, or a header field is too long.",
        reason=(
            "The server reads at most 100 header fields of about 8,000 characters each. Cookies of "
            "other services under the same host name, or a large token, are the usual cause."
        ),
        remedy="Send fewer and shorter header fields. The API needs no cookies.",
        detail="Send at most 100 header fields, of at most 8,190 characters each.",
    ),
    ProblemKind(
        name="internal-error",
        status=500,
        title="Internal server error",
        happened="The server has a bug, which this request has triggered.",
        reason=(
            "The response has no details. The server's log has the error under the id in "
            "`instance`."
        ),
        remedy=(
            "Report `instance` and the time to the operator. The request can be sent again as it "
            "is. If it creates a resource, it needs an `id` or an `Idempotency-Key`: otherwise it "
            "may create a second one."
        ),
        detail="Report the id in `instance` to the operator: the server's log has the error.",
    ),
    ProblemKind(
        name="bad-gateway",
        status=502,
        title="Bad gateway",
        happened="The proxy could not get a response from the service.",
        reason=(
            "The service is down or restarts, or its connection broke. If the request "
            "changes something, the change may have been made."
        ),
        remedy=(
            "Wait for the seconds in `Retry-After`, and send the same request again. If it "
            "creates a resource, it needs an `id` or an `Idempotency-Key`: otherwise it may create "
            "a second one."
        ),
        detail="Send the request again after Retry-After seconds: the service did not respond.",
    ),
    ProblemKind(
        name="unavailable",
        status=503,
        title="Service unavailable",
        happened="The server cannot serve the request now. `detail` has the reason.",
        reason=(
            "The database does not accept connections or responds too slowly, too many requests "
            "wait for it, or the keys of the token's issuer cannot be fetched. Nothing has been "
            "changed, unless `detail` says that the server cannot tell."
        ),
        remedy=(
            "Wait for the seconds in `Retry-After`, and send the request again. Wait longer after "
            "each further 503. If `detail` says that the server cannot tell whether the change was "
            "made, and the request creates a resource, it needs an `id` or an `Idempotency-Key`: "
            "otherwise it may create a second one."
        ),
        detail="Try again after Retry-After seconds: the database accepts no connections.",
    ),
    ProblemKind(
        name="gateway-timeout",
        status=504,
        title="Gateway timeout",
        happened="The service did not respond to the proxy in time.",
        reason=(
            "The service or its database is overloaded. If the request changes something, the "
            "change may have been made."
        ),
        remedy=(
            "Wait some seconds, and send the same request again. If it creates a resource, it "
            "needs an `id` or an `Idempotency-Key`: otherwise it may create a second one."
        ),
        detail="Send the request again after some seconds: the service took too long.",
    ),
)

# The kind for all statuses without a kind of their own, for example from a proxy.
OTHER = ProblemKind(
    name="other",
    status=501,
    title="Not Implemented",
    happened=(
        "The request failed with a status that has no page of its own. The example below has the "
        "status 501."
    ),
    reason="`status` and `title` name the condition, as HTTP defines it (RFC 9110, section 15).",
    remedy=(
        "With a status from 400 to 499, correct the request. With a status of 500 or above, the "
        "server has failed. Report `instance` to the operator if the cause stays unclear."
    ),
    detail="The server does not support the action requested by the browser.",
    is_default_for_status=False,
)

KINDS_BY_NAME = {kind.name: kind for kind in (*KINDS, OTHER)}
KINDS_BY_STATUS = {kind.status: kind for kind in KINDS if kind.is_default_for_status}
