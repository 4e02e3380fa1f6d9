// Fastify with pg: WEB_CONCURRENCY processes, schemas for requests and responses, prepared statements.

import cluster from "node:cluster";
import { hash } from "node:crypto";

import Fastify from "fastify";
import { jwtVerify } from "jose";
import pg from "pg";
import { v7 as uuid7 } from "uuid";

const { DATABASE_URL, JWT_SECRET: secret, PORT, WEB_CONCURRENCY } = process.env;
const VERIFIED_TOKENS = 10_000;

const COLUMNS = `id, user_id, title, description, completed, completed_at, priority, labels, due_date,
  due_time, time_zone, due_at, start_date, list_id, parent_id, position, metadata, created_at,
  updated_at, revision`;
const WRITABLE = [
  ...["title", "description", "completed", "completed_at", "priority", "labels", "due_date"],
  ...["due_time", "time_zone", "start_date", "metadata"],
];
const DUE = ["due_date", "due_time", "time_zone"];
const DEFAULTS = {
  ...{ description: null, completed: false, completed_at: null, priority: "none", labels: [] },
  ...{ due_date: null, due_time: null, time_zone: null, start_date: null, metadata: {} },
};
const INSERT = `
  INSERT INTO tasks (user_id, id, ${WRITABLE}, due_at)
  VALUES ($1, $2, ${WRITABLE.map((_, at) => `$${at + 3}`)},
          timezone($11::text, $9::date + $10::time))
  RETURNING ${COLUMNS}`;
const OWN = "user_id = $1 AND id = $2 AND deleted_at IS NULL";

// Times have microseconds, which a Date does not have. The time zone of the sessions is UTC.
pg.types.setTypeParser(pg.types.builtins.TIMESTAMPTZ, (text) =>
  text.replace(" ", "T").replace("+00", "Z"),
);
pg.types.setTypeParser(pg.types.builtins.DATE, String);
pg.types.setTypeParser(pg.types.builtins.INT8, Number);

const uuid = { type: "string", format: "uuid" };
const title = { type: "string", minLength: 1, maxLength: 255, pattern: "\\S" };
const description = { type: ["string", "null"], maxLength: 10_000 };
const completed = { type: "boolean" };
const nullable = (schema) => ({ ...schema, type: ["string", "null"] });
const nullableText = { type: ["string", "null"] };
const zones = new Set(Intl.supportedValuesOf("timeZone"));
const writable = {
  title,
  description,
  completed,
  completed_at: nullable({ format: "date-time" }),
  priority: { enum: ["none", "low", "medium", "high"] },
  labels: {
    type: "array",
    maxItems: 20,
    items: { type: "string", minLength: 1, maxLength: 60, pattern: "^[^,\\x00-\\x1f\\x7f]*$" },
  },
  due_date: nullable({ format: "date" }),
  due_time: nullable({ pattern: "^([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9])?$" }),
  time_zone: nullableText,
  start_date: nullable({ format: "date" }),
  metadata: {
    type: "object",
    maxProperties: 20,
    propertyNames: { minLength: 1, maxLength: 40 },
    additionalProperties: { type: ["string", "null"], maxLength: 200 },
  },
};
const task = {
  type: "object",
  properties: {
    id: { type: "string" },
    user_id: { type: "string" },
    title: { type: "string" },
    description: { type: ["string", "null"] },
    completed,
    completed_at: nullableText,
    priority: { type: "string" },
    labels: { type: "array", items: { type: "string" } },
    due_date: nullableText,
    due_time: nullableText,
    time_zone: nullableText,
    due_at: nullableText,
    start_date: nullableText,
    list_id: nullableText,
    parent_id: nullableText,
    position: { type: "string" },
    metadata: { type: "object", additionalProperties: { type: "string" } },
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

class RuleError extends Error {
  statusCode = 422;
}

// Check and convert what the schemas cannot express.
function valuesOf(given) {
  const values = { ...given };
  if ("title" in values) values.title = values.title.trim();
  if (values.time_zone != null && !zones.has(values.time_zone)) {
    throw new RuleError("no such time zone");
  }
  if ("labels" in values) {
    values.labels = values.labels.map((label) => label.trim()).sort();
    const keys = new Set(values.labels.map((label) => label.toLowerCase()));
    if (keys.size < values.labels.length) throw new RuleError("two labels differ only in case");
  }
  return values;
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
    const isInvalid = error.validation || error.code === "23514"; // check_violation
    if (!isInvalid && !error.statusCode) console.error(error);
    return reply.code(isInvalid ? 422 : (error.statusCode ?? 500)).send({ error: error.message });
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
    const position = (name) => names.indexOf(name) + 3;
    const assigned = names.map((name) =>
      name === "metadata"
        ? `metadata = jsonb_strip_nulls(metadata || $${position(name)})`
        : `${name} = $${position(name)}`,
    );
    if (DUE.some((name) => name in changes)) {
      const types = { due_date: "date", due_time: "time", time_zone: "text" };
      const [day, time, zone] = DUE.map((name) =>
        name in changes ? `$${position(name)}::${types[name]}` : name,
      );
      assigned.push(`due_at = timezone(${zone}, ${day} + ${time})`);
    }
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
        body: body(writable, ["title"]),
        response: { 201: task },
      },
    },
    ({ params: { user_id }, body: given }, reply) => {
      const id = uuid7();
      reply.code(201).header("Location", `/api/${user_id}/tasks/${id}`);
      const values = { ...DEFAULTS, ...valuesOf(given) };
      return one(reply, "insert", INSERT, [user_id, id, ...WRITABLE.map((name) => values[name])]);
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
    { schema: { params, body: body(writable), response: { 200: task } } },
    ({ params: of, body: given }, reply) =>
      update(reply, of, valuesOf(given)),
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
