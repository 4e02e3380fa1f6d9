"""The list of tasks: order, filters, pages, and invalid query parameters."""

import re
import uuid
from base64 import urlsafe_b64decode, urlsafe_b64encode
from urllib.parse import urlencode

import orjson
import pytest

from tests.support.api import next_url, pages


def test_newest_task_is_first(client, make_task, tasks_url):
    tasks = [make_task(title=f"Task {number}") for number in range(3)]

    assert client.get(tasks_url).json == tasks[::-1]


@pytest.mark.parametrize(("completed", "titles"), [("true", ["Done"]), ("false", ["Open"])])
def test_completed_filters_the_list(client, make_task, tasks_url, completed, titles):
    make_task(title="Open")
    make_task(title="Done", completed=True)

    response = client.get(tasks_url, query_string={"completed": completed})

    assert [task["title"] for task in response.json] == titles


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 200])
@pytest.mark.parametrize("completed", [None, "true", "false"])
def test_pages_contain_every_task_once(client, make_task, tasks_url, limit, completed):
    tasks = [make_task(title=str(number), completed=number % 2 == 0) for number in range(7)]
    query = "" if completed is None else f"&completed={completed}"

    listed = [task for page in pages(client, f"{tasks_url}?limit={limit}{query}") for task in page]

    assert completed in (None, "true", "false")
    assert listed == [
        task for task in tasks[::-1] if completed in (None, str(task["completed"]).lower())
    ]


def test_default_page_has_100_tasks(client, user_id, tasks_url, connection):
    insert_tasks(connection, user_id, 101)

    sizes = [len(page) for page in pages(client, tasks_url)]

    assert sizes == [100, 1]


def test_last_page_has_no_link(client, make_task, tasks_url):
    make_task()

    response = client.get(f"{tasks_url}?limit=1")

    assert "Link" not in response.headers


def test_pages_contain_tasks_with_equal_times_once(client, user_id, tasks_url, connection):
    insert_tasks(connection, user_id, 9)
    connection.execute("UPDATE tasks SET created_at = '2026-01-01' WHERE user_id = %s", (user_id,))

    listed = [task["id"] for page in pages(client, f"{tasks_url}?limit=2") for task in page]

    assert len(listed) == len(set(listed)) == 9


def test_created_and_deleted_tasks_do_not_shift_the_next_page(client, make_task, tasks_url):
    tasks = [make_task(title=str(number)) for number in range(6)]
    first = client.get(f"{tasks_url}?limit=2")

    make_task(title="newer")
    client.delete(tasks[4].url)
    client.delete(tasks[3].url)
    second = client.get(next_url(first))

    assert first.json == [tasks[5], tasks[4]]
    assert second.json == [tasks[2], tasks[1]]


@pytest.mark.parametrize("character", ["x", "\x01", "\\", "\U0010ffff"])
@pytest.mark.parametrize("sort", ["title", "-title"])
def test_pages_continue_after_the_longest_title(client, make_task, tasks_url, sort, character):
    """The cursor contains the title, as JSON, which escapes some characters."""
    tasks = [make_task(title=character * 255) for _ in range(3)]

    listed = list(pages(client, f"{tasks_url}?sort={sort}&limit=1"))

    assert [len(page) for page in listed] == [1, 1, 1]
    assert {task["id"] for (task,) in listed} == {task["id"] for task in tasks}


def test_page_is_limited_to_one_mebibyte(client, make_task, tasks_url):
    tasks = [make_task(description="\N{BEAR FACE}" * 10_000) for _ in range(60)]

    listed = list(pages(client, f"{tasks_url}?limit=200"))

    size = len(client.get(tasks[0].url).data) + len(",\n")
    fitting = 1024 * 1024 // size
    assert 20 < fitting < 30
    assert [len(page) for page in listed] == [fitting, fitting, 60 - 2 * fitting]
    assert [task for page in listed for task in page] == tasks[::-1]


@pytest.mark.parametrize("limit", ["0", "201", "-1", "1.0", "1e1", "+5", " 5", "1_0", "٥", "x", ""])
def test_invalid_limit_is_refused(client, tasks_url, limit):
    response = client.get(tasks_url, query_string={"limit": limit})

    assert response.status_code == 422
    assert [error["parameter"] for error in response.json["errors"]] == ["limit"]


@pytest.mark.parametrize("completed", ["True", "1", "yes", "", "null"])
def test_invalid_boolean_is_refused(client, tasks_url, completed):
    response = client.get(tasks_url, query_string={"completed": completed})

    assert response.status_code == 422
    assert response.json["errors"] == [
        {"parameter": "completed", "detail": "Must be true or false."}
    ]


def test_deleted_is_no_parameter_of_the_list(client, tasks_url):
    response = client.get(tasks_url, query_string={"deleted": "true"})

    assert response.status_code == 422
    assert response.json["errors"] == [{"parameter": "deleted", "detail": "Unknown parameter."}]


