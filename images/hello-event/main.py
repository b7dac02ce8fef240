"""A sample event function: greets whoever the event names.

FC calls it with POST /invoke, SCF with POST /event-invoke; /initialize, /pre-stop and /pre-freeze
are the hooks. The reply says which request it was and which instance answered, so that the
headers and variables of the platform can be seen.
"""

import json
import os

from httpd import serve

state = {"initialized": False, "calls": 0}


def answer(request):
    """Return the reply to one request of the platform."""
    if request.path == "/initialize":
        state["initialized"] = True
        print("initialized", flush=True)
        return 200, [], b""
    if request.path in ("/pre-stop", "/pre-freeze"):
        print(f"{request.path[1:]} after {state['calls']} calls", flush=True)
        return 200, [], b""
    return greet(request)


def greet(request):
    """Return the result of one event."""
    state["calls"] += 1
    try:
        event = json.loads(request.body or b"{}")
    except ValueError:
        event = request.body.decode("utf-8", "replace")
    request_id = request.header("x-fc-request-id") or request.header("x-scf-request-id")
    name = event.get("name", "world") if isinstance(event, dict) else event
    print(f"event of {len(request.body)} bytes, request {request_id}", flush=True)
    result = {
        "message": f"hello, {name}",
        "event": event,
        "path": request.path,
        "request_id": request_id,
        "instance": os.environ.get("FC_INSTANCE_ID", ""),
        "initialized": state["initialized"],
        "calls": state["calls"],
    }
    return 200, [("Content-Type", "application/json")], json.dumps(result).encode()


serve(answer)
