#!/bin/sh
# A batch job: the event's orders go into a database, their sums by customer to stdout.
set -eu

event=/tmp/event.json database=/var/lib/report/orders.db
printf '%s' "${SCF_CUSTOM_CONTAINER_EVENT:-${FC_CUSTOM_CONTAINER_EVENT:-}}" >"$event"
sqlite3 -bail "$database" <<SQL
PRAGMA journal_mode = WAL;
CREATE TABLE orders (customer TEXT, amount INTEGER);
INSERT INTO orders SELECT value ->> 'customer', value ->> 'amount'
  FROM json_each(readfile('$event'));
SQL
sqlite3 -readonly -csv -header "$database" \
  'SELECT customer, sum(amount) AS total FROM orders GROUP BY customer ORDER BY customer'
