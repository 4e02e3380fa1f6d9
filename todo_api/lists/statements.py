"""Statements that change a list together with its tasks, and the order of lists."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Text, and_, exists, func, null, select, update

from todo_api.db.statement import ID, OWNER, compiled
from todo_api.lists.fields import LIST
from todo_api.resources.order import ANCHOR, SIDE, renumber, require_position
from todo_api.resources.statements import LOCK_OWNER, lock_rows

if TYPE_CHECKING:
    from todo_api.db.statement import Statement
    from todo_api.resources.resource import Resource
    from todo_api.resources.statements import ConditionalChange

columns = LIST.table.c
is_this_list = columns.id == ID

LOCK_LIST = lock_rows(LIST.table, is_this_list)
LOCK_LISTS = lock_rows(LIST.table)
LOCK_NEW_LISTS = lock_rows(LIST.table, nowait=True)
new_position = func.list_position(OWNER, ID, SIDE, ANCHOR, type_=Text)
MOVE = LIST.statements.change_row(
    {"position": require_position(new_position)},
    and_(LIST.statements.is_live, columns.position.is_distinct_from(new_position)),
    and_(LIST.statements.is_live, columns.position.is_not_distinct_from(new_position)),
)._replace(locks=(LOCK_LIST, LOCK_OWNER))

RENUMBER = renumber(LIST.table)
MOVE_WITH_NEW_POSITIONS = MOVE._replace(locks=(LOCK_LISTS, LOCK_OWNER, LOCK_NEW_LISTS, RENUMBER))


class ListChanges:
    """The changes of a list that change its tasks, too.

    The list is locked before its tasks. The change of the list locks the owner's row; the
    statements after it find the tasks that other requests have inserted until then.
    """

    def __init__(self, tasks: Resource) -> None:
        task = tasks.table.c
        in_list = (task.user_id == OWNER, task.place == ID)
        live = (*in_list, task.deleted_at.is_(None))
        this_list = (columns.user_id == OWNER, is_this_list)
        is_deleted = exists().where(*this_list, columns.deleted_at.is_not(None))
        is_live = exists().where(*this_list, columns.deleted_at.is_(None))
        deleted_with = select(columns.deleted_with).where(*this_list).scalar_subquery()
        deleted_with_list = (
            *in_list,
            task.deleted_at.is_not(None),
            task.deleted_with == deleted_with,
        )

        def change_tasks(*conditions: Any, **values: Any) -> Statement:
            return compiled(update(tasks.table).where(*conditions).values(**values))

        locks = (LOCK_LIST, lock_rows(tasks.table, *live[1:]))
        lock_new_tasks = lock_rows(tasks.table, *live[1:], is_deleted, nowait=True)
        count = tasks.statements.count_of_attempt
        delete = LIST.statements.delete
        self.delete: ConditionalChange = delete._replace(
            locks=locks,
            follow_ups=(
                lock_new_tasks,
                change_tasks(*live, is_deleted, deleted_at=func.clock_timestamp()),
                count,
            ),
        )
        # Subtasks follow their parents, because they are in the same list.
        self.delete_to_inbox: ConditionalChange = delete._replace(
            locks=locks,
            follow_ups=(
                lock_new_tasks,
                change_tasks(*live, is_deleted, task.parent_id.is_(None), list_id=null()),
                change_tasks(*live, is_deleted, task.parent_id.is_not(None), list_id=null()),
                count,
            ),
        )
        self.restore: ConditionalChange = LIST.statements.restore._replace(
            locks=(LOCK_LIST, lock_rows(tasks.table, *deleted_with_list[1:])),
            follow_ups=(change_tasks(*deleted_with_list, is_live, deleted_at=null()),),
        )
