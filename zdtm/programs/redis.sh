#!/bin/bash
# A redis server with 500 000 keys.
#
# prepare PORT SEED  makes a file with the keys, once
# run PORT SEED      the server; it has to listen to somebody, or it does not start
# settle PORT        waits until the server has the keys, makes it close its socket, and says that it is ready
# check PORT         what the server wrote when it ended is what it had: loads it into a second one and compares
#
# Nothing ever listens but on the loopback interface.
set -eu

server() {
    local port=$1
    shift
    local version
    version=$(redis-server --version | sed 's/.* v=\([0-9]*\).*/\1/')
    [[ $version -lt 7 ]] || set -- "$@" --enable-debug-command local
    exec redis-server --bind 127.0.0.1 --port "$port" --dir "$PWD" --daemonize no --appendonly no "$@"
}

ask() {
    local port=$1
    shift
    redis-cli -h 127.0.0.1 -p "$port" "$@"
}

await() {
    for _ in $(seq 600); do
        [[ $(ask "$1" ping 2> /dev/null) != PONG ]] || return 0
        sleep 0.05
    done
    echo "the server does not answer"
    return 1
}

summary() {
    echo "$(ask "$1" dbsize) $(ask "$1" debug digest)"
}

case $1 in
prepare)
    server "$2" --save '' --dbfilename "$(basename "$3")" > prepare.log &
    await "$2"
    ask "$2" debug populate 500000 key 24
    for kind in "sadd set" "rpush list" "zadd order 1" "hset hash field"; do
        # Words on purpose.
        # shellcheck disable=SC2086
        ask "$2" $kind value > /dev/null
    done
    ask "$2" save
    ask "$2" shutdown nosave || true
    wait
    [[ -e $(basename "$3") ]]
    [[ $(basename "$3") -ef $3 ]] || mv "$(basename "$3")" "$3"
    ;;
run)
    cp "$3" dump.rdb
    server "$2" --save '3600 1' --dbfilename dump.rdb
    ;;
settle)
    await "$2"
    rm dump.rdb
    ask "$2" set marker "$$-$RANDOM" > /dev/null
    summary "$2" > before
    read -r count _ < before
    [[ $count -gt 500000 ]]
    ask "$2" config set port 0 > /dev/null
    : > ready
    ;;
check)
    server "$2" --save '' --dbfilename dump.rdb > check.log &
    await "$2"
    summary "$2" > after
    ask "$2" shutdown nosave || true
    wait
    cmp before after
    ;;
esac
