package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"
)

// stream serves a call that may take any time: progress and signs of life, one
// JSON value a line, and the result or the error as the last.
func stream[Req, Res any](s *server, call func(context.Context, Req, Caller, func(string)) (Res, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var req Req
		who, err := s.request(w, r, &req)
		if err != nil {
			s.fail(w, err)
			return
		}
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		w.Header().Set("Content-Type", "application/x-ndjson")
		lw := &lineWriter{w: w, rc: http.NewResponseController(w), write: s.timeouts.write, gone: cancel}
		var q progressQueue
		q.wake = make(chan struct{}, 1)
		finished := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() { lw.run(&q, s.timeouts.heartbeat, finished) })
		res, err := func() (Res, error) {
			// A panic of the agent is the HTTP server's to report, but not before
			// the writer has let go of the connection.
			defer wg.Wait()
			defer close(finished)
			return call(ctx, req, who, q.add)
		}()
		last := line{Done: true}
		if err == nil {
			last.Result, err = json.Marshal(res)
		}
		if err != nil {
			last.Error = toWire(err)
		}
		lw.put(last)
	}
}

// maxQueued bounds the lines of progress that wait for a slow caller.
const maxQueued = 1000

// progressQueue takes progress without ever making the agent wait for a caller.
type progressQueue struct {
	mu    sync.Mutex
	lines []string
	lost  int
	wake  chan struct{}
}

func (q *progressQueue) add(s string) {
	q.mu.Lock()
	if len(q.lines) < maxQueued {
		q.lines = append(q.lines, s)
	} else {
		q.lost++
	}
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *progressQueue) take() []string {
	q.mu.Lock()
	defer q.mu.Unlock()
	lines := q.lines
	if q.lost > 0 {
		lines = append(lines, fmt.Sprintf("… %d lines left out", q.lost))
	}
	q.lines, q.lost = nil, 0
	return lines
}

// lineWriter writes lines until the caller is gone.
type lineWriter struct {
	w     http.ResponseWriter
	rc    *http.ResponseController
	write time.Duration
	gone  context.CancelFunc
	dead  bool
}

// run writes progress, and signs of life in between, until finished is closed.
func (l *lineWriter) run(q *progressQueue, heartbeat time.Duration, finished <-chan struct{}) {
	tick := time.NewTicker(heartbeat)
	defer tick.Stop()
	l.put(line{}) // the caller sees at once that it is heard
	for {
		select {
		case <-q.wake:
			l.flush(q)
		case <-tick.C:
			l.put(line{})
		case <-finished:
			l.flush(q)
			return
		}
	}
}

func (l *lineWriter) flush(q *progressQueue) {
	for _, s := range q.take() {
		l.put(line{Progress: s})
	}
}

func (l *lineWriter) put(v line) {
	if l.dead {
		return
	}
	data, err := json.Marshal(v)
	if err == nil {
		err = l.rc.SetWriteDeadline(time.Now().Add(l.write))
	}
	if err == nil {
		_, err = l.w.Write(append(data, '\n'))
	}
	if err == nil {
		err = l.rc.Flush()
	}
	if err != nil {
		l.dead = true
		l.gone()
	}
}
