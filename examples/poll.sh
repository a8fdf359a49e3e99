#!/usr/bin/env bash
# Follows a run with nothing but curl: the whole row first, then each change as it comes.
#
#   BASE_URL=http://127.0.0.1:3040 ACCESS_TOKEN=… RUN_ID=run_… ./poll.sh
set -euo pipefail
url="$BASE_URL/realtime/v1/runs/$RUN_ID"
headers=$(mktemp)
trap 'rm -f "$headers"' EXIT
ask() { curl -sS --fail-with-body -D "$headers" -H "authorization: Bearer $ACCESS_TOKEN" "$url?$1"; echo; }
header() { tr -d '\r' <"$headers" | awk -v name="$1:" 'tolower($1) == name { print $2 }'; }

ask "offset=-1"
while true; do
  ask "handle=$(header electric-handle)&offset=$(header electric-offset)&live=true"
done
