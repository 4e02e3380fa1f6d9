-- The requests of one operation, for wrk. Every contender gets the same ones in the same order.
-- Ids are numbers in the form of UUIDs, as data.py has made them.

local operation = os.getenv("OPERATION")
local users = tonumber(os.getenv("USERS"))
local tasks_per_user = tonumber(os.getenv("TASKS_PER_USER"))
local etag = os.getenv("ETAG") -- as string.format takes it, with %d for the revision

local tasks = users * tasks_per_user
local STRIDE = 7919 -- a prime that divides none of our counts: neighbours have different owners
local LIMIT = os.getenv("LIMIT")

local authorization = {}
if os.getenv("TOKENS") ~= "" then
  for line in io.lines(os.getenv("TOKENS")) do
    authorization[#authorization + 1] = "Authorization: Bearer " .. line .. "\r\n"
  end
end

local function of_user(user)
  return string.format("/api/00000000-0000-4000-8000-%012d/tasks", user)
end

local function owner_of(task)
  return math.floor((task - 1) / tasks_per_user) + 1
end

local function of_task(task)
  return of_user(owner_of(task)) .. string.format("/01900000-0000-7000-8000-%012d", task)
end

local function message(method, path, user, body, fields)
  local head = method .. " " .. path .. " HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\n"
    .. (authorization[user] or "") .. (fields or "")
  if body == nil then
    return head .. "\r\n"
  end
  return head .. "Content-Type: application/json\r\nContent-Length: " .. #body .. "\r\n\r\n" .. body
end

-- Each maker is given how often it was called before.
local made = {}

function made.get(count, within)
  local task = count * STRIDE % (within or tasks) + 1
  return message("GET", of_task(task), owner_of(task))
end

function made.not_modified(count)
  local task = count * STRIDE % tasks + 1
  local revision = (task - 1) % tasks_per_user + 1
  local known = string.format("If-None-Match: " .. etag .. "\r\n", revision)
  return message("GET", of_task(task), owner_of(task), nil, known)
end

function made.list(count)
  local user = count * STRIDE % users + 1
  return message("GET", of_user(user) .. "?limit=" .. LIMIT, user)
end

function made.create(count)
  local user = count * STRIDE % users + 1
  local body = string.format(
    '{"title": "Buy oat milk, time %d", "description": "Two litres, and none with sugar in it."}',
    count
  )
  return message("POST", of_user(user), user, body)
end

function made.patch(count, within)
  local task = count * STRIDE % (within or tasks) + 1
  local body = string.format('{"title": "Buy oat milk, change %d"}', count)
  return message("PATCH", of_task(task), owner_of(task), body)
end

-- The second time around they are opened again: setting what is set would be no change.
function made.complete(count, within)
  local task = count * STRIDE % (within or tasks) + 1
  local open = math.floor(count / (within or tasks)) % 2 == 1
  local body = open and '{"completed": false}' or '{"completed": true}'
  return message("PATCH", of_task(task) .. "/complete", owner_of(task), body)
end

function made.delete(count, from)
  local task = (from or 0) + count * STRIDE % (tasks - (from or 0)) + 1
  return message("DELETE", of_task(task), owner_of(task))
end

-- Of a hundred requests, as many as data.py's MIX says; 70 of them read. The last fifth of the
-- tasks is there to be deleted, so that nothing is asked of a task that is gone.
local mix, counts, kept = {}, {}, math.floor(tasks * 0.8)
for name, share in string.gmatch(os.getenv("MIX"), "(%w+)=(%d+)") do
  counts[name] = 0
  for _ = 1, tonumber(share) do
    mix[#mix + 1] = name
  end
end
local shuffled = {}
for at = 1, #mix do
  shuffled[at] = mix[at * 37 % #mix + 1] -- 37 and 100 have no common factor
end

function made.mix(count)
  local name = shuffled[count % #shuffled + 1]
  local before = counts[name]
  counts[name] = before + 1
  return made[name](before, (name ~= "list" and name ~= "create") and kept or nil)
end

local count = -1
local make = made[operation]

function request()
  count = count + 1
  return make(count)
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\nRESULT {"requests": %d, "seconds": %.6f, "refused": %d, "broken": %d, '
      .. '"p50": %.3f, "p95": %.3f, "p99": %.3f, "most": %.3f}\n',
    summary.requests, summary.duration / 1e6, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50) / 1e3, latency:percentile(95) / 1e3,
    latency:percentile(99) / 1e3, latency.max / 1e3
  ))
end
