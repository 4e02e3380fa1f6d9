"""The views that every resource has: create, read, list, change, delete, restore and sync."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from todo_api.resources.changes import list_changes
from todo_api.resources.cursors import digest, read_cursor, write_cursor
from todo_api.resources.items import (
    delete_item,
    find_item,
    insert_item,
    insert_item_once,
    insert_named_item,
    restore_item,
    update_item,
)
from todo_api.resources.pages import ListQuery, list_items
from todo_api.resources.responses import (
    change_response,
    collection_response,
    created_response,
    item_response,
    known_revisions,
    stored_response,
)
from todo_api.resources.sync_tokens import read_sync_token
from todo_api.services import database
from todo_api.web.conditional import etag, read_entity_tags, read_precondition
from todo_api.web.idempotency import read_idempotent_request
from todo_api.web.problems import (
    conflict,
    gone,
    key_reused,
    malformed_header,
    not_found,
    precondition_failed,
)
from todo_api.web.requests import current_request
from todo_api.web.responses import MERGE_PATCH, no_content

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from flask import Response

    from todo_api.resources.resource import Resource
    from todo_api.web.blueprints import Blueprint, View


def named(resource: Resource) -> Callable[[View], View]:
    """Put the resource's names into the view's docstring, which the OpenAPI document shows."""

    def name_in_docstring(view: View) -> View:
        text = view.__doc__ or ""
        view.__doc__ = text.replace("ITEMS", resource.plural).replace("ITEM", resource.name)
        return view

    return name_in_docstring


def add_collection_routes(blueprint: Blueprint, resource: Resource) -> None:
    """Add the routes that create and list."""
    schemas = resource.schemas
    path = f"/{resource.plural}"

    @blueprint.post(path, endpoint=f"create_{resource.name}")
    @blueprint.arguments(schemas.creation)
    @blueprint.response(201, schemas.item)
    @blueprint.idempotent
    @named(resource)
    def create(values: dict[str, Any], user_id: UUID) -> Response:
        """Create a ITEM.

        `Location` says where it is from then on. With an `Idempotency-Key`, a request that is sent
        again creates nothing: it gets the first one's response, for 24 hours at least.
        """
        request = read_idempotent_request()
        if request is None:
            return created_response(insert_item(database(), user_id, resource, values))
        response = insert_item_once(database(), user_id, resource, values, request)
        if response is None:
            raise key_reused()
        return stored_response(response)

    @blueprint.get(path, endpoint=f"list_{resource.plural}_of_user")
    @blueprint.arguments(schemas.list_query, location="query")
    @blueprint.response(200, schemas.page)
    @blueprint.response(304)
    @named(resource)
    def list_(query: dict[str, Any], user_id: UUID) -> Response:
        """List the user's ITEMS, a page at a time.

        Newest first, unless `sort` says otherwise; `deleted=true` lists the trash. `Link` names the
        next page for as long as there is one. A long page may end before its limit, at 1 MiB. A
        cursor is good for the query that it came from, and shows nothing twice.
        """
        filters = {name: query[name] for name in query.keys() & resource.filters.keys()}
        query_digest = digest(resource.plural, filters, query["sort"], query["deleted"])
        key = resource.sort_keys[query["sort"].removeprefix("-")]
        after = read_cursor(query.get("cursor"), query_digest, key)
        listed = ListQuery(filters, query["limit"], query["sort"], query["deleted"], after)
        page = list_items(database(), user_id, resource, listed, known_revisions())
        response = collection_response(page.revision, b"[" + b",\n".join(page.items) + b"]")
        if page.end is not None:
            request = current_request()
            next_query = request.args.to_dict() | {"cursor": write_cursor(page.end, query_digest)}
            link = f'<{request.path}?{urlencode(next_query)}>; rel="next"'
            response.headers["Link"] = link
        return response


def add_item_routes(blueprint: Blueprint, resource: Resource) -> None:
    """Add the routes that read, replace, patch, delete and restore."""
    schemas = resource.schemas
    path = f"/{resource.plural}/<id:{resource.id_parameter}>"

    @blueprint.get(path, endpoint=f"get_{resource.name}")
    @blueprint.response(200, schemas.item)
    @blueprint.response(304)
    @named(resource)
    def get(user_id: UUID, **ids: UUID) -> Response:
        """Read one ITEM.

        With `If-None-Match` and the `ETag` of what you have: 304 for as long as it is the same.
        """
        return item_response(find_item(database(), user_id, resource, ids[resource.id_parameter]))

    @blueprint.put(path, endpoint=f"replace_{resource.name}")
    @blueprint.arguments(schemas.replacement)
    @blueprint.response(200, schemas.item)
    @blueprint.response(201, schemas.item)
    @blueprint.response(409)
    @blueprint.conditional
    @named(resource)
    def replace(values: dict[str, Any], user_id: UUID, **ids: UUID) -> Response:
        """Replace a ITEM's members.

        With `If-None-Match: *` the ITEM is created, under this id, and 412 if there is one.
        """
        item_id = ids[resource.id_parameter]
        tags = read_entity_tags("If-None-Match")
        if tags is not None and tags.is_any:
            return create_named(resource, values, user_id, item_id)
        result = update_item(*(database(), user_id, resource, item_id, values), read_precondition())
        return change_response(result)

    @blueprint.patch(path, endpoint=f"patch_{resource.name}")
    @blueprint.arguments(schemas.patch, content_type=MERGE_PATCH)
    @blueprint.response(200, schemas.item)
    @blueprint.conditional
    @named(resource)
    def patch(changes: dict[str, Any], user_id: UUID, **ids: UUID) -> Response:
        """Change the members that are sent; the others stay as they are.

        The body is a JSON merge patch (RFC 7396). An empty one changes nothing.
        """
        item_id = ids[resource.id_parameter]
        return change_response(
            update_item(database(), user_id, resource, item_id, changes, read_precondition())
        )

    @blueprint.delete(path, endpoint=f"remove_{resource.name}")
    @blueprint.response(204)
    @blueprint.conditional
    @named(resource)
    def remove(user_id: UUID, **ids: UUID) -> Response:
        """Put a ITEM into the trash.

        For 30 days it can be restored; for all else it is not there: a second time is 404.
        """
        item_id = ids[resource.id_parameter]
        change_response(delete_item(database(), user_id, resource, item_id, read_precondition()))
        return no_content()

    @blueprint.post(f"{path}/restore", endpoint=f"restore_{resource.name}")
    @blueprint.response(200, schemas.item)
    @blueprint.response(409)
    @blueprint.conditional
    @named(resource)
    def restore(user_id: UUID, **ids: UUID) -> Response:
        """Take a ITEM out of the trash.

        It is as it was, with a new revision. A ITEM that is not in the trash is a conflict.
        """
        item_id = ids[resource.id_parameter]
        result = restore_item(database(), user_id, resource, item_id, read_precondition())
        if result.item is not None and not result.applied and not result.item.is_deleted:
            raise conflict("not-in-trash", "It is not in the trash.")
        return change_response(result)


def create_named(
    resource: Resource, values: dict[str, Any], user_id: UUID, item_id: UUID
) -> Response:
    """Create an item under an id of the client's."""
    if read_entity_tags("If-Match") is not None:
        raise malformed_header("If-Match", "Contradicts If-None-Match: *.")
    defaults = {field.name: field.default for field in resource.fields if not field.required}
    item, applied = insert_named_item(*(database(), user_id, resource, item_id), defaults | values)
    if item is None:
        raise not_found()
    if not applied and item.is_deleted:
        raise conflict("in-trash", f"It is in the trash: POST {current_request().path}/restore.")
    if not applied:
        raise precondition_failed(item.json, etag(item.revision))
    response = item_response(item, 201)
    response.headers["Location"] = current_request().path
    return response


