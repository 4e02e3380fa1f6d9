"""The list: order, filters, pages."""

import re
import uuid
from base64 import urlsafe_b64decode, urlsafe_b64encode
from urllib.parse import urlencode

import orjson
import pytest

from tests.support.api import next_url, pages


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
        {"parameter": "offset", "detail": "Unknown parameter."},
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


@pytest.mark.parametrize("sort", ["created_at", "updated_at", "title"])
@pytest.mark.parametrize("direction", ["", "-"])
@pytest.mark.parametrize("limit", [2, 200])
def test_a_list_is_sorted_by_what_is_asked(client, make_task, tasks_url, sort, direction, limit):
    titles = ["b", "B", "a", "Ä", "ä", "z", "\N{BEAR FACE}", "a", "10", "9"]
    made = [make_task(title=title) for title in titles]
    for task in made[::3]:
        client.patch(task.url, json={"completed": True})

    url = f"{tasks_url}?sort={direction}{sort}&limit={limit}"
    shown = [task for page in pages(client, url) for task in page]

    assert len(shown) == len(titles)
    assert shown == sorted(
        shown, key=lambda task: (task[sort], task["id"]), reverse=direction == "-"
    ), "titles by code point, equal ones by id"


@pytest.mark.parametrize(
    ("q", "found"),
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
def test_q_finds_text_whatever_its_case(client, make_task, tasks_url, q, found):
    make_task(title="Oat milk")
    make_task(title="Shopping", description="Most likely Milk")
    make_task(title="100% done")
    make_task(title="snake_case")
    make_task(title="back\\slash")
    make_task(title="Élan vital")

    answer = client.get(tasks_url, query_string={"q": q})

    assert {task["title"] for task in answer.json} == set(found)


@pytest.mark.parametrize("q", ["", "x" * 101, "\x00", "a\x00b"])
def test_a_search_beyond_the_bounds_is_refused(client, tasks_url, q):
    answer = client.get(tasks_url, query_string={"q": q})

    assert answer.status_code == 422
    assert {error["parameter"] for error in answer.json["errors"]} == {"q"}


@pytest.mark.parametrize("moment", ["created", "updated"])
def test_moments_bound_a_list(client, make_task, tasks_url, moment):
    made = [make_task(title=str(number)) for number in range(4)]
    first, last = made[0][f"{moment}_at"], made[3][f"{moment}_at"]

    between = client.get(
        tasks_url, query_string={f"{moment}_after": first, f"{moment}_before": last}
    )
    elsewhere = client.get(
        tasks_url, query_string={f"{moment}_after": first.replace("Z", "+00:00")}
    )

    assert between.json == [made[2], made[1]], "neither bound is in"
    assert elsewhere.json == made[:0:-1]


@pytest.mark.parametrize(
    "moment",
    [
        "",
        "now",
        "2026-11-21",
        "2026-11-21T09:30:00",
        "2026-11-21 09:30:00Z",
        "2026-11-21T09:30:00 01:00",
        "2026-02-30T09:30:00Z",
        "2026-11-21T25:00:00Z",
        "20261121T093000Z",
        "1795253400",
        "2026-W47-6T09:30:00Z",
    ],
)
def test_a_moment_that_is_none_is_refused(client, tasks_url, moment):
    answer = client.get(tasks_url, query_string={"created_after": moment})

    assert answer.status_code == 422
    assert {error["parameter"] for error in answer.json["errors"]} == {"created_after"}


@pytest.mark.parametrize("sort", ["", "id", "--title", "+title", "Title", "title,created_at", "1"])
def test_a_sort_that_there_is_not_is_refused(client, tasks_url, sort):
    answer = client.get(tasks_url, query_string={"sort": sort})

    assert answer.status_code == 422
    assert {error["parameter"] for error in answer.json["errors"]} == {"sort"}


def test_filters_go_together(client, make_task, tasks_url):
    made = [
        make_task(title=f"{'Milk' if number % 2 else 'Oats'} {number}", completed=number % 3 == 0)
        for number in range(24)
    ]
    for task in made[::4]:
        client.delete(task.url)
    query = {
        "q": "milk",
        "completed": "false",
        "created_after": made[2]["created_at"],
        "updated_before": made[20]["updated_at"],
        "sort": "title",
        "limit": "2",
    }

    live = list(pages(client, f"{tasks_url}?{urlencode(query)}"))
    trash = list(pages(client, f"{tasks_url}?{urlencode(query | {'deleted': 'true'})}"))

    wanted = sorted(f"Milk {n}" for n in range(3, 20) if n % 2 and n % 3)
    assert [task["title"] for page in live for task in page] == wanted
    assert [len(page) for page in live] == [2] * (len(wanted) // 2) + [1] * (len(wanted) % 2)
    assert trash == [[]], "every fourth is even, and so none of milk is in the trash"


@pytest.mark.parametrize("sort", ["title", "-title", "updated_at"])
def test_a_forged_cursor_is_refused_whatever_it_sorts_by(client, make_task, tasks_url, sort):
    for _ in range(2):
        make_task(title="x" * 255)
    following = next_url(client.get(f"{tasks_url}?limit=1&sort={sort}"))
    genuine = re.search("cursor=([^&]*)", following)[1]
    fields = orjson.loads(urlsafe_b64decode(genuine + "=="))

    for value in (None, True, 1.5, [], "\x00", 2**62, -(2**62), "2026", "'"):
        if sort.endswith("title") and value in ("2026", "'"):
            continue  # a title like any other
        forged = urlsafe_b64encode(orjson.dumps([value, *fields[1:]])).decode().rstrip("=")
        answer = client.get(f"{tasks_url}?limit=1&sort={sort}&cursor={forged}")
        assert answer.status_code in (200, 422), answer.text
        assert answer.status_code == 422 or isinstance(value, bool)

    assert client.get(following).status_code == 200


@pytest.mark.parametrize(
    "accept", ["text/html", "application/xml", "application/json;q=0", "image/*"]
)
def test_a_client_that_takes_no_json_is_told(client, task, tasks_url, accept):
    for answer in (
        client.get(task.url, headers={"Accept": accept}),
        client.post(tasks_url, json={"title": "x"}, headers={"Accept": accept}),
    ):
        assert answer.status_code == 406
        assert answer.mimetype == "application/problem+json"
    assert client.get(tasks_url).json == [task]


@pytest.mark.parametrize(
    "accept", ["*/*", "application/*", "application/json", "text/html, */*;q=0.1", ""]
)
def test_a_client_that_takes_json_among_others_gets_it(client, task, accept):
    assert client.get(task.url, headers={"Accept": accept}).json == task
