//go:build linux

package server

import (
	"strings"

	"crownest.dev/crownest/internal/guest/protocol"
)

var noProcess = &protocol.Fault{Reason: protocol.ReasonNoProcess, Text: "no such command"}

// command returns a command that was started, or nil.
func (s *Server) command(id string) *command {
	s.mu.Lock()
	c := s.commands[id]
	s.mu.Unlock()
	if c == nil {
		return nil
	}
	<-c.started
	if c.fault != nil {
		return nil
	}
	return c
}

// start answers OpStart: it starts the command, or attaches to it if it was
// started before, and goes on with its output.
func (s *Server) start(st *protocol.Stream, m *protocol.Start) {
	c, fault := s.ensure(m)
	if fault != nil {
		s.answer(st, nil, fault)
		return
	}
	if err := st.Send(protocol.Answer(nil, nil)); err != nil {
		return
	}
	c.sendOutput(st, 0)
}

// ensure returns the command of that id, started.
func (s *Server) ensure(m *protocol.Start) (*command, *protocol.Fault) {
	if m.ID == "" || strings.IndexByte(m.Command, 0) >= 0 {
		return nil, malformed
	}
	s.mu.Lock()
	if c := s.commands[m.ID]; c != nil {
		s.mu.Unlock()
		<-c.started
		return c, c.fault
	}
	if s.closed || len(s.commands) >= protocol.MaxProcesses {
		s.mu.Unlock()
		return nil, tooMany
	}
	c := &command{id: m.ID, srv: s, started: make(chan struct{}), kills: make(chan protocol.Kill, 4), spool: newSpool(s.budget)}
	s.commands[m.ID] = c
	env, host := mergeEnv(s.env, m.Env), s.hostname
	s.owned.Add(1)
	s.mu.Unlock()

	c.fault = s.launch(c, m, env, host)
	if c.fault != nil {
		s.mu.Lock()
		delete(s.commands, m.ID)
		s.mu.Unlock()
		s.owned.Done()
		close(c.started)
		return nil, c.fault
	}
	close(c.started)
	go func() {
		defer s.owned.Done()
		c.run(m.Timeout, m.Grace)
	}()
	return c, nil
}

var tooMany = &protocol.Fault{Reason: protocol.ReasonQuota, Detail: "sandbox_processes", Text: "the sandbox cannot run more processes"}

// launch gets the command's shell to run.
func (s *Server) launch(c *command, m *protocol.Start, env []string, host string) *protocol.Fault {
	cwd, fault := s.resolveDir(m.Cwd)
	if fault != nil {
		return fault
	}
	c.begin = s.now()
	sh := s.shells.take(m.Command, cwd, env, host)
	if sh == nil {
		var err error
		sh, err = s.plainShell(m.Command, cwd, env)
		switch {
		case err != nil && exhausted(err):
			return tooMany
		case err != nil:
			return &protocol.Fault{Reason: protocol.ReasonInternal, Text: "start the shell: " + err.Error()}
		}
	}
	c.tree, c.exit, c.pipes = sh.tree, sh.exit, sh.output
	return nil
}

// commandEnded notes the end of a command and forgets the oldest of too many.
func (s *Server) commandEnded(c *command) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = append(s.ended, c.id)
	for len(s.ended) > keptCommands {
		if old := s.commands[s.ended[0]]; old != nil {
			delete(s.commands, old.id)
			old.spool.drop()
		}
		s.ended = s.ended[1:]
	}
	s.shells.refill()
}

// forget drops an ended command. One that runs, or is not known, stays as it is.
func (s *Server) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.commands[id]
	if c == nil || !c.ended() {
		return
	}
	delete(s.commands, id)
	for i, e := range s.ended {
		if e == id {
			s.ended = append(s.ended[:i], s.ended[i+1:]...)
			break
		}
	}
	c.spool.drop()
}

// processes lists the commands.
func (s *Server) processes(st *protocol.Stream) {
	s.mu.Lock()
	all := make([]*command, 0, len(s.commands))
	for _, c := range s.commands {
		all = append(all, c)
	}
	s.mu.Unlock()
	for _, c := range all {
		<-c.started
		if c.fault != nil {
			continue
		}
		s.budget.mu.Lock()
		p := protocol.Process{ID: c.id, Running: !c.spool.ended, NextSeq: c.spool.next()}
		s.budget.mu.Unlock()
		if err := st.Send(protocol.Encode(&p)); err != nil {
			return
		}
	}
	s.answer(st, nil, nil)
}

// uproot frees the tree of an ended command, now or once what lives on in it ends.
func (s *Server) uproot(t tree) {
	if t.remove() {
		return
	}
	s.mu.Lock()
	s.lingering = append(s.lingering, t)
	s.mu.Unlock()
	s.sweep() // its last process may have ended between the two
}

// sweep frees trees that have become empty. The last process of a tree has PID 1
// as its parent, so looking after each orphan finds them all.
func (s *Server) sweep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := s.lingering[:0]
	for _, t := range s.lingering {
		if !t.remove() {
			kept = append(kept, t)
		}
	}
	clear(s.lingering[len(kept):])
	s.lingering = kept
}
