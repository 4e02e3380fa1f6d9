"""The views of each resource, and the views of changes and trash, which have all resources."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import orjson

from todo_api.resources.calendar_types import TimestampType
from todo_api.resources.changes import list_changes
from todo_api.resources.cursors import digest, read_cursor, write_cursor
from todo_api.resources.items import (
    ChangeResult,
    delete_item,
    find_item,
    insert_item,
    insert_item_once,
    restore_item,
    update_item,
)
from todo_api.resources.pages import ListQuery, count_items, list_items
from todo_api.resources.queries import (
    depends_on_day,
    etag_inputs,
    has_etag,
    read_filters,
    run_in_owners_zone,
)
from todo_api.resources.responses import (
    already_exists,
    change_response,
    collection_response,
    created_response,
    item_response,
    read_client_revisions,
    stored_response,
)
from todo_api.resources.schemas import FeedSchemas
from todo_api.resources.sync_tokens import read_sync_token
from todo_api.resources.trash import empty_trash, list_trash
from todo_api.services import database
from todo_api.web.conditional import read_precondition
from todo_api.web.idempotency import read_idempotent_request
from todo_api.web.problems import gone, invalid, key_reused
from todo_api.web.requests import current_request
from todo_api.web.responses import MERGE_PATCH, json_response, no_content, user_data_response

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from flask import Response

    from todo_api.resources.pages import Count, Filters, Page, Position
    from todo_api.resources.resource import Resource
    from todo_api.web.blueprints import Blueprint, View


def named(resource: Resource, note: str = "") -> Callable[[View], View]:
    """Replace ITEM and ITEMS in the view's docstring, which is in the OpenAPI document.

    `note` is added to it: a paragraph that is true of this resource only.
    """

    def name_in_docstring(view: View) -> View:
        text = f"{inspect.cleandoc(view.__doc__ or '')}\n\n{note}".rstrip()
        view.__doc__ = text.replace("ITEMS", resource.plural).replace("ITEM", resource.name)
        return view

    return name_in_docstring


def add_collection_routes(blueprint: Blueprint, resource: Resource) -> None:
    """Add the routes that create, list and count items."""
    add_creation_route(blueprint, resource)
    add_list_routes(blueprint, resource)


def add_creation_route(blueprint: Blueprint, resource: Resource) -> None:
    """Add the route that creates an item."""
    schemas = resource.schemas
    path = f"/{resource.plural}"

    @blueprint.post(path, endpoint=f"create_{resource.name}")
    @blueprint.arguments(schemas.creation)
    @blueprint.response(201, schemas.item)
    @blueprint.response(409)
    @blueprint.idempotent
    @named(resource)
    def create(values: dict[str, Any], user_id: UUID) -> Response:
        """Create a ITEM.

        `Location` is the path of the new ITEM. To be able to send the request again after a lost
        response, send an `id` that you made: the same request then gets a 201 again, and creates
        nothing. If the id belongs to a ITEM with other values, or to one in the trash, the response
        is 409. Or send an `Idempotency-Key`: then the same request gets the first response again,
        for at least 24 hours.
        """
        request = read_idempotent_request()
        item_id = values.pop("id", None)
        if request is None:
            return created_response(insert_item(database(), user_id, resource, item_id, values))
        result = insert_item_once(database(), user_id, resource, item_id, values, request)
        if result is None:
            raise key_reused()
        if isinstance(result, ChangeResult):
            raise already_exists(result)
        return stored_response(result)


def add_list_routes(blueprint: Blueprint, resource: Resource) -> None:
    """Add the routes that list and count items."""
    schemas = resource.schemas
    path = f"/{resource.plural}"

    @blueprint.get(path, endpoint=f"list_{resource.plural}_of_user")
    @blueprint.arguments(schemas.list_query, location="query")
    @blueprint.response(200, schemas.page)
    @blueprint.response(304)
    @named(resource)
    def list_(query: dict[str, Any], user_id: UUID) -> Response:
        """List the user's ITEMS, a page at a time.

        The newest come first, unless `sort` names another order. If there is a next page, `Link`
        has its path and query. A page has at most 1 MiB, so it may have fewer ITEMS than `limit`. A
        cursor is valid only for the same query and user. To change one of these ITEMS, send its
        `revision` in double quotes as `If-Match`.
        """
        values = {name: query[name] for name in query.keys() - {"limit", "cursor"}}
        query_digest = digest(resource.plural, user_id.bytes, values)
        sort = query["sort"].removeprefix("-")
        needed = resource.sort_needs.get(sort, ())
        if needed and not query.keys() & set(needed):
            raise invalid([{"parameter": "sort", "detail": f"Needs {' or '.join(needed)}."}])
        key = resource.sort_keys[sort]
        after = read_cursor(
            query.get("cursor"),
            query_digest,
            key.to_parameter,
            has_day=depends_on_day(resource, query),
        )

        def run(filters: Filters) -> Page:
            listed = ListQuery(filters, query["limit"], query["sort"], after)
            revisions = read_client_revisions(*etag_inputs(filters))
            return list_items(database(), user_id, resource, listed, revisions)

        filters = read_filters(resource, query, user_id, after)
        filters, page = run_in_owners_zone(filters, user_id, run)
        body = json_array(page.items)
        if has_etag(resource, filters):
            response = collection_response(page.revision, body, *etag_inputs(filters))
        else:
            response = user_data_response(body)
        return link_next_page(response, page.end, query_digest)

    @blueprint.get(f"{path}/count", endpoint=f"count_{resource.plural}_of_user")
    @blueprint.arguments(schemas.count_query, location="query")
    @blueprint.response(200, schemas.count)
    @blueprint.response(304)
    @named(resource)
    def count(query: dict[str, Any], user_id: UUID) -> Response:
        """Count the user's ITEMS.

        The response has the number of ITEMS on all pages of `GET /ITEMS` with the same filters.
        """

        def run(filters: Filters) -> Count:
            revisions = read_client_revisions(*etag_inputs(filters))
            return count_items(database(), user_id, resource, filters, revisions, query.get("by"))

        filters = read_filters(resource, query, user_id)
        filters, result = run_in_owners_zone(filters, user_id, run)
        counted: dict[str, Any] = {"count": result.number}
        if by := query.get("by"):
            counted["counts"] = [{by: value, "count": number} for value, number in result.groups]
        body = orjson.dumps(counted)
        if has_etag(resource, filters):
            return collection_response(result.revision, body, *etag_inputs(filters))
        return user_data_response(body)


def add_item_routes(blueprint: Blueprint, resource: Resource) -> None:
    """Add the routes that read, put and patch one item."""
    schemas = resource.schemas
    path = f"/{resource.plural}/<id:{resource.id_parameter}>"

    def update(body: dict[str, Any], user_id: UUID, item_id: UUID) -> Response:
        revision = check_read_only_members(body, user_id, item_id)
        changes = {name: body[name] for name in resource.writable_names if name in body}
        precondition = read_precondition(revision)
        return change_response(
            update_item(database(), user_id, resource, item_id, changes, precondition)
        )

    @blueprint.get(path, endpoint=f"get_{resource.name}")
    @blueprint.response(200, schemas.item)
    @blueprint.response(304)
    @named(resource)
    def get(user_id: UUID, **ids: UUID) -> Response:
        """Read one ITEM.

        If `If-None-Match` has the `ETag` of your copy, and the ITEM has not changed, the response
        is 304.
        """
        return item_response(find_item(database(), user_id, resource, ids[resource.id_parameter]))

    @blueprint.put(path, endpoint=f"put_{resource.name}")
    @blueprint.arguments(schemas.put)
    @blueprint.response(200, schemas.item)
    @blueprint.response(409)
    @blueprint.conditional(schemas.item)
    @named(resource)
    def put(values: dict[str, Any], user_id: UUID, **ids: UUID) -> Response:
        """Set the members of a ITEM that are sent; keep the others.

        A PUT does not replace the whole ITEM, so a client that does not know a member does not
        erase it. The body may be a whole ITEM as GET returned it: its `revision` is a precondition,
        like `If-Match`, and the other read-only members change nothing.
        """
        return update(values, user_id, ids[resource.id_parameter])

    @blueprint.patch(path, endpoint=f"patch_{resource.name}")
    @blueprint.arguments(schemas.patch, content_type=MERGE_PATCH)
    @blueprint.response(200, schemas.item)
    @blueprint.response(409)
    @blueprint.conditional(schemas.item)
    @named(resource)
    def patch(changes: dict[str, Any], user_id: UUID, **ids: UUID) -> Response:
        """Set the members of a ITEM that are sent; keep the others.

        The body is a JSON merge patch (RFC 7396): null sets a member to its default. A `revision`
        in it is a precondition, like `If-Match`; the other read-only members change nothing. If the
        ITEM has the requested values already, the response is 200, even if the precondition fails.
        """
        nulls = {name for name, value in changes.items() if value is None}
        changes |= {
            field.name: field.default for field in resource.writable_fields if field.name in nulls
        }
        return update(changes, user_id, ids[resource.id_parameter])


def add_trash_routes(
    blueprint: Blueprint, resource: Resource, deletion: str = "", restoration: str = ""
) -> None:
    """Add the routes that delete and restore one item.

    `deletion` and `restoration` are notes for the documentation of these routes.
    """
    schemas = resource.schemas
    path = f"/{resource.plural}/<id:{resource.id_parameter}>"

    @blueprint.delete(path, endpoint=f"delete_{resource.name}")
    @blueprint.response(204)
    @blueprint.conditional(schemas.item)
    @named(resource, deletion)
    def delete(user_id: UUID, **ids: UUID) -> Response:
        """Delete a ITEM: move it to the trash.

        The ITEM can be restored for 30 days. While it is in the trash, the response to the same
        request is 204 again.
        """
        item_id = ids[resource.id_parameter]
        change_response(delete_item(database(), user_id, resource, item_id, read_precondition()))
        return no_content()

    @blueprint.post(f"{path}/restore", endpoint=f"restore_{resource.name}")
    @blueprint.response(200, schemas.item)
    @blueprint.response(409)
    @blueprint.conditional(schemas.item)
    @named(resource, restoration)
    def restore(user_id: UUID, **ids: UUID) -> Response:
        """Take a ITEM out of the trash.

        The ITEM has a new revision. A ITEM that is not in the trash does not change.
        """
        item_id = ids[resource.id_parameter]
        return change_response(
            restore_item(database(), user_id, resource, item_id, read_precondition())
        )


def check_read_only_members(body: dict[str, Any], user_id: UUID, item_id: UUID) -> int | None:
    """Return the `revision` in the body of a PUT or PATCH, or None.

    Raises a 422 if `id` or `user_id` in the body differs from the path.
    """
    faults = [
        {"pointer": f"/{name}", "detail": "Must be the id in the path."}
        for name, path_id in (("id", item_id), ("user_id", user_id))
        if body.get(name, path_id) != path_id
    ]
    if faults:
        raise invalid(faults)
    return body.get("revision")


def add_feed_routes(blueprint: Blueprint, resources: tuple[Resource, ...]) -> None:
    """Add the routes of the changes and of the trash, which have items of all resources."""
    schemas = FeedSchemas(resources)

    @blueprint.get("/changes")
    @blueprint.arguments(schemas.changes_query, location="query")
    @blueprint.response(200, schemas.changes)
    @blueprint.response(304)
    @blueprint.response(410)
    def list_changes_of_user(query: dict[str, Any], user_id: UUID) -> Response:
        """List what has changed since a sync token, so that a client can keep a complete copy.

        `since=0` starts a full sync: delete the copy, apply the pages while `more` is true, and
        store `next`. Later, continue with the stored `next` as `since`. Entries are in the order of
        `revision`. An entry with `deleted: true` is a tombstone: remove the item with its id from
        the copy. After a 410, start a full sync, because the copy cannot be updated.
        """
        token = read_sync_token(query["since"], user_id)
        page = list_changes(database(), user_id, resources, token, query["limit"])
        if token.needs_full_sync(page):
            raise gone()
        body = b'{"changes": %b, "next": "%b", "more": %b}' % (
            json_array([change.json for change in page.changes]),
            token.after(page).text(user_id).encode(),
            b"true" if page.more else b"false",
        )
        return collection_response(page.revision, body, page.epoch.hex)

    @blueprint.get("/trash")
    @blueprint.arguments(schemas.trash_query, location="query")
    @blueprint.response(200, schemas.trash)
    def list_trash_of_user(query: dict[str, Any], user_id: UUID) -> Response:
        """List the items in the trash, the latest deletion first.

        Each item can be restored until it is purged. If there is a next page, `Link` has its path
        and query.
        """
        query_digest = digest("trash", user_id.bytes)
        after = read_cursor(query.get("cursor"), query_digest, TimestampType().to_parameter)
        page = list_trash(database(), user_id, resources, query["limit"], after)
        response = json_response(json_array(page.entries))
        return link_next_page(response, page.end, query_digest)

    @blueprint.delete("/trash")
    @blueprint.response(204)
    def empty_trash_of_user(user_id: UUID) -> Response:
        """Remove all items in the trash for good.

        They cannot be restored. If the trash is empty, the response is 204, too.
        """
        empty_trash(database(), user_id, resources)
        return no_content()


def json_array(items: Sequence[bytes]) -> bytes:
    """Return the JSON array of these JSON values, each on its own line."""
    return b"[" + b",\n".join(items) + b"]"


def link_next_page(response: Response, end: Position | None, query_digest: str) -> Response:
    """Add a Link to the page after `end`, unless `end` is None (RFC 8288)."""
    if end is not None:
        request = current_request()
        query = request.args.to_dict() | {"cursor": write_cursor(end, query_digest)}
        response.headers["Link"] = f'<{request.path}?{urlencode(query)}>; rel="next"'
    return response
