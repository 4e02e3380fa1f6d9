"""The list: order, filters, pages."""

import re
import uuid

import pytest


def next_url(answer):
    link = answer.headers.get("Link")
    return link and re.fullmatch(r'<([^>]*)>; rel="next"', link).group(1)


def pages(client, url):
    while url:
        answer = client.get(url)
        assert answer.status_code == 200, answer.text
        yield answer.json
        url = next_url(answer)


def test_the_newest_task_comes_first(client, make_task, tasks_url):
    made = [make_task(title=f"Task {number}") for number in range(3)]

    assert client.get(tasks_url).json == made[::-1]


@pytest.mark.parametrize(("completed", "titles"), [("true", ["Done"]), ("false", ["Open"])])
def test_completed_filters(client, make_task, tasks_url, completed, titles):
    make_task(title="Open")
    make_task(title="Done", completed=True)

    answer = client.get(tasks_url, query_string={"completed": completed})

    assert [task["title"] for task in answer.json] == titles


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 200])
@pytest.mark.parametrize("completed", [None, "true", "false"])
def test_pages_show_every_task_once(client, make_task, tasks_url, limit, completed):
    made = [make_task(title=str(number), completed=number % 2 == 0) for number in range(7)]
    query = "" if completed is None else f"&completed={completed}"

    shown = [task for page in pages(client, f"{tasks_url}?limit={limit}{query}") for task in page]

    wanted = (None, "true", "false")
    assert completed in wanted
    assert shown == [
        task for task in made[::-1] if completed in (None, str(task["completed"]).lower())
    ]


def test_a_page_holds_a_hundred_tasks_unless_told(client, user_id, tasks_url, connection):
    fill(connection, user_id, 101)

    sizes = [len(page) for page in pages(client, tasks_url)]

    assert sizes == [100, 1]


def test_the_last_page_has_no_link(client, make_task, tasks_url):
    make_task()

    answer = client.get(f"{tasks_url}?limit=1")

    assert "Link" not in answer.headers


def test_tasks_of_the_same_moment_are_shown_once(client, user_id, tasks_url, connection):
    fill(connection, user_id, 9)
    connection.execute("UPDATE tasks SET created_at = '2026-01-01' WHERE user_id = %s", (user_id,))

    shown = [task["id"] for page in pages(client, f"{tasks_url}?limit=2") for task in page]

    assert len(shown) == len(set(shown)) == 9


def test_a_task_that_comes_or_goes_moves_no_other(client, make_task, tasks_url):
    made = [make_task(title=str(number)) for number in range(6)]
    first = client.get(f"{tasks_url}?limit=2")

    make_task(title="newer")
    client.delete(made[4].url)
    client.delete(made[3].url)
    second = client.get(next_url(first))

    assert first.json == [made[5], made[4]]
    assert second.json == [made[2], made[1]]


def test_a_page_ends_at_a_mebibyte(client, make_task, tasks_url):
    made = [make_task(description="\N{BEAR FACE}" * 10_000) for _ in range(60)]

    shown = list(pages(client, f"{tasks_url}?limit=200"))

    assert [len(page) for page in shown] == [26, 26, 8]
    assert [task for page in shown for task in page] == made[::-1]


@pytest.mark.parametrize("limit", ["0", "201", "-1", "1.0", "1e1", "+5", " 5", "1_0", "٥", "x", ""])
def test_a_limit_beyond_the_bounds_is_refused(client, tasks_url, limit):
    answer = client.get(tasks_url, query_string={"limit": limit})

    assert answer.status_code == 422
    assert [error["parameter"] for error in answer.json["errors"]] == ["limit"]


@pytest.mark.parametrize("completed", ["True", "1", "yes", "", "null"])
def test_a_filter_that_is_no_boolean_is_refused(client, tasks_url, completed):
    answer = client.get(tasks_url, query_string={"completed": completed})

    assert answer.status_code == 422
    assert answer.json["errors"] == [{"parameter": "completed", "detail": "Must be true or false."}]


def test_a_parameter_that_is_unknown_or_repeated_is_refused(client, tasks_url):
    answer = client.get(f"{tasks_url}?limit=1&limit=2&offset=5")

    assert answer.status_code == 422
    assert answer.json["errors"] == [
        {"parameter": "limit", "detail": "Must be given once."},
        {"parameter": "offset", "detail": "There is no such parameter."},
    ]


def test_a_cursor_is_good_for_its_own_query_only(client, make_task, tasks_url):
    for _ in range(3):
        make_task()
    following = next_url(client.get(f"{tasks_url}?limit=1&completed=false"))

    other = client.get(following.replace("completed=false", "completed=true"))
    without = client.get(following.replace("completed=false&", ""))
    longer = client.get(following.replace("limit=1", "limit=2"))

    assert other.status_code == without.status_code == 422
    assert other.json["errors"][0]["parameter"] == "cursor"
    assert longer.status_code == 200


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "AAAA",
        "bnVsbA",
        "W10",
        "WzEsMiwzXQ",
        # A position without a time zone, and one with half a second of it.
        "WyIyMDI2LTAxLTAxVDAwOjAwOjAwIiwiMDE5YWE1YzgtNmYzYS03Y2M0LTlhNTEtM2YwYTRhOWQ3YjIxIixudWxsXQ",
        "WyIyMDI2LTAxLTAxVDAwOjAwOjAwKzAwOjAwOjAwLjUiLCIwMTlhYTVjOC02ZjNhLTdjYzQtOWE1MS0zZjBhNGE5ZDdiMjEiLG51bGxd",
        "x" * 201,
    ],
)
def test_a_cursor_that_we_did_not_make_is_refused(client, tasks_url, cursor):
    answer = client.get(tasks_url, query_string={"cursor": cursor})

    assert answer.status_code == 422
    assert {error["parameter"] for error in answer.json["errors"]} == {"cursor"}


def fill(connection, user_id, count):
    """Make tasks faster than through the API."""
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO tasks (user_id, id, title) VALUES (%s, %s, 'Task')",
            [(user_id, uuid.uuid4()) for _ in range(count)],
        )
