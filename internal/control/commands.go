package control

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"crownest.dev/crownest/internal/cmdlog"
	"crownest.dev/crownest/internal/guest"
	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/store"
)

// Bounds of contract section 6.
const (
	maxCommandBytes   = 256 << 10
	maxEnvBytes       = 64 << 10
	maxCollect        = 50
	runTimeoutDefault = time.Minute
	runTimeoutMax     = 10 * time.Minute
	timeoutGrace      = 5 * time.Second
	cancelGrace       = 10 * time.Second
	collectLimit      = 2 * time.Minute
	// guestSlack is how much longer than agreed a guest may take to end a command
	// before it counts as broken, and its sandbox is ended.
	guestSlack = 15 * time.Second
	// lostAfter is how long a guest may be out of reach before its commands count
	// as lost.
	lostAfter = time.Minute
)

// liveCommand is a command that has not ended, as this process knows it.
type liveCommand struct {
	l       *live
	started chan struct{} // closed once it runs, or will never run
	done    chan struct{} // closed once its end is recorded
	// queue ends, by unqueue, when the command must not wait for its turn any
	// longer; once it has its turn, only the guest can end it.
	queue   context.Context
	unqueue context.CancelFunc

	mu  sync.Mutex
	rec sandbox.Command
}

func (lc *liveCommand) record() sandbox.Command {
	lc.mu.Lock()
	defer lc.mu.Unlock()
	return lc.rec
}

// StartCommand accepts a command; see api.Control.
func (s *Service) StartCommand(ctx context.Context, c Call, sandboxID string, in CommandInput) (sandbox.Command, error) {
	var none sandbox.Command
	id := sandbox.ID(sandbox.PrefixCommand, c.OperationID)
	if cmd, err := s.Command(ctx, c, id); err == nil {
		return cmd, nil // the same operation again
	} else if !sandbox.CodeNotFound.Is(err) {
		return none, err
	}
	timeout, err := validateCommand(&in, s.cfg.MaxSession)
	if err != nil {
		return none, err
	}
	sb, l, err := s.liveSandbox(ctx, c, sandboxID)
	if err != nil {
		return none, err
	}
	cmd := sandbox.Command{
		ID: id, SandboxID: sb.ID, OrgID: sb.OrgID, ProjectID: sb.ProjectID,
		Command: in.Command, Cwd: in.Cwd, Status: sandbox.CommandStarting,
		CreatedAt: now(), Timeout: timeout, Collect: in.Collect, CollectOn: in.CollectOn,
		CollectStatus: sandbox.CollectNotRequested,
	}
	if len(in.Collect) > 0 {
		cmd.CollectStatus = sandbox.CollectPending
	}
	ready := false
	select {
	case <-l.ready:
		ready = true
		if cmd.Cwd, err = s.resolveCwd(ctx, l, in.Cwd); err != nil {
			return none, err
		}
	default:
		cmd.Status = sandbox.CommandQueued
		if cmd.Cwd == "" {
			cmd.Cwd = workspace
		}
	}
	action := "command.start"
	if in.Blocking {
		action = "command.run"
	}
	err = s.store.Update(ctx, func(tx store.Tx) error {
		if err := tx.InsertCommand(ctx, cmd); err != nil {
			return err
		}
		if err := tx.InsertUsage(ctx, s.usageEvent(sb, sandbox.MetricCommandInvocations, 1)); err != nil {
			return err
		}
		return tx.AppendAudit(ctx, s.auditEvent(c, action, "command", id, sb.ProjectID, map[string]any{"sandboxId": sb.ID}))
	})
	if err != nil {
		return none, fmt.Errorf("recording command %s: %w", id, err)
	}
	lc, ok := s.launch(l, cmd, func(ctx context.Context, lc *liveCommand) { s.runCommand(ctx, lc, in.Env) })
	if !ok {
		return none, errStopping
	}
	if ready {
		select {
		case <-lc.started:
		case <-ctx.Done():
		case <-s.ctx.Done():
		}
	}
	return lc.record(), nil
}

