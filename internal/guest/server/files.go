//go:build linux

package server

import (
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"crownest.dev/crownest/internal/guest/protocol"
	"crownest.dev/crownest/internal/guest/rawfile"
)

// temporary is how the names of files begin that are being written.
const temporary = ".crownest-write-"

// acceptFile does the operations on files.
func (s *Server) acceptFile(st *protocol.Stream, op protocol.Op, body []byte) {
	switch op {
	case protocol.OpStat, protocol.OpList, protocol.OpRead, protocol.OpDelete, protocol.OpMkdir, protocol.OpResolveDir:
		var m protocol.Path
		if s.request(st, body, &m) {
			s.acceptPath(st, op, &m)
		}
	case protocol.OpCheckWrite:
		var m protocol.Write
		if s.request(st, body, &m) {
			var fault *protocol.Fault
			s.asUser(func() { fault = s.checkWrite(&m) })
			s.answer(st, nil, fault)
		}
	case protocol.OpWrite:
		var m protocol.Write
		if s.request(st, body, &m) {
			info, fault := s.ops.once(m.Operation, func() (*protocol.FileInfo, *protocol.Fault) { return s.write(st, &m) })
			s.answerInfo(st, info, fault)
		}
	case protocol.OpMove:
		var m protocol.Move
		if s.request(st, body, &m) {
			info, fault := s.ops.once(m.Operation, func() (info *protocol.FileInfo, fault *protocol.Fault) {
				s.asUser(func() { info, fault = s.move(&m) })
				return info, fault
			})
			s.answerInfo(st, info, fault)
		}
	default:
		s.answer(st, nil, malformed)
	}
}

func (s *Server) acceptPath(st *protocol.Stream, op protocol.Op, m *protocol.Path) {
	switch op {
	case protocol.OpStat:
		var info *protocol.FileInfo
		var fault *protocol.Fault
		s.asUser(func() { info, fault = s.stat(m.Path) })
		s.answerInfo(st, info, fault)
	case protocol.OpList:
		s.list(st, m)
	case protocol.OpRead:
		s.read(st, m)
	case protocol.OpDelete:
		_, fault := s.ops.once(m.Operation, func() (_ *protocol.FileInfo, fault *protocol.Fault) {
			s.asUser(func() { fault = s.remove(m.Path) })
			return nil, fault
		})
		s.answer(st, nil, fault)
	case protocol.OpMkdir:
		info, fault := s.ops.once(m.Operation, func() (info *protocol.FileInfo, fault *protocol.Fault) {
			s.asUser(func() { info, fault = s.mkdir(m.Path, m.Parents) })
			return info, fault
		})
		s.answerInfo(st, info, fault)
	case protocol.OpResolveDir:
		path, fault := s.resolveDir(m.Path)
		s.answer(st, &protocol.Resolved{Path: path}, fault)
	}
}

func (s *Server) answerInfo(st *protocol.Stream, info *protocol.FileInfo, fault *protocol.Fault) {
	if info == nil {
		s.answer(st, nil, fault) // an interface around a nil pointer would not be nil
		return
	}
	s.answer(st, info, fault)
}

// shown is the path an entry is shown with: the one asked for, unless it goes
// through "..", whose meaning depends on links.
func shown(asked string, p *place) string {
	rest, fault := elements(asked)
	if fault != nil {
		return p.path()
	}
	var b strings.Builder
	b.WriteString(Workspace)
	for _, e := range rest {
		switch e {
		case "", ".":
		case "..":
			return p.path()
		default:
			b.WriteByte('/')
			b.WriteString(e)
		}
	}
	return b.String()
}

// info describes an entry that exists. What is neither a regular file nor a
// directory counts as an empty file.
func info(path string, st *unix.Stat_t) *protocol.FileInfo {
	f := &protocol.FileInfo{Path: path, Modified: protocol.Time(st.Mtim.Nano())}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		f.Dir = true
	case unix.S_IFREG:
		f.Size = st.Size
	}
	return f
}

func (s *Server) stat(path string) (*protocol.FileInfo, *protocol.Fault) {
	p, fault := s.walk(path, true)
	if fault == nil {
		defer p.close()
		if !p.exists {
			fault = notFound
		}
	}
	if fault == nil {
		return info(shown(path, p), &p.st), nil
	}
	// A link that leads nowhere, or out, is still an entry.
	link, linkFault := s.walk(path, false)
	if linkFault != nil {
		return nil, fault
	}
	defer link.close()
	if !link.exists || link.st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return nil, fault
	}
	return info(shown(path, link), &link.st), nil
}

