#!/bin/sh
# Fills in templates, with the variables that are set and no other.
set -e

names=$(awk 'END { for (name in ENVIRON) printf "${%s} ", name }' </dev/null)
find /etc/nginx/templates -follow -type f -name '*.template' -print | while read -r template; do
  output=/etc/nginx/conf.d/$(basename "$template" .template)
  echo "$0: Running envsubst on $template to $output"
  envsubst "$names" <"$template" >"$output"
done