// launch registers a command and runs fn for it in a goroutine of the service.
func (s *Service) launch(l *live, cmd sandbox.Command, fn func(context.Context, *liveCommand)) (*liveCommand, bool) {
	lc := &liveCommand{l: l, started: make(chan struct{}), done: make(chan struct{}), rec: cmd}
	lc.queue, lc.unqueue = context.WithCancel(s.ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		lc.unqueue()
		return nil, false
	}
	s.running[cmd.ID] = lc
	s.wg.Add(1)
	end := l.begin()
	go func() {
		defer s.wg.Done()
		defer lc.unqueue()
		defer end()
		fn(s.ctx, lc)
	}()
	return lc, true
}

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// validateCommand checks the input and returns the timeout, 0 = the sandbox's end.
func validateCommand(in *CommandInput, maxSession time.Duration) (time.Duration, error) {
	bad := func(field, format string, args ...any) (time.Duration, error) {
		return 0, sandbox.NewError(sandbox.CodeInvalidRequest, format, args...).With("field", field)
	}
	switch {
	case in.Command == "":
		return bad("command", "command must not be empty.")
	case len(in.Command) > maxCommandBytes:
		return bad("command", "command is longer than %d bytes; write it to a file and run that.", maxCommandBytes)
	case strings.IndexByte(in.Command, 0) >= 0:
		return bad("command", "command must not contain a NUL character.")
	case strings.IndexByte(in.Cwd, 0) >= 0:
		return bad("cwd", "cwd must not contain a NUL character.")
	}
	total := 0
	for k, v := range in.Env {
		switch {
		case !envName.MatchString(k):
			return bad("env", "env names are letters, digits and underscores and do not begin with a digit.")
		case strings.HasPrefix(k, "CROWNEST"):
			return 0, sandbox.NewError(sandbox.CodeReservedEnvKey, "env names that begin with CROWNEST are reserved: %s.", k).With("key", k)
		case strings.IndexByte(v, 0) >= 0:
			return bad("env", "The env value of %s must not contain a NUL character.", k)
		}
		total += len(k) + len(v) + 2
	}
	if total > maxEnvBytes {
		return bad("env", "env is larger than %d bytes in all.", maxEnvBytes)
	}
	if err := validateCollect(in); err != nil {
		return 0, err
	}
	most, timeout := maxSession, time.Duration(0)
	if in.Blocking {
		most, timeout = runTimeoutMax, runTimeoutDefault
	}
	if in.TimeoutMs != nil {
		if *in.TimeoutMs < 1 || *in.TimeoutMs > most.Milliseconds() {
			return bad("timeoutMs", "timeoutMs must be between 1 and %d.", most.Milliseconds())
		}
		timeout = time.Duration(*in.TimeoutMs) * time.Millisecond
	}
	return timeout, nil
}

