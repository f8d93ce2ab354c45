#!/bin/sh
# Starts Redis, or asks it, with the password that a secret file holds: redis-start.sh CONFIG | ping
# It is on no command line, where others could read it: Redis reads it from a file in memory, redis-cli from the environment.
set -eu
secret=${REDIS_PASSWORD_FILE:-/run/secrets/redis_password}
password=$(cat "$secret")
case $1 in
  ping)
    REDISCLI_AUTH=$password redis-cli -p "${REDIS_PORT:-6379}" ping | grep -qx PONG
    ;;
  *)
    auth=${TMPDIR:-/tmp}/auth.conf
    umask 077
    printf 'requirepass %s\n' "$password" > "$auth"
    config=$1
    shift
    exec redis-server "$config" --include "$auth" "$@"
    ;;
esac
