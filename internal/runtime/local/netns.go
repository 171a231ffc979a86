package local

import (
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// newLoopbackNetNS makes a network namespace that has a working loopback device
// and nothing else. Sandboxes share it: gVisor's own stack keeps their loopbacks
// apart, and there is nothing else in it to reach. It exists as long as the file
// is open or a sandbox is in it, so nothing of it can be left behind.
func newLoopbackNetNS() (*os.File, error) {
	type result struct {
		f   *os.File
		err error
	}
	done := make(chan result)
	go func() {
		// The thread is never unlocked: it ends with the goroutine.
		runtime.LockOSThread()
		f, err := func() (*os.File, error) {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return nil, err
			}
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return nil, err
			}
			if err := netlink.LinkSetUp(lo); err != nil {
				return nil, err
			}
			return os.Open("/proc/thread-self/ns/net")
		}()
		done <- result{f, err}
	}()
	r := <-done
	if r.err != nil {
		return nil, fmt.Errorf("making network namespace: %w", r.err)
	}
	return r.f, nil
}
