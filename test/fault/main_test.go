// Package fault drives the real server with real sandboxes through what must not
// hurt: the server killed at any moment, restarts, hostile guests, thousands of
// starts and ends. It knows the wire contract and how sandboxes look from the
// host, nothing of the server's inside.
//
// It needs root and a built binary (CROWNEST_BIN, else bin/crownest); where one is
// missing it fails and says so, or skips in -short mode.
package fault

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"crownest.dev/crownest/test/testserver"
)

var (
	seed     = flag.Uint64("seed", 0, "seed of what is random; 0 = a new one, which is logged")
	faultFor = flag.Duration("for", 60*time.Second, "how long the server is killed again and again")
)

// template is what the sandboxes are made of: the smallest one.
const template = "base"

func TestMain(m *testing.M) {
	flag.Parse()
	if why := testserver.Cannot(); why != "" {
		fmt.Fprintln(os.Stderr, "fault:", why)
		if testing.Short() {
			os.Exit(0)
		}
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// random returns a source that the log tells how to repeat.
func random(t *testing.T) *rand.Rand {
	t.Helper()
	s := *seed
	if s == 0 {
		s = rand.Uint64()
	}
	t.Logf("-seed %d", s)
	return rand.New(rand.NewPCG(s, 0))
}

// start starts a server with these templates only and returns a client of it.
func start(t *testing.T, pool int, env ...string) (*testserver.Server, *testserver.Client) {
	t.Helper()
	s := testserver.New(t, testserver.Options{
		Template: template, Args: []string{"--pool", fmt.Sprint(pool)}, Env: env,
	})
	c, err := s.Client(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s, c
}

// wait lets time pass for the sake of the load, never for something to happen.
func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// within returns a context for one step of a test.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// nothingLeft stops the server, which must hold no sandbox, and wants the host to
// be as if there had been none.
func nothingLeft(t *testing.T, s *testserver.Server) {
	t.Helper()
	if err := s.Stop(within(t, time.Minute)); err != nil {
		t.Error(err)
	}
	left, err := s.Leaks()
	if err != nil {
		t.Error(err)
	}
	for _, l := range left {
		t.Error("left behind:", l)
	}
}
