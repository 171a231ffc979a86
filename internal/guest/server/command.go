//go:build linux

package server

import (
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"crownest.dev/crownest/internal/guest/protocol"
)

// drainTime is how long a command waits for the rest of its output once its shell
// has ended, while something it left behind still holds the pipes.
const drainTime = 250 * time.Millisecond

// Ways to look whether a tree is empty that is being ended.
const (
	pollFirst = 2 * time.Millisecond
	pollMost  = 50 * time.Millisecond
)

// command is one command of the host, running or ended.
type command struct {
	id  string
	srv *Server

	started chan struct{} // closed when the shell runs or could not be started
	fault   *protocol.Fault

	tree   tree
	exit   <-chan syscall.WaitStatus
	kills  chan protocol.Kill
	pumped sync.WaitGroup // both pumps have brought in all that counts

	begin time.Time
	spool *spool
	pipes [2]*os.File

	// Guarded by the spool's lock.
	end    protocol.Exit // valid once spool.ended
	reader *outputStream // who sends the output now
}

func (c *command) ended() bool {
	c.spool.b.mu.Lock()
	defer c.spool.b.mu.Unlock()
	return c.spool.ended
}

// run follows a command whose shell has been started until all is over.
func (c *command) run(timeout, grace time.Duration) {
	c.pumped.Add(2)
	c.srv.owned.Add(2)
	go c.pump(c.pipes[0], false)
	go c.pump(c.pipes[1], true)

	end := c.supervise(timeout, grace)
	end.Start, end.End = protocol.TimeOf(c.begin), protocol.TimeOf(c.srv.now())
	c.srv.uproot(c.tree)

	drained := make(chan struct{})
	go func() {
		c.pumped.Wait()
		close(drained)
	}()
	late, stop := after(drainTime)
	select {
	case <-drained:
	case <-late:
		// What is in the pipes now still counts, what comes later does not.
		for _, p := range c.pipes {
			_ = p.SetReadDeadline(time.Unix(1, 0)) // fails if it is closed: drained
		}
		<-drained
	}
	stop()

	c.spool.b.mu.Lock()
	end.LastSeq = c.spool.next() - 1
	c.end = end
	c.spool.ended = true
	c.spool.ready.Broadcast()
	c.spool.b.mu.Unlock()
	c.srv.commandEnded(c)
}

// supervise waits for the end of the shell, and of the whole tree if the command
// is to be ended, and says how it came about.
func (c *command) supervise(timeout, grace time.Duration) protocol.Exit {
	var (
		end      = protocol.Exit{Cause: protocol.CauseExited}
		exit     = c.exit
		alarm    <-chan struct{} // the command's time is over
		force    <-chan struct{} // the grace is over
		poll     <-chan struct{}
		interval = pollFirst
		forceAt  time.Time
		killing  bool
		told     = map[int]bool{} // who got a SIGTERM
	)
	if timeout > 0 {
		var stop func() bool
		alarm, stop = after(timeout)
		defer stop()
	}
	now := make(chan struct{})
	close(now)
	begin := func(cause protocol.Cause, grace time.Duration) {
		at := time.Now().Add(grace)
		if killing && !at.Before(forceAt) {
			return
		}
		if !killing {
			killing = true
			end.Cause = cause
			if grace > 0 {
				c.terminate(told, false)
			}
			poll = now
		}
		forceAt = at
		force, _ = after(grace)
	}
	for {
		select {
		case ws := <-exit:
			exit = nil
			if ws.Signaled() {
				end.Signal = int(ws.Signal())
			} else {
				end.Code = ws.ExitStatus()
			}
			if !killing {
				return end
			}
			poll = now
		case <-alarm:
			alarm = nil
			begin(protocol.CauseTimeout, grace)
		case k := <-c.kills:
			begin(k.Cause, k.Grace)
		case <-force:
			force = nil
			if !end.Killed && !c.tree.empty() {
				end.Killed = true
			}
			c.tree.kill()
			poll, interval = now, pollFirst
		case <-poll:
			// Nothing inside the sandbox tells of the last process of a tree.
			if exit == nil && c.tree.empty() {
				return end
			}
			if end.Killed {
				c.tree.kill() // for those that were being forked
			} else if len(told) > 0 { // not where it is killed without a word
				c.terminate(told, true)
			}
			poll, _ = after(interval)
			interval = min(interval*2, pollMost)
		}
	}
}

// after is time.After, with a stop function. The timers of package time that have
// a channel of times bring all formatting of times into the guest.
func after(d time.Duration) (<-chan struct{}, func() bool) {
	c := make(chan struct{})
	return c, time.AfterFunc(d, func() { close(c) }).Stop
}

// terminate sends SIGTERM to the processes of the tree that have not been told, or
// only to the orphans among them: those were being forked while their parent was
// told, whereas what a living parent starts now may be its way to clean up.
func (c *command) terminate(told map[int]bool, orphans bool) {
	for _, pid := range c.tree.pids() {
		if told[pid] {
			continue
		}
		if orphans {
			if p, ok := readProcess(pid); !ok || p.parent != 1 && p.parent != os.Getpid() {
				continue
			}
		}
		told[pid] = true
		_ = syscall.Kill(pid, syscall.SIGTERM) // it may have ended meanwhile
		_ = syscall.Kill(pid, syscall.SIGCONT) // a stopped process gets its SIGTERM then
	}
}

// kill asks for the end of the command.
func (c *command) kill(k protocol.Kill) {
	for {
		if c.ended() {
			return
		}
		select {
		case c.kills <- k:
			return
		default:
		}
		// The queue is full of requests that supervise has not seen yet. Only the
		// shortest grace matters, so one of them can give way.
		select {
		case old := <-c.kills:
			if old.Grace < k.Grace {
				k = old
			}
		default:
		}
	}
}

