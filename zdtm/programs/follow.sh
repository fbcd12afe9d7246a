#!/bin/bash
# A file that is written and rotated, `tail -F` and `inotifywait` that follow it.
#
# run    the three
# check  tail has seen every line once, and inotifywait every rotation
set -eu

case $1 in
run)
    : > text
    tail -n +1 -F text > seen 2> /dev/null &
    tail=$!
    mkdir old
    inotifywait -q -m -e moved_to --format %f old > rotations &
    wait=$!
    until grep -q inotify /proc/$wait/fdinfo/* 2> /dev/null; do sleep 0.05; done
    finish=
    trap finish=1 TERM
    n=0
    while [[ -z $finish ]]; do
        n=$((n + 1))
        echo $n >> text
        echo $n > progress
        if ((n % 50 == 0)); then
            # Whoever follows by name may lose what was written between two looks.
            until [[ $(tail -n 1 seen) == "$n" ]]; do sleep 0.01; done
            mv text "old/$n"
            : > text
        fi
        if ((n == 60)); then : > ready; fi
        sleep 0.01
    done
    until [[ $(tail -n 1 seen) == "$n" && $(wc -l < rotations) == "$((n / 50))" ]]; do sleep 0.01; done
    kill $tail $wait
    wait || :
    echo $n > result
    ;;
check)
    n=$(< result)
    cmp <(seq "$n") seen
    cmp <(seq 50 50 "$n") rotations
    ;;
esac
