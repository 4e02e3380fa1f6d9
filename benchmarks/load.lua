-- The requests of one operation, for wrk. Every system gets the same requests in the same order.
-- Ids are numbers in the form of UUIDs, as data.py makes them.

local operation = os.getenv("OPERATION")
local users = tonumber(os.getenv("USERS"))
local tasks_per_user = tonumber(os.getenv("TASKS_PER_USER"))
local first_revision = tonumber(os.getenv("FIRST_REVISION"))
local etag = os.getenv("ETAG") -- a format of string.format, with %d for the revision

local tasks = users * tasks_per_user
local STRIDE = 7919 -- a prime that divides no count of tasks: successive requests have different owners
local LIMIT = os.getenv("LIMIT")
local body_format = os.getenv("BODY") -- of creates and patches, with two %d for a number
local completed_each = tonumber(os.getenv("COMPLETED_EACH"))

local target = os.getenv("TARGET") -- of the operation GET: what follows /api/{user_id} in the path

local authorization = {}
if os.getenv("TOKENS") ~= "" then
  for line in io.lines(os.getenv("TOKENS")) do
    authorization[#authorization + 1] = "Authorization: Bearer " .. line .. "\r\n"
  end
end

local function user_path(user)
  return string.format("/api/00000000-0000-4000-8000-%012d", user)
end

local function tasks_path(user)
  return user_path(user) .. "/tasks"
end

local function owner_of(task)
  return math.floor((task - 1) / tasks_per_user) + 1
end

local function task_path(task)
  return tasks_path(owner_of(task)) .. string.format("/01900000-0000-7000-8000-%012d", task)
end

local function message(method, path, user, body, fields)
  local head = method .. " " .. path .. " HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\n"
    .. (authorization[user] or "") .. (fields or "")
  if body == nil then
    return head .. "\r\n"
  end
  return head .. "Content-Type: application/json\r\nContent-Length: " .. #body .. "\r\n\r\n" .. body
end

-- A function for each operation. `count` is the number of its earlier calls.
local make_request = {}

function make_request.get(count, task_count)
  local task = count * STRIDE % (task_count or tasks) + 1
  return message("GET", task_path(task), owner_of(task))
end

function make_request.not_modified(count)
  local task = count * STRIDE % tasks + 1
  local revision = first_revision + (task - 1) % tasks_per_user + 1
  local if_none_match = string.format("If-None-Match: " .. etag .. "\r\n", revision)
  return message("GET", task_path(task), owner_of(task), nil, if_none_match)
end

function make_request.list(count)
  local user = count * STRIDE % users + 1
  return message("GET", tasks_path(user) .. "?limit=" .. LIMIT, user)
end

function make_request.GET(count)
  local user = count * STRIDE % users + 1
  return message("GET", user_path(user) .. target, user)
end

function make_request.create(count)
  local user = count * STRIDE % users + 1
  local body = string.format(body_format, count, count)
  return message("POST", tasks_path(user), user, body)
end

function make_request.patch(count, task_count)
  local task = count * STRIDE % (task_count or tasks) + 1
  local body = string.format(body_format, count, count)
  return message("PATCH", task_path(task), owner_of(task), body)
end

-- Every request changes the task: the same value again would be no change. The first request for a
-- task sets what it was not at the start, the second one sets it back, and so on.
function make_request.complete(count, task_count)
  local task = count * STRIDE % (task_count or tasks) + 1
  local is_second = math.floor(count / (task_count or tasks)) % 2 == 1
  local was_completed = task % completed_each == 0
  local body = is_second == was_completed and '{"completed": true}' or '{"completed": false}'
  return message("PATCH", task_path(task) .. "/complete", owner_of(task), body)
end

function make_request.delete(count, first)
  local task = (first or 0) + count * STRIDE % (tasks - (first or 0)) + 1
  return message("DELETE", task_path(task), owner_of(task))
end

-- 100 requests with the shares of data.py's MIX: 70 of them read. Only the last fifth of the tasks is
-- deleted, and all other requests use the first four fifths, so that no task is missing.
local mix, counts, never_deleted = {}, {}, math.floor(tasks * 0.8)
for name, share in string.gmatch(os.getenv("MIX"), "(%w+)=(%d+)") do
  counts[name] = 0
  for _ = 1, tonumber(share) do
    mix[#mix + 1] = name
  end
end
local shuffled = {}
for index = 1, #mix do
  shuffled[index] = mix[index * 37 % #mix + 1] -- 37 and 100 have no common factor
end

function make_request.mix(count)
  local name = shuffled[count % #shuffled + 1]
  local before = counts[name]
  counts[name] = before + 1
  return make_request[name](before, (name ~= "list" and name ~= "create") and never_deleted or nil)
end

local count = -1
local make = make_request[operation]

function request()
  count = count + 1
  return make(count)
end

-- wrk counts only a status of 400 or above as an error. A conditional GET must get a 304.
local threads = {}
wrong = 0

function setup(thread)
  threads[#threads + 1] = thread
end

if operation == "not_modified" then
  function response(status)
    if status ~= 304 then
      wrong = wrong + 1
    end
  end
end

function done(summary, latency)
  local all_wrong = 0
  for _, thread in ipairs(threads) do
    all_wrong = all_wrong + thread:get("wrong")
  end
  local errors = summary.errors
  io.write(string.format(
    '\nRESULT {"requests": %d, "seconds": %.6f, "errors": %d, "lost": %d, '
      .. '"p50": %.3f, "p95": %.3f, "p99": %.3f, "maximum": %.3f}\n',
    summary.requests, summary.duration / 1e6, errors.status + all_wrong,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50) / 1e3, latency:percentile(95) / 1e3,
    latency:percentile(99) / 1e3, latency.max / 1e3
  ))
end