// pump brings one stream of output into the spool until its pipe ends or the
// command's time to drain is over; then it drops what still comes, so that
// processes left behind neither block nor die of it.
func (c *command) pump(pipe *os.File, stderr bool) {
	defer c.srv.owned.Done()
	defer pipe.Close()
	over := c.collect(pipe, stderr)
	c.pumped.Done()
	if over {
		return
	}
	_ = pipe.SetReadDeadline(time.Time{})
	buf := make([]byte, 4096)
	for {
		if _, err := pipe.Read(buf); err != nil {
			return
		}
	}
}

// collect is the part of pump that counts. It reports whether the pipe has ended.
func (c *command) collect(pipe *os.File, stderr bool) bool {
	var carry [4]byte
	held := 0
	left := -1 // after the deadline: how many bytes still count
	for {
		pooled := chunkPool.Get().(*[]byte)
		buf := *pooled
		copy(buf, carry[:held])
		var n int
		var err error
		if left < 0 {
			n, err = pipe.Read(buf[held:])
			if errors.Is(err, os.ErrDeadlineExceeded) {
				left = unread(pipe)
				chunkPool.Put(pooled)
				continue
			}
		} else {
			n, err = readNow(pipe, buf[held:min(len(buf), held+left)])
			left -= n
		}
		total := held + n
		cut := total
		if err == nil {
			cut = utf8Cut(buf[:total])
		}
		held = copy(carry[:], buf[cut:total])
		switch {
		case cut == 0:
			chunkPool.Put(pooled)
		case cut < protocol.MaxChunk/4:
			c.spool.add(buf[:cut], nil, stderr, c.srv.now())
			chunkPool.Put(pooled)
		default:
			c.spool.add(buf[:cut], pooled, stderr, c.srv.now())
		}
		if err != nil {
			return left < 0
		}
	}
}

// unread says how many bytes a pipe holds.
func unread(pipe *os.File) int {
	n := 0
	if rc, err := pipe.SyscallConn(); err == nil {
		_ = rc.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	}
	return n
}

var errDrained = errors.New("nothing left that counts")

// readNow reads what is there without waiting.
func readNow(pipe *os.File, p []byte) (int, error) {
	if len(p) == 0 {
		return 0, errDrained
	}
	n, err := 0, error(nil)
	rc, rcErr := pipe.SyscallConn()
	if rcErr != nil {
		return 0, rcErr
	}
	if rcErr := rc.Control(func(fd uintptr) {
		for {
			n, err = unix.Read(int(fd), p)
			if err != unix.EINTR {
				return
			}
		}
	}); rcErr != nil {
		return 0, rcErr
	}
	if n <= 0 {
		return 0, errDrained
	}
	return n, nil
}

// outputStream is one reader of a command's output.
type outputStream struct {
	s    *protocol.Stream
	gone bool // guarded by the spool's lock
}

// sendOutput sends everything after a seq until the command has ended and all is
// sent, and takes the host's acknowledgements.
func (c *command) sendOutput(s *protocol.Stream, after int64) {
	me := &outputStream{s: s}
	sp := c.spool
	sp.b.mu.Lock()
	if after >= sp.next() || after < sp.first-1 {
		first := sp.first
		sp.b.mu.Unlock()
		c.srv.answer(s, nil, &protocol.Fault{Reason: protocol.ReasonConflict, Text: "no output is kept at that position", Current: first})
		return
	}
	old := c.reader
	if old != nil {
		old.gone = true
	}
	c.reader = me
	// The host has all that it does not ask for.
	sp.sent = max(sp.sent, after)
	sp.ack(after)
	sp.ready.Broadcast()
	sp.b.mu.Unlock()
	if old != nil {
		old.s.Abandon(protocol.ErrClosed)
	}

	// The host ends its direction once it has stored the last of it.
	acked := make(chan struct{})
	go func() {
		defer close(acked)
		c.takeAcks(me)
	}()
	defer func() { <-acked }()

	for at := after + 1; ; at++ {
		sp.b.mu.Lock()
		for !me.gone && at >= sp.next() && !sp.ended {
			sp.ready.Wait()
		}
		if me.gone || at < sp.first {
			sp.b.mu.Unlock()
			s.Abandon(protocol.ErrClosed) // superseded, or the host took back what it asked for
			return
		}
		if at >= sp.next() {
			end := c.end
			sp.b.mu.Unlock()
			c.srv.answer(s, &end, nil)
			return
		}
		ch := &sp.chunks[at-sp.first]
		sp.sent = max(sp.sent, at)
		m := protocol.Prepare(protocol.ChunkHeadSize + len(ch.data))
		head := protocol.ChunkHead{Seq: at, Stderr: ch.stderr, At: protocol.TimeOf(ch.at)}
		head.Put(m.Bytes())
		copy(m.Bytes()[protocol.ChunkHeadSize:], ch.data)
		sp.b.mu.Unlock()
		if err := s.SendPrepared(m); err != nil {
			return
		}
	}
}

// takeAcks frees what the host has stored until the stream ends.
func (c *command) takeAcks(me *outputStream) {
	sp := c.spool
	for {
		f, err := me.s.Receive()
		if err != nil {
			break
		}
		var ack protocol.Ack
		bad := len(f.Data) > 0 && protocol.Decode(f.Data, &ack) != nil
		last := f.End
		f.Release()
		if bad {
			break
		}
		sp.b.mu.Lock()
		if c.reader == me {
			sp.ack(ack.Seq)
		}
		sp.b.mu.Unlock()
		if last {
			return
		}
	}
	sp.b.mu.Lock()
	me.gone = true
	if c.reader == me {
		c.reader = nil
	}
	sp.ready.Broadcast()
	sp.b.mu.Unlock()
}
