//go:build linux

package server

import (
	"sync"

	"crownest.dev/crownest/internal/guest/protocol"
)

// operations remembers what changes have been made, so that a host which lost the
// answer can ask again without making them twice. Failures changed nothing and
// are not remembered.
type operations struct {
	mu      sync.Mutex
	results map[string]*operation
	order   []string
}

type operation struct {
	done  chan struct{}
	info  *protocol.FileInfo
	fault *protocol.Fault
}

// once runs f unless the operation was done before. While it is under way, as over
// an earlier connection, a second call waits for it. An empty id is always new.
func (o *operations) once(id string, f func() (*protocol.FileInfo, *protocol.Fault)) (*protocol.FileInfo, *protocol.Fault) {
	if id == "" {
		return f()
	}
	for {
		o.mu.Lock()
		op := o.results[id]
		if op == nil {
			break
		}
		o.mu.Unlock()
		<-op.done
		if op.fault == nil {
			return op.info, nil
		}
	}
	op := &operation{done: make(chan struct{})}
	o.results[id] = op
	o.mu.Unlock()

	op.info, op.fault = f()

	o.mu.Lock()
	if op.fault != nil {
		delete(o.results, id)
	} else if o.order = append(o.order, id); len(o.order) > keptOperations {
		delete(o.results, o.order[0])
		o.order = o.order[1:]
	}
	o.mu.Unlock()
	close(op.done)
	return op.info, op.fault
}
