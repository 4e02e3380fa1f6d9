/**
 * A user's whole journey with the client that README shows, every answer checked.
 *
 * api.d.ts is generated from the contract, and client.ts is README's: see test_typescript_client.py.
 */
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";

import type { ChangedTask, ProblemDetails, Task, TaskDeletion } from "./api.js";
import { clientOf, renameTask } from "./client.js";

const url = setting("API_URL");
const api = clientOf(url, setting("API_TOKEN"));
let checked = 0;

function setting(name: string): string {
  const value = process.env[name];
  assert(value, `${name} is not set`);
  return value;
}

interface Answer<Data, Failure> {
  data?: Data;
  error?: Failure;
  response: Response;
}

/** What came with a success of this status. */
function success<Data>(answer: Answer<Data, unknown>, status: number): NonNullable<Data> {
  assert.equal(answer.response.status, status, JSON.stringify(answer.error));
  assert.equal(answer.response.headers.get("Content-Type"), "application/json");
  assert.ok(answer.data);
  checked += 1;
  return answer.data;
}

/** A success that brings nothing. */
function nothing(answer: Answer<unknown, unknown>, status: number): void {
  assert.equal(answer.response.status, status, JSON.stringify(answer.error));
  assert.ok(!answer.data);
  checked += 1;
}

/** The problem details of a refusal with this status, and of this kind. */
function problem<Failure extends ProblemDetails>(
  answer: Answer<unknown, Failure>,
  status: number,
  kind: string,
): Failure {
  assert.equal(answer.response.status, status);
  assert.equal(answer.response.headers.get("Content-Type"), "application/problem+json");
  assert.ok(answer.error);
  assert.equal(answer.error.status, status);
  assert.equal(answer.error.type, `/problems/${kind}`);
  assert.equal(answer.error.instance, answer.response.headers.get("X-Request-Id"));
  checked += 1;
  return answer.error;
}

function tag(answer: { response: Response }): string {
  const value = answer.response.headers.get("ETag");
  assert.ok(value);
  return value;
}

/** The cursor of the next page, which Link names for as long as there is one. */
function nextCursor(answer: { response: Response }): string | undefined {
  const link = answer.response.headers.get("Link");
  if (link === null) return undefined;
  const target = /^<([^>]+)>; rel="next"$/.exec(link)?.[1];
  assert.ok(target, link);
  const next = new URL(target, answer.response.url);
  assert.equal(next.pathname, new URL(answer.response.url).pathname);
  const cursor = next.searchParams.get("cursor");
  assert.ok(cursor, link);
  return cursor;
}

async function whoAmI(): Promise<string> {
  const session = success(await api.GET("/api/session"), 200);

  assert.equal(session.user_id, session.subject);
  assert.ok(Date.parse(session.expires_at) > Date.now());
  return session.user_id;
}

/** Seven tasks, oldest first; the even ones are done. */
async function create(user_id: string): Promise<Task[]> {
  const tasks: Task[] = [];
  for (let number = 0; number < 7; number += 1) {
    const answer = await api.POST("/api/{user_id}/tasks", {
      params: { path: { user_id } },
      body: { title: `Task ${number}`, completed: number % 2 === 0 },
    });
    const task = success(answer, 201);
    assert.deepEqual(
      { title: task.title, description: task.description, completed: task.completed },
      { title: `Task ${number}`, description: null, completed: number % 2 === 0 },
    );
    assert.equal(task.user_id, user_id);
    assert.equal(task.revision, number + 1);
    assert.equal(task.created_at, task.updated_at);
    assert.equal(answer.response.headers.get("Location"), `/api/${user_id}/tasks/${task.id}`);
    tasks.push(task);
  }
  return tasks;
}

/** One task, though its request is sent twice: as where the first answer was lost. */
async function createOnce(user_id: string): Promise<Task> {
  const params = { path: { user_id }, header: { "Idempotency-Key": randomUUID() } };
  const body = { title: "Once", description: "However often it is sent" };
  const first = await api.POST("/api/{user_id}/tasks", { params, body });
  const created = success(first, 201);
  assert.equal(first.response.headers.get("Idempotent-Replayed"), null);

  const second = await api.POST("/api/{user_id}/tasks", { params, body });
  assert.deepEqual(success(second, 201), created);
  assert.equal(second.response.headers.get("Idempotent-Replayed"), "true");
  for (const name of ["ETag", "Location"]) {
    assert.equal(second.response.headers.get(name), first.response.headers.get(name));
  }

  const other = { title: "Another task, by the same key" };
  const reused = await api.POST("/api/{user_id}/tasks", { params, body: other });
  assert.deepEqual(
    problem(reused, 422, "key-reused").errors?.map((fault) => fault.header),
    ["Idempotency-Key"],
  );
  return created;
}