func validateCollect(in *CommandInput) error {
	bad := func(field, format string, args ...any) error {
		return sandbox.NewError(sandbox.CodeInvalidRequest, format, args...).With("field", field)
	}
	if !in.Blocking && (len(in.Collect) > 0 || in.CollectOn != "") {
		return bad("collect", "collect and collectOn are for commands that are waited for; use run.")
	}
	if len(in.Collect) > maxCollect {
		return bad("collect", "collect has %d entries; at most %d are allowed.", len(in.Collect), maxCollect)
	}
	switch in.CollectOn {
	case "", sandbox.OnSuccess, sandbox.OnAlways:
	default:
		return bad("collectOn", "collectOn must be success or always.")
	}
	for _, item := range in.Collect {
		if err := validateItem(item); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) resolveCwd(ctx context.Context, l *live, cwd string) (string, error) {
	if cwd == "" || cwd == workspace {
		return workspace, nil
	}
	if err := s.usable(ctx, l, readyWaitOther); err != nil {
		return "", err
	}
	var dir string
	err := s.withSession(ctx, l, func(ctx context.Context, sess guest.Session) (err error) {
		dir, err = sess.ResolveDir(ctx, cwd)
		return err
	})
	return dir, err
}

// runCommand takes a fresh command from queued to its end.
func (s *Service) runCommand(ctx context.Context, lc *liveCommand, env map[string]string) {
	cmd := lc.record()
	var deadline time.Time
	if cmd.Timeout > 0 {
		deadline = cmd.CreatedAt.Add(cmd.Timeout)
	}
	if err := awaitTurn(lc, deadline); err != nil {
		s.finishUnstarted(lc, err)
		return
	}
	req := guest.StartRequest{ID: cmd.ID, Command: cmd.Command, Cwd: cmd.Cwd, TimeoutGrace: timeoutGrace}
	for k, v := range env {
		req.Env = append(req.Env, k+"="+v)
	}
	slices.Sort(req.Env)
	if cmd.Timeout > 0 {
		req.Timeout = max(time.Until(deadline), time.Millisecond)
	}
	s.follow(ctx, lc, func(sess guest.Session) (guest.Process, error) { return sess.Start(ctx, req) })
}

// resumeCommand takes up a command that an earlier server process started.
func (s *Service) resumeCommand(ctx context.Context, lc *liveCommand) {
	if err := awaitTurn(lc, time.Time{}); err != nil {
		s.finishUnstarted(lc, err)
		return
	}
	id := lc.record().ID
	s.follow(ctx, lc, func(sess guest.Session) (guest.Process, error) { return sess.Attach(ctx, id) })
}

// Ends of a command that never ran.
var (
	errQueueTimeout  = errors.New("timed out before the sandbox was ready")
	errQueueCanceled = errors.New("canceled before the sandbox was ready")
)

// awaitTurn waits until the sandbox can run the command.
func awaitTurn(lc *liveCommand, deadline time.Time) error {
	select {
	case <-lc.l.ready:
	default:
		var expired <-chan time.Time
		if !deadline.IsZero() {
			t := time.NewTimer(time.Until(deadline))
			defer t.Stop()
			expired = t.C
		}
		select {
		case <-lc.l.ready:
		case <-expired:
			return errQueueTimeout
		case <-lc.queue.Done():
			return errQueueCanceled
		}
	}
	lc.l.mu.Lock()
	defer lc.l.mu.Unlock()
	return lc.l.err
}

// follow connects to the command by open, moves its output into the log and
// records its end. Broken connections are made anew: the guest keeps what was
// not acknowledged.
func (s *Service) follow(ctx context.Context, lc *liveCommand, open func(guest.Session) (guest.Process, error)) {
	cmd := lc.record()
	last, err := s.logs.Last(ctx, cmd.ID)
	if err != nil {
		s.finishFailed(lc, fmt.Errorf("reading the log: %w", err))
		return
	}
	sink := func(chunks []sandbox.LogChunk) error {
		t := now()
		for i := range chunks {
			chunks[i].CommandID, chunks[i].CreatedAt = cmd.ID, t
		}
		if err := s.logs.Append(ctx, cmd.ID, chunks); err != nil {
			return fmt.Errorf("appending to the log: %w", err)
		}
		last = chunks[len(chunks)-1].Seq
		return nil
	}
	lc.mu.Lock()
	if lc.rec.StartedAt.IsZero() {
		lc.rec.StartedAt = now() // before the guest is told, so that it never lies after the start
	}
	lc.mu.Unlock()
	watch := s.watchTimeout(ctx, lc)
	defer watch()
	lostAt := time.Now().Add(lostAfter)
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		sess, err := s.sessionOf(ctx, lc.l)
		var p guest.Process
		if err == nil {
			p, err = open(sess)
		}
		if err == nil {
			lc.markRunning()
			lostAt = time.Now().Add(lostAfter)
			var exit guest.Exit
			if exit, err = p.Output(ctx, last, sink); err == nil {
				s.finishExited(ctx, lc, exit)
				s.forget(lc.l, cmd.ID)
				return
			}
			// From now on the command exists: only ever attach to it.
			open = func(sess guest.Session) (guest.Process, error) { return sess.Attach(ctx, cmd.ID) }
		}
		switch {
		case s.ctx.Err() != nil:
			return // it goes on; the next process takes it up
		case lc.l.isGone() || sandbox.CodeSandboxDestroyed.Is(err):
			s.finishKilled(lc)
			return
		case sandbox.CodeSandboxNotReady.Is(err) && !lc.running() && cmd.Timeout > 0 && time.Since(cmd.CreatedAt) > cmd.Timeout:
			s.finishUnstarted(lc, errQueueTimeout)
			return
		case sandbox.CodeSandboxNotReady.Is(err):
			s.log.Debug("a sandbox is too busy to take a command", "command", cmd.ID)
		case errors.Is(err, guest.ErrDisconnected) && time.Now().Before(lostAt):
			s.log.Debug("connection to a command broke", "command", cmd.ID, "error", err)
		case answered(err) != nil, errors.Is(err, guest.ErrNoProcess), time.Now().After(lostAt):
			s.finishFailed(lc, err)
			return
		default:
			s.log.Warn("cannot reach a command, will try again", "command", cmd.ID, "error", err)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

// watchTimeout ends the sandbox of a guest that does not end a command in time.
// The returned function ends the watch.
func (s *Service) watchTimeout(ctx context.Context, lc *liveCommand) (stop func()) {
	cmd := lc.record()
	if cmd.Timeout == 0 {
		return func() {}
	}
	t := time.AfterFunc(time.Until(cmd.CreatedAt.Add(cmd.Timeout+timeoutGrace+guestSlack)), func() {
		if ctx.Err() == nil {
			s.guestBroken(lc)
		}
	})
	return func() { t.Stop() }
}

func (s *Service) guestBroken(lc *liveCommand) {
	if !lc.running() {
		return // the guest never took it: nothing is broken inside
	}
	if lc.record().Status.Terminal() || lc.record().CollectStatus == sandbox.CollectPending && !lc.record().FinishedAt.IsZero() {
		return
	}
	s.beginEnd(lc.l, endCause{
		status: sandbox.StatusDestroyed, reason: sandbox.ReasonPlatformCleanup,
		detail: "the guest did not end command " + lc.record().ID + " in time",
	})
}

func (lc *liveCommand) markRunning() {
	lc.mu.Lock()
	defer lc.mu.Unlock()
	lc.rec.Status = sandbox.CommandRunning
	if !lc.running() {
		close(lc.started)
	}
}

// running reports whether the guest has taken the command, or never will.
func (lc *liveCommand) running() bool {
	select {
	case <-lc.started:
		return true
	default:
		return false
	}
}

func (s *Service) forget(l *live, id string) {
	l.mu.Lock()
	sess := l.session
	l.mu.Unlock()
	if sess == nil {
		return
	}
	ctx, cancel := context.WithTimeout(s.ctx, 5*time.Second)
	defer cancel()
	if err := sess.Forget(ctx, id); err != nil && !errors.Is(err, guest.ErrDisconnected) {
		s.log.Debug("the guest keeps an ended command", "command", id, "error", err)
	}
}

// finishExited records how a command that ran has ended.
func (s *Service) finishExited(ctx context.Context, lc *liveCommand, exit guest.Exit) {
	lc.mu.Lock()
	r := &lc.rec
	// The guest measures best, but what it says is bounded by what we saw.
	r.FinishedAt = now()
	if at := exit.End.UTC().Truncate(time.Millisecond); at.Before(r.FinishedAt) && !at.Before(r.StartedAt) {
		r.FinishedAt = at
	}
	r.Duration = min(max(exit.End.Sub(exit.Start), 0), r.FinishedAt.Sub(r.StartedAt))
	end := *r
	lc.mu.Unlock()

	signal := "SIGTERM"
	if exit.Killed {
		signal = "SIGKILL"
	}
	switch exit.Cause {
	case guest.CauseTimeout:
		end.Status, end.TerminationSignal = sandbox.CommandTimedOut, signal
	case guest.CauseCanceled:
		end.Status, end.TerminationSignal = sandbox.CommandCanceled, signal
		if end.CanceledAt.IsZero() {
			end.CancelMode, end.CanceledAt = sandbox.CancelGraceful, end.FinishedAt
		}
	default:
		code := exit.Code
		end.Status = sandbox.CommandExited
		if exit.Signal != 0 {
			code = 128 + exit.Signal
			end.Status = sandbox.CommandFailed
			end.FailureCause = fmt.Sprintf("ended by signal %d", exit.Signal)
		}
		end.ExitCode = &code
	}
	if end.Status != sandbox.CommandCanceled {
		end.CancelMode, end.CanceledAt = "", time.Time{} // the end came first
	}
	var artifacts []sandbox.Artifact
	if len(end.Collect) > 0 {
		artifacts = s.collect(ctx, lc.l, &end)
		if s.ctx.Err() != nil && !lc.l.isGone() && end.CollectStatus != sandbox.CollectSkipped {
			return // interrupted by the stop of the server: the next process collects
		}
	}
	s.finish(lc, end, artifacts)
}

func (s *Service) finishKilled(lc *liveCommand) {
	end := lc.record()
	killCommand(&end, now())
	s.finish(lc, end, nil)
}

// killCommand turns a record into that of a command whose sandbox ended.
func killCommand(end *sandbox.Command, at time.Time) {
	end.Status, end.KilledReason = sandbox.CommandKilled, sandbox.KilledSandboxDestroyed
	end.ExitCode = nil
	if end.FinishedAt.IsZero() {
		end.FinishedAt = at
		if !end.StartedAt.IsZero() {
			end.Duration = at.Sub(end.StartedAt)
		}
	}
	end.CancelMode, end.CanceledAt = "", time.Time{}
	if end.CollectStatus == sandbox.CollectPending {
		end.CollectStatus = sandbox.CollectSkipped
	}
}

func (s *Service) finishFailed(lc *liveCommand, cause error) {
	s.log.Warn("command failed", "command", lc.record().ID, "cause", cause)
	end := lc.record()
	end.Status, end.FailureCause, end.FinishedAt = sandbox.CommandFailed, cause.Error(), now()
	if !end.StartedAt.IsZero() {
		end.Duration = end.FinishedAt.Sub(end.StartedAt)
	}
	end.CancelMode, end.CanceledAt = "", time.Time{}
	if end.CollectStatus == sandbox.CollectPending {
		end.CollectStatus = sandbox.CollectSkipped
	}
	s.finish(lc, end, nil)
}

// finishUnstarted ends a command that never got its turn.
func (s *Service) finishUnstarted(lc *liveCommand, cause error) {
	end := lc.record()
	end.FinishedAt, end.TerminationSignal = now(), "SIGTERM"
	if end.CollectStatus == sandbox.CollectPending {
		end.CollectStatus = sandbox.CollectSkipped
	}
	switch {
	case s.ctx.Err() != nil:
		// It stays queued; the next process finds it.
	case errors.Is(cause, errQueueTimeout):
		end.Status = sandbox.CommandTimedOut
		s.finish(lc, end, nil)
	case errors.Is(cause, errQueueCanceled):
		end.Status = sandbox.CommandCanceled
		s.finish(lc, end, nil)
	case errors.Is(cause, context.Canceled), sandbox.CodeSandboxDestroyed.Is(cause):
		s.finishKilled(lc) // the sandbox ended before it was ready
	default:
		s.finishFailed(lc, cause)
	}
}

// finish stores the end of a command, then lets everybody who waits see it.
func (s *Service) finish(lc *liveCommand, end sandbox.Command, artifacts []sandbox.Artifact) {
	ctx := context.WithoutCancel(s.ctx)
	var head cmdlog.Head
	ok := s.retry(s.ctx, "sealing the log", end.ID, func() (err error) {
		head, err = s.logs.Seal(ctx, end.ID)
		return err
	})
	end.Stdout, end.StdoutTruncated = head.Stdout, head.StdoutTruncated
	end.Stderr, end.StderrTruncated = head.Stderr, head.StderrTruncated
	ok = ok && s.retry(s.ctx, "recording the end of a command", end.ID, func() error {
		err := s.store.Update(ctx, func(tx store.Tx) error {
			for _, a := range artifacts {
				if err := s.insertArtifact(ctx, tx, Call{}, a); err != nil {
					return err
				}
			}
			return tx.UpdateCommand(ctx, end)
		})
		if errors.Is(err, store.ErrConflict) {
			return nil // its end is recorded already
		}
		return err
	})
	if !ok {
		return
	}
	lc.mu.Lock()
	lc.rec = end
	lc.mu.Unlock()
	s.mu.Lock()
	delete(s.running, end.ID)
	s.mu.Unlock()
	if !lc.running() {
		close(lc.started)
	}
	close(lc.done)
}

// awaitCommands waits until the end of every command of a sandbox is recorded.
func (s *Service) awaitCommands(ctx context.Context, sandboxID string) bool {
	s.mu.Lock()
	var wait []*liveCommand
	for _, lc := range s.running {
		if lc.l.id == sandboxID {
			wait = append(wait, lc)
		}
	}
	s.mu.Unlock()
	for _, lc := range wait {
		select {
		case <-lc.done:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

func (s *Service) liveCommand(id string) *liveCommand {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running[id]
}

// Command returns one command, with its output once it has ended.
func (s *Service) Command(ctx context.Context, c Call, id string) (sandbox.Command, error) {
	lc := s.liveCommand(id)
	var cmd sandbox.Command
	if lc != nil {
		cmd = lc.record()
	} else {
		var err error
		cmd, err = s.store.Command(ctx, id)
		if errors.Is(err, store.ErrNotFound) {
			return cmd, errNotFound("command", id)
		} else if err != nil {
			return cmd, fmt.Errorf("reading command %s: %w", id, err)
		}
	}
	if cmd.OrgID != c.OrgID || !c.CanSeeProject(cmd.ProjectID) {
		return sandbox.Command{}, errNotFound("command", id)
	}
	return cmd, nil
}

// WaitCommand waits for the end of a command.
func (s *Service) WaitCommand(ctx context.Context, c Call, id string) (sandbox.Command, error) {
	if lc := s.liveCommand(id); lc != nil {
		select {
		case <-lc.done:
		case <-ctx.Done():
			return sandbox.Command{}, ctx.Err()
		case <-s.ctx.Done():
			return sandbox.Command{}, errStopping
		}
	}
	return s.Command(ctx, c, id)
}

// Commands lists the commands of a sandbox without their output.
func (s *Service) Commands(ctx context.Context, c Call, sandboxID string, p store.Page) (Page[sandbox.Command], error) {
	if _, err := s.visibleSandbox(ctx, c, sandboxID); err != nil {
		return Page[sandbox.Command]{}, err
	}
	page, err := paged(p, func(p store.Page) ([]sandbox.Command, error) { return s.store.Commands(ctx, sandboxID, p) })
	if err != nil {
		return page, fmt.Errorf("listing commands of %s: %w", sandboxID, err)
	}
	for i, cmd := range page.Items {
		if lc := s.liveCommand(cmd.ID); lc != nil {
			page.Items[i] = lc.record()
		}
		page.Items[i].Stdout, page.Items[i].Stderr = "", ""
	}
	return page, nil
}

// CancelCommand ends a command and every process it started, and returns its
// final record.
func (s *Service) CancelCommand(ctx context.Context, c Call, id string, mode sandbox.CancelMode) (sandbox.Command, error) {
	grace := cancelGrace
	switch mode {
	case "", sandbox.CancelGraceful:
		mode = sandbox.CancelGraceful
	case sandbox.CancelForce:
		grace = 0
	default:
		return sandbox.Command{}, sandbox.NewError(sandbox.CodeInvalidRequest, "mode must be graceful or force.").With("field", "mode")
	}
	cmd, err := s.Command(ctx, c, id)
	if err != nil || cmd.Status.Terminal() {
		return cmd, err
	}
	lc := s.liveCommand(id)
	if lc == nil {
		return s.WaitCommand(ctx, c, id)
	}
	lc.mu.Lock()
	lc.rec.CancelMode, lc.rec.CanceledAt = mode, now()
	intent := lc.rec
	lc.mu.Unlock()
	err = s.store.Update(ctx, func(tx store.Tx) error {
		if err := tx.UpdateCommand(ctx, intent); err != nil {
			return err
		}
		return tx.AppendAudit(ctx, s.auditEvent(c, "command.cancel", "command", id, cmd.ProjectID, map[string]any{"mode": string(mode)}))
	})
	if err != nil && !errors.Is(err, store.ErrConflict) {
		return cmd, fmt.Errorf("recording the cancellation of %s: %w", id, err)
	}
	lc.unqueue()
	patience := grace + guestSlack
	if len(cmd.Collect) > 0 {
		patience += collectLimit
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	started := lc.started
	for {
		select {
		case <-started:
			started = nil
			err := s.withSession(ctx, lc.l, func(ctx context.Context, sess guest.Session) error {
				ctx, cancel := context.WithTimeout(ctx, guestSlack)
				defer cancel()
				return sess.Kill(ctx, id, grace, guest.CauseCanceled)
			})
			if err != nil && !errors.Is(err, guest.ErrNoProcess) && !sandbox.CodeSandboxDestroyed.Is(err) {
				s.log.Warn("the guest did not take a cancellation", "command", id, "error", err)
			}
		case <-lc.done:
			return s.Command(ctx, c, id)
		case <-timer.C:
			s.guestBroken(lc)
		case <-ctx.Done():
			return cmd, ctx.Err()
		case <-s.ctx.Done():
			return cmd, errStopping
		}
	}
}
