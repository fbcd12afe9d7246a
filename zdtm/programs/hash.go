// Four goroutines, each with a chain of hashes: a link is the SHA-256 of the one before.
package main

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	workers = 4
	stride  = 2000
)

func walk(link [32]byte, count int) [32]byte {
	for i := 0; i < count; i++ {
		link = sha256.Sum256(link[:])
	}
	return link
}

func seed(number int) [32]byte {
	return sha256.Sum256([]byte(fmt.Sprintf("go %d", number)))
}

func fail(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func wrong(text string) {
	file, err := os.OpenFile("wrong", os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o666)
	fail(err)
	fmt.Fprintln(file, text)
	file.Close()
}

// work remembers a link of every stride, and walks from one of them to the next once more.
func work(number int, stones *[][32]byte, length *int64, stop chan struct{}) {
	for at := 0; ; at = (at*7 + 3) % (len(*stones) - 1) {
		select {
		case <-stop:
			return
		case <-time.After(time.Millisecond):
		}
		*stones = append(*stones, walk((*stones)[len(*stones)-1], stride))
		atomic.AddInt64(length, 1)
		if walk((*stones)[at], stride) != (*stones)[at+1] {
			wrong(fmt.Sprintf("goroutine %d: the chain is broken after %d links", number, at*stride))
		}
	}
}

func run() {
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	progress, err := os.Create("progress")
	fail(err)
	var stones [workers][][32]byte
	var lengths [workers]int64
	var group sync.WaitGroup
	stop := make(chan struct{})
	for i := range stones {
		stones[i] = [][32]byte{seed(i)}
		group.Add(1)
		go func(i int) {
			defer group.Done()
			work(i, &stones[i], &lengths[i], stop)
		}(i)
	}
	ready := false
	for ended := false; !ended; {
		select {
		case <-term:
			ended = true
		case <-time.After(10 * time.Millisecond):
		}
		least, text := int64(1<<62), ""
		for i := range lengths {
			length := atomic.LoadInt64(&lengths[i])
			if length < least {
				least = length
			}
			text += fmt.Sprintf("%12d", length)
		}
		_, err := progress.WriteAt([]byte(text), 0)
		fail(err)
		if !ready && least > 2 {
			ready = true
			fail(os.WriteFile("ready", nil, 0o666))
		}
	}
	close(stop)
	group.Wait()
	text := ""
	for _, list := range stones {
		text += fmt.Sprintf("%d %x\n", len(list)-1, list[len(list)-1])
	}
	fail(os.WriteFile("result.new", []byte(text), 0o666))
	fail(os.Rename("result.new", "result"))
}

func check() {
	file, err := os.Open("result")
	fail(err)
	for i := 0; i < workers; i++ {
		var count int
		var link string
		_, err := fmt.Fscan(file, &count, &link)
		fail(err)
		if fmt.Sprintf("%x", walk(seed(i), count*stride)) != link {
			fail(fmt.Errorf("goroutine %d: another result after %d strides", i, count))
		}
	}
}

func main() {
	if os.Args[1] == "run" {
		run()
	} else {
		check()
	}
}
