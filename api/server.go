package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"

	"reconciler/reconcile"
)

// Serve answers on a listener made by Listen until ctx ends; calls that are
// under way end with it. It closes the listener. The log is told of failures
// that no caller can be told of.
func Serve(ctx context.Context, l net.Listener, a Agent, log *slog.Logger) error {
	return serve(ctx, l, a, log, defaultTimeouts)
}

func serve(ctx context.Context, l net.Listener, a Agent, log *slog.Logger, t timeouts) error {
	s := &server{agent: a, timeouts: t}
	h := &http.Server{
		Handler:           s.routes(),
		ReadHeaderTimeout: t.read,
		IdleTimeout:       t.silence,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext:       withPeer,
	}
	stopped := make(chan error, 1)
	go func() { stopped <- h.Serve(l) }()
	select {
	case err := <-stopped:
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), t.read)
	defer cancel()
	err := h.Shutdown(grace)
	if err != nil {
		err = errors.Join(err, h.Close())
	}
	<-stopped // the listener is closed now, and its socket gone
	return err
}

type server struct {
	agent    Agent
	timeouts timeouts
}

// none is an empty request or answer.
type none struct{}

// eventQuery and consoleQuery are requests that have no public type.
type eventQuery struct {
	After  uint64 `json:"after"`
	Follow bool   `json:"follow"`
}

type consoleQuery struct {
	VM string `json:"vm"`
}

func (s *server) routes() http.Handler {
	a := s.agent
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", answer(s, func(ctx context.Context, _ none, _ Caller) (Status, error) {
		st, err := a.Status(ctx)
		st.Conditions, st.Suspended = listed(st.Conditions), listed(st.Suspended)
		return st, err
	}))
	mux.HandleFunc("GET /v1/objects", answer(s, func(ctx context.Context, _ none, _ Caller) ([]Object, error) {
		objects, err := a.Objects(ctx)
		for i := range objects {
			objects[i].Conditions = listed(objects[i].Conditions)
		}
		return listed(objects), err
	}))
	mux.HandleFunc("GET /v1/access", answer(s, func(ctx context.Context, _ none, _ Caller) ([]Access, error) {
		list, err := a.ListAccess(ctx)
		return listed(list), err
	}))
	mux.HandleFunc("POST /v1/plan", stream(s, func(ctx context.Context, r PlanRequest, _ Caller, _ func(string)) (*reconcile.Plan, error) {
		return a.Plan(ctx, r)
	}))
	mux.HandleFunc("POST /v1/reconcile", stream(s, func(ctx context.Context, r ReconcileRequest, c Caller, progress func(string)) (*reconcile.Plan, error) {
		r.Caller = c
		return a.Reconcile(ctx, r, progress)
	}))
	mux.HandleFunc("POST /v1/suspend", answer(s, func(ctx context.Context, r SuspendRequest, c Caller) (none, error) {
		r.Caller = c
		return none{}, a.Suspend(ctx, r)
	}))
	mux.HandleFunc("POST /v1/resume", answer(s, func(ctx context.Context, r ResumeRequest, c Caller) (none, error) {
		r.Caller = c
		return none{}, a.Resume(ctx, r)
	}))
	mux.HandleFunc("POST /v1/allow", answer(s, func(ctx context.Context, r AllowRequest, c Caller) (none, error) {
		r.Caller = c
		return none{}, a.Allow(ctx, r)
	}))
	mux.HandleFunc("POST /v1/accept", stream(s, func(ctx context.Context, r AcceptRequest, c Caller, _ func(string)) (none, error) {
		r.Caller = c
		return none{}, a.Accept(ctx, r)
	}))
	mux.HandleFunc("POST /v1/restart", answer(s, func(ctx context.Context, r MachineRequest, c Caller) (none, error) {
		r.Caller = c
		return none{}, a.Restart(ctx, r)
	}))
	mux.HandleFunc("POST /v1/stop", stream(s, func(ctx context.Context, r MachineRequest, c Caller, _ func(string)) (StopResult, error) {
		r.Caller = c
		return a.Stop(ctx, r)
	}))
	mux.HandleFunc("POST /v1/undelete", stream(s, func(ctx context.Context, r UndeleteRequest, c Caller, _ func(string)) (UndeleteResult, error) {
		r.Caller = c
		return a.Undelete(ctx, r)
	}))
	mux.HandleFunc("POST /v1/revert", answer(s, func(ctx context.Context, r RevertRequest, c Caller) (none, error) {
		r.Caller = c
		return none{}, a.Revert(ctx, r)
	}))
	mux.HandleFunc("POST /v1/import", stream(s, func(ctx context.Context, r ImportRequest, c Caller, _ func(string)) (ImportResult, error) {
		r.Caller = c
		return a.Import(ctx, r)
	}))
	mux.HandleFunc("POST /v1/access", stream(s, func(ctx context.Context, r AccessRequest, c Caller, _ func(string)) (Access, error) {
		r.Caller = c
		return a.Access(ctx, r)
	}))
	mux.HandleFunc("POST /v1/access/end", stream(s, func(ctx context.Context, r EndAccessRequest, c Caller, _ func(string)) (none, error) {
		r.Caller = c
		return none{}, a.EndAccess(ctx, r)
	}))
	mux.HandleFunc("POST /v1/access/clear", stream(s, func(ctx context.Context, r ClearRequest, c Caller, _ func(string)) (ClearResult, error) {
		r.Caller = c
		res, err := a.ClearReservations(ctx, r)
		res.Cleared = listed(res.Cleared)
		return res, err
	}))
	mux.HandleFunc("POST /v1/console", answer(s, func(ctx context.Context, r consoleQuery, _ Caller) (Console, error) {
		return a.Console(ctx, r.VM)
	}))
	mux.HandleFunc("POST /v1/events", answer(s, s.events))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, &Error{
			Code: NotFound, Message: "the agent does not know " + r.Method + " " + strconv.Quote(r.URL.Path),
			Hint: "is it of the same version as this command?",
		})
	})
	return mux
}

