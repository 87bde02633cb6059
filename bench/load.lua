-- wrk's side of bench/load.py: one kind of request, and the outcome as one line of JSON.
-- Arguments: METHOD BODY_FILE KEY_PREFIX "Name: value" ...; an empty KEY_PREFIX sends no Idempotency-Key.

local threads = 0

function setup(thread)
    thread:set("number", threads)
    threads = threads + 1
end

function init(args)
    wrk.method = args[1]
    if args[2] ~= "" then
        local file = assert(io.open(args[2]))
        wrk.body = file:read("*a")
        file:close()
    end
    for i = 4, #args do
        local name, value = args[i]:match("^([^:]+): (.*)$")
        wrk.headers[name] = value
    end
    if args[3] ~= "" then
        local sent = 0
        function request()
            sent = sent + 1
            wrk.headers["Idempotency-Key"] = args[3] .. "-" .. number .. "-" .. sent
            return wrk.format()
        end
    end
end

function done(summary, latency)
    local e = summary.errors
    io.write(string.format('{"requests":%d,"seconds":%f,"errors":%d,"p50_ms":%f,"p99_ms":%f}\n',
        summary.requests, summary.duration / 1e6, e.connect + e.read + e.write + e.timeout + e.status,
        latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
