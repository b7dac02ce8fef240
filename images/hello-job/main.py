"""A sample job: prints its event and ends as the event says.

The event comes in FC_CUSTOM_CONTAINER_EVENT or SCF_CUSTOM_CONTAINER_EVENT. Of a JSON object,
`exit_code`, `sleep_s` and `lines` are obeyed; anything else is just printed.
"""

import json
import os
import sys
import time

event = os.environ.get("FC_CUSTOM_CONTAINER_EVENT")
if event is None:
    event = os.environ.get("SCF_CUSTOM_CONTAINER_EVENT", "")
try:
    wishes = json.loads(event)
except ValueError:
    wishes = {}
if not isinstance(wishes, dict):
    wishes = {}
print(f"job starts with event: {event[:1000]}", flush=True)
for n in range(int(wishes.get("lines", 0))):
    print(f"line {n}", flush=True)
time.sleep(float(wishes.get("sleep_s", 0)))
code = int(wishes.get("exit_code", 0))
print(f"job ends with {code}", flush=True)
sys.exit(code)
