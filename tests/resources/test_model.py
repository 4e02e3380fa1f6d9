"""The whole API against a model in plain Python, in sequences that hypothesis makes up."""

import uuid
from itertools import count as numbers

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
    """Tasks as dictionaries; `order` is when each was made, `change` when it was last changed."""

    client = url = None
    tasks = Bundle("tasks")

    def __init__(self):
        super().__init__()
        user = f"/api/{uuid.uuid4()}"
        self.user_id = user[5:]
        self.list_url, self.changes_url = f"{user}/tasks", f"{user}/changes"
        self.live, self.trash = {}, {}
        self.tick = numbers(1)
        self.devices = [Device(self.client, self.changes_url, limit) for limit in (2, 200)]

    def url_of(self, task):
        return f"{self.list_url}/{task}"

    def changed(self, answer, task, **changes):
        """The model's task with the changes; its number moves if anything differs."""
        there = self.live[task]
        if any(there[name] != value for name, value in changes.items()):
            there.update(changes, change=next(self.tick))
        assert answer.status_code == 200
        self.same(answer.json, there)

    def same(self, shown, there):
        assert {name: shown[name] for name in FIELDS} == {name: there[name] for name in FIELDS}
        previous = there.setdefault("seen", {}).setdefault(there["change"], shown["revision"])
        assert shown["revision"] == previous, "a number moves with a change, and only with one"

    @rule(
        target=tasks,
        values=st.fixed_dictionaries(
            {"title": TITLES},
            optional={name: FIELDS[name] for name in ("description", "completed")},
        ),
    )
    def create(self, values):
        answer = self.client.post(self.list_url, json=values)

        assert answer.status_code == 201
        task = answer.json["id"]
        self.created(task, answer, {"description": None, "completed": False} | values)
        return task

    @rule(target=tasks, title=TITLES)
    def create_named(self, title):
        task = str(uuid.uuid4())

        answer = self.client.put(
            self.url_of(task), json={"title": title}, headers={"If-None-Match": "*"}
        )

        assert answer.status_code == 201
        self.created(task, answer, {"title": title, "description": None, "completed": False})
        return task

    def created(self, task, answer, values):
        moment = next(self.tick)
        self.live[task] = values | {"order": moment, "change": moment}
        self.same(answer.json, self.live[task])

    @rule(task=tasks, title=TITLES, description=DESCRIPTIONS, completed=st.none() | st.booleans())
    def put(self, task, title, description, completed):
        body = {"title": title, "description": description}
        if completed is not None:
            body["completed"] = completed

        answer = self.client.put(self.url_of(task), json=body)

        if task in self.live:
            self.changed(answer, task, **body)
        else:
            assert answer.status_code == 404

    @rule(task=tasks, changes=st.fixed_dictionaries({}, optional=FIELDS))
    def patch(self, task, changes):
        answer = self.client.patch(self.url_of(task), json=changes)

        if task in self.live:
            self.changed(answer, task, **changes)
        else:
            assert answer.status_code == 404

    @rule(task=tasks, stale=st.booleans())
    def patch_one_version(self, task, stale):
        shown = self.client.get(self.url_of(task))
        if stale and task in self.live:
            self.patch(task, {"title": "Milk" if shown.json["title"] != "Milk" else "Oats"})

        answer = self.client.patch(
            self.url_of(task),
            json={"title": "Edited"},
            headers={"If-Match": shown.headers.get("ETag", "*")},
        )

        if task not in self.live:
            assert answer.status_code == 404
        elif stale:
            assert answer.status_code == 412
            self.same(answer.json["current"], self.live[task])
        else:
            self.changed(answer, task, title="Edited")

    @rule(task=tasks, completed=st.none() | st.booleans())
    def complete(self, task, completed):
        body = None if completed is None else {"completed": completed}

        answer = self.client.patch(f"{self.url_of(task)}/complete", json=body)

        if task in self.live:
            self.changed(answer, task, completed=completed is not False)
        else:
            assert answer.status_code == 404

    @rule(task=tasks)
    def delete(self, task):
        answer = self.client.delete(self.url_of(task))

        if task in self.live:
            assert answer.status_code == 204
            self.trash[task] = self.live.pop(task) | {"change": next(self.tick)}
        else:
            assert answer.status_code == 404

    @rule(task=tasks)
    def restore(self, task):
        answer = self.client.post(f"{self.url_of(task)}/restore")

        if task in self.trash:
            assert answer.status_code == 200
            self.live[task] = self.trash.pop(task) | {"change": next(self.tick)}
            self.same(answer.json, self.live[task])
        else:
            assert answer.status_code == (409 if task in self.live else 404)

    @precondition(lambda self: self.trash)
    @rule()
    def purge(self):
        """Thirty-one days later: the trash is emptied, and the model's with it."""
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
        deleted=st.booleans(),
        sort=st.sampled_from(["created_at", "title", "updated_at"]),
        descending=st.booleans(),
    )
    def list(self, limit, completed, q, deleted, sort, descending):
        query = {
            "limit": limit,
            "sort": f"{'-' * descending}{sort}",
            "deleted": str(deleted).lower(),
        }
        wanted = dict(self.trash if deleted else self.live)
        if completed is not None:
            query["completed"] = str(completed).lower()
            wanted = {i: t for i, t in wanted.items() if t["completed"] is completed}
        if q is not None:
            query["q"] = q
            wanted = {
                i: t
                for i, t in wanted.items()
                if q in t["title"].lower() or q in (t["description"] or "").lower()
            }
        key = {"created_at": "order", "updated_at": "change", "title": "title"}[sort]
        text = "&".join(f"{name}={value}" for name, value in query.items()).replace("%", "%25")

        shown = [
            task["id"] for page in pages(self.client, f"{self.list_url}?{text}") for task in page
        ]

        assert shown == sorted(wanted, key=lambda i: (wanted[i][key], i), reverse=descending)

    @rule(device=st.sampled_from([0, 1]))
    def sync(self, device):
        self.in_step(self.devices[device].sync())

    @rule(device=st.sampled_from([0, 1]))
    def sync_a_page_and_stop(self, device):
        self.devices[device].page()

    @invariant()
    def one_of_them_reads_the_same(self):
        for task, there in list(self.live.items())[:1]:
            self.same(self.client.get(self.url_of(task)).json, there)

    def in_step(self, held):
        assert held.keys() == self.live.keys()
        for task, there in self.live.items():
            self.same(held[task], there)

    def teardown(self):
        for device in self.devices:
            self.in_step(device.sync())


def test_the_api_does_what_the_model_does(client, database_url, count):
    Model.client, Model.url = client, database_url

    run_state_machine_as_test(
        Model, settings=settings(max_examples=count(1_000), stateful_step_count=30)
    )