// events ends without one after a while, so that neither side waits for a peer
// that is gone; who follows asks again.
func (s *server) events(ctx context.Context, r eventQuery, _ Caller) ([]Event, error) {
	wait, cancel := context.WithTimeout(ctx, s.timeouts.poll)
	defer cancel()
	list, err := s.agent.Events(wait, r.After, r.Follow)
	if err != nil && wait.Err() != nil && ctx.Err() == nil {
		return []Event{}, nil
	}
	return listed(list), err
}

// listed makes a list that is an array in JSON even if it is empty.
func listed[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// answer serves a call that takes moments.
func answer[Req, Res any](s *server, call func(context.Context, Req, Caller) (Res, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var req Req
		who, err := s.request(w, r, &req)
		if err != nil {
			s.fail(w, err)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), s.timeouts.call)
		defer cancel()
		res, err := call(ctx, req, who)
		if err != nil {
			s.fail(w, err)
			return
		}
		s.reply(w, http.StatusOK, res)
	}
}

// request reads who asks for what. A field that is not known is an error: the
// caller means something by it.
func (s *server) request(w http.ResponseWriter, r *http.Request, req any) (Caller, error) {
	who, err := caller(r.Context())
	if err != nil {
		return who, err
	}
	if r.Method == http.MethodGet {
		return who, nil
	}
	rc := http.NewResponseController(w)
	if err := rc.SetReadDeadline(time.Now().Add(s.timeouts.read)); err != nil {
		return who, err
	}
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest))
	dec.DisallowUnknownFields()
	if err := dec.Decode(req); err != nil {
		return who, Errorf(Invalid, "request: %v", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return who, Errorf(Invalid, "request: more than one value")
	}
	// The server goes on reading to see that the caller leaves; that has no deadline.
	return who, rc.SetReadDeadline(time.Time{})
}

func (s *server) fail(w http.ResponseWriter, err error) {
	e := toWire(err)
	s.reply(w, httpStatus[e.Code], e)
}

// reply ignores that an answer cannot be written: the caller is gone.
func (s *server) reply(w http.ResponseWriter, status int, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		status = http.StatusInternalServerError
		data, _ = json.Marshal(Errorf(Internal, "answer: %v", err)) // strings only
	}
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(s.timeouts.write))
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(data, '\n'))
}
