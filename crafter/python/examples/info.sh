#!/bin/sh
# info.sh [METHOD [PARAMETERS]]: calls a method of the crafter service from a shell.
#
#   info.sh                                  version, process and socket of the service
#   info.sh ListLeases '{"mine":true}'       my leases
#   info.sh Policy                           what I may do
#   info.sh Route '{"destination":"192.0.2.1"}'
set -eu
socket=${CRAFTER_SOCKET:-/run/crafter/crafter.sock}
method=org.crafter.v1.${1:-Info}
parameters=${2:-"{}"}

if command -v varlinkctl >/dev/null; then
    # systemd 255 and later.
    exec varlinkctl call "unix:$socket" "$method" "$parameters"
fi
# A call is a JSON object terminated by NUL, and so is the reply. `-t 2`: wait 2 s for the reply.
call='{"method":"'$method'","parameters":'$parameters'}'
if command -v socat >/dev/null; then
    printf '%s\0' "$call" | socat -t 2 - "UNIX-CONNECT:$socket" | tr '\0' '\n'
else
    # OpenBSD's netcat.
    printf '%s\0' "$call" | nc -U -q 2 "$socket" | tr '\0' '\n'
fi