func (s *Server) list(st *protocol.Stream, m *protocol.Path) {
	limit := m.Limit
	if limit == 0 {
		limit = protocol.MaxFiles
	}
	var entries []*protocol.FileInfo
	var truncated bool
	var fault *protocol.Fault
	s.asUser(func() { entries, truncated, fault = s.entries(m.Path, limit) })
	if fault != nil {
		s.answer(st, nil, fault)
		return
	}
	for _, e := range entries {
		if err := st.Send(protocol.Encode(e)); err != nil {
			return
		}
	}
	s.answer(st, &protocol.Listed{Truncated: truncated}, nil)
}

func (s *Server) entries(path string, limit int) ([]*protocol.FileInfo, bool, *protocol.Fault) {
	p, fault := s.walk(path, true)
	if fault != nil {
		return nil, false, fault
	}
	defer p.close()
	switch {
	case !p.exists:
		return nil, false, notFound
	case !p.isDir():
		return nil, false, notDirectory
	}
	fd, err := p.open(unix.O_RDONLY | unix.O_DIRECTORY)
	if err != nil {
		return nil, false, fileFault("open the directory", err)
	}
	defer unix.Close(fd)
	names, truncated, err := firstNames(fd, limit)
	if err != nil {
		return nil, false, fileFault("read the directory", err)
	}
	base := shown(path, p)
	out := make([]*protocol.FileInfo, 0, len(names))
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			continue // it is gone again
		}
		if st.Mode&unix.S_IFMT == unix.S_IFLNK {
			if target, fault := s.walk(p.path()+"/"+name, true); fault == nil {
				if target.exists {
					st = target.st
				}
				target.close()
			}
		}
		out = append(out, info(base+"/"+name, &st))
	}
	return out, truncated, nil
}

// firstNames reads the names in a directory that come first in order, however
// many there are.
func firstNames(dir, limit int) (names []string, truncated bool, err error) {
	trim := func() {
		sort.Strings(names)
		if len(names) > limit {
			truncated = true
			clear(names[limit:])
			names = names[:limit]
		}
	}
	err = rawfile.Names(dir, func(more []string) bool {
		if names = append(names, more...); len(names) > 2*limit+1024 {
			trim()
		}
		return true
	})
	trim()
	return names, truncated, err
}

