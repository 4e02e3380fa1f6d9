"""Rules on several members: they hold for the merged task, and the error names a sent member."""

import psycopg
import pytest

from tests.support.differences import assert_same_lines
from todo_api.tasks.fields import TASK

DAY = {"due_date": "2026-11-21"}
TIME = {**DAY, "due_time": "09:30:00"}
ZONED = {**TIME, "time_zone": "Europe/Berlin"}
STARTED = {**DAY, "start_date": "2026-11-20"}

NEEDS_DATE, NEEDS_TIME = "Needs a due_date.", "Needs a due_time."
SEND_TIME = "Send due_time: null, too: the task has a due_time."
SEND_ZONE = "Send time_zone: null, too: the task has a time_zone."
NOT_AFTER, NOT_BEFORE = "Must not be after due_date.", "Must not be before start_date."

# Each entry: the task's members, the sent members, and the member and detail of the error.
BROKEN = [
    ({}, {"due_time": "10:00"}, "due_time", NEEDS_DATE),
    ({}, {"due_time": "10:00", "time_zone": "UTC"}, "due_time", NEEDS_DATE),
    ({}, {"due_time": "10:00", "due_date": None}, "due_time", NEEDS_DATE),
    (DAY, {"due_time": "10:00", "due_date": None}, "due_time", NEEDS_DATE),
    (TIME, {"due_date": None}, "due_date", SEND_TIME),
    (TIME, {"due_date": None, "due_time": "10:00"}, "due_time", NEEDS_DATE),
    (TIME, {"due_date": None, "start_date": "2026-11-20"}, "due_date", SEND_TIME),
    (ZONED, {"due_date": None}, "due_date", SEND_TIME),
    (ZONED, {"due_date": None, "time_zone": None}, "due_date", SEND_TIME),
    ({}, {"time_zone": "UTC"}, "time_zone", NEEDS_TIME),
    (DAY, {"time_zone": "UTC"}, "time_zone", NEEDS_TIME),
    (DAY, {"time_zone": "UTC", "due_time": None}, "time_zone", NEEDS_TIME),
    (ZONED, {"due_time": None}, "due_time", SEND_ZONE),
    (ZONED, {"due_time": None, "time_zone": "UTC"}, "time_zone", NEEDS_TIME),
    (ZONED, {"due_date": None, "due_time": None}, "due_time", SEND_ZONE),
    (DAY, {"start_date": "2026-11-22"}, "start_date", NOT_AFTER),
    (STARTED, {"start_date": "2026-11-22"}, "start_date", NOT_AFTER),
    (STARTED, {"due_date": "2026-11-19"}, "due_date", NOT_BEFORE),
    (STARTED, {"due_date": "2026-11-19", "title": "y"}, "due_date", NOT_BEFORE),
    (STARTED, {"due_date": "2026-11-19", "start_date": "2026-11-20"}, "start_date", NOT_AFTER),
    ({}, {"due_date": "2026-11-19", "start_date": "2026-11-20"}, "start_date", NOT_AFTER),
    ({"start_date": "2026-11-20"}, DAY | {"due_date": "2026-11-19"}, "due_date", NOT_BEFORE),
]
KEPT = [
    (TIME, {"due_date": None, "due_time": None}),
    (ZONED, {"due_date": None, "due_time": None, "time_zone": None}),
    (ZONED, {"due_time": None, "time_zone": None}),
    (ZONED, {"time_zone": None}),
    ({}, ZONED),
    (DAY, {"due_time": "10:00:00"}),
    (TIME, {"time_zone": "Asia/Kathmandu"}),
    (STARTED, {"due_date": None}),
    (STARTED, {"due_date": "2026-11-20"}),
    (STARTED, {"due_date": "2026-11-30", "start_date": "2026-11-25"}),
    ({}, {"start_date": "2026-11-22"}),
]
BROKEN_BY_SQL = {
    "due_time_needs_due_date": "due_time = '09:30'",
    "time_zone_needs_due_time": "time_zone = 'UTC'",
    "start_date_not_after_due_date": "start_date = '2026-11-22', due_date = '2026-11-21'",
}


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
@pytest.mark.parametrize(("before", "body", "member", "detail"), BROKEN)
def test_broken_rule_is_an_error_at_a_member_that_was_sent(
    client, make_task, method, before, body, member, detail
):
    task = make_task(**before)
    sent = body if method == "PATCH" else {"title": task["title"]} | body

    response = client.open(task.url, method=method, json=sent)

    assert response.status_code == 422, response.text
    assert response.json["errors"] == [{"pointer": f"/{member}", "detail": detail}]
    assert member in body
    assert client.get(task.url).json == task


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
@pytest.mark.parametrize(("before", "body"), KEPT)
def test_members_can_change_together_or_alone_if_the_rules_hold(
    client, make_task, method, before, body
):
    task = make_task(**before)
    sent = body if method == "PATCH" else {"title": task["title"]} | body

    response = client.open(task.url, method=method, json=sent)

    assert response.status_code == 200, response.text
    computed = {name: response.json[name] for name in ("due_at", "revision", "updated_at")}
    assert response.json == task | body | computed
    assert (response.json["due_at"] is None) == (response.json["time_zone"] is None)


def test_precondition_is_checked_before_the_rules(client, make_task):
    """The rules hold for the row that is written: nothing is written if If-Match fails."""
    task = make_task(**TIME)

    response = client.patch(task.url, json={"due_date": None}, headers={"If-Match": '"1"'})

    assert (response.status_code, response.json["current"]) == (412, task)


def test_error_with_an_idempotency_key_is_not_kept(client, tasks_url):
    headers = {"Idempotency-Key": "a"}

    refused = client.post(tasks_url, json={"title": "x", "due_time": "10:00"}, headers=headers)
    created = client.post(tasks_url, json={"title": "x"} | TIME, headers=headers)

    assert (refused.status_code, created.status_code) == (422, 201)
    assert client.get(tasks_url).json == [created.json]


def test_every_rule_on_several_members_is_tested():
    assert_same_lines(
        sorted(TASK.member_rules), sorted(BROKEN_BY_SQL), "Add the rule to BROKEN_BY_SQL."
    )


@pytest.mark.parametrize("rule", TASK.member_rules)
def test_database_holds_every_rule_on_several_members(connection, task, rule):
    with pytest.raises(psycopg.errors.CheckViolation) as error:
        connection.execute(f"UPDATE tasks SET {BROKEN_BY_SQL[rule]} WHERE id = %s", (task["id"],))

    assert error.value.diag.constraint_name == f"ck_tasks_{rule}"
