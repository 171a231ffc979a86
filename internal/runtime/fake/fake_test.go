package fake_test

import (
	"context"
	"net"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"crownest.dev/crownest/internal/runtime"
	"crownest.dev/crownest/internal/runtime/fake"
	"crownest.dev/crownest/internal/runtime/runtimetest"
	"crownest.dev/crownest/internal/runtime/runtimetest/lineguest"
	"crownest.dev/crownest/internal/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	var mu sync.Mutex
	hosts := map[string]*fake.Host{}
	host := func(dir string) *fake.Host {
		mu.Lock()
		defer mu.Unlock()
		if hosts[dir] == nil {
			var h *fake.Host
			h = fake.NewHost(func(_ context.Context, id string, conn net.Conn) {
				_ = lineguest.Serve(conn, conn, func(words []string) string {
					switch words[0] {
					case "ping":
						return "pong"
					case "generation":
						return "of " + id
					case "exit":
						h.End(id, "the test asked for it")
						conn.Close()
					}
					return ""
				})
			})
			hosts[dir] = h
		}
		return hosts[dir]
	}
	runtimetest.Run(t, runtimetest.Subject{
		Open: func(_ *testing.T, dir string, ready runtime.ReadyFunc, capacity int) runtime.Driver {
			return fake.New(host(dir), fake.Options{Ready: ready, Capacity: capacity})
		},
		Spec: runtime.Spec{ImageID: "tplv_test", ImagePath: "image", Resources: sandbox.DefaultResources},
		Leftovers: func(t *testing.T, dir string) []string {
			d := fake.New(host(dir), fake.Options{})
			defer d.Close(t.Context())
			list, _ := d.List(t.Context())
			var left []string
			for _, in := range list {
				left = append(left, in.ID)
			}
			return left
		},
		Cycles: 200,
	})
}