// open opens the entry a place names, without following or waiting for anything.
func (p *place) open(flags int) (int, error) {
	name := p.name
	if name == "" {
		name = "."
	}
	for {
		fd, err := unix.Openat(p.dir(), name, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// read answers OpRead.
func (s *Server) read(st *protocol.Stream, m *protocol.Path) {
	fd := -1
	var f *protocol.FileInfo
	var fault *protocol.Fault
	s.asUser(func() { fd, f, fault = s.openRead(m.Path) })
	if fault != nil {
		s.answer(st, nil, fault)
		return
	}
	defer unix.Close(fd)
	if err := st.Send(protocol.Answer(f, nil)); err != nil {
		return
	}
	for at := m.Offset; ; {
		msg := protocol.Prepare(protocol.MaxChunk)
		n, err := unix.Pread(fd, msg.Bytes(), at)
		switch {
		case err == unix.EINTR:
			msg.Discard()
			continue
		case err != nil:
			msg.Discard()
			s.answer(st, nil, fileFault("read", err))
			return
		case n == 0:
			msg.Discard()
			s.answer(st, nil, nil)
			return
		}
		at += int64(n)
		if err := st.SendPrepared(msg.First(n)); err != nil {
			return
		}
	}
}

func (s *Server) openRead(path string) (int, *protocol.FileInfo, *protocol.Fault) {
	p, fault := s.walk(path, true)
	if fault != nil {
		return -1, nil, fault
	}
	defer p.close()
	switch {
	case !p.exists:
		return -1, nil, notFound
	case p.isDir():
		return -1, nil, isDirectory
	case !p.isRegular():
		return -1, nil, invalid("not a regular file")
	}
	fd, err := p.open(unix.O_RDONLY)
	if err != nil {
		return -1, nil, fileFault("open", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return -1, nil, fileFault("stat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG { // it was exchanged meanwhile
		_ = unix.Close(fd)
		return -1, nil, invalid("not a regular file")
	}
	return fd, info(shown(path, p), &st), nil
}

// target looks where a write goes and whether it may.
func (s *Server) target(m *protocol.Write) (*place, *protocol.Fault) {
	if m.Size > m.Max {
		return nil, tooLarge(m.Max)
	}
	p, fault := s.walk(m.Path, true)
	if fault != nil {
		return nil, fault
	}
	switch {
	case len(p.missing) > 0 && !m.Parents:
		fault = noParent
	case p.isDir():
		fault = isDirectory
	case p.exists && !m.Overwrite:
		fault = exists
	case p.exists && !p.isRegular():
		fault = invalid("not a regular file")
	case !p.exists && strings.HasSuffix(m.Path, "/"):
		fault = isDirectory
	}
	if fault != nil {
		p.close()
		return nil, fault
	}
	return p, nil
}

func tooLarge(limit int64) *protocol.Fault {
	return &protocol.Fault{Reason: protocol.ReasonTooLarge, Text: "the file is too large", Limit: limit}
}

// checkWrite says whether a write would be refused, as far as can be seen.
func (s *Server) checkWrite(m *protocol.Write) *protocol.Fault {
	p, fault := s.target(m)
	if fault != nil {
		return fault
	}
	defer p.close()
	if err := unix.Faccessat(p.dir(), ".", unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return fileFault("write to the directory", err)
	}
	return nil
}

// write answers OpWrite, up to the answer.
func (s *Server) write(st *protocol.Stream, m *protocol.Write) (*protocol.FileInfo, *protocol.Fault) {
	var p *place
	var fault *protocol.Fault
	fd, temp := -1, ""
	s.asUser(func() {
		if p, fault = s.target(m); fault != nil {
			return
		}
		if fault = p.makeParents(); fault == nil {
			fd, temp, fault = p.createTemp()
		}
	})
	if p != nil {
		defer p.close()
	}
	if fault != nil {
		return nil, fault
	}
	defer unix.Close(fd)
	fault = s.receive(st, m, fd)
	var f *protocol.FileInfo
	s.asUser(func() {
		if fault == nil {
			f, fault = p.replace(fd, temp, m)
		}
		if fault != nil {
			_ = unix.Unlinkat(p.dir(), temp, 0) // nothing more can be done
		}
	})
	return f, fault
}

// createTemp makes an empty file beside the entry.
func (p *place) createTemp() (int, string, *protocol.Fault) {
	name := temporary + randomID()
	fd, err := unix.Openat(p.dir(), name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return -1, "", fileFault("create the file", err)
	}
	return fd, name, nil
}

// receive writes what the host sends to fd. The end of it is the host's word that
// it has verified the digest: it sent the bytes, so it can tell as well as the
// guest, which saves the sandbox the work.
func (s *Server) receive(st *protocol.Stream, m *protocol.Write, fd int) *protocol.Fault {
	var size int64
	for {
		f, err := st.Receive()
		if err != nil {
			return &protocol.Fault{Reason: protocol.ReasonInternal, Text: "the upload broke off"}
		}
		size += int64(len(f.Data))
		var fault *protocol.Fault
		switch {
		case size > m.Max:
			fault = tooLarge(m.Max)
		case m.Size >= 0 && size > m.Size:
			fault = wrongSize
		default:
			if err := rawfile.WriteAll(fd, f.Data); err != nil {
				fault = fileFault("write", err)
			}
		}
		last := f.End
		f.Release()
		if fault != nil {
			return fault
		}
		if last {
			break
		}
	}
	if m.Size >= 0 && size != m.Size {
		return wrongSize
	}
	return nil
}

var wrongSize = &protocol.Fault{Reason: protocol.ReasonSize, Text: "the bytes received are not as many as declared"}

// replace puts the finished temporary file in the entry's place.
func (p *place) replace(fd int, temp string, m *protocol.Write) (*protocol.FileInfo, *protocol.Fault) {
	mode := uint32(0o644)
	if p.exists {
		mode = p.st.Mode & 0o777
	}
	if err := unix.Fchmod(fd, mode); err != nil {
		return nil, fileFault("set the mode", err)
	}
	if fault := rename(p.dir(), temp, p.dir(), p.name, m.Overwrite); fault != nil {
		if fault == notEmpty {
			fault = isDirectory // a directory came in the way
		}
		return nil, fault
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fileFault("stat", err)
	}
	return info(shown(m.Path, p), &st), nil
}

// rename moves an entry. Without overwrite the kernel itself sees to it that
// nothing is lost; where it cannot, a look beforehand has to do.
func rename(fromDir int, from string, toDir int, to string, overwrite bool) *protocol.Fault {
	var err error
	if overwrite {
		err = unix.Renameat(fromDir, from, toDir, to)
	} else {
		err = unix.Renameat2(fromDir, from, toDir, to, unix.RENAME_NOREPLACE)
		if err == unix.EINVAL || err == unix.ENOSYS {
			var st unix.Stat_t
			if unix.Fstatat(toDir, to, &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
				return exists
			}
			err = unix.Renameat(fromDir, from, toDir, to)
		}
	}
	if err != nil {
		return fileFault("rename", err)
	}
	return nil
}

func (s *Server) remove(path string) *protocol.Fault {
	p, fault := s.walk(path, false)
	if fault != nil {
		return fault
	}
	defer p.close()
	if !p.exists {
		return notFound
	}
	if p.name == "" {
		return invalid("/workspace itself cannot be deleted")
	}
	flags := 0
	if p.isDir() {
		flags = unix.AT_REMOVEDIR
	}
	if err := unix.Unlinkat(p.dir(), p.name, flags); err != nil {
		return fileFault("delete", err)
	}
	return nil
}

func (s *Server) mkdir(path string, parents bool) (*protocol.FileInfo, *protocol.Fault) {
	p, fault := s.walk(path, true)
	if fault != nil {
		return nil, fault
	}
	defer p.close()
	if p.exists {
		if parents && p.isDir() {
			return info(shown(path, p), &p.st), nil
		}
		return nil, exists
	}
	if len(p.missing) > 0 {
		if !parents {
			return nil, noParent
		}
		if fault := p.makeParents(); fault != nil {
			return nil, fault
		}
	}
	if err := unix.Mkdirat(p.dir(), p.name, 0o755); err != nil && (err != unix.EEXIST || !parents) {
		return nil, fileFault("create the directory", err)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(p.dir(), p.name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, fileFault("stat", err)
	}
	return info(shown(path, p), &st), nil
}

func (s *Server) move(m *protocol.Move) (*protocol.FileInfo, *protocol.Fault) {
	from, fault := s.walk(m.From, false)
	if fault != nil {
		return nil, fault
	}
	defer from.close()
	if !from.exists {
		return nil, notFound
	}
	if from.name == "" {
		return nil, invalid("/workspace itself cannot be moved")
	}
	to, fault := s.walk(m.To, false)
	if fault != nil {
		return nil, fault
	}
	defer to.close()
	switch {
	case to.name == "":
		return nil, invalid("/workspace itself cannot be replaced")
	case from.isDir() && inside(to, from):
		return nil, invalid("a directory cannot be moved into itself")
	case len(to.missing) > 0:
		return nil, noParent
	case to.exists && !m.Overwrite:
		return nil, exists
	case to.isDir() && !from.isDir():
		return nil, isDirectory
	case to.exists && !to.isDir() && from.isDir():
		return nil, notDirectory
	}
	if fault := rename(from.dir(), from.name, to.dir(), to.name, m.Overwrite); fault != nil {
		if fault.Reason == protocol.ReasonInternal {
			fault = invalid("the directory cannot be moved there") // into itself, after a change meanwhile
		}
		return nil, fault
	}
	st := from.st
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		if f, fault := s.stat(to.path()); fault == nil {
			f.Path = shown(m.To, to)
			return f, nil
		}
	}
	return info(shown(m.To, to), &st), nil
}

// inside says whether a place lies in the directory that another one names.
func inside(p, dir *place) bool {
	if len(p.steps) <= len(dir.steps) {
		return false
	}
	for i := 1; i < len(dir.steps); i++ {
		if p.steps[i].name != dir.steps[i].name {
			return false
		}
	}
	return p.steps[len(dir.steps)].name == dir.name
}

// resolveDir returns the real path of a directory that a command may start in.
func (s *Server) resolveDir(path string) (string, *protocol.Fault) {
	var out string
	var fault *protocol.Fault
	s.asUser(func() {
		var p *place
		if p, fault = s.walk(path, true); fault != nil {
			return
		}
		defer p.close()
		switch {
		case !p.exists:
			fault = notFound
		case !p.isDir():
			fault = notDirectory
		default:
			name := p.name
			if name == "" {
				name = "."
			}
			if err := unix.Faccessat(p.dir(), name, unix.X_OK, unix.AT_EACCESS); err != nil {
				fault = fileFault("enter the directory", err)
				return
			}
			out = p.path()
		}
	})
	return out, fault
}
