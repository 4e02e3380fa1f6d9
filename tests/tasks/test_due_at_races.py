"""`due_at` belongs to the date, time and zone of its row, whatever other requests write at once."""

from __future__ import annotations

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.locks import wait_for_sessions
from tests.support.task_model import find_moment

DUE = {"due_date": "2026-07-01", "due_time": "09:00:00", "time_zone": "Europe/Berlin"}
DATES = ["2026-03-29", "2026-10-25", "2026-07-01"]
TIMES = ["02:30:00", "09:00:00", "23:59:59"]
ZONES = ["Europe/Berlin", "America/New_York", "Asia/Tokyo", None]

CLIENTS = 4
ROUNDS = 2_500  # of each client

pytestmark = [pytest.mark.pooled, pytest.mark.partitioned]


def has_right_moment(task):
    parts = (task["due_date"], task["due_time"], task["time_zone"])
    return task["due_at"] == find_moment(*parts)


@pytest.mark.parametrize("changes", [{"due_date": "2026-12-31"}, {"due_time": "23:30:00"}])
@pytest.mark.parametrize(
    "other_change",
    [
        {"time_zone": None, "due_at": None},
        {"time_zone": "Asia/Tokyo", "due_at": "2026-07-01T00:00:00Z"},
        {"due_time": None, "time_zone": None, "due_at": None},
        {"due_date": None, "due_time": None, "time_zone": None, "due_at": None},
    ],
    ids=",".join,
)
def test_change_of_a_part_that_waits_for_a_change_of_another_part(
    client, make_task, connection, database_url, changes, other_change
):
    task = make_task(**DUE)
    columns = ", ".join(f"{name} = %({name})s" for name in other_change)

    with ThreadPoolExecutor(1) as threads:
        with connection.transaction():
            connection.execute(
                f"UPDATE tasks SET {columns} WHERE id = %(id)s", other_change | {"id": task["id"]}
            )
            pending = threads.submit(client.patch, task.url, json=changes)
            wait_for_sessions(database_url, lambda: 1)
        response = pending.result(timeout=30)

    after = client.get(task.url).json
    merged = DUE | other_change | changes
    if merged["due_date"] is None:
        assert response.status_code == 422
        assert after["due_date"] is None
    else:
        assert response.status_code == 200
        assert {name: after[name] for name in DUE} == {name: merged[name] for name in DUE}
    assert has_right_moment(after)


def test_concurrent_changes_of_single_parts_keep_the_moment_right(app, make_task, count):
    task = make_task(**DUE)

    def send(seed):
        choose, client, statuses = random.Random(seed), app.test_client(), Counter()
        for _ in range(count(ROUNDS)):
            changes = choose.choice(
                [
                    {"due_date": choose.choice(DATES)},
                    {"due_time": choose.choice(TIMES)},
                    {"time_zone": choose.choice(ZONES)},
                    {"due_date": choose.choice(DATES), "due_time": choose.choice(TIMES)},
                ]
            )
            response = client.patch(task.url, json=changes)
            statuses[response.status_code] += 1
            if response.status_code == 200:
                assert response.json.items() >= changes.items()
                assert has_right_moment(response.json), (changes, response.json)
        return statuses

    with ThreadPoolExecutor(CLIENTS) as threads:
        statuses = sum(threads.map(send, range(CLIENTS)), Counter())

    # A change that loses its race five times is refused.
    assert statuses.keys() <= {200, 503}
    assert statuses[200] > statuses[503] * 10
