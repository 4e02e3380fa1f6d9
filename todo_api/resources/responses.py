"""Responses with one item or a page of items, and their ETags."""

from __future__ import annotations

from typing import TYPE_CHECKING

from todo_api.resources.cursors import digest
from todo_api.services import current_services
from todo_api.web.conditional import etag, read_entity_tags
from todo_api.web.idempotency import REPLAYED
from todo_api.web.problems import Problem, conflict, not_found, precondition_failed
from todo_api.web.requests import READS, current_request
from todo_api.web.responses import not_modified, user_data_response

if TYPE_CHECKING:
    from flask import Response

    from todo_api.resources.items import ChangeResult, Item, StoredResponse


def item_response(item: Item | None, status: int = 200) -> Response:
    """Return the item with its ETag, or a 304. Raises a 404 if the item is None."""
    if item is None:
        raise not_found()
    tag = etag(item.revision)
    if current_request().method in READS:
        tags = read_entity_tags("If-None-Match")
        if tags and (tags.is_any or item.revision in tags.revisions(weak=True)):
            return not_modified(tag)
    return user_data_response(item.json, tag, status)


def created_response(result: ChangeResult) -> Response:
    """Return a 201 with the path of the new item. Raises a 409."""
    item = result.item
    if item is None or not result.is_as_requested:
        raise already_exists(result)
    response = item_response(item, 201)
    response.headers["Location"] = f"{current_request().path}/{item.id}"
    return response


def already_exists(result: ChangeResult) -> Problem:
    """Return the 409 for a new item whose id is in use."""
    is_deleted = result.item is not None and result.item.is_deleted
    return conflict("in-trash" if is_deleted else "already-exists")


def stored_response(stored: StoredResponse) -> Response:
    """Return the response to the first request with the same Idempotency-Key."""
    response = user_data_response(stored.body, stored.headers.pop("ETag"), stored.status)
    response.headers.update(stored.headers)
    if stored.is_replayed:
        response.headers[REPLAYED] = "true"
        current_services().metrics.replays.inc()
    return response


def change_response(result: ChangeResult) -> Response:
    """Return the changed item. Raises a 404, or a 412 if the item is not as requested."""
    if result.item is not None and not result.is_as_requested:
        raise precondition_failed(result.item.json, etag(result.item.revision))
    return item_response(result.item)


def collection_response(revision: int, body: bytes, *more_etag_inputs: str) -> Response:
    """Return a page, or a 304. The ETag is made from revision, query and `more_etag_inputs`."""
    query = digest(current_request().query_string, *more_etag_inputs)
    tag = etag(revision, query)
    tags = read_entity_tags("If-None-Match")
    if tags and (tags.is_any or revision in tags.revisions(query, weak=True)):
        return not_modified(tag)
    return user_data_response(body, tag)


def read_client_revisions(*more_etag_inputs: str) -> list[int]:
    """Return the owner's revisions in the request's If-None-Match, as in `collection_response`."""
    tags = read_entity_tags("If-None-Match")
    if tags is None:
        return []
    return tags.revisions(digest(current_request().query_string, *more_etag_inputs), weak=True)