def add_changes_route(blueprint: Blueprint, resource: Resource, path: str) -> None:
    """Add the route of the sync."""
    schemas = resource.schemas

    @blueprint.get(path, endpoint=f"list_{resource.name}_changes")
    @blueprint.arguments(schemas.changes_query, location="query")
    @blueprint.response(200, schemas.changes)
    @blueprint.response(304)
    @blueprint.response(410)
    @named(resource)
    def changes(query: dict[str, Any], user_id: UUID) -> Response:
        """Tell which ITEMS have changed since, in order, so that a client can hold all of them.

        `since=0` starts a full sync: forget what you have, apply the pages while `more` is true,
        and go on from `next` whenever you like. A deleted ITEM is only its id. 410 means that your
        copy cannot be brought up to date any more: start a full sync.
        """
        token = read_sync_token(query["since"])
        page = list_changes(
            *(database(), user_id, resource),
            since=token.revision,
            start=token.deletions_after,
            limit=query["limit"],
            known=known_revisions(),
        )
        if token.needs_full_sync(page):
            raise gone()
        following = token.after(page)
        body = b'{"changes": [%b], "next": "%b", "more": %b}' % (
            b",\n".join(change.json for change in page.changes),
            following.text().encode(),
            # A full sync that has diverged ends its pages, and the next one is 410.
            b"true" if page.more or following.is_broken else b"false",
        )
        return collection_response(page.revision, body)
