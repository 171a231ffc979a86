//go:build linux

package server

import (
	"strings"

	"golang.org/x/sys/unix"

	"crownest.dev/crownest/internal/guest/protocol"
)

// maxLinks is how many symbolic links one path may lead through.
const maxLinks = 40

// maxDepth bounds the open descriptors of one walk.
const maxDepth = 256

// step is an opened directory on the way of a walk.
type step struct {
	fd   int
	name string
}

// place is where a path leads: an entry of an opened directory. Operations go
// through the descriptor and the one name, so nothing that changes on the way to
// it afterwards can lead them elsewhere.
type place struct {
	steps []step // from the workspace to the entry's directory
	name  string // "" for the workspace itself
	st    unix.Stat_t
	// exists is false if only the directory is there.
	exists bool
	// missing are the elements behind the first one that does not exist.
	missing []string
}

func (p *place) dir() int { return p.steps[len(p.steps)-1].fd }

func (p *place) close() {
	for _, s := range p.steps[1:] {
		_ = unix.Close(s.fd)
	}
}

// path is the absolute path, all links resolved.
func (p *place) path() string {
	var b strings.Builder
	b.WriteString(Workspace)
	for _, s := range p.steps[1:] {
		b.WriteByte('/')
		b.WriteString(s.name)
	}
	for _, name := range append([]string{p.name}, p.missing...) {
		if name != "" {
			b.WriteByte('/')
			b.WriteString(name)
		}
	}
	return b.String()
}

func (p *place) isDir() bool { return p.exists && p.st.Mode&unix.S_IFMT == unix.S_IFDIR }

func (p *place) isRegular() bool { return p.exists && p.st.Mode&unix.S_IFMT == unix.S_IFREG }

// elements splits a path of the host below the workspace.
func elements(path string) ([]string, *protocol.Fault) {
	switch {
	case path == "":
		return nil, invalid("the path is empty")
	case len(path) > protocol.MaxPath:
		return nil, invalid("the path is too long")
	case strings.IndexByte(path, 0) >= 0:
		return nil, invalid("the path contains a NUL byte")
	}
	rest := strings.Split(path, "/")
	if path[0] == '/' {
		var fault *protocol.Fault
		if rest, fault = belowWorkspace(rest); fault != nil {
			return nil, fault
		}
	}
	for _, e := range rest {
		if len(e) > protocol.MaxName {
			return nil, invalid("an element of the path is too long")
		}
	}
	return rest, nil
}

// belowWorkspace takes the workspace off the elements of an absolute path.
func belowWorkspace(rest []string) ([]string, *protocol.Fault) {
	for len(rest) > 0 && (rest[0] == "" || rest[0] == ".") {
		rest = rest[1:]
	}
	if len(rest) == 0 || rest[0] != Workspace[1:] {
		return nil, outside
	}
	return rest[1:], nil
}

// walk follows a path with the rights of the calling thread, each link by hand, so
// that no link leads out of the workspace. With follow false a link as the last
// element is the entry itself. The caller closes the place.
func (s *Server) walk(path string, follow bool) (*place, *protocol.Fault) {
	rest, fault := elements(path)
	if fault != nil {
		return nil, fault
	}
	p := &place{steps: []step{{fd: s.workspace}}}
	if fault := p.follow(rest, follow); fault != nil {
		p.close()
		return nil, fault
	}
	return p, nil
}

func (p *place) follow(rest []string, follow bool) *protocol.Fault {
	links := 0
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			if fault := p.up(); fault != nil {
				return fault
			}
			continue
		}
		last := onlyDots(rest)
		mustBeDir := last && len(rest) > 0
		fd, err := unix.Openat(p.dir(), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == unix.ENOENT {
			p.name = name
			for _, e := range rest {
				switch e {
				case "", ".":
				case "..":
					return notFound
				default:
					p.missing = append(p.missing, e)
				}
			}
			return nil
		}
		if err != nil {
			return fileFault("open", err)
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			_ = unix.Close(fd)
			return fileFault("stat", err)
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			if last && !mustBeDir {
				_ = unix.Close(fd)
				p.name, p.st, p.exists = name, st, true
				return nil
			}
			if len(p.steps) >= maxDepth {
				_ = unix.Close(fd)
				return invalid("the path is too deep")
			}
			p.steps = append(p.steps, step{fd: fd, name: name})
		case unix.S_IFLNK:
			_ = unix.Close(fd)
			if last && !follow && !mustBeDir {
				p.name, p.st, p.exists = name, st, true
				return nil
			}
			if links++; links > maxLinks {
				return &protocol.Fault{Reason: protocol.ReasonInvalid, Text: "too many symbolic links"}
			}
			target, fault := readlink(p.dir(), name)
			if fault != nil {
				return fault
			}
			onward := strings.Split(target, "/")
			if target[0] == '/' {
				if onward, fault = belowWorkspace(onward); fault != nil {
					return fault
				}
				for len(p.steps) > 1 {
					_ = p.up()
				}
			}
			rest = append(onward, rest...)
		default:
			_ = unix.Close(fd)
			if !last || mustBeDir {
				return notDirectory
			}
			p.name, p.st, p.exists = name, st, true
			return nil
		}
	}
	// The path ends in a directory that was entered, or in the workspace itself.
	p.exists = true
	if err := unix.Fstat(p.dir(), &p.st); err != nil {
		return fileFault("stat", err)
	}
	if n := len(p.steps); n > 1 {
		p.name = p.steps[n-1].name
		return p.up()
	}
	return nil
}