async function list(user_id: string, tasks: Task[]): Promise<void> {
  const path = { user_id };
  const newestFirst = [...tasks].reverse();

  const all = await api.GET("/api/{user_id}/tasks", { params: { path } });
  assert.deepEqual(success(all, 200), newestFirst);
  assert.equal(nextCursor(all), undefined);

  const query = { completed: false, q: "task", sort: "title" } as const;
  const open = await api.GET("/api/{user_id}/tasks", { params: { path, query } });
  assert.deepEqual(
    success(open, 200),
    tasks.filter((task) => !task.completed && task.title.startsWith("Task")),
  );

  const again = await api.GET("/api/{user_id}/tasks", {
    params: { path, header: { "If-None-Match": tag(all) } },
  });
  nothing(again, 304);

  const pages: Task[][] = [];
  let cursor: string | undefined;
  do {
    const page = await api.GET("/api/{user_id}/tasks", {
      params: { path, query: { limit: 3, ...(cursor === undefined ? {} : { cursor }) } },
    });
    pages.push(success(page, 200));
    cursor = nextCursor(page);
  } while (cursor !== undefined);
  assert.deepEqual(
    pages.map((page) => page.length),
    [3, 3, 2],
  );
  assert.deepEqual(pages.flat(), newestFirst);
}

/** Two devices change the same task: the slower one is told, and rebases its change. */
async function edit(task: Task): Promise<Task> {
  const path = { user_id: task.user_id, task_id: task.id };
  const read = await api.GET("/api/{user_id}/tasks/{task_id}", { params: { path } });
  assert.deepEqual(success(read, 200), task);
  const known = tag(read);

  const described = await api.PATCH("/api/{user_id}/tasks/{task_id}", {
    params: { path, header: { "If-Match": known } },
    body: { description: "By the first device" },
    headers: { "Content-Type": "application/merge-patch+json" },
  });
  const current = success(described, 200);
  assert.deepEqual(current, {
    ...task,
    description: "By the first device",
    revision: current.revision,
    updated_at: current.updated_at,
  });
  assert.ok(current.revision > task.revision);

  const late = await api.PATCH("/api/{user_id}/tasks/{task_id}", {
    params: { path, header: { "If-Match": known } },
    body: { title: "By the second device" },
  });
  const refused = problem(late, 412, "precondition-failed");
  assert.ok("current" in refused);
  assert.deepEqual(refused.current, current);
  assert.equal(tag(late), tag(described));

  const rebased = await api.PATCH("/api/{user_id}/tasks/{task_id}", {
    params: { path, header: { "If-Match": tag(late) } },
    body: { title: `${refused.current.title}, by the second device` },
  });
  const both = success(rebased, 200);
  assert.equal(both.title, `${task.title}, by the second device`);
  assert.equal(both.description, "By the first device");

  // README's function: what is renamed, or else the task as it is.
  assert.deepEqual(await renameTask(api, both, known, "Too late"), both);
  const renamed = await renameTask(api, both, tag(rebased), "In time");
  assert.equal(renamed.title, "In time");
  return renamed;
}

async function complete(task: Task): Promise<Task> {
  const params = { path: { user_id: task.user_id, task_id: task.id } };

  const done = await api.PATCH("/api/{user_id}/tasks/{task_id}/complete", { params });
  const completed = success(done, 200);
  assert.equal(task.completed, false);
  assert.equal(completed.completed, true);

  const twice = await api.PATCH("/api/{user_id}/tasks/{task_id}/complete", {
    params,
    body: { completed: true },
  });
  assert.deepEqual(success(twice, 200), completed);
  return completed;
}

async function deleteAndRestore(task: Task): Promise<Task> {
  const user_id = task.user_id;
  const params = { path: { user_id, task_id: task.id } };

  nothing(await api.DELETE("/api/{user_id}/tasks/{task_id}", { params }), 204);
  problem(await api.GET("/api/{user_id}/tasks/{task_id}", { params }), 404, "not-found");
  problem(await api.DELETE("/api/{user_id}/tasks/{task_id}", { params }), 404, "not-found");

  const trash = await api.GET("/api/{user_id}/tasks", {
    params: { path: { user_id }, query: { deleted: true } },
  });
  const [deleted, ...others] = success(trash, 200);
  assert.equal(others.length, 0);
  assert.ok(deleted && "purge_at" in deleted);
  assert.equal(deleted.id, task.id);
  assert.ok(Date.parse(deleted.purge_at) > Date.parse(deleted.deleted_at));

  const restored = success(
    await api.POST("/api/{user_id}/tasks/{task_id}/restore", { params }),
    200,
  );
  assert.deepEqual(restored, {
    ...task,
    revision: restored.revision,
    updated_at: restored.updated_at,
  });
  const again = await api.POST("/api/{user_id}/tasks/{task_id}/restore", { params });
  problem(again, 409, "not-in-trash");
  return restored;
}