def test_unknown_or_repeated_parameter_is_refused(client, tasks_url):
    response = client.get(f"{tasks_url}?limit=1&limit=2&offset=5")

    assert response.status_code == 422
    assert response.json["errors"] == [
        {"parameter": "limit", "detail": "Must be given once."},
        {"parameter": "offset", "detail": "Unknown parameter."},
    ]


def test_cursor_with_other_filters_is_refused(client, make_task, tasks_url):
    for _ in range(3):
        make_task()
    next_page = next_url(client.get(f"{tasks_url}?limit=1&completed=false"))

    other_filter = client.get(next_page.replace("completed=false", "completed=true"))
    no_filter = client.get(next_page.replace("completed=false&", ""))
    other_limit = client.get(next_page.replace("limit=1", "limit=2"))

    assert other_filter.status_code == no_filter.status_code == 422
    assert other_filter.json["errors"][0]["parameter"] == "cursor"
    assert other_limit.status_code == 200


def test_cursor_of_another_user_is_refused(client, make_task, tasks_url):
    others_url = f"/api/{uuid.uuid4()}/tasks"
    for _ in range(2):
        make_task()
        client.post(others_url, json={"title": "Buy oat milk"})
    next_page = next_url(client.get(f"{tasks_url}?limit=1"))

    response = client.get(next_page.replace(tasks_url, others_url))

    assert response.status_code == 422
    assert [error["parameter"] for error in response.json["errors"]] == ["cursor"]
    assert client.get(next_page).status_code == 200


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "AAAA",
        "bnVsbA",
        "W10",
        "WzEsMiwzXQ",
        # Cursors whose time has no time zone, and a time zone with half a second.
        "WyIyMDI2LTAxLTAxVDAwOjAwOjAwIiwiMDE5YWE1YzgtNmYzYS03Y2M0LTlhNTEtM2YwYTRhOWQ3YjIxIixudWxsXQ",
        "WyIyMDI2LTAxLTAxVDAwOjAwOjAwKzAwOjAwOjAwLjUiLCIwMTlhYTVjOC02ZjNhLTdjYzQtOWE1MS0zZjBhNGE5ZDdiMjEiLG51bGxd",
        "x" * 201,
    ],
)
def test_invalid_cursor_is_refused(client, tasks_url, cursor):
    response = client.get(tasks_url, query_string={"cursor": cursor})

    assert response.status_code == 422
    assert {error["parameter"] for error in response.json["errors"]} == {"cursor"}


def insert_tasks(connection, user_id, count):
    """Insert tasks with SQL, which is faster than through the API."""
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO tasks (user_id, id, title) VALUES (%s, %s, 'Task')",
            [(user_id, uuid.uuid4()) for _ in range(count)],
        )


@pytest.mark.parametrize("sort", ["created_at", "updated_at", "title"])
@pytest.mark.parametrize("direction", ["", "-"])
@pytest.mark.parametrize("limit", [2, 200])
def test_list_is_sorted_by_the_sort_parameter(client, make_task, tasks_url, sort, direction, limit):
    titles = ["b", "B", "a", "Ä", "ä", "z", "\N{BEAR FACE}", "a", "10", "9"]
    tasks = [make_task(title=title) for title in titles]
    for task in tasks[::3]:
        client.patch(task.url, json={"completed": True})

    url = f"{tasks_url}?sort={direction}{sort}&limit={limit}"
    listed = [task for page in pages(client, url) for task in page]

    assert len(listed) == len(titles)
    assert listed == sorted(
        listed, key=lambda task: (task[sort], task["id"]), reverse=direction == "-"
    ), "titles are sorted by code point, then by id"


@pytest.mark.parametrize(
    ("q", "expected_titles"),
    [
        ("milk", ["Oat milk", "Shopping"]),
        ("MILK", ["Oat milk", "Shopping"]),
        ("élan", ["Élan vital"]),
        ("elan", []),
        ("100%", ["100% done"]),
        ("%", ["100% done"]),
        ("_", ["snake_case"]),
        ("\\", ["back\\slash"]),
        ("k_c", []),
        ("e_c", ["snake_case"]),
        ("' OR 1=1 --", []),
        ("ost likely", ["Shopping"]),
        (" ", ["Oat milk", "Shopping", "100% done", "Élan vital"]),
    ],
)
def test_q_finds_text_in_any_case(client, make_task, tasks_url, q, expected_titles):
    make_task(title="Oat milk")
    make_task(title="Shopping", description="Most likely Milk")
    make_task(title="100% done")
    make_task(title="snake_case")
    make_task(title="back\\slash")
    make_task(title="Élan vital")

    response = client.get(tasks_url, query_string={"q": q})

    assert {task["title"] for task in response.json} == set(expected_titles)


