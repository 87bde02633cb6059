"""An MCP server, over streamable HTTP at /mcp and over SSE at /sse.

Needed: the package mcp; STICKY_SESSIONS=cookie (or address, for clients that keep no cookies), as its sessions are in
memory; one line to have both transports in one application. For a tool that works for longer than
REQUEST_DEADLINE_SECONDS without reporting progress that row has to be above 15: after so many seconds of silence the
server begins its answer, and pings.
"""

import os

import anyio
from mcp.server import MCPServer
from mcp.server.mcpserver import Context

server = MCPServer("reports")


@server.tool()
async def report(steps: int, context: Context) -> str:
    for step in range(steps):
        await context.report_progress(step, steps)
        await anyio.sleep(1)
    return f"{steps} steps"


@server.tool()
async def silent(seconds: int) -> str:
    await anyio.sleep(seconds)
    return f"{seconds} seconds"


@server.tool()
def process() -> int:
    return os.getpid()


app = server.streamable_http_app()
app.routes.extend(server.sse_app().routes)
