"""The names under which `supervise` knows what it asks of prctl(2)."""

from agent.linux.prctl import become_subreaper as become_subreaper
from agent.linux.prctl import set_process_name as set_process_name
