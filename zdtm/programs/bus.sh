#!/bin/bash
# A message bus, somebody who listens to it, and somebody who asks it all the while.
#
# run     until SIGTERM
# check   every question was answered
set -eu

case $1 in
run)
    trap ': > finish' TERM
    address=unix:path=$PWD/bus
    dbus-daemon --session --nofork --nopidfile --address="$address" &
    daemon=$!
    for _ in $(seq 100); do
        [[ ! -S bus ]] || break
        sleep 0.05
    done
    dbus-monitor --address "$address" > heard &
    monitor=$!
    count=0
    while [[ ! -e finish ]]; do
        # One at a time; a question is answered before the next.
        if ! dbus-send --address="$address" --print-reply --dest=org.freedesktop.DBus / \
            org.freedesktop.DBus.GetId > answer; then
            echo "question $count" >> wrong
        fi
        count=$((count + 1))
        echo "$count" >> progress
        [[ $count != 3 ]] || : > ready
        sleep 0.2 &
        wait $! || true
    done
    kill "$monitor" "$daemon"
    wait "$monitor" "$daemon" || true
    echo "$count" > result
    ;;
check)
    read -r count < result
    [[ $(grep -c member=GetId heard) -ge $((count - 1)) ]]
    ;;
esac
