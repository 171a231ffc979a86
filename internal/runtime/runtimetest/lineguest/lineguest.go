// Package lineguest is the protocol of the guest that the driver conformance
// tests use instead of the real one: one line asks, one line answers. It needs so
// little that the tests need neither the product's guest nor a Debian image.
package lineguest

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

// Handler answers one request; words are the request split at blanks.
type Handler func(words []string) string

// Serve answers requests until the connection ends.
func Serve(r io.Reader, w io.Writer, h Handler) error {
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		answer := ""
		if words := strings.Fields(sc.Text()); len(words) > 0 {
			answer = h(words)
		}
		if _, err := fmt.Fprintln(w, answer); err != nil {
			return err
		}
	}
	return sc.Err()
}

// Ask makes one request.
func Ask(conn net.Conn, request string, timeout time.Duration) (string, error) {
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintln(conn, request); err != nil {
		return "", fmt.Errorf("asking %q: %w", request, err)
	}
	// Byte by byte, so that nothing beyond the answer is taken from the connection.
	var answer strings.Builder
	b := make([]byte, 1)
	for {
		if _, err := io.ReadFull(conn, b); err != nil {
			return "", fmt.Errorf("asking %q: %w", request, err)
		}
		if b[0] == '\n' {
			return answer.String(), nil
		}
		answer.WriteByte(b[0])
	}
}
