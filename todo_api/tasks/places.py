"""Where a task is: its list, its parent, and its position among its siblings.

While the owner's row is locked, the trigger `place_task` (migrations/) checks lists and parents:
they exist, there is no cycle, and there are not too many levels or subtasks. A subtask is in the
list of its parent.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    Boolean,
    Column,
    Text,
    Uuid,
    and_,
    any_,
    bindparam,
    case,
    exists,
    func,
    literal_column,
    null,
    or_,
    select,
    true,
    update,
)

from todo_api.db.statement import ID, OWNER, compiled
from todo_api.lists.fields import INBOX, LIST_OF_PARENT
from todo_api.resources.order import ANCHOR, SIDE, renumber, require_position
from todo_api.resources.resource import QUOTAS
from todo_api.resources.statements import (
    ATTEMPT,
    LOCK_OWNER,
    UPDATE_STATEMENTS,
    ConditionalChange,
    Statements,
    lock_rows,
    new_value,
    precondition_holds,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import CTE, ColumnElement

    from todo_api.db.statement import Statement
    from todo_api.resources.resource import Resource

LEVELS = 5

# The value of `list_id` if a request has `parent_id` without `list_id`: the list of the parent.
list_of_parent: ColumnElement[Any] = literal_column(f"'{LIST_OF_PARENT}'::uuid", Uuid)
inbox: ColumnElement[Any] = literal_column(f"'{INBOX}'::uuid", Uuid)

# The list, or the nil UUID for the Inbox: PostgreSQL can read an index in order for `place = ...`,
# but not for `list_id IS NULL`.
PLACE: Column[Any] = Column("place", Uuid, nullable=False, server_default=INBOX)
PLACE_DERIVATION = f"coalesce(NEW.list_id, '{INBOX}')"

RAISED = {
    "parent_id_known": {"parent_id": "Must be the id of a task that is not in the trash."},
    "parent_id_not_below": {"parent_id": "Must not be the task itself or one of its subtasks."},
    "parent_id_levels": {"parent_id": f"The tree would have more than {LEVELS} levels."},
    "list_id_known": {"list_id": "Must be the id of a list that is not in the trash."},
    "list_id_of_parent": {
        "list_id": "Must be the list of the parent: send parent_id: null, too, to leave it.",
        "parent_id": "Must be a task of the list in list_id.",
    },
    "after_known": {"after": "Must be the id of another task with the same list and parent."},
    "before_known": {"before": "Must be the id of another task with the same list and parent."},
}
CONFLICTS = {"list_archived": "archived-list", "children": "quota", **QUOTAS}

PARENT_IS_SENT = bindparam("parent_is_sent", type_=Boolean)
LIST_IS_SENT = bindparam("list_is_sent", type_=Boolean)


class TaskStatements(Statements):
    """The statements on one task, some of which also change the tasks below it.

    All these tasks are locked before the first of them is changed. The change of the task locks the
    owner's row; the statements after it find the tasks that other requests have inserted until
    then.
    """

    def __init__(self, resource: Resource) -> None:
        super().__init__(resource)
        task = self._task = resource.table.c
        # The task itself, in statements that change the tasks below it.
        self._root = resource.table.alias("root")
        root = self._root.c
        self._live_below = self._find_below(self.is_live)
        self._lock_tree = self._lock(self._live_below, root.deleted_at.is_(None))
        # Also if the task is in the trash: another request may restore it before the lock on the
        # owner's row, and to wait for the task behind that lock could end in a deadlock.
        self._lock_moved_tree = self._lock(self._live_below)
        self._lock_new_subtasks = lock_rows(
            resource.table, is_in(task.id, self._live_below), nowait=True
        )
        self.delete = self.delete._replace(
            locks=(self._lock_tree,),
            follow_ups=(
                self._lock_new_subtasks,
                self._change_below(
                    self._live_below,
                    root.deleted_at.is_not(None),
                    deleted_at=func.clock_timestamp(),
                ),
            ),
        )
        # Only the tasks that the same request has deleted are restored.
        deleted_with = self._of_root(root.deleted_with)
        deleted_below = self._find_below(and_(self.is_deleted, task.deleted_with == deleted_with))
        # Not EXISTS, for which PostgreSQL would read all live tasks into a hash table.
        live_parent = (
            select(root.id)
            .where(
                root.user_id == OWNER,
                root.id == task.parent_id,
                # Not IS NULL, with which PostgreSQL would use an index on live rows.
                root.deleted_at.is_not(None).is_(False),
            )
            .correlate(resource.table)
            .scalar_subquery()
        )
        restore = self.change_row(
            {"deleted_at": null(), "parent_id": live_parent},
            # As in Statements: not IS NOT NULL.
            self.is_live.is_(False),
        )
        self.restore = restore._replace(
            locks=(self._lock(deleted_below, root.deleted_at.is_not(None)),),
            follow_ups=(
                lock_rows(resource.table, is_in(task.id, deleted_below), nowait=True),
                self._change_below(
                    deleted_below,
                    root.deleted_at.is_(None),
                    deleted_at=null(),
                    list_id=self._of_root(root.list_id),
                ),
            ),
        )
        self._complete_below = self._change_below(
            self._live_below,
            and_(
                root.deleted_at.is_(None),
                root.completed,
                # If the task did not change, the precondition must hold for its subtasks, too.
                or_(root.attempt == ATTEMPT, precondition_holds(root.revision)),
                ~task.completed,
            ),
            completed=true(),
        )
        self._has_open_subtask = exists().where(
            root.user_id == OWNER, is_in(root.id, self._live_below), ~root.completed
        )
        self.move = self._move()
        is_sibling = self._is_sibling()
        self.renumber = renumber(resource.table, is_sibling)
        self.move_with_new_positions = self.move._replace(
            locks=(
                self._lock(self._live_below, None, is_sibling),
                LOCK_OWNER,
                lock_rows(resource.table, is_sibling, nowait=True),
                self.renumber,
            )
        )

    @lru_cache(maxsize=UPDATE_STATEMENTS)  # noqa: B019  a resource exists as long as the process
    def update(self, fields: tuple[str, ...]) -> ConditionalChange:
        """Return the statements that change these fields. Tasks below follow into another list."""
        statements = super().update(fields)
        places = [name for name in ("list_id", "parent_id") if name in fields]
        if not places:
            return statements
        task, root = self._task, self._root.c
        moves = or_(*(root[name].is_distinct_from(new_value(task[name])) for name in places))
        lock = self._lock(self._live_below, and_(root.deleted_at.is_(None), moves))
        return self._with_subtasks(statements, lock)

    @lru_cache(maxsize=2)  # noqa: B019  a resource exists as long as the process
    def complete_tree(self, fields: tuple[str, ...]) -> ConditionalChange:
        """Return the statements that complete the task and the tasks below it."""
        is_done = and_(self.is_live, ~self._differs(fields), ~self._has_open_subtask)
        return self.update(fields)._replace(
            locks=(self._lock_tree,),
            follow_ups=(self._lock_new_subtasks, self._complete_below),
            find_outcome=self._find_outcome(is_done),
        )

    def implied_values(self, fields: Sequence[str]) -> dict[str, Any]:
        """Return the list of the parent if a request has `parent_id` without `list_id`."""
        is_implied = "parent_id" in fields and "list_id" not in fields
        return {"list_id": list_of_parent} if is_implied else {}

    def _find_below(self, state: ColumnElement[bool]) -> CTE:
        """Return the ids of the tasks in this state below the task, through tasks in this state."""
        task, table = self._task, self._resource.table
        ids = select(task.id).where(task.user_id == OWNER, state)
        below = ids.where(task.parent_id == ID).cte("below", recursive=True)
        return below.union(
            select(task.id)
            .where(task.user_id == OWNER, state, task.parent_id == below.c.id)
            .select_from(table, below)
        )

    def _lock(
        self,
        below: CTE,
        condition: ColumnElement[bool] | None = None,
        *others: ColumnElement[bool],
    ) -> Statement:
        """Return a statement that locks the task, the tasks below it, and others.

        With a condition on `root`, it locks nothing if the condition or the precondition does not
        hold, because then the request changes nothing. If another request makes both true before
        the change, the tasks below are locked after the owner's row (`_lock_new_subtasks`).
        """
        task, root = self._task, self._root.c
        is_locked = or_(task.id == ID, is_in(task.id, below), *others)
        if condition is None:
            return lock_rows(self._resource.table, is_locked)
        is_changed = exists().where(
            root.user_id == OWNER, root.id == ID, condition, precondition_holds(root.revision)
        )
        return lock_rows(self._resource.table, is_locked, is_changed)

    def _of_root(self, value: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return the value of a column of the task itself."""
        root = self._root.c
        return select(value).where(root.user_id == OWNER, root.id == ID).scalar_subquery()

    def _change_below(self, below: CTE, condition: ColumnElement[bool], **values: Any) -> Statement:
        """Return a statement that changes the tasks below, if the condition on `root` holds."""
        task, root = self._task, self._root.c
        has_root = exists().where(root.user_id == OWNER, root.id == ID, condition)
        return compiled(
            update(self._resource.table)
            .where(task.user_id == OWNER, is_in(task.id, below), has_root)
            .values(**values)
        )

    def _with_subtasks(self, statements: ConditionalChange, *locks: Statement) -> ConditionalChange:
        """Return the statements, and those that put the tasks below into the list of the task."""
        task, root = self._task, self._root.c
        follow = self._change_below(
            self._live_below,
            and_(root.deleted_at.is_(None), task.list_id.is_distinct_from(root.list_id)),
            list_id=self._of_root(root.list_id),
        )
        return statements._replace(locks=locks, follow_ups=(self._lock_new_subtasks, follow))

    def _target_parent(self) -> ColumnElement[Any]:
        task = self._task
        return case((PARENT_IS_SENT, new_value(task.parent_id)), else_=task.parent_id)

    def _move(self) -> ConditionalChange:
        task = self._task
        parent = self._target_parent()
        list_id = case(
            (LIST_IS_SENT, new_value(task.list_id)),
            (and_(PARENT_IS_SENT, new_value(task.parent_id).is_not(None)), list_of_parent),
            else_=task.list_id,
        )
        place = func.coalesce(
            case((LIST_IS_SENT, new_value(task.list_id)), else_=task.list_id), inbox
        )
        position = func.task_position(OWNER, ID, parent, place, SIDE, ANCHOR, type_=Text)
        is_there = and_(
            self.is_live,
            parent.is_not_distinct_from(task.parent_id),
            or_(~LIST_IS_SENT, new_value(task.list_id).is_not_distinct_from(task.list_id)),
            # NULL if there is no room.
            task.position.is_not_distinct_from(position),
        )
        statements = self.change_row(
            {"parent_id": parent, "list_id": list_id, "position": require_position(position)},
            and_(self.is_live, ~is_there),
            is_there,
        )
        return self._with_subtasks(statements, self._lock_moved_tree, LOCK_OWNER)

    def _is_sibling(self) -> ColumnElement[bool]:
        """Return the condition that a task will be a sibling of the moved task.

        Tasks in the trash are siblings, too: they keep their place until they are restored.
        """
        task, root = self._task, self._root.c
        sent_parent, sent_list = new_value(task.parent_id), new_value(task.list_id)
        parent = case((PARENT_IS_SENT, sent_parent), else_=self._of_root(root.parent_id))
        place = case(
            (LIST_IS_SENT, func.coalesce(sent_list, inbox)), else_=self._of_root(root.place)
        )
        return and_(
            task.parent_id.is_not_distinct_from(parent),
            or_(parent.is_not(None), task.place == place),
        )


def is_in(column: ColumnElement[Any], ids: CTE) -> ColumnElement[bool]:
    """Return the condition that the column is one of these ids, which PostgreSQL reads once."""
    return column == any_(func.array(select(ids.c.id).scalar_subquery()))
