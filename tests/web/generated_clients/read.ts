/** Read responses with the client that openapi-ts generated, and print what it returns. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

import { createClient } from "./client/client/index.js";
import {
  createTask,
  getTask,
  listChangesOfUser,
  listTasksOfUser,
  listTrashOfUser,
  patchTask,
} from "./client/sdk.gen.js";
import type { Changes, List, Task, TaskPreconditionFailed } from "./client/types.gen.js";

interface StoredResponse {
  status: number;
  body: unknown;
}

const responses: Record<string, StoredResponse> = JSON.parse(readFileSync("responses.json", "utf8"));
const user_id = "5f0c2a5e-8f3b-4f6e-9d53-0c9a4f1f7a10";
const task_id = "019aa5c8-6f3a-7cc4-9a51-3f0a4a9d7b21";

/** A client that receives the stored response of this name to every request. */
function clientOf(name: string) {
  const stored = responses[name];
  assert(stored, `${name} is not in responses.json`);
  const { status, body } = stored;
  const headers = { "Content-Type": status < 400 ? "application/json" : "application/problem+json" };
  return createClient({
    baseUrl: "http://localhost",
    fetch: async () => new Response(JSON.stringify(body), { status, headers }),
  });
}

function isConflict(error: object): error is TaskPreconditionFailed {
  return "current" in error;
}

/** Return the title of a task, or the name of a list. */
function nameOf(item: Task | List): string {
  return "title" in item ? item.title : item.name;
}

/** Return the title of a changed task, and the moment at which another one was deleted. */
function summary(change: Changes["changes"][number]): string {
  if (change.deleted) {
    // @ts-expect-error  A tombstone has no value.
    assert.equal(change.value, undefined);
    return change.deleted_at;
  }
  // @ts-expect-error  A task that is not deleted has no such moment.
  assert.equal(change.deleted_at, undefined);
  return nameOf(change.value);
}

const path = { user_id, task_id };
const [task, tasks, changes, trash, conflict, invalid] = await Promise.all([
  getTask({ client: clientOf("task"), path }),
  listTasksOfUser({ client: clientOf("tasks"), path: { user_id } }),
  listChangesOfUser({ client: clientOf("changes"), path: { user_id }, query: { since: "0" } }),
  listTrashOfUser({ client: clientOf("trash"), path: { user_id } }),
  patchTask({ client: clientOf("conflict"), path, body: { title: "Buy oats" } }),
  createTask({ client: clientOf("invalid"), path: { user_id }, body: { title: "" } }),
]);
assert(task.data && tasks.data && changes.data && trash.data && conflict.error && invalid.error);
assert(isConflict(conflict.error));

console.log(
  JSON.stringify({
    bodies: {
      task: task.data,
      tasks: tasks.data,
      changes: changes.data,
      trash: trash.data,
      conflict: conflict.error,
      invalid: invalid.error,
    },
    summaries: {
      task: task.data.title,
      tasks: tasks.data.map(({ title }) => title),
      changes: changes.data.changes.map(summary),
      trash: trash.data.map(({ type, value }) => `${type} ${nameOf(value)}`),
      conflict: conflict.error.current.title,
      invalid: invalid.error.errors?.map(({ pointer }) => pointer),
    },
  }),
);
