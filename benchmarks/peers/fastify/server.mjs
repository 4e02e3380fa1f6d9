// Fastify with pg: WEB_CONCURRENCY processes, schemas for requests and responses, prepared statements.

import cluster from "node:cluster";
import { hash } from "node:crypto";

import Fastify from "fastify";
import { jwtVerify } from "jose";
import pg from "pg";
import { v7 as uuid7 } from "uuid";

const { DATABASE_URL, JWT_SECRET: secret, PORT, WEB_CONCURRENCY } = process.env;
const VERIFIED_TOKENS = 10_000;

const COLUMNS = "id, user_id, title, description, completed, created_at, updated_at, revision";
const OWN = "user_id = $1 AND id = $2 AND deleted_at IS NULL";

// Times have microseconds, which a Date does not have. The time zone of the sessions is UTC.
pg.types.setTypeParser(pg.types.builtins.TIMESTAMPTZ, (text) =>
  text.replace(" ", "T").replace("+00", "Z"),
);
pg.types.setTypeParser(pg.types.builtins.INT8, Number);

const uuid = { type: "string", format: "uuid" };
const title = { type: "string", minLength: 1, maxLength: 255, pattern: "\\S" };
const description = { type: ["string", "null"], maxLength: 10_000 };
const completed = { type: "boolean" };
const task = {
  type: "object",
  properties: {
    id: { type: "string" },
    user_id: { type: "string" },
    title: { type: "string" },
    description: { type: ["string", "null"] },
    completed,
    created_at: { type: "string" },
    updated_at: { type: "string" },
    revision: { type: "integer" },
  },
};
const params = { type: "object", properties: { user_id: uuid, task_id: uuid } };
const body = (properties, required = []) => ({
  type: "object",
  properties,
  required,
  additionalProperties: false,
});

const key = new TextEncoder().encode(secret);
const verified = new Map();

async function userOf(authorization = "") {
  if (!/^bearer /i.test(authorization)) return null;
  const token = authorization.slice(7);
  const digest = hash("sha256", token, "base64");
  let claims = verified.get(digest);
  if (claims === undefined) {
    try {
      claims = (await jwtVerify(token, key, { requiredClaims: ["exp", "sub"] })).payload;
    } catch {
      return null;
    }
    if (verified.size >= VERIFIED_TOKENS) verified.delete(verified.keys().next().value);
    verified.set(digest, claims);
  }
  return claims.exp * 1000 > Date.now() ? claims.sub : null;
}

async function serve() {
  const pool = new pg.Pool({
    connectionString: DATABASE_URL,
    max: 10,
    options: "-c timezone=UTC",
  });
  const app = Fastify({
    ajv: { customOptions: { coerceTypes: false, removeAdditional: false } },
  });
  app.setErrorHandler((error, _, reply) => {
    if (!error.validation) console.error(error);
    return reply.code(error.validation ? 422 : (error.statusCode ?? 500)).send({ error: error.message });
  },
  );
  if (secret) {
    app.addHook("onRequest", async (request, reply) => {
      const user = await userOf(request.headers.authorization);
      if (user === null) {
        return reply.code(401).header("WWW-Authenticate", "Bearer").send({ error: "no token" });
      }
      if (user !== request.params.user_id) return reply.code(404).send({ error: "not found" });
    });
  }

  const one = async (reply, name, text, values) => {
    const { rows } = await pool.query({ name, text, values });
    if (rows.length === 0) return reply.code(404).send({ error: "not found" });
    return rows[0];
  };
  const update = (reply, { user_id, task_id }, changes) => {
    const names = Object.keys(changes);
    if (names.length === 0) {
      return one(reply, "find", `SELECT ${COLUMNS} FROM tasks WHERE ${OWN}`, [user_id, task_id]);
    }
    const assigned = names.map((name, at) => `${name} = $${at + 3}`).join(", ");
    return one(
      reply,
      `update ${names}`,
      `UPDATE tasks SET ${assigned} WHERE ${OWN} RETURNING ${COLUMNS}`,
      [user_id, task_id, ...Object.values(changes)],
    );
  };

  // The values of a query are texts, so a number is accepted as a text. A body has real numbers.
  const limit = { type: "string", pattern: "^(?:[1-9][0-9]?|1[0-9]{2}|200)$", default: "100" };
  app.get(
    "/api/:user_id/tasks",
    {
      schema: {
        params,
        querystring: body({ limit }),
        response: { 200: { type: "array", items: task } },
      },
    },
    async ({ params: { user_id }, query }) => {
      const { rows } = await pool.query({
        name: "list",
        text: `SELECT ${COLUMNS} FROM tasks WHERE user_id = $1 AND deleted_at IS NULL
               ORDER BY created_at DESC, id DESC LIMIT $2`,
        values: [user_id, query.limit],
      });
      return rows;
    },
  );
  app.post(
    "/api/:user_id/tasks",
    {
      schema: {
        params,
        body: body({ title, description, completed }, ["title"]),
        response: { 201: task },
      },
    },
    ({ params: { user_id }, body: given }, reply) => {
      const id = uuid7();
      reply.code(201).header("Location", `/api/${user_id}/tasks/${id}`);
      return one(
        reply,
        "insert",
        `INSERT INTO tasks (user_id, id, title, description, completed)
         VALUES ($1, $2, $3, $4, $5) RETURNING ${COLUMNS}`,
        [user_id, id, given.title.trim(), given.description ?? null, given.completed ?? false],
      );
    },
  );
  app.get(
    "/api/:user_id/tasks/:task_id",
    { schema: { params, response: { 200: task } } },
    ({ params: { user_id, task_id } }, reply) =>
      one(reply, "find", `SELECT ${COLUMNS} FROM tasks WHERE ${OWN}`, [user_id, task_id]),
  );
  app.patch(
    "/api/:user_id/tasks/:task_id",
    { schema: { params, body: body({ title, description, completed }), response: { 200: task } } },
    ({ params: of, body: given }, reply) =>
      update(reply, of, "title" in given ? { ...given, title: given.title.trim() } : given),
  );
  app.patch(
    "/api/:user_id/tasks/:task_id/complete",
    { schema: { params, body: body({ completed }), response: { 200: task } } },
    ({ params: of, body: given }, reply) =>
      update(reply, of, { completed: given?.completed ?? true }),
  );
  app.delete(
    "/api/:user_id/tasks/:task_id",
    { schema: { params } },
    async ({ params: { user_id, task_id } }, reply) => {
      const text = `UPDATE tasks SET deleted_at = clock_timestamp() WHERE ${OWN} RETURNING id`;
      const { rowCount } = await pool.query({ name: "delete", text, values: [user_id, task_id] });
      return reply.code(rowCount ? 204 : 404).send();
    },
  );
  await app.listen({ host: "127.0.0.1", port: Number(PORT) });
}

if (cluster.isPrimary) {
  for (let n = 0; n < Number(WEB_CONCURRENCY); n += 1) cluster.fork();
  process.on("SIGTERM", () => {
    for (const worker of Object.values(cluster.workers)) worker.kill();
    process.exit(0);
  });
} else {
  await serve();
}
