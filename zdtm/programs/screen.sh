#!/bin/bash
# A screen server with a shell that counts in one window and an editor in another.
#
# run     the server
# settle  makes the windows, and says that all is ready
# check   the shell has counted without a gap
set -eu

export SCREENDIR=$PWD/screens

case $1 in
run)
    mkdir -p -m 700 "$SCREENDIR"
    exec screen -D -m -S it -c /dev/null bash --norc --noprofile -i
    ;;
settle)
    ask() { screen -S it -p "$1" -X "${@:2}"; }
    for _ in $(seq 100); do
        ! ask 0 title counter > told 2>&1 || break
        sleep 0.1
    done
    # In what is stuffed, screen would replace variables by its own.
    echo 'n=0; while sleep 0.02; do n=$((n+1)); echo $n >> progress; done' > counter
    ask 0 stuff $'. ./counter\n'
    ask 0 screen -t editor vim -u NONE -n text
    for _ in $(seq 100); do
        [[ ! -s progress ]] || break
        sleep 0.1
    done
    : > ready
    ;;
check)
    cmp <(seq "$(wc -l < progress)") progress
    ;;
esac