// up goes to the parent of the walk, by the way it came.
func (p *place) up() *protocol.Fault {
	n := len(p.steps)
	if n == 1 {
		return outside
	}
	_ = unix.Close(p.steps[n-1].fd)
	p.steps = p.steps[:n-1]
	return nil
}

// onlyDots says whether elements name nothing more.
func onlyDots(rest []string) bool {
	for _, e := range rest {
		if e != "" && e != "." {
			return false
		}
	}
	return true
}

func readlink(dir int, name string) (string, *protocol.Fault) {
	buf := make([]byte, protocol.MaxPath)
	n, err := unix.Readlinkat(dir, name, buf)
	if err != nil {
		return "", fileFault("read the link", err)
	}
	if n == 0 || n == len(buf) {
		return "", invalid("a symbolic link is too long")
	}
	return string(buf[:n]), nil
}

// makeParents creates the directories that are missing before the entry.
func (p *place) makeParents() *protocol.Fault {
	for len(p.missing) > 0 {
		err := unix.Mkdirat(p.dir(), p.name, 0o755)
		if err != nil && err != unix.EEXIST {
			return fileFault("create the directory", err)
		}
		fd, err := unix.Openat(p.dir(), p.name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fileFault("open the directory", err)
		}
		if len(p.steps) >= maxDepth {
			_ = unix.Close(fd)
			return invalid("the path is too deep")
		}
		p.steps = append(p.steps, step{fd: fd, name: p.name})
		p.name, p.missing = p.missing[0], p.missing[1:]
	}
	return nil
}

var (
	outside      = &protocol.Fault{Reason: protocol.ReasonOutside, Text: "the path leads outside of /workspace"}
	notFound     = &protocol.Fault{Reason: protocol.ReasonNotFound, Text: "no such file or directory"}
	noParent     = &protocol.Fault{Reason: protocol.ReasonNoParent, Text: "the parent directory does not exist"}
	notDirectory = &protocol.Fault{Reason: protocol.ReasonNotDirectory, Text: "not a directory"}
	isDirectory  = &protocol.Fault{Reason: protocol.ReasonIsDirectory, Text: "the path is a directory"}
	exists       = &protocol.Fault{Reason: protocol.ReasonExists, Text: "a file of that name exists already"}
	notEmpty     = &protocol.Fault{Reason: protocol.ReasonNotEmpty, Text: "the directory is not empty"}
	denied       = &protocol.Fault{Reason: protocol.ReasonDenied, Text: "permission denied"}
)

func invalid(text string) *protocol.Fault {
	return &protocol.Fault{Reason: protocol.ReasonInvalid, Text: text}
}

// fileFault says what an error of the file system means to the host.
func fileFault(what string, err error) *protocol.Fault {
	switch err {
	case unix.ENOENT:
		return notFound
	case unix.EACCES, unix.EPERM, unix.EROFS:
		return denied
	case unix.ENOTDIR:
		return notDirectory
	case unix.EISDIR:
		return isDirectory
	case unix.EEXIST:
		return exists
	case unix.ENOTEMPTY:
		return notEmpty
	case unix.ELOOP:
		// Only a link that came in since the walk makes the kernel say this.
		return invalid("a symbolic link was put in the way")
	case unix.ENAMETOOLONG:
		return invalid("the name is too long")
	case unix.ENOSPC, unix.EDQUOT:
		return &protocol.Fault{Reason: protocol.ReasonQuota, Detail: "sandbox_disk_bytes", Text: "the sandbox's disk is full"}
	}
	return &protocol.Fault{Reason: protocol.ReasonInternal, Text: what + ": " + err.Error()}
}
