#!/bin/sh
# A CGI program: says who it is, and gives back what was posted.
printf 'Content-Type: text/plain\n\n%s as %s: ' "$REQUEST_METHOD" "$(id -un)"
exec cat