/** Every change since, page by page, and where to go on. */
async function changesSince(
  user_id: string,
  since: string,
): Promise<{ changes: (ChangedTask | TaskDeletion)[]; next: string }> {
  const changes: (ChangedTask | TaskDeletion)[] = [];
  for (;;) {
    const answer = await api.GET("/api/{user_id}/changes", {
      params: { path: { user_id }, query: { since, limit: 3 } },
    });
    const page = success(answer, 200);
    assert.ok(page.changes.length <= 3);
    changes.push(...page.changes);
    since = page.next;
    if (!page.more) return { changes, next: since };
  }
}

async function sync(user_id: string): Promise<void> {
  const everything = await api.GET("/api/{user_id}/tasks", { params: { path: { user_id } } });
  const tasks = new Map(success(everything, 200).map((task) => [task.id, task]));
  const full = await changesSince(user_id, "0");
  const mine = new Map<string, Task>();
  apply(mine, full.changes);
  assert.equal(full.changes.length, tasks.size);
  assert.deepEqual(sorted(mine), sorted(tasks));

  const [first, second] = [...mine.values()];
  assert.ok(first && second);
  const gone = { user_id, task_id: first.id };
  const changed = { user_id, task_id: second.id };
  nothing(await api.DELETE("/api/{user_id}/tasks/{task_id}", { params: { path: gone } }), 204);
  const replaced = success(
    await api.PUT("/api/{user_id}/tasks/{task_id}", {
      params: { path: changed },
      body: { title: "Replaced" },
    }),
    200,
  );

  const delta = await changesSince(user_id, full.next);
  assert.deepEqual(
    delta.changes.map(({ id, deleted }) => ({ id, deleted })),
    [
      { id: first.id, deleted: true },
      { id: second.id, deleted: false },
    ],
  );
  apply(mine, delta.changes);
  assert.equal(mine.has(first.id), false);
  assert.deepEqual(mine.get(second.id), replaced);
  assert.deepEqual((await changesSince(user_id, delta.next)).changes, []);
}

function apply(tasks: Map<string, Task>, changes: (ChangedTask | TaskDeletion)[]): void {
  for (const change of changes) {
    if (change.deleted) {
      tasks.delete(change.id);
    } else {
      const { deleted, ...task } = change;
      assert.equal(deleted, false);
      tasks.set(task.id, task);
    }
  }
}

function sorted(tasks: Map<string, Task>): Task[] {
  return [...tasks.values()].sort((one, other) => one.revision - other.revision);
}

async function beRefused(user_id: string): Promise<void> {
  const path = { user_id };
  const tasks = "/api/{user_id}/tasks";

  const stranger = await clientOf(url, "not.a.token").GET(tasks, { params: { path } });
  problem(stranger, 401, "unauthorized");
  assert.match(stranger.response.headers.get("WWW-Authenticate") ?? "", /^Bearer/);

  const elsewhere = await api.GET(tasks, { params: { path: { user_id: randomUUID() } } });
  problem(elsewhere, 404, "not-found");
  const missing = await api.GET("/api/{user_id}/tasks/{task_id}", {
    params: { path: { user_id, task_id: randomUUID() } },
  });
  problem(missing, 404, "not-found");

  const untitled = await api.POST(tasks, { params: { path }, body: { title: " " } });
  assert.deepEqual(
    problem(untitled, 422, "invalid").errors?.map((fault) => fault.pointer),
    ["/title"],
  );
  // @ts-expect-error  The types know what the server knows.
  const numbered = await api.POST(tasks, { params: { path }, body: { title: 5 } });
  assert.deepEqual(
    problem(numbered, 422, "invalid").errors?.map((fault) => fault.pointer),
    ["/title"],
  );
  const tooMany = await api.GET(tasks, { params: { path, query: { limit: 201 } } });
  assert.deepEqual(
    problem(tooMany, 422, "invalid").errors?.map((fault) => fault.parameter),
    ["limit"],
  );
}

async function leave(user_id: string): Promise<void> {
  const params = { path: { user_id } };

  nothing(await api.DELETE("/api/{user_id}", { params }), 204);
  assert.deepEqual(success(await api.GET("/api/{user_id}/tasks", { params }), 200), []);
  nothing(await api.DELETE("/api/{user_id}", { params }), 204);
}

const user_id = await whoAmI();
const tasks = [...(await create(user_id)), await createOnce(user_id)];
await list(user_id, tasks);
const [, second] = tasks;
assert.ok(second);
const edited = await edit(second);
const completed = await complete(edited);
await deleteAndRestore(completed);
await sync(user_id);
await beRefused(user_id);
await leave(user_id);
console.log(`${checked} answers checked`);
