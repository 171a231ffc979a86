package runsc

import (
	"context"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/control/client"
	"gvisor.dev/gvisor/pkg/sentry/control"
	"gvisor.dev/gvisor/pkg/sentry/kernel/auth"
	"gvisor.dev/gvisor/runsc/boot"
)

// Attach opens a new connection to the guest: it runs the guest binary once more
// inside, as root, with args; that process finds one end of a socket pair as fd 3
// and hands it to PID 1.
func Attach(ctx context.Context, controlSocket, id string, args []string) (net.Conn, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	host, inside := os.NewFile(uintptr(fds[0]), "attach host"), os.NewFile(uintptr(fds[1]), "attach guest")
	defer host.Close()
	defer inside.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	defer null.Close()

	// A short path to the socket keeps within the limit of socket addresses.
	sock, err := unix.Open(controlSocket, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening control socket: %w", err)
	}
	defer unix.Close(sock)
	sentry, err := client.ConnectTo(fmt.Sprintf("/proc/self/fd/%d", sock))
	if err != nil {
		return nil, fmt.Errorf("connecting to sentry: %w", err)
	}
	defer sentry.Close()
	// The client knows no deadline, and its Close waits for the call under way.
	// Only the end of the socket ends a call to a sentry that hangs.
	stop := context.AfterFunc(ctx, func() { _ = sentry.Socket.Shutdown() })
	defer stop()

	var pid int32
	err = sentry.Call(boot.ContMgrExecuteAsync, &control.ExecArgs{
		Argv: append([]string{GuestPath}, args...), WorkingDirectory: "/", ContainerID: id,
		Capabilities: &auth.TaskCapabilities{}, NoNewPrivileges: true,
		FilePayload: control.NewFilePayload(map[int]*os.File{0: null, 1: null, 2: null, 3: inside}, nil),
	}, &pid)
	if err == nil {
		var status unix.WaitStatus
		err = sentry.Call(boot.ContMgrWaitPID, &boot.WaitPIDArgs{PID: pid, CID: id}, &status)
		if err == nil && status != 0 {
			err = fmt.Errorf("attach helper ended with status %#x", int(status))
		}
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("attaching to guest: %w", ctx.Err())
	}
	if err != nil {
		return nil, fmt.Errorf("attaching to guest: %w", err)
	}
	conn, err := net.FileConn(host)
	if err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	return conn, nil
}
