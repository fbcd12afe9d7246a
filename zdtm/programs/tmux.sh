#!/bin/bash
# A tmux server with a shell that counts in one pane and an editor in another.
#
# run     the server
# settle  makes the panes, and says that all is ready
# check   the shell has counted without a gap
set -eu

case $1 in
run)
    exec tmux -S "$PWD/socket" -f /dev/null -D
    ;;
settle)
    for _ in $(seq 100); do
        [[ ! -S socket ]] || break
        sleep 0.1
    done
    ask() { tmux -S "$PWD/socket" "$@"; }
    ask new-session -d -x 90 -y 30 -c "$PWD" 'bash --norc --noprofile -i'
    ask split-window -d -c "$PWD" 'vim -u NONE -n text'
    ask send-keys 'n=0; while sleep 0.02; do n=$((n+1)); echo $n >> progress; done' Enter
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
