"""The API agrees with a model in plain Python, in random sequences of requests by Hypothesis."""

import uuid
from itertools import count as count_from

import psycopg
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.support.api import Device, pages
from todo_api.commands.purge import purge

TITLES = st.sampled_from(["Milk", "milk", "Oats", "100%", "a_b", "Ä", "ä", "x" * 255])
DESCRIPTIONS = st.none() | st.sampled_from(["", "Two litres of milk", "ä\nb"])
FIELDS = {"title": TITLES, "description": DESCRIPTIONS, "completed": st.booleans()}


class Model(RuleBasedStateMachine):
    """Tasks as dictionaries; `order` is the time of creation, `change` that of the last change."""

    client = url = None
    tasks = Bundle("tasks")

    def __init__(self):
        super().__init__()
        user = f"/api/{uuid.uuid4()}"
        self.user_id = user[5:]
        self.list_url, self.changes_url = f"{user}/tasks", f"{user}/changes"
        self.trash_url = f"{user}/trash"
        self.live, self.trash = {}, {}
        self.clock = count_from(1)
        self.devices = [Device(self.client, self.changes_url, limit) for limit in (2, 200)]

    def url_of(self, task):
        return f"{self.list_url}/{task}"

    def apply_change(self, response, task, **changes):
        """Apply the changes to the model's task, and compare it with the response."""
        expected = self.live[task]
        if any(expected[name] != value for name, value in changes.items()):
            expected.update(changes, change=next(self.clock))
        assert response.status_code == 200
        self.assert_same(response.json, expected)

    def assert_same(self, actual, expected):
        assert {name: actual[name] for name in FIELDS} == {name: expected[name] for name in FIELDS}
        previous = expected.setdefault("revision_by_change", {}).setdefault(
            expected["change"], actual["revision"]
        )
        assert actual["revision"] == previous, "each change, and nothing else, changes the revision"

    @rule(
        target=tasks,
        values=st.fixed_dictionaries(
            {"title": TITLES},
            optional={name: FIELDS[name] for name in ("description", "completed")},
        ),
    )
    def create(self, values):
        response = self.client.post(self.list_url, json=values)

        assert response.status_code == 201
        task = response.json["id"]
        self.add_task(task, response, {"description": None, "completed": False} | values)
        return task

    @rule(target=tasks, title=TITLES)
    def create_with_id(self, title):
        task = str(uuid.uuid4())

        response = self.client.post(self.list_url, json={"id": task, "title": title})

        assert response.status_code == 201
        assert response.json["id"] == task
        self.add_task(task, response, {"title": title, "description": None, "completed": False})
        return task

    @rule(task=tasks, title=TITLES, description=DESCRIPTIONS, completed=st.booleans())
    def create_again(self, task, title, description, completed):
        values = {"title": title, "description": description, "completed": completed}

        response = self.client.post(self.list_url, json={"id": task, **values})

        if task in self.live:
            if all(self.live[task][name] == value for name, value in values.items()):
                assert response.status_code == 201
                self.assert_same(response.json, self.live[task])
            else:
                assert response.status_code == 409
        elif task in self.trash:
            assert response.status_code == 409
        else:
            assert response.status_code == 201
            self.add_task(task, response, values)

    def add_task(self, task, response, values):
        moment = next(self.clock)
        self.live[task] = values | {"order": moment, "change": moment}
        self.assert_same(response.json, self.live[task])

    @rule(
        task=tasks,
        body=st.fixed_dictionaries(
            {"title": TITLES},
            optional={name: FIELDS[name] for name in ("description", "completed")},
        ),
    )
    def put(self, task, body):
        response = self.client.put(self.url_of(task), json=body)

        if task in self.live:
            self.apply_change(response, task, **body)
        else:
            assert response.status_code == 404

    @rule(task=tasks, changes=st.fixed_dictionaries({}, optional=FIELDS))
    def patch(self, task, changes):
        response = self.client.patch(self.url_of(task), json=changes)

        if task in self.live:
            self.apply_change(response, task, **changes)
        else:
            assert response.status_code == 404

    @rule(task=tasks, is_outdated=st.booleans())
    def patch_with_if_match(self, task, is_outdated):
        current = self.client.get(self.url_of(task))
        if is_outdated and task in self.live:
            self.patch(task, {"title": "Milk" if current.json["title"] != "Milk" else "Oats"})

        response = self.client.patch(
            self.url_of(task),
            json={"title": "Edited"},
            headers={"If-Match": current.headers.get("ETag", "*")},
        )

        if task not in self.live:
            assert response.status_code == 404
        elif is_outdated:  # the title is Milk or Oats now
            assert response.status_code == 412
            self.assert_same(response.json["current"], self.live[task])
        else:
            self.apply_change(response, task, title="Edited")

    @rule(task=tasks, completed=st.none() | st.booleans())
    def complete(self, task, completed):
        body = None if completed is None else {"completed": completed}

        response = self.client.patch(f"{self.url_of(task)}/complete", json=body)

        if task in self.live:
            self.apply_change(response, task, completed=completed is not False)
        else:
            assert response.status_code == 404

    @rule(task=tasks)
    def delete(self, task):
        response = self.client.delete(self.url_of(task))

        assert response.status_code == (404 if self.is_gone(task) else 204)
        if task in self.live:
            self.trash[task] = self.live.pop(task) | {"change": next(self.clock)}

    @rule(task=tasks)
    def restore(self, task):
        response = self.client.post(f"{self.url_of(task)}/restore")

        assert response.status_code == (404 if self.is_gone(task) else 200)
        if task in self.trash:
            self.live[task] = self.trash.pop(task) | {"change": next(self.clock)}
        if task in self.live:
            self.assert_same(response.json, self.live[task])

    def is_gone(self, task):
        """Return whether the task has been removed for good."""
        return task not in self.live and task not in self.trash

    @rule()
    def empty_trash(self):
        response = self.client.delete(self.trash_url)

        assert response.status_code == 204
        self.trash.clear()

    @rule(limit=st.sampled_from([1, 3, 200]))
    def list_trash(self, limit):
        entries = [
            entry
            for page in pages(self.client, f"{self.trash_url}?limit={limit}")
            for entry in page
        ]

        assert [entry["id"] for entry in entries] == sorted(
            self.trash, key=lambda task_id: self.trash[task_id]["change"], reverse=True
        ), "the latest deletion is first"
        for entry in entries:
            assert (entry["type"], entry["value"]["id"]) == ("task", entry["id"])
            self.assert_same(entry["value"], self.trash[entry["id"]])

    @precondition(lambda self: self.trash)
    @rule()
    def purge(self):
        """Move deletions 31 days into the past, purge, and empty the trash of the model."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("SET session_replication_role = replica")
            connection.execute(
                "UPDATE tasks SET deleted_at = deleted_at - interval '31 days'"
                " WHERE user_id = %s AND deleted_at IS NOT NULL",
                (self.user_id,),
            )
        purge(self.url)
        self.trash.clear()

    @rule(
        limit=st.sampled_from([1, 3, 200]),
        completed=st.none() | st.booleans(),
        q=st.none() | st.sampled_from(["milk", "%", "_", "ä"]),
        sort=st.sampled_from(["created_at", "title", "updated_at"]),
        descending=st.booleans(),
    )
    def list(self, limit, completed, q, sort, descending):
        query = {"limit": limit, "sort": f"{'-' * descending}{sort}"}
        expected = dict(self.live)
        if completed is not None:
            query["completed"] = str(completed).lower()
            expected = {
                task_id: task
                for task_id, task in expected.items()
                if task["completed"] is completed
            }
        if q is not None:
            query["q"] = q
            expected = {
                task_id: task
                for task_id, task in expected.items()
                if q in task["title"].lower() or q in (task["description"] or "").lower()
            }
        key = {"created_at": "order", "updated_at": "change", "title": "title"}[sort]
        text = "&".join(f"{name}={value}" for name, value in query.items()).replace("%", "%25")

        listed = [
            task["id"] for page in pages(self.client, f"{self.list_url}?{text}") for task in page
        ]

        assert listed == sorted(
            expected, key=lambda task_id: (expected[task_id][key], task_id), reverse=descending
        )

    @rule(device=st.sampled_from([0, 1]))
    def sync(self, device):
        self.assert_same_tasks(self.devices[device].sync())

    @rule(device=st.sampled_from([0, 1]))
    def sync_a_page_and_stop(self, device):
        self.devices[device].sync_page()

    @invariant()
    def get_returns_the_first_live_task(self):
        for task, expected in list(self.live.items())[:1]:
            self.assert_same(self.client.get(self.url_of(task)).json, expected)

    def assert_same_tasks(self, tasks):
        assert tasks.keys() == self.live.keys()
        for task, expected in self.live.items():
            self.assert_same(tasks[task], expected)

    def teardown(self):
        for device in self.devices:
            self.assert_same_tasks(device.sync())


def test_api_agrees_with_the_model(client, database_url, count):
    Model.client, Model.url = client, database_url

    run_state_machine_as_test(
        Model, settings=settings(max_examples=count(1_000), stateful_step_count=30)
    )
