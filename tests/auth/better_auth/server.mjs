// A Better Auth server for tests/auth/test_better_auth.py. It keeps all in memory, and says on its
// standard output where it is.
import { createServer } from "node:http";
import { betterAuth } from "better-auth";
import { memoryAdapter } from "better-auth/adapters/memory";
import { toNodeHandler } from "better-auth/node";
import { jwt } from "better-auth/plugins";

const tables = { user: [], session: [], account: [], verification: [], jwks: [], rateLimit: [] };

function issuer(baseURL) {
  return betterAuth({
    baseURL,
    secret: "made-up-for-the-tests-and-used-nowhere-else",
    database: memoryAdapter(tables),
    emailAndPassword: { enabled: true },
    rateLimit: { enabled: false },
    telemetry: { enabled: false },
    logger: { level: "error" },
    advanced: { database: { generateId: process.env.IDS === "uuid" ? "uuid" : undefined } },
    plugins: [jwt({ jwt: { expirationTime: process.env.EXPIRATION ?? "15m" } })],
  });
}

let handle;
const server = createServer((request, response) => {
  // What an administrator does in the database: the next token gets a new key.
  if (request.method === "DELETE" && request.url === "/keys") {
    tables.jwks.length = 0;
    response.writeHead(204).end();
  } else {
    handle(request, response);
  }
});
server.listen(0, "127.0.0.1", () => {
  const baseURL = `http://127.0.0.1:${server.address().port}`;
  handle = toNodeHandler(issuer(baseURL));
  console.log(baseURL);
});
// It ends with the test, however that ends.
process.stdin.resume().on("end", () => process.exit(0));
