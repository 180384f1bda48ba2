#!/bin/sh
# A thousand services: prints a configuration with as many listeners, backends and checks.
#
#   export HOLDFAST_SOCKET=/tmp/holdfast.sock    # in every terminal
#   examples/services.sh 1000 >services.yaml
#   bin/holdfast check services.yaml
#   bin/holdfast run -c services.yaml
#
# The first service is at port 20000 ($2), the next one at 20001, and so on; all have the same server ($3). The checks are
# spread over their interval, so that they never come in a burst. A reload that changes one service touches the flows of
# that one alone.
set -eu
count=${1:-1000} first=${2:-20000} server=${3:-127.0.0.1:9001}
echo 'node: { name: services, admin: { socket: "${HOLDFAST_SOCKET:-/run/holdfast/admin.sock}" } }'
echo 'listeners:'
i=0
while [ "$i" -lt "$count" ]; do
	echo "  s$i: { vip: \"127.0.0.1:$((first + i))\", protocol: http, backend: s$i }"
	i=$((i + 1))
done
echo 'backends:'
i=0
while [ "$i" -lt "$count" ]; do
	echo "  s$i: { check: { tcp: {}, interval: 5s }, endpoints: [ { name: a, address: \"$server\" } ] }"
	i=$((i + 1))
done
