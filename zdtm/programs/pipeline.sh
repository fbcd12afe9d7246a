#!/bin/bash
# Numbers go in at one end of a pipeline, their sum comes out at the other. Each costs a child that lives for
# milliseconds, so that a dump meets processes that are being born and dying.
set -u

generate() {
    local number=0
    while [[ ! -e finish ]]; do
        number=$((number + 1))
        echo "$number"
        sleep 0.005
    done
}

add() {
    local number word count=0 sum=0
    while read -r number word; do
        count=$((count + 1))
        if [[ $number != "$count" || $word != "through" ]]; then
            echo "$number $word came after $((count - 1))" >> wrong
        fi
        sum=$((sum + number))
        echo "$count $sum $(printf '%x' "$sum")" >> progress
        [[ $count != 10 ]] || : > ready
    done
    echo "$count $sum" > result.new
    mv result.new result
}

case $1 in
run)
    trap ': > finish' TERM
    generate | sed -u 's/$/ through/' | add &
    # A signal ends the wait, not the pipeline.
    while kill -0 $! 2> /dev/null; do
        wait $!
    done
    ;;
check)
    read -r count sum < result
    [[ $sum == $((count * (count + 1) / 2)) ]] || { echo "the sum of 1 to $count is not $sum"; exit 1; }
    [[ $count == "$(wc -l < progress)" ]] || { echo "$count numbers, but other progress"; exit 1; }
    ;;
esac