@pytest.mark.parametrize("q", ["", "x" * 101, "\x00", "a\x00b"])
def test_invalid_search_text_is_refused(client, tasks_url, q):
    response = client.get(tasks_url, query_string={"q": q})

    assert response.status_code == 422
    assert {error["parameter"] for error in response.json["errors"]} == {"q"}


@pytest.mark.parametrize("prefix", ["created", "updated"])
def test_list_is_limited_to_times_between_after_and_before(client, make_task, tasks_url, prefix):
    tasks = [make_task(title=str(number)) for number in range(4)]
    first, last = tasks[0][f"{prefix}_at"], tasks[3][f"{prefix}_at"]

    between = client.get(
        tasks_url, query_string={f"{prefix}_after": first, f"{prefix}_before": last}
    )
    with_offset = client.get(
        tasks_url, query_string={f"{prefix}_after": first.replace("Z", "+00:00")}
    )

    assert between.json == [tasks[2], tasks[1]], "both limits are exclusive"
    assert with_offset.json == tasks[:0:-1]


@pytest.mark.parametrize(
    "time",
    [
        "",
        "now",
        "2026-11-21",
        "2026-11-21T09:30:00",
        "2026-11-21 09:30:00Z",
        "2026-11-21T09:30:00 01:00",
        "2026-02-30T09:30:00Z",
        "2026-11-21T25:00:00Z",
        "2026-11-21T09:30:00+01:60",
        "2026-11-21T09:30:00-24:00",
        "20261121T093000Z",
        "1795253400",
        "2026-W47-6T09:30:00Z",
    ],
)
def test_invalid_time_is_refused(client, tasks_url, time):
    response = client.get(tasks_url, query_string={"created_after": time})

    assert response.status_code == 422
    assert {error["parameter"] for error in response.json["errors"]} == {"created_after"}


@pytest.mark.parametrize("sort", ["", "id", "--title", "+title", "Title", "title,created_at", "1"])
def test_unknown_sort_is_refused(client, tasks_url, sort):
    response = client.get(tasks_url, query_string={"sort": sort})

    assert response.status_code == 422
    assert {error["parameter"] for error in response.json["errors"]} == {"sort"}


def test_filters_can_be_combined(client, make_task, tasks_url):
    tasks = [
        make_task(title=f"{'Milk' if number % 2 else 'Oats'} {number}", completed=number % 3 == 0)
        for number in range(24)
    ]
    for task in tasks[1::8]:
        client.delete(task.url)
    query = {
        "q": "milk",
        "completed": "false",
        "created_after": tasks[2]["created_at"],
        "updated_before": tasks[20]["updated_at"],
        "sort": "title",
        "limit": "2",
    }

    listed = list(pages(client, f"{tasks_url}?{urlencode(query)}"))

    expected = sorted(f"Milk {n}" for n in range(3, 20) if n % 2 and n % 3 and n % 8 != 1)
    assert [task["title"] for page in listed for task in page] == expected
    assert [len(page) for page in listed] == [2] * (len(expected) // 2) + [1] * (len(expected) % 2)


@pytest.mark.parametrize("sort", ["title", "-title", "updated_at"])
def test_forged_cursor_is_refused_for_every_sort(client, make_task, tasks_url, sort):
    for _ in range(2):
        make_task(title="x" * 255)
    next_page = next_url(client.get(f"{tasks_url}?limit=1&sort={sort}"))
    original = re.search("cursor=([^&]*)", next_page)[1]
    fields = orjson.loads(urlsafe_b64decode(original + "=="))

    for value in (None, True, 1.5, [], "\x00", 2**62, -(2**62), "2026", "'"):
        if sort.endswith("title") and value in ("2026", "'"):
            continue  # this is a valid title
        forged = urlsafe_b64encode(orjson.dumps([value, *fields[1:]])).decode().rstrip("=")
        response = client.get(f"{tasks_url}?limit=1&sort={sort}&cursor={forged}")
        assert response.status_code in (200, 422), response.text
        assert response.status_code == 422 or isinstance(value, bool)

    assert client.get(next_page).status_code == 200


@pytest.mark.parametrize(
    "accept", ["text/html", "application/xml", "application/json;q=0", "image/*"]
)
def test_client_that_does_not_accept_json_gets_406(client, task, tasks_url, accept):
    for response in (
        client.get(task.url, headers={"Accept": accept}),
        client.post(tasks_url, json={"title": "x"}, headers={"Accept": accept}),
    ):
        assert response.status_code == 406
        assert response.mimetype == "application/problem+json"
    assert client.get(tasks_url).json == [task]


@pytest.mark.parametrize(
    "accept", ["*/*", "application/*", "application/json", "text/html, */*;q=0.1", ""]
)
def test_client_that_accepts_json_and_others_gets_json(client, task, accept):
    assert client.get(task.url, headers={"Accept": accept}).json == task
