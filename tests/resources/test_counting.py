"""The number of tasks that pass filters, with its ETag."""

import uuid

import pytest

pytestmark = [pytest.mark.pooled, pytest.mark.partitioned]


@pytest.fixture
def count_url(tasks_url) -> str:
    return f"{tasks_url}/count"


def test_count_has_the_users_tasks_that_are_not_in_the_trash(client, make_task, count_url):
    tasks = [make_task() for _ in range(3)]
    client.delete(tasks[0].url)
    client.post(f"/api/{uuid.uuid4()}/tasks", json={"title": "Of another user"})

    response = client.get(count_url)

    assert (response.status_code, response.json) == (200, {"count": 2})


def test_count_of_a_user_without_tasks_is_zero(client, count_url):
    assert client.get(count_url).json == {"count": 0}


def test_count_has_all_filters_of_the_list(client, make_task, tasks_url):
    for number in range(12):
        make_task(
            title=f"{'Milk' if number % 2 else 'Oats'} {number}",
            completed=number % 3 == 0,
            priority="high" if number < 8 else "low",
        )
    tasks = client.get(f"{tasks_url}?sort=created_at").json
    query = {
        "q": "milk",
        "completed": "false",
        "priority": "high,medium",
        "created_after": tasks[1]["created_at"],
        "updated_before": tasks[11]["updated_at"],
    }

    listed = client.get(tasks_url, query_string=query).json
    counted = client.get(f"{tasks_url}/count", query_string=query).json

    assert [task["title"] for task in listed] == ["Milk 7", "Milk 5"]
    assert counted == {"count": 2}


@pytest.mark.parametrize("parameter", ["sort=title", "limit=1", "cursor=x", "count=1"])
def test_parameters_of_pages_are_refused(client, count_url, parameter):
    response = client.get(f"{count_url}?{parameter}")

    name = parameter.partition("=")[0]
    assert response.status_code == 422
    assert response.json["errors"] == [{"parameter": name, "detail": "Unknown parameter."}]


def test_unchanged_count_is_304(client, task, tasks_url, count_url):
    first = client.get(count_url)
    headers = {"If-None-Match": first.headers["ETag"]}

    unchanged = client.get(count_url, headers=headers)
    with_other_filter = client.get(f"{count_url}?completed=false", headers=headers)
    client.post(tasks_url, json={"title": "Buy oats"})
    changed = client.get(count_url, headers=headers)

    assert first.json == {"count": 1}
    assert first.headers["ETag"].startswith(f'"{task["revision"]}-')
    assert (unchanged.status_code, unchanged.data) == (304, b"")
    for response in (first, unchanged):
        assert response.headers["Cache-Control"] == "private, no-cache"
        assert response.headers["Vary"] == "Authorization"
        assert response.headers["ETag"] == first.headers["ETag"]
    assert (with_other_filter.status_code, with_other_filter.json) == (200, {"count": 1})
    assert (changed.status_code, changed.json) == (200, {"count": 2})


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "POST"])
def test_count_is_not_the_id_of_a_task(client, tasks_url, method):
    response = client.open(f"{tasks_url}/count", method=method, json={"title": "x"})

    assert response.status_code == 405
    assert set(response.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}
