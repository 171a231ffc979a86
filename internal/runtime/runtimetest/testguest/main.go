// Command testguest is PID 1 in the sandboxes of the driver tests.
package main

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"crownest.dev/crownest/internal/runtime/runtimetest/lineguest"
)

const socket = "@crownest-guest"

var generation = rand.Text()

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch args[0] {
	case "init":
		return serve()
	case "attach":
		return attach()
	case "hog":
		return hog(args[1])
	}
	return fmt.Errorf("unknown part %q", args[0])
}

// serve answers on the pipes it was born with, and on every socket it is handed.
func serve() error {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return err
	}
	go func() {
		// The other end may close at any time; that ends nothing but this connection.
		_ = lineguest.Serve(os.NewFile(3, "in"), os.NewFile(4, "out"), handle)
	}()
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return err
		}
		if f, err := receive(c); err == nil {
			go func() {
				defer f.Close()
				_ = lineguest.Serve(f, f, handle)
			}()
		}
		c.Close()
	}
}

func receive(c *net.UnixConn) (*os.File, error) {
	oob := make([]byte, syscall.CmsgSpace(4))
	_, n, _, _, err := c.ReadMsgUnix(make([]byte, 1), oob)
	if err != nil {
		return nil, err
	}
	msgs, err := syscall.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return nil, fmt.Errorf("no file: %w", err)
	}
	fds, err := syscall.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("no file: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "connection"), nil
}

func attach() error {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return err
	}
	defer c.Close()
	_, _, err = c.WriteMsgUnix([]byte{0}, syscall.UnixRights(3), nil)
	return err
}

func handle(words []string) string {
	switch words[0] {
	case "ping":
		return "pong"
	case "generation":
		return generation
	case "exit":
		os.Exit(7)
	case "read": // read FILE: its content on one line
		raw, err := os.ReadFile(words[1])
		if err != nil {
			return err.Error()
		}
		return string(bytes.ReplaceAll(raw, []byte("\n"), []byte(";")))
	case "fill": // fill FILE LIMIT: how much fits
		return fill(words[1], words[2])
	case "remove":
		return fmt.Sprint(os.Remove(words[1]))
	case "hog": // hog BYTES: how a process ends that uses so much memory
		err := exec.Command("/proc/self/exe", "hog", words[1]).Run()
		return fmt.Sprint(err)
	case "swarm": // swarm N BYTES: the same for N processes that wait for each other
		return swarm(words[1], words[2])
	}
	return "unknown request"
}

func swarm(count, bytes string) string {
	n, err := strconv.Atoi(count)
	if err != nil {
		return err.Error()
	}
	ends := map[string]int{}
	var cmds []*exec.Cmd
	var release []io.Closer
	for range n {
		cmd := exec.Command("/proc/self/exe", "hog", bytes)
		in, err := cmd.StdinPipe()
		if err != nil {
			return err.Error()
		}
		if err := cmd.Start(); err != nil {
			ends[err.Error()]++
			continue
		}
		cmds, release = append(cmds, cmd), append(release, in)
	}
	// Those that live keep what they have until each has had its chance.
	time.Sleep(3 * time.Second)
	for _, r := range release {
		r.Close()
	}
	for _, cmd := range cmds {
		ends[fmt.Sprint(cmd.Wait())]++
	}
	return fmt.Sprint(ends)
}

func fill(path, limit string) string {
	most, err := strconv.ParseInt(limit, 10, 64)
	if err != nil {
		return err.Error()
	}
	f, err := os.Create(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	block := []byte(strings.Repeat("x", 1<<20))
	var total int64
	for total < most {
		n, err := f.Write(block[:min(int64(len(block)), most-total)])
		total += int64(n)
		if err != nil {
			return fmt.Sprintf("%d %v", total, err)
		}
	}
	return fmt.Sprint(total)
}

func hog(bytes string) error {
	n, err := strconv.ParseInt(bytes, 10, 64)
	if err != nil {
		return err
	}
	var kept [][]byte
	for ; n > 0; n -= 1 << 20 {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		kept = append(kept, b)
	}
	_, err = io.Copy(io.Discard, os.Stdin) // keep it for as long as the caller wants
	runtime.KeepAlive(kept)
	return err
}
