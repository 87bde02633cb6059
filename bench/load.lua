-- wrk's side of bench/load.py: one kind of request, and the outcome as one line of JSON.
-- Arguments: METHOD BODY_FILE KEY_PREFIX PERCENTILES "Name: value" ...; PERCENTILES as in 50,99; an empty KEY_PREFIX
-- sends no Idempotency-Key.

local threads = {}

function setup(thread)
    thread:set("number", #threads)
    table.insert(threads, thread)
end

function init(args)
    wrk.method = args[1]
    if args[2] ~= "" then
        local file = assert(io.open(args[2]))
        wrk.body = file:read("*a")
        file:close()
    end
    percentiles = args[4]
    for i = 5, #args do
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
    local latencies = {}
    for percentile in threads[1]:get("percentiles"):gmatch("[^,]+") do
        table.insert(latencies, string.format('"%s":%f', percentile, latency:percentile(tonumber(percentile)) / 1000))
    end
    io.write(string.format('{"requests":%d,"seconds":%f,"errors":%d,"latency_ms":{%s}}\n',
        summary.requests, summary.duration / 1e6, e.connect + e.read + e.write + e.timeout + e.status,
        table.concat(latencies, ",")))
end
