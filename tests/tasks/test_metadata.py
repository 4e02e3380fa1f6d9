"""The data of the client: a merge patch changes single keys, and PUT replaces the object."""

from concurrent.futures import ThreadPoolExecutor

import pytest

BEFORE = {"color": "red", "source": "mail"}
TOO_MANY = [{"pointer": "/metadata", "detail": "Must have at most 20 keys."}]


@pytest.mark.parametrize(
    ("patch", "after"),
    [
        ({}, BEFORE),
        (None, {}),
        ({"color": "blue"}, {"color": "blue", "source": "mail"}),
        ({"size": "7"}, BEFORE | {"size": "7"}),
        ({"color": None}, {"source": "mail"}),
        ({"color": None, "source": None}, {}),
        ({"color": None, "size": "7"}, {"source": "mail", "size": "7"}),
        ({"unknown": None}, BEFORE),
        ({"unknown": None, "color": "red"}, BEFORE),
        ({"color": ""}, BEFORE | {"color": ""}),
        ({"Color": "blue"}, BEFORE | {"Color": "blue"}),
        (
            {"$.color": "x", "color.x": "y", '"': "'"},
            BEFORE | {"$.color": "x", "color.x": "y", '"': "'"},
        ),
    ],
)
def test_merge_patch_changes_the_keys_that_it_names(client, make_task, patch, after):
    task = make_task(metadata=BEFORE)

    response = client.patch(task.url, json={"metadata": patch})

    assert response.status_code == 200, response.text
    new = {name: response.json[name] for name in ("revision", "updated_at")}
    assert response.json == task | {"metadata": after} | new
    assert (response.json["revision"] > task["revision"]) == (after != BEFORE)
    assert client.get(task.url).json == response.json


@pytest.mark.parametrize("metadata", [{}, {"color": "blue"}, {"size": "7"}, BEFORE])
def test_put_replaces_the_object(client, make_task, metadata):
    task = make_task(metadata=BEFORE)

    response = client.put(task.url, json={"title": task["title"], "metadata": metadata})

    assert response.status_code == 200
    assert response.json["metadata"] == metadata
    assert (response.json["revision"] > task["revision"]) == (metadata != BEFORE)


def test_patch_that_adds_a_key_beyond_twenty_is_refused(client, make_task):
    task = make_task(metadata={f"key {number}": "" for number in range(20)})

    response = client.patch(task.url, json={"metadata": {"one more": ""}})

    assert (response.status_code, response.json["errors"]) == (422, TOO_MANY)
    assert client.get(task.url).json == task


def test_keys_are_counted_after_merging(client, make_task):
    """The patch has 40 keys: it removes the 20 that the task has and adds 20 others."""
    task = make_task(metadata={f"key {number}": "" for number in range(20)})
    added = {f"new {number}": "x" for number in range(20)}

    response = client.patch(task.url, json={"metadata": dict.fromkeys(task["metadata"]) | added})

    assert (response.status_code, response.json["metadata"]) == (200, added)


def test_patch_can_change_all_of_twenty_keys(client, make_task):
    task = make_task(metadata={f"key {number}": "" for number in range(20)})
    changed = dict.fromkeys(task["metadata"], "x")

    response = client.patch(task.url, json={"metadata": changed})

    assert (response.status_code, response.json["metadata"]) == (200, changed)


def test_devices_that_patch_different_keys_keep_each_others(app, client, make_task):
    task = make_task(metadata=BEFORE)

    def patch(number):
        body = {"metadata": {f"key {number}": str(number)}}
        return app.test_client().patch(task.url, json=body).status_code

    with ThreadPoolExecutor(8) as threads:
        statuses = list(threads.map(patch, range(16)))

    assert statuses == [200] * 16
    added = {f"key {number}": str(number) for number in range(16)}
    assert client.get(task.url).json["metadata"] == BEFORE | added


def test_removal_of_a_key_can_be_sent_again(client, make_task):
    task = make_task(metadata=BEFORE)
    headers = {"If-Match": task.etag}

    first = client.patch(task.url, json={"metadata": {"color": None}}, headers=headers)
    again = client.patch(task.url, json={"metadata": {"color": None}}, headers=headers)

    assert first.json["metadata"] == {"source": "mail"}
    assert (again.status_code, again.json) == (200, first.json)
