"""What callers send in the warm benches: heads as real ones are, each call its own or all alike.

A request carries what a browser behind a gateway sends: an id of its own, a bearer token, a cookie
of 200 bytes, a traceparent. With `unique` heads each call has another path, query, id and trace,
and each of ten thousand users another token and cookie; without, all calls are the first one again,
which flatters whoever remembers heads. wrk makes them by a script in Lua.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

USERS = 10_000
SMALL, LARGE = 1 << 10, 64 << 10

_SCRIPT = """\
local n, unique = 0, {unique}
local token = string.rep("eyJhbGciOiJSUzI1NiJ9", 8)
local cookie = string.rep("0123456789abcdef", 11)
local body = string.rep("x", {body_bytes})
local framing = {body_bytes} > 0
  and "Content-Type: application/json\\r\\nContent-Length: {body_bytes}\\r\\n" or ""

local function make(n)
  local a, user = (n * 2654435761) % 4294967296, (n * 7919) % {users}
  local id = string.format("%08x-%04x-4%03x-8%03x-%012x", a, n % 65536, n % 4096, a % 4096, n)
  return string.format(
    "{method} {path} HTTP/1.1\\r\\n" ..
    "Host: api.example.com\\r\\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) Firefox/128.0\\r\\n" ..
    "Accept: application/json\\r\\nAccept-Encoding: gzip, deflate, br\\r\\n" ..
    "X-Request-Id: %s\\r\\nAuthorization: Bearer %s%08d\\r\\nCookie: session=%s%016d\\r\\n" ..
    "traceparent: 00-%08x%08x%016x-%016x-01\\r\\n%s\\r\\n%s",
    {arguments}id, token, user, cookie, user, a, n, n, a, framing, body)
end

local first = make(1)
request = function()
  if not unique then return first end
  n = n + 1
  return make(n)
end
"""


@dataclass(frozen=True, slots=True)
class Traffic:
    """One kind of load: how heads differ, what is sent and how many callers there are at once.

    `everybody` says that all peers are measured with it, not nginx alone.
    """

    name: str
    unique: bool = True
    method: str = "GET"
    body_bytes: int = 0
    reply_bytes: int = SMALL
    connections: int = 32
    event: bool = False
    everybody: bool = False

    def path(self, function: str) -> str:
        """Return the path without query, below which calls differ; an event call's is fixed."""
        if self.event:
            return f"/2023-03-30/functions/{function}/invocations"
        return f"/http/{function}/"

    def script(self, function: str) -> str:
        """Return the script for wrk."""
        vary = "" if self.event else "orders/%d?page=%d&cursor=%08x"
        return _SCRIPT.format(
            unique="true" if self.unique else "false",
            body_bytes=self.body_bytes,
            users=USERS,
            method=self.method,
            path=self.path(function) + vary,
            arguments="" if self.event else "n, n % 97, a, ",
        )

    def write(self, folder: Path, function: str) -> Path:
        """Write the script into a folder and return its path."""
        file = folder / f"{self.name.replace(' ', '-')}-{function}.lua"
        file.write_text(self.script(function))
        return file


USUAL = Traffic("GET, unique heads", everybody=True)
BRIEF = replace(USUAL, everybody=False)
"""The usual one beside nginx alone, for the other contracts."""
EVENT = Traffic(
    "event, unique heads, 1 connection",
    method="POST",
    body_bytes=SMALL,
    connections=1,
    event=True,
)
"""The body is the event; an instance of such a function serves one call at a time."""
OTHERS = (
    Traffic("GET, repeating heads", unique=False, everybody=True),
    Traffic("POST 1 KB, unique heads", method="POST", body_bytes=SMALL),
    Traffic("GET 64 KB, unique heads", reply_bytes=LARGE),
    Traffic("GET, unique heads, 1 connection", connections=1, everybody=True),
    Traffic("GET, unique heads, 256 connections", connections=256, everybody=True),
)
